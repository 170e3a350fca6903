//! QEMU's monitor: a command is a line of JSON, and so is its answer (QEMU Machine Protocol).

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::{Value, json};
use thiserror::Error;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why the monitor is of no use.
#[derive(Debug, Error)]
pub enum MonitorError {
    /// The socket.
    #[error("the monitor")]
    Io(#[from] io::Error),
    /// What was said is no JSON.
    #[error("the monitor says what is no JSON")]
    Words(#[from] serde_json::Error),
    /// QEMU refused a command.
    #[error("QEMU refuses {command}: {reason}")]
    Refused {
        /// The command.
        command: String,
        /// Its reason.
        reason: String,
    },
}

/// A connection to the monitor.
pub struct Monitor {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
}

impl Monitor {
    /// Takes up the conversation on a fresh connection.
    ///
    /// # Errors
    /// When QEMU does not keep to the protocol, or is gone.
    pub fn new(stream: UnixStream) -> Result<Monitor, MonitorError> {
        stream.set_read_timeout(Some(PATIENCE))?;
        let lines = BufReader::new(stream.try_clone()?);
        let mut monitor = Monitor { stream, lines };
        monitor.line()?;
        monitor.command("qmp_capabilities", &json!({}))?;
        Ok(monitor)
    }

    /// Gives a command and waits for its answer; what QEMU tells besides is passed over.
    ///
    /// # Errors
    /// When it is refused, or QEMU is gone.
    pub fn command(&mut self, command: &str, arguments: &Value) -> Result<Value, MonitorError> {
        let line = json!({ "execute": command, "arguments": arguments }).to_string();
        self.stream.write_all(format!("{line}\n").as_bytes())?;
        loop {
            let answer = self.line()?;
            if let Some(value) = answer.get("return") {
                return Ok(value.clone());
            }
            if let Some(error) = answer.get("error") {
                let reason = error["desc"].as_str().unwrap_or_default().to_owned();
                return Err(MonitorError::Refused { command: command.to_owned(), reason });
            }
        }
    }

    fn line(&mut self) -> Result<Value, MonitorError> {
        let mut line = String::new();
        if self.lines.read_line(&mut line)? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        Ok(serde_json::from_str(&line)?)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// A QEMU that answers with these lines, one for each that it is told.
    fn answering(lines: &'static [&'static str]) -> Result<Monitor, MonitorError> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        thread::spawn(move || {
            let mut told = BufReader::new(theirs.try_clone().unwrap());
            for line in lines {
                (&theirs).write_all(line.as_bytes()).unwrap();
                told.read_line(&mut String::new()).unwrap();
            }
        });
        Monitor::new(ours)
    }

    const LINES: &[&str] = &[
        "{\"QMP\": {}}\n",
        "{\"return\": {}}\n",
        "{\"event\": \"STOP\"}\n{\"return\": {\"running\": true}}\n",
        "{\"error\": {\"class\": \"DeviceNotFound\", \"desc\": \"no such device\"}}\n",
        "not json\n",
        "",
    ];

    #[test]
    fn events_are_passed_over_and_refusals_have_a_reason() {
        let mut monitor = answering(LINES).unwrap();
        assert_eq!(monitor.command("query-status", &json!({})).unwrap()["running"], true);
        let refused = monitor.command("device_del", &json!({"id": "x"})).unwrap_err();
        assert_eq!(refused.to_string(), "QEMU refuses device_del: no such device");
        let nonsense = monitor.command("query-status", &json!({})).unwrap_err();
        assert!(matches!(nonsense, MonitorError::Words(_)));
    }
}
