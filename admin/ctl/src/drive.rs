//! `memkvctl drive`: the drives of a server that runs.

use memkv_admin_api::Readmitted;

use crate::blocks::say;
use crate::cli::{Global, ReadmitArgs};
use crate::connect;
use crate::error::{CtlError, Exit};
use crate::http::{self, HttpError};
use crate::list::encoded;
use crate::status::admin_address;

pub fn readmit(global: &Global, args: &ReadmitArgs) -> Result<Exit, CtlError> {
    let servers = match global.server.as_slice() {
        [] => connect::server_names(&connect::own_config(global, None)?),
        named => named.to_vec(),
    };
    let [server] = &servers[..] else { return Err(CtlError::OneServer) };
    let admin =
        admin_address(server).ok_or_else(|| CtlError::BadServer { server: server.to_owned() })?;
    let path = format!("/v1/drives/readmit?path={}", encoded(&args.path));
    let answer = http::post(&admin, &path, args.timeout)?;
    if answer.code == 200 {
        let not_ours = |_| CtlError::Http(HttpError::NotHttp { server: admin.clone() });
        let Readmitted { path, uuid } = serde_json::from_slice(&answer.body).map_err(not_ours)?;
        match global.json {
            true => {
                say(&serde_json::json!({"server": server, "path": path, "uuid": uuid}).to_string())?
            }
            false => say(&format!("{server}: {path} readmitted, empty, as drive {uuid}"))?,
        }
        return Ok(Exit::Done);
    }
    // A refusal says why; any other answer is not that of a node that takes drives in.
    let told: Option<serde_json::Value> = serde_json::from_slice(&answer.body).ok();
    let reason = told.as_ref().and_then(|told| told["reason"].as_str());
    Err(match reason {
        Some(reason) => {
            CtlError::NotReadmitted { server: server.to_owned(), reason: reason.to_owned() }
        }
        None => CtlError::AdminCode { server: admin, code: answer.code },
    })
}
