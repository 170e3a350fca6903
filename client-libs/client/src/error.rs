//! What can go wrong, as a caller sees it and as a connection sees it.

use std::error::Error;
use std::io::Write as _;
use std::sync::Arc;

use memkv_net::NetError;
use memkv_wire::{FrameError, MetaError, Status};

use crate::config::ConfigError;

/// Why a call, or one item of a batch, has no result.
///
/// What matters to a caller is whether a put may have happened: [`Timeout`](ClientError::Timeout) and
/// [`Broken`](ClientError::Broken) leave that unknown, every other error means that nothing was stored or
/// deleted by this call.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ClientError {
    /// The configuration makes no sense.
    #[error("the configuration makes no sense")]
    Config(#[source] Arc<ConfigError>),
    /// A key has 1 to 512 bytes.
    #[error("a key has 1 to {} bytes, this one has {length}", memkv_wire::MAX_KEY)]
    BadKey {
        /// Bytes of the key.
        length: usize,
    },
    /// A value has at least one byte.
    #[error("a value has at least one byte")]
    EmptyValue,
    /// The value is longer than the server, or the protocol (64 MiB), takes.
    #[error("a value of {length} bytes is longer than the {limit} that the server takes")]
    TooLarge {
        /// Bytes of the value.
        length: u64,
        /// Most bytes.
        limit: u64,
    },
    /// The server, or every connection to it, was busy until the deadline. Nothing was done.
    #[error("{server} is busy, try again after {retry_ms} ms")]
    Busy {
        /// Which server.
        server: Arc<str>,
        /// When to try again; 0 when no connection became free.
        retry_ms: u32,
    },
    /// No room that the server could make.
    #[error("{server} is full")]
    Full {
        /// Which server.
        server: Arc<str>,
    },
    /// A value of another length is stored under this key.
    #[error("a value of {length} bytes is stored under this key (generation {generation})")]
    Conflict {
        /// Bytes of the stored value.
        length: u64,
        /// Its generation.
        generation: u64,
    },
    /// The key has another generation than the one named.
    #[error("the key has generation {generation}")]
    GenerationMismatch {
        /// The generation it has, 0 for none.
        generation: u64,
    },
    /// The bytes of a put were damaged on the way. Nothing was stored.
    #[error("the bytes were damaged on the way to {server}")]
    Corrupt {
        /// Which server.
        server: Arc<str>,
    },
    /// A drive of the server failed under this request.
    #[error("a drive of {server} failed")]
    Io {
        /// Which server.
        server: Arc<str>,
    },
    /// No answer within the deadline: whether the request was carried out is unknown.
    #[error("{server} did not answer in time; whether the request was carried out is unknown")]
    Timeout {
        /// Which server.
        server: Arc<str>,
    },
    /// The server cannot be reached, so nothing was asked of it. It is tried again after a pause.
    #[error("{server} is not available")]
    Unavailable {
        /// Which server.
        server: Arc<str>,
        /// What was found when it was last tried.
        #[source]
        source: Arc<LinkFault>,
    },
    /// The connection broke, and so did the one the request was repeated on: whether the request was
    /// carried out is unknown.
    #[error("the connection to {server} broke; whether the request was carried out is unknown")]
    Broken {
        /// Which server.
        server: Arc<str>,
        /// How.
        #[source]
        source: Arc<LinkFault>,
    },
    /// The key id may not do this.
    #[error("{server} does not permit this: {text}")]
    Unauthorized {
        /// Which server.
        server: Arc<str>,
        /// What the server said.
        text: Arc<str>,
    },
    /// The server refused the request for another reason.
    #[error("{server} refused the request ({status}): {text}")]
    Refused {
        /// Which server.
        server: Arc<str>,
        /// Its answer.
        status: Status,
        /// What the server said; may be empty.
        text: Arc<str>,
    },
}

impl ClientError {
    /// True when a put or delete may have been carried out although it has no answer.
    pub fn is_unknown_outcome(&self) -> bool {
        matches!(self, ClientError::Timeout { .. } | ClientError::Broken { .. })
    }

    /// True when the server is the trouble and not the request: for a reader the block is a miss.
    pub fn is_server_lost(&self) -> bool {
        self.is_unknown_outcome() || matches!(self, ClientError::Unavailable { .. })
    }
}

impl From<ConfigError> for ClientError {
    fn from(error: ConfigError) -> ClientError {
        ClientError::Config(Arc::new(error))
    }
}

/// Why a connection is of no more use. After any of these no later byte on it has a known meaning.
#[derive(Debug, thiserror::Error)]
pub enum LinkFault {
    /// It could not be made.
    #[error("cannot connect")]
    Connect(#[source] NetError),
    /// It was made, and the server closed it before it answered the first frame.
    #[error("the server ended the connection during the handshake; is the key the right one?")]
    Handshake(#[source] NetError),
    /// It was lost.
    #[error("the connection was lost")]
    Net(#[source] NetError),
    /// The server said nothing, or too little, until the deadline.
    #[error("no answer within the deadline")]
    Silent,
    /// The caller gave the call up.
    #[error("the call was given up")]
    GivenUp,
    /// A frame from the server is not what it should be; see the source.
    #[error("the server sent a frame that cannot be accepted")]
    Frame(#[from] FrameError),
    /// A meta from the server makes no sense.
    #[error("the server sent a meta that cannot be read")]
    Meta(#[from] MetaError),
    /// A frame is authentic and well-formed, and does not answer what was asked.
    #[error("the server broke the protocol: {0}")]
    Unexpected(&'static str),
    /// The server refused the connection.
    #[error("the server refused the connection ({status}): {text}")]
    Refused {
        /// Its answer.
        status: Status,
        /// What it said; may be empty.
        text: Box<str>,
    },
    /// The server ended the connection, and said why.
    #[error("the server said goodbye ({status}): {text}")]
    Goodbye {
        /// `Ok` or `ShuttingDown` when it is going; else what it had against us.
        status: Status,
        /// What it said.
        text: Box<str>,
    },
}

impl LinkFault {
    /// A fault of moving bytes on an established connection.
    pub(crate) fn moving(error: NetError) -> LinkFault {
        match error {
            NetError::TimedOut => LinkFault::Silent,
            error => LinkFault::Net(error),
        }
    }

    /// True when the same request may well succeed on another connection.
    pub(crate) fn is_worth_a_retry(&self) -> bool {
        match self {
            LinkFault::Net(_) => true,
            LinkFault::Goodbye { status, .. } => {
                matches!(status, Status::Ok | Status::ShuttingDown)
            }
            _ => false,
        }
    }

    /// The error of a request that was sent, or partly sent, on a connection with this fault.
    pub(crate) fn into_error(self, server: &Arc<str>) -> ClientError {
        let server = server.clone();
        match self {
            LinkFault::Silent => ClientError::Timeout { server },
            fault => ClientError::Broken { server, source: Arc::new(fault) },
        }
    }
}

/// An error with its sources, in one line, for people and for languages that have no sources. What is shown
/// through already is not said twice.
pub fn one_line(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        source = error.source();
    }
    text
}

/// Says a line on standard error, for people who run a program that we are a part of. Where it cannot be written
/// (the log's disk is full, nobody reads the pipe) it is lost: `eprintln!` panics then, which ends a program that
/// is not of Rust.
pub fn tell(line: &str) {
    // At once, for others write there too.
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_every_source_once() {
        #[derive(Debug, thiserror::Error)]
        enum Outer {
            #[error("it cannot be sent")]
            Silent(#[source] LinkFault),
            #[error("it cannot be sent: {0}")]
            Shown(#[source] LinkFault),
        }
        let line = "it cannot be sent: no answer within the deadline";
        assert_eq!(one_line(&Outer::Silent(LinkFault::Silent)), line);
        assert_eq!(one_line(&Outer::Shown(LinkFault::Silent)), line);
        assert_eq!(one_line(&LinkFault::Silent), "no answer within the deadline");
    }
}
