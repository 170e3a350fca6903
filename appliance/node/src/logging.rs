//! Log lines on stderr: one JSON object per line for machines, or plain lines for people.
//!
//! A JSON line has `timestamp` (RFC 3339, UTC), `level`, `message`, `target` and the event's fields
//! beside them. Nothing is logged per request; what happens per request is counted instead.

use crate::config::{Log, LogFormat};
use std::io::IsTerminal;
use thiserror::Error;
use tracing::Subscriber;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::{EnvFilter, fmt};

/// Why logging did not start.
#[derive(Debug, Error)]
pub enum LoggingError {
    /// The filter is neither a level nor directives.
    #[error("`{filter}` is not a log filter (RUST_LOG, --log-level or log.level): {source}")]
    Filter {
        /// What was given.
        filter: String,
        /// What is wrong with it.
        source: ParseError,
    },
    /// The process logs already.
    #[error("logging was started twice")]
    Twice,
}

/// Starts logging for the whole process.
pub fn start(log: &Log) -> Result<(), LoggingError> {
    let terminal = std::io::stderr().is_terminal();
    let format = log.format.unwrap_or(if terminal { LogFormat::Human } else { LogFormat::Json });
    let colour = terminal && std::env::var_os("NO_COLOR").is_none();
    let subscriber = subscriber(format, colour, &log.filter, std::io::stderr)?;
    tracing::subscriber::set_global_default(subscriber).map_err(|_| LoggingError::Twice)
}

fn subscriber<W>(
    format: LogFormat,
    colour: bool,
    filter: &str,
    writer: W,
) -> Result<Box<dyn Subscriber + Send + Sync>, LoggingError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let filter = EnvFilter::builder()
        .parse(filter)
        .map_err(|source| LoggingError::Filter { filter: filter.to_owned(), source })?;
    let builder = fmt().with_env_filter(filter).with_writer(writer).with_ansi(colour);
    Ok(match format {
        LogFormat::Human => Box::new(builder.with_target(false).finish()),
        LogFormat::Json => {
            let builder = builder.json().flatten_event(true).with_current_span(false);
            Box::new(builder.with_span_list(false).finish())
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("no test panics while writing").write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, filter: &str, emit: impl FnOnce()) -> String {
        let captured = Captured::default();
        let writer = captured.clone();
        let subscriber =
            subscriber(format, false, filter, move || writer.clone()).expect("a good filter");
        tracing::subscriber::with_default(subscriber, emit);
        let bytes = captured.0.lock().expect("no test panics while writing").clone();
        String::from_utf8(bytes).expect("text")
    }

    #[test]
    fn json_lines_carry_the_agreed_names() {
        let text = logged(LogFormat::Json, "info", || {
            tracing::info!(address = "127.0.0.1:9900", drives = 2, "serving");
            tracing::debug!("not shown");
        });
        assert_eq!(text.lines().count(), 1, "{text}");
        let line: serde_json::Value = serde_json::from_str(&text).expect("one JSON object");
        assert_eq!(line["level"], "INFO");
        assert_eq!(line["message"], "serving");
        assert_eq!(line["address"], "127.0.0.1:9900");
        assert_eq!(line["drives"], 2);
        assert!(line["target"].as_str().expect("a target").contains("logging"), "{line}");
        assert!(line["timestamp"].as_str().expect("a time").ends_with('Z'), "{line}");
    }

    #[test]
    fn human_lines_are_plain() {
        let text = logged(LogFormat::Human, "warn", || tracing::warn!(code = 7, "odd"));
        assert!(text.contains("WARN odd code=7"), "{text}");
        assert!(!text.contains('\u{1b}'), "no colour codes: {text:?}");
    }

    #[test]
    fn a_bad_filter_is_named() {
        let result = subscriber(LogFormat::Json, false, "memkv=loud", std::io::sink);
        let Err(error) = result else { panic!("`loud` is no level") };
        assert!(error.to_string().starts_with("`memkv=loud` is not a log filter"), "{error}");
    }
}
