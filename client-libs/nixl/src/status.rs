//! What NIXL is told, and what people are.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use memkv_client::{ClientError, LinkFault, PlanError, tell};

/// NIXL's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub(crate) enum Status {
    /// Under way.
    InProgress = 1,
    /// Done.
    Ok = 0,
    /// There is nothing under way.
    NotPosted = -1,
    /// The request makes no sense.
    InvalidParam = -2,
    /// It did not work.
    Backend = -3,
    /// There is no such object.
    NotFound = -4,
    /// The object is shorter than what is wanted of it.
    Mismatch = -5,
    /// It may not be.
    NotAllowed = -6,
    /// It is under way already.
    RepostActive = -7,
    /// This backend cannot.
    NotSupported = -9,
    /// It was given up.
    Canceled = -11,
}

impl Status {
    /// The one that has this number; what nobody sets is a failure.
    pub fn from_number(number: i32) -> Status {
        let all = [
            Status::InProgress,
            Status::Ok,
            Status::NotPosted,
            Status::InvalidParam,
            Status::NotFound,
            Status::Mismatch,
            Status::NotAllowed,
            Status::RepostActive,
            Status::NotSupported,
            Status::Canceled,
        ];
        all.into_iter().find(|status| *status as i32 == number).unwrap_or(Status::Backend)
    }
}

/// Why something is refused before anything was done. The sentence is for people, the status for NIXL.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// Another key has the device id.
    #[error(
        "device id {device} is registered for the object `{live}`: NIXL tells registrations apart by device \
         id alone, so `{wanted}` under the same id would get its bytes; give every object an id of its own"
    )]
    DeviceTaken { device: u64, live: String, wanted: String },
    /// A key that no store has.
    #[error("an object's key (its metaInfo) has 1 to 512 bytes, this one has {length}")]
    BadKey { length: usize },
    /// A kind of memory that we do not know.
    #[error("memory of kind {kind} is not served: DRAM_SEG and OBJ_SEG are{more}")]
    Kind { kind: i32, more: &'static str },
    /// Not memory on one side and objects on the other.
    #[error("a transfer goes between memory and objects, not from kind {local} to kind {remote}")]
    Sides { local: i32, remote: i32 },
    /// Neither read nor write.
    #[error("there is no operation {0}")]
    Direction(i32),
    /// Lists of different lengths.
    #[error("{local} descriptors of memory for {remote} of objects")]
    Counts { local: usize, remote: usize },
    /// Descriptors of different lengths.
    #[error("descriptor {descriptor}: {local} bytes of memory for {remote} of an object")]
    Lengths { descriptor: usize, local: usize, remote: usize },
    /// An object that is not registered with this backend.
    #[error("descriptor {descriptor} is of an object that is not registered")]
    Unregistered { descriptor: usize },
    /// Memory that cannot be.
    #[error("descriptor {descriptor}: no memory is at {address:#x} with {length} bytes")]
    Memory { descriptor: usize, address: usize, length: usize },
    /// Two descriptors read into the same memory.
    #[error("descriptors {first} and {second} read different bytes into the same memory")]
    SharedMemory { first: usize, second: usize },
    /// More than there is of staging memory.
    #[error(
        "an object of {length} bytes does not fit into the {total} of staging memory: set staging_size_mb"
    )]
    Staging { length: u64, total: usize },
    /// What cannot be one operation on the wire.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// It is under way.
    #[error("the transfer is under way and cannot be posted again before it is done")]
    Active,
    /// A pointer that we have not given.
    #[error("there is no {0}")]
    Nothing(&'static str),
    /// No thread can be had.
    #[error("no worker can be started")]
    System(#[from] std::io::Error),
    /// What the client says.
    #[error(transparent)]
    Client(#[from] ClientError),
}

impl Refusal {
    /// What NIXL is told.
    pub fn status(&self) -> Status {
        match self {
            Refusal::DeviceTaken { .. } => Status::NotAllowed,
            Refusal::Lengths { .. } => Status::Mismatch,
            Refusal::Kind { .. } | Refusal::Staging { .. } => Status::NotSupported,
            Refusal::Active => Status::RepostActive,
            Refusal::System(_) => Status::Backend,
            Refusal::Client(error) => of_error(error),
            _ => Status::InvalidParam,
        }
    }
}

/// What NIXL is told of a client's error.
pub(crate) fn of_error(error: &ClientError) -> Status {
    let given_up = |source: &LinkFault| matches!(source, LinkFault::GivenUp);
    match error {
        ClientError::Broken { source, .. } if given_up(source) => Status::Canceled,
        ClientError::BadKey { .. } | ClientError::EmptyValue => Status::InvalidParam,
        ClientError::TooLarge { .. } => Status::NotSupported,
        ClientError::Unauthorized { .. } => Status::NotAllowed,
        _ => Status::Backend,
    }
}

/// Says a sentence on standard error, where NIXL's own log goes.
pub(crate) fn say(sentence: &str) {
    tell(&format!("memkv-nixl: {sentence}"));
}

/// The same at most once a second: of a thousand transfers that meet the same dead server one tells.
pub(crate) fn say_once_a_second(sentence: &str) {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |time| time.as_secs());
    if LAST.swap(now, Ordering::Relaxed) != now {
        say(sentence);
    }
}
