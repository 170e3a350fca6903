//! What is answered to which request.
//!
//! Four paths, reading only. Everything else is a 404 or a 405 with a JSON body, so that a script
//! that asks for JSON never has to parse anything else.

use crate::metrics::Exporter;
use memkv_admin_api::{NodeAdmin, Readiness};
use serde_json::json;
use std::convert::Infallible;
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
    warp::method()
        .and(warp::path::full())
        .map(move |method: Method, path: FullPath| answer(&state, &method, path.as_str()))
}

fn answer(state: &State, method: &Method, path: &str) -> Response {
    let route: fn(&State) -> Response = match path {
        "/v1/health" => health,
        "/v1/ready" => ready,
        "/v1/status" => status,
        "/v1/metrics" => metrics,
        _ => {
            let known = ["/v1/health", "/v1/ready", "/v1/status", "/v1/metrics"];
            return json_body(
                StatusCode::NOT_FOUND,
                &json!({"error": "not found", "path": path, "known": known}),
            );
        }
    };
    // The body of an answer to HEAD is left out by the HTTP library.
    if method == Method::GET || method == Method::HEAD {
        return route(state);
    }
    let error = json!({"error": "method not allowed", "method": method.as_str(), "allowed": "GET"});
    let mut response = json_body(StatusCode::METHOD_NOT_ALLOWED, &error);
    response.headers_mut().insert(ALLOW, "GET, HEAD".parse().expect("a plain header"));
    response
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
