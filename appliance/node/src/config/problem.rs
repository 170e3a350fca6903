//! What can be wrong with a configuration, and how it is said.
//!
//! A person who mistyped one key wants to read one line: where, what, and what to write instead. All
//! problems of a file are gathered before any is reported, so that it takes one start to see them.

use memkv_admin_api::size::SizeError;
use memkv_wire::KeyError;
use std::fmt;
use std::io;
use std::path::PathBuf;
use thiserror::Error;

/// Why there is no configuration.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: {source}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is larger than any configuration.
    #[error("{}: {bytes} bytes; a configuration has at most {max}", file.display())]
    TooLarge {
        /// The file.
        file: PathBuf,
        /// Its size.
        bytes: u64,
        /// The limit.
        max: u64,
    },
    /// The file is not YAML.
    #[error("{}: not valid YAML: {source}", file.display())]
    Syntax {
        /// The file.
        file: PathBuf,
        /// What the parser said, with line and column.
        source: serde_yaml::Error,
    },
    /// The file is YAML, but not a configuration that can be served.
    #[error("{}", Listing { file, problems })]
    Invalid {
        /// The file; none when only defaults, options and the environment were read.
        file: Option<PathBuf>,
        /// Everything that is wrong, in the order of the file's sections.
        problems: Vec<Problem>,
    },
}

struct Listing<'a> {
    file: &'a Option<PathBuf>,
    problems: &'a [Problem],
}

impl fmt::Display for Listing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.file {
            Some(file) => file.display().to_string(),
            None => "the configuration (no file given)".to_owned(),
        };
        match self.problems {
            [problem] => write!(f, "{name}: {problem}"),
            problems => {
                write!(f, "{name}: {} errors", problems.len())?;
                problems.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
            }
        }
    }
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A key of the file, by its full path (`storage.drives[0].media`).
    Key(String),
    /// An option of the command line (`--address`).
    Option(&'static str),
    /// A variable of the environment (`MEMKV_AUTH_KEY`, `MEMKV_NET`).
    Variable(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(path) => f.write_str(path),
            Self::Option(name) => f.write_str(name),
            Self::Variable(name) => write!(f, "environment variable {name}"),
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where the value came from.
    pub origin: Origin,
    /// Line and column in the file, from 1, when the key stands in it.
    pub location: Option<(usize, usize)>,
    /// What is wrong.
    pub kind: ProblemKind,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((line, column)) = self.location {
            write!(f, "line {line} column {column}: ")?;
        }
        write!(f, "{}: {}", self.origin, self.kind)
    }
}

/// What is wrong with a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProblemKind {
    /// No such key.
    UnknownKey {
        /// The key that was probably meant, by its full path when it lives in another section.
        nearest: Option<String>,
        /// What may stand here.
        known: Vec<&'static str>,
    },
    /// The value is of another kind than the key takes.
    WrongType {
        /// What the key takes.
        expected: &'static str,
        /// What stands there.
        found: &'static str,
    },
    /// A number or size beyond its limits.
    OutOfRange {
        /// What stands there.
        value: String,
        /// The smallest value allowed.
        min: String,
        /// The largest value allowed.
        max: String,
    },
    /// A word that is not one of the choices.
    UnknownChoice {
        /// What stands there.
        value: String,
        /// The choice that was probably meant.
        nearest: Option<&'static str>,
        /// All choices.
        choices: Vec<&'static str>,
    },
    /// A size that cannot be read.
    BadSize(SizeError),
    /// A size that must be a power of two.
    NotPowerOfTwo {
        /// What stands there.
        value: String,
    },
    /// Not `IP:PORT`.
    BadAddress {
        /// What stands there.
        value: String,
    },
    /// The admin endpoint takes the port after the data port.
    NoPortForAdmin,
    /// Not 64 hex digits.
    BadAuthKey(KeyError),
    /// Not a name of a tenant.
    BadTenant {
        /// What stands there.
        value: String,
    },
    /// Not a name of a namespace.
    BadNamespace {
        /// What stands there.
        value: String,
    },
    /// The key has no default and is not set.
    Missing,
    /// The same thing is named twice.
    Duplicate {
        /// What stands there twice.
        value: String,
    },
    /// More keys for one tenant than may be valid at a time.
    TooManyKeys {
        /// The tenant.
        tenant: String,
    },
    /// The low mark is not below the high mark.
    MarksCrossed {
        /// The low mark, percent.
        low: u8,
        /// The high mark, percent.
        high: u8,
    },
    /// An address beyond this machine without a key.
    KeyRequired {
        /// The address.
        address: String,
    },
    /// No place for data is known.
    NoDataDirectory,
    /// The disk has no room for the data file.
    NoSpace {
        /// The file.
        file: PathBuf,
        /// Bytes it would take.
        needed: u64,
        /// Bytes free there.
        free: u64,
    },
    /// The free space cannot be asked for.
    Probe {
        /// The path asked about.
        path: PathBuf,
        /// What the system said.
        error: io::ErrorKind,
    },
    /// A setting this release does not serve; the sentence says what to do.
    Refused(&'static str),
}

impl fmt::Display for ProblemKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownKey { nearest: Some(nearest), .. } => {
                write!(f, "unknown key; did you mean `{nearest}`?")
            }
            Self::UnknownKey { nearest: None, known } => {
                write!(f, "unknown key; known here: {}", known.join(", "))
            }
            Self::WrongType { expected, found } => write!(f, "expected {expected}, found {found}"),
            Self::OutOfRange { value, min, max } => {
                write!(f, "{value} is out of range; allowed: {min} to {max}")
            }
            Self::UnknownChoice { value, nearest, choices } => {
                write!(f, "`{value}` is not one of {}", choices.join(", "))?;
                nearest.map_or(Ok(()), |nearest| write!(f, "; did you mean `{nearest}`?"))
            }
            Self::BadSize(error) => write!(f, "{error}"),
            Self::NotPowerOfTwo { value } => write!(f, "{value} is not a power of two"),
            Self::BadAddress { value } => write!(
                f,
                "`{value}` is not an address; write IP:PORT like 127.0.0.1:9900 or [::1]:9900"
            ),
            Self::NoPortForAdmin => {
                f.write_str("the admin endpoint takes the next port, so 65534 is the last one")
            }
            Self::BadAuthKey(error) => write!(f, "{error}; make one: openssl rand -hex 32"),
            Self::BadTenant { value } => {
                write!(f, "`{value}` is not a tenant: 1 to 64 of a-z A-Z 0-9 . _ -")
            }
            Self::BadNamespace { value } => {
                write!(f, "`{value}` is not a namespace: 1 to 255 bytes")
            }
            Self::Missing => f.write_str("not set, and there is no default"),
            Self::Duplicate { value } => write!(f, "{value} is named twice"),
            Self::TooManyKeys { tenant } => write!(
                f,
                "a third key for tenant `{tenant}`; two may be valid while one replaces the other"
            ),
            Self::MarksCrossed { low, high } => {
                write!(f, "the low mark ({low} %) must be below the high mark ({high} %)")
            }
            other => other.fmt_start(f),
        }
    }
}

impl ProblemKind {
    /// The problems of a start that are about the machine rather than the text.
    fn fmt_start(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use memkv_admin_api::size::short_size;
        match self {
            Self::KeyRequired { address } => write!(
                f,
                "no key is set and {address} can be reached from other machines; set \
                 network.auth_key or MEMKV_AUTH_KEY to 64 hex digits (openssl rand -hex 32), or \
                 listen on 127.0.0.1, where a development key is derived"
            ),
            Self::NoDataDirectory => f.write_str(
                "no place for data: neither XDG_DATA_HOME nor HOME is set; give --data-dir or name \
                 a file in storage.drives",
            ),
            Self::NoSpace { file, needed, free } => write!(
                f,
                "{} needs {}, and {} are free there; free some space, or name a smaller max_size \
                 or another place",
                file.display(),
                short_size(*needed),
                short_size(*free)
            ),
            Self::Probe { path, error } => {
                write!(f, "cannot ask for the free space at {}: {error}", path.display())
            }
            Self::Refused(sentence) => f.write_str(sentence),
            other => unreachable!("{other:?} is said above"),
        }
    }
}

/// What is odd but no error. Logged once logging is up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Warning {
    /// No key is set, so one that everybody can derive is used.
    DevelopmentKey,
    /// A setting for a device that is not configured.
    NoEffect {
        /// The key.
        key: String,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DevelopmentKey => f.write_str(
                "no auth_key is set: using the derived development key, which any program on this \
                 machine can derive too",
            ),
            Self::NoEffect { key } => write!(f, "{key} has no effect without a device"),
        }
    }
}
