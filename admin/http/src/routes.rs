//! What is answered to which request.
//!
//! Six paths that read, two of which take a query, and two that change something: one has the
//! configuration read again and takes nothing, one takes a drive in again that a query names. Everything
//! else is a 404 or a 405 with a JSON body, so that a script
//! that asks for JSON never has to parse anything else.

use crate::metrics::Exporter;
use memkv_admin_api::{
    KeysRequest, NoAnswer, NodeAdmin, PAGE_DEFAULT, PAGE_MAX, Readiness, ReadmitError, ReloadError,
};
use serde_json::json;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ops::RangeInclusive;
use std::sync::Arc;
use warp::Filter;
use warp::filters::path::FullPath;
use warp::http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use warp::http::{Method, StatusCode};
use warp::reply::Response;

const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";

/// What the routes answer from.
pub struct State {
    /// The node.
    pub node: Arc<dyn NodeAdmin>,
    /// The way from its metrics to text.
    pub exporter: Exporter,
}

/// All routes as one filter that always answers.
pub fn routes(
    state: Arc<State>,
) -> impl Filter<Extract = (Response,), Error = Infallible> + Clone + Send + Sync + 'static {
    // A query that cannot be read is an empty one to the paths that take none.
    let query = warp::query::<Query>()
        .map(Some)
        .or_else(|_| std::future::ready(Ok::<_, Infallible>((None,))));
    warp::method().and(warp::path::full()).and(query).then(
        move |method: Method, path: FullPath, query: Option<Query>| {
            let state = state.clone();
            async move {
                match path.as_str() {
                    RELOAD => reload(state, &method).await,
                    READMIT => readmit(state, &method, query).await,
                    path => answer(&state, &method, path, query),
                }
            }
        },
    )
}

/// The fields of a query by name, decoded.
type Query = BTreeMap<String, String>;

/// The paths there are.
const KNOWN: [&str; 8] = [
    "/v1/health",
    "/v1/ready",
    "/v1/status",
    "/v1/metrics",
    "/v1/namespaces",
    "/v1/keys",
    RELOAD,
    READMIT,
];

// Those that change something.
const RELOAD: &str = "/v1/reload";
const READMIT: &str = "/v1/drives/readmit";

fn answer(state: &State, method: &Method, path: &str, query: Option<Query>) -> Response {
    let route: fn(&State, Option<Query>) -> Response = match path {
        "/v1/health" => |state, _| health(state),
        "/v1/ready" => |state, _| ready(state),
        "/v1/status" => |state, _| status(state),
        "/v1/metrics" => |state, _| metrics(state),
        "/v1/namespaces" => namespaces,
        "/v1/keys" => keys,
        _ => {
            return json_body(
                StatusCode::NOT_FOUND,
                &json!({"error": "not found", "path": path, "known": KNOWN}),
            );
        }
    };
    // The body of an answer to HEAD is left out by the HTTP library.
    if method == Method::GET || method == Method::HEAD {
        return route(state, query);
    }
    not_allowed(method, "GET", "GET, HEAD")
}

fn not_allowed(method: &Method, allowed: &str, header: &'static str) -> Response {
    let error =
        json!({"error": "method not allowed", "method": method.as_str(), "allowed": allowed});
    let mut response = json_body(StatusCode::METHOD_NOT_ALLOWED, &error);
    response.headers_mut().insert(ALLOW, header.parse().expect("a plain header"));
    response
}

/// Has the configuration read again, on a thread that may wait while others are answered here.
async fn reload(state: Arc<State>, method: &Method) -> Response {
    if method != Method::POST {
        return not_allowed(method, "POST", "POST");
    }
    let reloaded = tokio::task::spawn_blocking(move || state.node.reload()).await;
    let error = match reloaded {
        Ok(Ok(reloaded)) => return json_body(StatusCode::OK, &json!(reloaded)),
        Ok(Err(error)) => error,
        Err(panicked) => {
            tracing::error!(%panicked, "a reload ended early");
            ReloadError::NoAnswer(NoAnswer)
        }
    };
    let code = match error {
        ReloadError::NoFile => StatusCode::CONFLICT,
        ReloadError::Refused(_) => StatusCode::UNPROCESSABLE_ENTITY,
        ReloadError::NoAnswer(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    json_body(code, &json!({"error": "not reloaded", "reason": error.to_string()}))
}

/// Takes a drive in again, on a thread that may wait while others are answered here.
async fn readmit(state: Arc<State>, method: &Method, query: Option<Query>) -> Response {
    if method != Method::POST {
        return not_allowed(method, "POST", "POST");
    }
    let path = Fields::of(query).and_then(|mut fields| {
        let path = fields.0.remove("path").filter(|path| !path.is_empty());
        fields.end(&["path"])?;
        path.ok_or_else(|| BadQuery("path names the drive".to_owned()))
    });
    let path = match path {
        Ok(path) => path,
        Err(wrong) => return wrong.response(),
    };
    let readmitted = tokio::task::spawn_blocking(move || state.node.readmit(&path)).await;
    let error = match readmitted {
        Ok(Ok(readmitted)) => return json_body(StatusCode::OK, &json!(readmitted)),
        Ok(Err(error)) => error,
        Err(panicked) => {
            tracing::error!(%panicked, "a readmission ended early");
            ReadmitError::NoAnswer(NoAnswer)
        }
    };
    let code = match error {
        ReadmitError::Refused(_) => StatusCode::UNPROCESSABLE_ENTITY,
        ReadmitError::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        ReadmitError::NoAnswer(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    json_body(code, &json!({"error": "not readmitted", "reason": error.to_string()}))
}

fn health(state: &State) -> Response {
    let health = state.node.health();
    let code = StatusCode::from_u16(health.status.http_code()).expect("200 or 503");
    json_body(code, &json!(health))
}

fn ready(state: &State) -> Response {
    match state.node.ready() {
        Readiness::Ready => body(StatusCode::OK, TEXT, "ok".to_owned()),
        Readiness::NotReady { reason } => json_body(
            StatusCode::SERVICE_UNAVAILABLE,
            &json!({"error": "not ready", "reason": reason}),
        ),
    }
}

fn status(state: &State) -> Response {
    json_body(StatusCode::OK, &json!(state.node.status()))
}

fn metrics(state: &State) -> Response {
    match state.exporter.text(&*state.node) {
        Ok(text) => body(StatusCode::OK, prometheus::TEXT_FORMAT, text),
        Err(error) => {
            tracing::error!(%error, "metrics cannot be shown");
            json_body(
                StatusCode::INTERNAL_SERVER_ERROR,
                &json!({"error": "metrics cannot be shown", "reason": error.to_string()}),
            )
        }
    }
}

fn namespaces(state: &State, query: Option<Query>) -> Response {
    let after = Fields::of(query).and_then(|mut fields| {
        let after = fields.number("after", 0..=u64::MAX, 0)?;
        fields.end(&["after"]).map(|()| after)
    });
    match after {
        Ok(after) => page(state.node.namespaces(after).map(|page| json!(page))),
        Err(wrong) => wrong.response(),
    }
}

fn keys(state: &State, query: Option<Query>) -> Response {
    let request = Fields::of(query).and_then(|mut fields| {
        let limits = 1..=u64::from(PAGE_MAX);
        let request = KeysRequest {
            tenant: fields.0.remove("tenant"),
            namespace: fields.0.remove("namespace"),
            after: fields.number("after", 0..=u64::MAX, 0)?,
            limit: fields.number("limit", limits, u64::from(PAGE_DEFAULT))? as u32,
        };
        fields.end(&["tenant", "namespace", "after", "limit"]).map(|()| request)
    });
    match request {
        Ok(request) => page(state.node.keys(&request).map(|page| json!(page))),
        Err(wrong) => wrong.response(),
    }
}

fn page(page: Result<serde_json::Value, NoAnswer>) -> Response {
    match page {
        Ok(page) => json_body(StatusCode::OK, &page),
        Err(error) => {
            let told = json!({"error": "no answer", "reason": error.to_string()});
            json_body(StatusCode::SERVICE_UNAVAILABLE, &told)
        }
    }
}

/// The fields of a query that were not read yet.
struct Fields(Query);

/// What is wrong with a query.
struct BadQuery(String);

impl BadQuery {
    fn response(self) -> Response {
        let told = json!({"error": "bad query", "reason": self.0});
        json_body(StatusCode::BAD_REQUEST, &told)
    }
}

impl Fields {
    fn of(query: Option<Query>) -> Result<Fields, BadQuery> {
        query.map(Fields).ok_or_else(|| BadQuery("it cannot be read".to_owned()))
    }

    fn number(
        &mut self,
        name: &str,
        allowed: RangeInclusive<u64>,
        default: u64,
    ) -> Result<u64, BadQuery> {
        let Some(text) = self.0.remove(name) else { return Ok(default) };
        let number = text.parse().ok().filter(|number| allowed.contains(number));
        let (least, most) = (allowed.start(), allowed.end());
        number.ok_or_else(|| BadQuery(format!("{name} is a number from {least} to {most}")))
    }

    /// Nothing may be left: a field with a wrong name would be taken for one that was heeded.
    fn end(self, known: &[&str]) -> Result<(), BadQuery> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(name) => {
                Err(BadQuery(format!("{name} is unknown; there are {}", known.join(", "))))
            }
        }
    }
}

fn json_body(code: StatusCode, value: &serde_json::Value) -> Response {
    body(code, JSON, format!("{value}\n"))
}

fn body(code: StatusCode, kind: &'static str, text: String) -> Response {
    let mut response = Response::new(text.into());
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, kind.parse().expect("a plain header"));
    headers.insert(CACHE_CONTROL, "no-store".parse().expect("a plain header"));
    response
}
