//! Which request of an engine a call belongs to, so that what its servers write down can be found by it.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// The trace id of W3C Trace Context (recommendation of 2021-11-23, section 3.2.2.3): 16 bytes, not all 0. It
/// travels in the header of every frame that asks for something; servers name it where they log the request.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId([u8; 16]);

/// A text that is no trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TraceError {
    /// Neither of the two forms.
    #[error(
        "a trace is 32 hexadecimal digits, or a traceparent as W3C Trace Context has it: 00-<32>-<16>-<2>"
    )]
    Form,
    /// The id that means none.
    #[error("the trace id is 0, which is none")]
    Zero,
}

impl TraceId {
    /// From its bytes; `None` for all 0.
    pub fn new(bytes: [u8; 16]) -> Option<TraceId> {
        (bytes != [0; 16]).then_some(TraceId(bytes))
    }

    /// Its bytes, as they stand in a header.
    pub fn bytes(self) -> [u8; 16] {
        self.0
    }
}

impl FromStr for TraceId {
    type Err = TraceError;

    /// From its digits alone, or from a `traceparent`. A later version than 00 may have more fields behind those
    /// that are known (section 3.2.4).
    fn from_str(text: &str) -> Result<TraceId, TraceError> {
        let fields: Vec<&str> = text.split('-').collect();
        let digits = match fields[..] {
            [digits] => digits,
            ["00", digits, parent, flags] if is_hex(parent, 16) && is_hex(flags, 2) => digits,
            [version, digits, parent, flags, ..]
                if is_hex(version, 2) && !matches!(version, "00" | "ff") =>
            {
                if !is_hex(parent, 16) || !is_hex(flags, 2) {
                    return Err(TraceError::Form);
                }
                digits
            }
            _ => return Err(TraceError::Form),
        };
        if !is_hex(digits, 32) {
            return Err(TraceError::Form);
        }
        let number = u128::from_str_radix(digits, 16).map_err(|_| TraceError::Form)?;
        TraceId::new(number.to_be_bytes()).ok_or(TraceError::Zero)
    }
}

fn is_hex(text: &str, digits: usize) -> bool {
    let lower = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    text.len() == digits && text.bytes().all(lower)
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TraceId({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGITS: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    #[test]
    fn both_forms_give_the_id_and_it_is_written_as_it_was() {
        let id: TraceId = DIGITS.parse().expect("digits");
        assert_eq!(id.to_string(), DIGITS);
        assert_eq!((id.bytes()[0], id.bytes()[15]), (0x4b, 0x36));
        for parent in [
            format!("00-{DIGITS}-00f067aa0ba902b7-01"),
            format!("00-{DIGITS}-00f067aa0ba902b7-00"),
            format!("cc-{DIGITS}-00f067aa0ba902b7-01-what-the-future-brings"),
        ] {
            assert_eq!(parent.parse(), Ok(id), "{parent}");
        }
    }

    #[test]
    fn everything_else_is_refused() {
        let upper = DIGITS.to_uppercase();
        for text in [
            "",
            "-",
            "4bf9",
            &upper,
            &format!("{DIGITS}0"),
            &format!("ff-{DIGITS}-00f067aa0ba902b7-01"),
            &format!("0-{DIGITS}-00f067aa0ba902b7-01"),
            &format!("00-{DIGITS}-00f067aa0ba902b7"),
            &format!("00-{DIGITS}-00f067aa0ba902b7-01-more"),
            &format!("00-{DIGITS}-00f067aa0ba902b-01"),
            &format!("00-{}-00f067aa0ba902b7-01", &DIGITS[1..]),
        ] {
            assert_eq!(text.parse::<TraceId>(), Err(TraceError::Form), "{text}");
        }
        let none = "0".repeat(32);
        assert_eq!(none.parse::<TraceId>(), Err(TraceError::Zero));
        assert_eq!(TraceId::new([0; 16]), None);
    }
}
