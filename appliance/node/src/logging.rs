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
use tracing_subscriber::{EnvFilter, fmt, reload};

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
    /// The log that was to be changed is written no more.
    #[error("the log's level cannot be set")]
    Gone(#[source] reload::Error),
    /// The process logs already.
    #[error("logging was started twice")]
    Twice,
}

/// The level of a log, to be set anew while it is written.
pub struct Level(Box<SetLevel>);

type SetLevel = dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync;

impl Level {
    /// Shows from now on what the filter lets through.
    ///
    /// # Errors
    /// [`LoggingError::Filter`], or [`LoggingError::Gone`].
    pub fn set(&self, filter: &str) -> Result<(), LoggingError> {
        self.0(parse(filter)?).map_err(LoggingError::Gone)
    }
}

/// Starts logging for the whole process.
pub fn start(log: &Log) -> Result<Level, LoggingError> {
    let terminal = std::io::stderr().is_terminal();
    let format = log.format.unwrap_or(if terminal { LogFormat::Human } else { LogFormat::Json });
    let colour = terminal && std::env::var_os("NO_COLOR").is_none();
    let (subscriber, level) = subscriber(format, colour, &log.filter, std::io::stderr)?;
    tracing::subscriber::set_global_default(subscriber).map_err(|_| LoggingError::Twice)?;
    Ok(level)
}

fn subscriber<W>(
    format: LogFormat,
    colour: bool,
    filter: &str,
    writer: W,
) -> Result<(Box<dyn Subscriber + Send + Sync>, Level), LoggingError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let filter = parse(filter)?;
    let builder = fmt().with_env_filter(filter).with_writer(writer).with_ansi(colour);
    Ok(match format {
        LogFormat::Human => {
            let builder = builder.with_target(false).with_filter_reloading();
            let level = builder.reload_handle();
            (Box::new(builder.finish()), Level(Box::new(move |filter| level.reload(filter))))
        }
        LogFormat::Json => {
            let builder = builder.json().flatten_event(true).with_current_span(false);
            let builder = builder.with_span_list(false).with_filter_reloading();
            let level = builder.reload_handle();
            (Box::new(builder.finish()), Level(Box::new(move |filter| level.reload(filter))))
        }
    })
}

fn parse(filter: &str) -> Result<EnvFilter, LoggingError> {
    let parsed = EnvFilter::builder().parse(filter);
    parsed.map_err(|source| LoggingError::Filter { filter: filter.to_owned(), source })
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

    fn logged(format: LogFormat, filter: &str, emit: impl FnOnce(&Level)) -> String {
        let captured = Captured::default();
        let writer = captured.clone();
        let (subscriber, level) =
            subscriber(format, false, filter, move || writer.clone()).expect("a good filter");
        tracing::subscriber::with_default(subscriber, || emit(&level));
        let bytes = captured.0.lock().expect("no test panics while writing").clone();
        String::from_utf8(bytes).expect("text")
    }

    #[test]
    fn json_lines_carry_the_agreed_names() {
        let text = logged(LogFormat::Json, "info", |_| {
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
        let text = logged(LogFormat::Human, "warn", |_| tracing::warn!(code = 7, "odd"));
        assert!(text.contains("WARN odd code=7"), "{text}");
        assert!(!text.contains('\u{1b}'), "no colour codes: {text:?}");
    }

    #[test]
    fn the_level_changes_while_the_log_is_written() {
        for format in [LogFormat::Human, LogFormat::Json] {
            let text = logged(format, "info", |level| {
                // One place in the code, so that what is known of it has to change, too.
                let tell = |n: u32| tracing::debug!(n, "a detail");
                tell(1);
                level.set("debug").expect("a level");
                tell(2);
                assert!(level.set("memkv=loud").is_err(), "`loud` is no level");
                tell(3);
                level.set("error").expect("a level");
                tell(4);
            });
            let lines: Vec<&str> = text.lines().collect();
            assert_eq!(lines.len(), 2, "{text}");
            assert!(lines[0].contains('2') && lines[1].contains('3'), "{text}");
        }
    }

    #[test]
    fn a_bad_filter_is_named() {
        let result = subscriber(LogFormat::Json, false, "memkv=loud", std::io::sink);
        let Err(error) = result else { panic!("`loud` is no level") };
        assert!(error.to_string().starts_with("`memkv=loud` is not a log filter"), "{error}");
    }
}
