//! The version of this build.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The version of this build as `--version` prints it: `0.1.0 (0123456789ab)`, or without commit.
pub const VERSION_TEXT: &str = env!("MEMKV_VERSION_TEXT");

/// The release and, when the build knew it, the commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// The release, as in the workspace manifest: `0.1.0`.
    pub release: String,
    /// Twelve hex digits, or none when the sources were not in a repository.
    pub commit: Option<String>,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.commit {
            Some(commit) => write!(f, "{} ({commit})", self.release),
            None => f.write_str(&self.release),
        }
    }
}

/// The version of this build. All crates of the workspace share one.
pub fn version() -> Version {
    Version {
        release: env!("CARGO_PKG_VERSION").to_owned(),
        commit: option_env!("MEMKV_GIT_COMMIT").map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_names_release_and_commit() {
        let here = version();
        assert!(here.release.split('.').count() == 3, "{here}");
        if let Some(commit) = &here.commit {
            assert!(commit.bytes().all(|b| b.is_ascii_hexdigit()), "{here}");
            assert_eq!(here.to_string(), format!("{} ({commit})", here.release));
        }
        assert_eq!(here.to_string(), VERSION_TEXT);
        let bare = Version { release: "1.2.3".into(), commit: None };
        assert_eq!(bare.to_string(), "1.2.3");
    }
}
