//! How durations are written on the command line: `250ms`, `90s`, `5m`, `1h`, or plain seconds.

use std::time::Duration;
use thiserror::Error;

/// Why a text is not a duration.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DurationError {
    /// There is no number at the front.
    #[error("not a duration; write one like `90s`, `5m` or `250ms`")]
    NoNumber,
    /// The unit is not one of ours.
    #[error("`{0}` is not a unit of time; use ms, s, m or h")]
    UnknownUnit(String),
    /// Longer than a year.
    #[error("longer than a year")]
    TooLong,
}

const YEAR: f64 = 365.0 * 86_400.0;

/// Reads a duration; fractions are fine (`0.5s`).
pub fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let number: f64 = number.parse().map_err(|_| DurationError::NoNumber)?;
    let factor = match unit.trim() {
        "" | "s" => 1.0,
        "ms" => 1e-3,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        other => return Err(DurationError::UnknownUnit(other.to_owned())),
    };
    let seconds = number * factor;
    if seconds > YEAR {
        return Err(DurationError::TooLong);
    }
    Ok(Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_written() {
        let table = [
            ("600s", 600_000),
            ("5", 5_000),
            ("1.5 m", 90_000),
            ("250ms", 250),
            ("2h", 7_200_000),
            ("0", 0),
        ];
        for (text, ms) in table {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
    }

    #[test]
    fn bad_durations_say_why() {
        let table = [
            ("", DurationError::NoNumber),
            ("s", DurationError::NoNumber),
            ("-5s", DurationError::NoNumber),
            ("1.2.3", DurationError::NoNumber),
            ("5d", DurationError::UnknownUnit("d".into())),
            ("99999h", DurationError::TooLong),
        ];
        for (text, error) in table {
            assert_eq!(parse_duration(text), Err(error), "{text}");
        }
    }
}
