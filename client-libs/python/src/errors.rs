//! The exceptions.
//!
//! All are a `memkv.Error`, with the attributes `server` (`host:port`, or None) and `unknown_outcome` (a put
//! or delete may have been carried out all the same).

use memkv_client::{ClientError, QueueError, one_line};
use pyo3::create_exception;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;

create_exception!(memkv, Error, PyException, "Any failure of memkv.");
create_exception!(memkv, ConfigError, Error, "An argument, file or variable makes no sense.");
create_exception!(memkv, BadKey, Error, "A key has 1 to 512 bytes, its prefix included.");
create_exception!(memkv, Unavailable, Error, "The server cannot be reached, or was lost.");
create_exception!(memkv, Timeout, Error, "No answer within the deadline.");
create_exception!(memkv, Busy, Error, "The server was too busy until the deadline.");
create_exception!(memkv, Full, Error, "The server has no room that it could make.");
create_exception!(memkv, Conflict, Error, "A value of another length is stored under this key.");
create_exception!(memkv, Refused, Error, "The server does not take this request.");
create_exception!(memkv, Corrupt, Error, "The bytes were damaged on the way, or a drive failed.");
create_exception!(memkv, Closed, Error, "The client or queue is closed.");

/// Adds all of them to the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    for (name, class) in [
        ("Error", py.get_type::<Error>()),
        ("ConfigError", py.get_type::<ConfigError>()),
        ("BadKey", py.get_type::<BadKey>()),
        ("Unavailable", py.get_type::<Unavailable>()),
        ("Timeout", py.get_type::<Timeout>()),
        ("Busy", py.get_type::<Busy>()),
        ("Full", py.get_type::<Full>()),
        ("Conflict", py.get_type::<Conflict>()),
        ("Refused", py.get_type::<Refused>()),
        ("Corrupt", py.get_type::<Corrupt>()),
        ("Closed", py.get_type::<Closed>()),
    ] {
        class.setattr("server", py.None())?;
        class.setattr("unknown_outcome", false)?;
        module.add(name, class)?;
    }
    Ok(())
}

/// The exception of a client's error.
pub fn exception(py: Python<'_>, error: &ClientError) -> PyErr {
    let text = one_line(error);
    let (exception, server) = match error {
        ClientError::Config(_) => (ConfigError::new_err(text), None),
        ClientError::BadKey { .. } => (BadKey::new_err(text), None),
        ClientError::EmptyValue | ClientError::TooLarge { .. } => (Refused::new_err(text), None),
        ClientError::Busy { server, .. } => (Busy::new_err(text), Some(server)),
        ClientError::Full { server } => (Full::new_err(text), Some(server)),
        ClientError::Conflict { .. } | ClientError::GenerationMismatch { .. } => {
            (Conflict::new_err(text), None)
        }
        ClientError::Corrupt { server } | ClientError::Io { server } => {
            (Corrupt::new_err(text), Some(server))
        }
        ClientError::Timeout { server } => (Timeout::new_err(text), Some(server)),
        ClientError::Unavailable { server, .. } | ClientError::Broken { server, .. } => {
            (Unavailable::new_err(text), Some(server))
        }
        ClientError::Unauthorized { server, .. } | ClientError::Refused { server, .. } => {
            (Refused::new_err(text), Some(server))
        }
    };
    // Attributes of an exception that was just made can be set; if not, the class has its own.
    let value = exception.value(py);
    if let Some(server) = server {
        let _ = value.setattr("server", &**server);
    }
    if error.is_unknown_outcome() {
        let _ = value.setattr("unknown_outcome", true);
    }
    exception
}

/// The exception of a queue's error.
pub fn of_queue(error: QueueError) -> PyErr {
    match error {
        QueueError::Closed => Closed::new_err(error.to_string()),
        QueueError::Full => Busy::new_err(error.to_string()),
        QueueError::System(source) => PyErr::from(source),
    }
}
