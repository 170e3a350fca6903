//! `memkvctl reload`: servers read their configuration again.

use std::fmt::Write as _;
use std::time::Duration;

use memkv_admin_api::Reloaded;
use serde::Serialize;

use crate::blocks::say;
use crate::cli::{Global, ReloadArgs};
use crate::connect;
use crate::error::{CtlError, Exit};
use crate::http::{self, HttpError};
use crate::status::admin_address;

/// What one server answered.
#[derive(Debug, Serialize)]
struct Report {
    server: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    reloaded: Option<Reloaded>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

pub fn run(global: &Global, args: &ReloadArgs) -> Result<Exit, CtlError> {
    let servers = match global.server.as_slice() {
        [] => connect::server_names(&connect::own_config(global, None)?),
        named => named.to_vec(),
    };
    let mut first = None;
    let mut reports = Vec::with_capacity(servers.len());
    for server in servers {
        let (reloaded, error) = match reload(&server, args.timeout) {
            Ok(reloaded) => (Some(reloaded), None),
            Err(error) => {
                let told = error.story();
                first.get_or_insert(error);
                (None, Some(told))
            }
        };
        reports.push(Report { server, reloaded, error });
    }
    if global.json {
        say(&serde_json::json!(reports).to_string())?;
    } else {
        say(render(&reports).trim_end())?;
    }
    let waits = |report: &Report| {
        report.reloaded.as_ref().is_some_and(|reloaded| !reloaded.needs_restart.is_empty())
    };
    let failed = |report: &Report| {
        report.reloaded.as_ref().is_some_and(|reloaded| !reloaded.drives_failed.is_empty())
    };
    match first {
        Some(error) => Err(error),
        None if reports.iter().any(failed) => Ok(Exit::Failed),
        None if reports.iter().any(waits) => Ok(Exit::NeedsRestart),
        None => Ok(Exit::Done),
    }
}

fn reload(server: &str, timeout: Duration) -> Result<Reloaded, CtlError> {
    let admin =
        admin_address(server).ok_or_else(|| CtlError::BadServer { server: server.to_owned() })?;
    let answer = http::post(&admin, "/v1/reload", timeout)?;
    let not_ours = || CtlError::Http(HttpError::NotHttp { server: admin.clone() });
    if answer.code == 200 {
        return serde_json::from_slice(&answer.body).map_err(|_| not_ours());
    }
    // A refusal says why; any other answer is not that of a node that can reload.
    let told: Option<serde_json::Value> = serde_json::from_slice(&answer.body).ok();
    let reason = told.as_ref().and_then(|told| told["reason"].as_str());
    Err(match reason {
        Some(reason) => {
            CtlError::NotReloaded { server: server.to_owned(), reason: reason.to_owned() }
        }
        None => CtlError::AdminCode { server: admin, code: answer.code },
    })
}

fn render(reports: &[Report]) -> String {
    let mut text = String::new();
    for report in reports {
        let Some(reloaded) = &report.reloaded else {
            writeln!(text, "{}: not reloaded", report.server).expect("writing to a string");
            continue;
        };
        let Reloaded { file, generation, applied, needs_restart, sessions_ended, .. } = reloaded;
        let Reloaded { drives_joined, drives_failed, drives_dropped, warnings, .. } = reloaded;
        let same = applied.is_empty() && drives_joined.is_empty() && drives_dropped.is_empty();
        let what = if same { "nothing changed" } else { "reloaded" };
        let mut line = format!("{}: {what}, configuration {generation} from {file}", report.server);
        for (word, keys) in [("applied", applied), ("needs a restart", needs_restart)] {
            if !keys.is_empty() {
                line += &format!("\n  {word}: {}", keys.join(", "));
            }
        }
        if *sessions_ended > 0 {
            line += &format!("\n  sessions of retired keys that end: {sessions_ended}");
        }
        drives_joined.iter().for_each(|drive| line += &format!("\n  drive joined: {drive}"));
        drives_dropped.iter().for_each(|path| line += &format!("\n  drive given up: {path}"));
        drives_failed.iter().for_each(|why| line += &format!("\n  drive did not join: {why}"));
        warnings.iter().for_each(|warning| line += &format!("\n  warning: {warning}"));
        writeln!(text, "{line}").expect("writing to a string");
    }
    text
}
