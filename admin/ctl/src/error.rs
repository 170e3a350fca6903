//! What can go wrong, and which exit code it ends in.

use crate::http::HttpError;
use memkv_client::{ClientError, ConfigError};
use memkv_workload::bench::BenchError;
use memkv_workload::store::FailureKind;
use memkv_workload::trace::TraceError;
use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use thiserror::Error;

/// How the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Done,
    /// A key is missing, or something failed.
    Failed,
    /// The command line or the client configuration is wrong.
    Usage,
    /// A server cannot be reached.
    Unreachable,
    /// Some of what a configuration changed waits for a restart.
    NeedsRestart,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        match exit {
            Exit::Done => Self::SUCCESS,
            Exit::Failed => Self::from(1),
            // What clap exits with, too.
            Exit::Usage => Self::from(2),
            Exit::Unreachable => Self::from(3),
            Exit::NeedsRestart => Self::from(4),
        }
    }
}

/// Why a command ended early.
#[derive(Debug, Error)]
pub enum CtlError {
    /// The client configuration cannot be used.
    #[error("client configuration")]
    Config(#[from] ConfigError),
    /// A call failed.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// An admin endpoint could not be asked.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// A server's name is not `host:port`, or the port leaves none for the admin endpoint.
    #[error("`{server}` is not a server; write HOST:PORT")]
    BadServer {
        /// As it was named.
        server: String,
    },
    /// An admin endpoint answered something unexpected.
    #[error("{server} answered with HTTP code {code}")]
    AdminCode {
        /// The admin address.
        server: String,
        /// The code.
        code: u16,
    },
    /// A server did not take its configuration.
    #[error("{server}: {reason}")]
    NotReloaded {
        /// The server.
        server: String,
        /// What it said.
        reason: String,
    },
    /// A server did not take a drive in.
    #[error("{server}: {reason}")]
    NotReadmitted {
        /// The server.
        server: String,
        /// What it said.
        reason: String,
    },
    /// A drive is one server's.
    #[error("name the one server whose drive it is: --server HOST:PORT")]
    OneServer,
    /// A server says that it is not well.
    #[error("{server} is unhealthy")]
    Unhealthy {
        /// The server.
        server: String,
    },
    /// A file cannot be read or written.
    #[error("{}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// What was to be stored is larger than any value.
    #[error("{}: more than 64 MiB; a block is at most that large", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// Standard output is a terminal, which would not survive a block's bytes.
    #[error("standard output is a terminal; give -o FILE, or -o - to print the bytes all the same")]
    Terminal,
    /// Standard output is gone.
    #[error("cannot write to standard output")]
    Output(#[source] io::Error),
    /// A bench could not be run.
    #[error(transparent)]
    Bench(#[from] BenchError),
    /// A trace could not be read.
    #[error(transparent)]
    Trace(#[from] TraceError),
}

impl CtlError {
    /// The exit code.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Config(_) | Self::BadServer { .. } | Self::OneServer => Exit::Usage,
            Self::Client(ClientError::Config(_) | ClientError::BadKey { .. }) => Exit::Usage,
            Self::Client(error) if error.is_server_lost() => Exit::Unreachable,
            Self::Http(_) => Exit::Unreachable,
            Self::Bench(BenchError::ServerCpu(failure)) if is_lost(failure.kind) => {
                Exit::Unreachable
            }
            _ => Exit::Failed,
        }
    }

    /// The error and its causes in one line.
    pub fn story(&self) -> String {
        let mut line = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            let text = error.to_string();
            if !line.ends_with(&text) {
                line.push_str(": ");
                line.push_str(&text);
            }
            cause = error.source();
        }
        line
    }
}

/// Whether a failure means that a server is not there.
pub fn is_lost(kind: FailureKind) -> bool {
    matches!(kind, FailureKind::Unavailable | FailureKind::Timeout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_end_in_their_codes() {
        let io = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let server = || "a:1".to_owned();
        let table = [
            (CtlError::BadServer { server: server() }, Exit::Usage),
            (CtlError::Client(ClientError::BadKey { length: 0 }), Exit::Usage),
            (CtlError::Client(ClientError::Timeout { server: "a:1".into() }), Exit::Unreachable),
            (CtlError::Client(ClientError::Full { server: "a:1".into() }), Exit::Failed),
            (HttpError::Connect { server: server(), source: io() }.into(), Exit::Unreachable),
            (CtlError::Unhealthy { server: server() }, Exit::Failed),
        ];
        for (error, exit) in table {
            assert_eq!(error.exit(), exit, "{error}");
        }
    }

    #[test]
    fn the_story_names_every_cause_once() {
        let source = io::Error::other("no cable");
        let error = CtlError::Http(HttpError::Connect { server: "a:1".into(), source });
        assert_eq!(error.story(), "cannot reach a:1: no cable");
    }
}
