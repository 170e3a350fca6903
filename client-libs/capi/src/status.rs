//! Outcomes as numbers, and the text of the last error.

use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

use memkv_client::{ClientError, QueueError, one_line};

/// Done. For a get or an existence: the block is there.
pub const MEMKV_OK: i32 = 0;
/// There is no such block. Not an error.
pub const MEMKV_MISS: i32 = 1;
/// A put found a value of the same length under its key, which stays. Not an error.
pub const MEMKV_PRESENT: i32 = 2;
/// An argument makes no sense; nothing was done.
pub const MEMKV_E_INVALID: i32 = -1;
/// The configuration makes no sense.
pub const MEMKV_E_CONFIG: i32 = -2;
/// The value is longer than the server takes.
pub const MEMKV_E_TOO_LARGE: i32 = -3;
/// The server, or the queue, was too busy; nothing was done.
pub const MEMKV_E_BUSY: i32 = -4;
/// The server has no room that it could make.
pub const MEMKV_E_FULL: i32 = -5;
/// A value of another length is stored under this key.
pub const MEMKV_E_CONFLICT: i32 = -6;
/// The key has another generation than the one named.
pub const MEMKV_E_GENERATION: i32 = -7;
/// The bytes of a put were damaged on the way; nothing was stored.
pub const MEMKV_E_CORRUPT: i32 = -8;
/// A drive of the server failed under this request.
pub const MEMKV_E_IO: i32 = -9;
/// No answer by the deadline: whether a put or delete was carried out is unknown.
pub const MEMKV_E_TIMEOUT: i32 = -10;
/// The server cannot be reached; nothing was done.
pub const MEMKV_E_UNAVAILABLE: i32 = -11;
/// The connection broke: whether a put or delete was carried out is unknown.
pub const MEMKV_E_BROKEN: i32 = -12;
/// The key may not do this.
pub const MEMKV_E_UNAUTHORIZED: i32 = -13;
/// The server refused the request for another reason.
pub const MEMKV_E_REFUSED: i32 = -14;
/// The queue is closed.
pub const MEMKV_E_CLOSED: i32 = -15;
/// The operating system gave no thread or file descriptor.
pub const MEMKV_E_SYSTEM: i32 = -16;
/// A fault of this library, of which it says more on standard error.
pub const MEMKV_E_INTERNAL: i32 = -17;

/// What went wrong: a number for the program and a line for people.
pub(crate) struct Failure {
    pub status: i32,
    pub text: String,
}

impl Failure {
    pub fn invalid(text: impl Into<String>) -> Failure {
        Failure { status: MEMKV_E_INVALID, text: text.into() }
    }
}

impl From<&ClientError> for Failure {
    fn from(error: &ClientError) -> Failure {
        Failure { status: of(error), text: one_line(error) }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Failure {
        Failure::from(&error)
    }
}

impl From<QueueError> for Failure {
    fn from(error: QueueError) -> Failure {
        let status = match &error {
            QueueError::Closed => MEMKV_E_CLOSED,
            QueueError::Full => MEMKV_E_BUSY,
            QueueError::System(_) => MEMKV_E_SYSTEM,
        };
        Failure { status, text: one_line(&error) }
    }
}

/// The number of a client's error.
pub(crate) fn of(error: &ClientError) -> i32 {
    match error {
        ClientError::Config(_) => MEMKV_E_CONFIG,
        ClientError::BadKey { .. } | ClientError::EmptyValue => MEMKV_E_INVALID,
        ClientError::TooLarge { .. } => MEMKV_E_TOO_LARGE,
        ClientError::Busy { .. } => MEMKV_E_BUSY,
        ClientError::Full { .. } => MEMKV_E_FULL,
        ClientError::Conflict { .. } => MEMKV_E_CONFLICT,
        ClientError::GenerationMismatch { .. } => MEMKV_E_GENERATION,
        ClientError::Corrupt { .. } => MEMKV_E_CORRUPT,
        ClientError::Io { .. } => MEMKV_E_IO,
        ClientError::Timeout { .. } => MEMKV_E_TIMEOUT,
        ClientError::Unavailable { .. } => MEMKV_E_UNAVAILABLE,
        ClientError::Broken { .. } => MEMKV_E_BROKEN,
        ClientError::Unauthorized { .. } => MEMKV_E_UNAUTHORIZED,
        ClientError::Refused { .. } => MEMKV_E_REFUSED,
    }
}

/// A text for C; what stands behind a NUL is lost.
pub(crate) fn c_text(text: &str) -> CString {
    let end = text.find('\0').unwrap_or(text.len());
    CString::new(&text[..end]).unwrap_or_default()
}

thread_local! {
    static LAST: RefCell<CString> = RefCell::default();
}

/// The text of the last call of this thread that failed.
pub(crate) fn last_text() -> *const c_char {
    LAST.try_with(|last| last.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}

fn keep(text: &str) {
    // A thread that is ending has no place for a text any more, and nobody who would ask for it.
    let _ = LAST.try_with(|last| *last.borrow_mut() = c_text(text));
}

/// Makes a call for C: an error becomes its number and leaves its text behind, and so does a panic.
pub(crate) fn guard(call: impl FnOnce() -> Result<i32, Failure>) -> i32 {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(status)) => status,
        Ok(Err(failure)) => {
            keep(&failure.text);
            failure.status
        }
        Err(panic) => {
            keep(&format!("a fault of libmemkv: {}", panic_text(&*panic)));
            MEMKV_E_INTERNAL
        }
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("a panic")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_does_not_leave_the_library() {
        let status = guard(|| panic!("of the {}", "test"));
        assert_eq!(status, MEMKV_E_INTERNAL);
        LAST.with(|last| {
            let text = last.borrow().to_str().expect("text").to_owned();
            assert_eq!(text, "a fault of libmemkv: of the test");
        });
    }

    #[test]
    fn a_text_ends_at_its_first_nul() {
        assert_eq!(c_text("a\0b").as_c_str(), c"a");
        assert_eq!(c_text("").as_c_str(), c"");
    }
}
