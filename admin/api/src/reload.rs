//! Reading the configuration again while the node serves.

use crate::list::NoAnswer;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What a reload came to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// The file that was read.
    pub file: String,
    /// Counts the configurations of this process: 1 is that of its start.
    pub generation: u64,
    /// Keys whose new values hold from now on.
    pub applied: Vec<String>,
    /// Keys whose new values hold after the next start.
    pub needs_restart: Vec<String>,
    /// Sessions that end because their key is no longer valid.
    pub sessions_ended: u64,
    /// Identities of drives that have joined the node.
    #[serde(default)]
    pub drives_joined: Vec<String>,
    /// Drives that were to join and could not, with the reason; the next reload tries again.
    #[serde(default)]
    pub drives_failed: Vec<String>,
    /// Paths of drives that had failed and are listed no more: they count no longer.
    #[serde(default)]
    pub drives_dropped: Vec<String>,
    /// What is odd and no error.
    pub warnings: Vec<String>,
}

/// A drive that had failed, or was lost, and serves again, empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readmitted {
    /// Its path.
    pub path: String,
    /// Its new identity.
    pub uuid: String,
}

/// Why a drive was not readmitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadmitError {
    /// It serves, is not the node's to take, or not to be had; nothing on it was changed.
    Refused(String),
    /// It failed again.
    Failed(String),
    /// The store is too busy, or stopping.
    NoAnswer(NoAnswer),
}

impl fmt::Display for ReadmitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(why) | Self::Failed(why) => f.write_str(why),
            Self::NoAnswer(no_answer) => no_answer.fmt(f),
        }
    }
}

impl std::error::Error for ReadmitError {}

/// Why nothing was reloaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReloadError {
    /// The node was started without a file.
    NoFile,
    /// The file cannot be used, and says why; everything stays as it was.
    Refused(String),
    /// A reactor did not take the new settings in time: they may hold on some reactors. The next
    /// reload sets all of them again.
    NoAnswer(NoAnswer),
}

impl fmt::Display for ReloadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoFile => f.write_str(
                "the node was started without a configuration file (memkv start --config FILE)",
            ),
            Self::Refused(why) => write!(f, "nothing was changed: {why}"),
            Self::NoAnswer(_) => f.write_str("a reactor did not answer; reload again"),
        }
    }
}

impl std::error::Error for ReloadError {}

/// The configuration of a node in `/v1/status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigStatus {
    /// The file, when there is one.
    pub file: Option<String>,
    /// See [`Reloaded::generation`].
    pub generation: u64,
    /// Keys that the file changed and that wait for the next start, as of the last reload.
    pub needs_restart: Vec<String>,
    /// Why the last reload failed, when it did.
    pub last_error: Option<String>,
}
