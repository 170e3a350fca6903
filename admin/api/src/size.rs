//! How sizes are written for people: `2 MiB`, `64KiB`, `16 GiB`, `1 TiB`, or a plain number of bytes.
//!
//! One notation serves the configuration file, the command lines and what both print. Binary units
//! carry an `i`; units without it (`1 GB`) are powers of ten, as drive makers and SI have it; a bare
//! `64K` says neither and is refused.

use std::fmt;

/// Units by name, largest first of each family.
const UNITS: [(&str, u64); 11] = [
    ("PiB", 1 << 50),
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("PB", 1_000_000_000_000_000),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

/// Why a text is not a size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SizeError {
    /// There is no number at the front.
    NoNumber,
    /// The number has a fraction or a sign.
    NotWhole,
    /// The unit is not one of ours.
    UnknownUnit {
        /// What stood there.
        unit: String,
    },
    /// More than 2^64 - 1 bytes.
    TooLarge,
}

impl fmt::Display for SizeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoNumber => f.write_str("not a size; write one like `2 MiB` or `4194304`"),
            Self::NotWhole => f.write_str("a size is a whole number; use a smaller unit"),
            Self::UnknownUnit { unit } => {
                write!(f, "`{unit}` is not a unit; use B, KiB, MiB, GiB, TiB or PiB")
            }
            Self::TooLarge => f.write_str("more than 2^64 - 1 bytes"),
        }
    }
}

impl std::error::Error for SizeError {}

/// Reads a size in bytes. Case of the unit and space before it do not matter.
pub fn parse_size(text: &str) -> Result<u64, SizeError> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    if rest.starts_with(['.', ',']) || text.starts_with(['-', '+']) {
        return Err(SizeError::NotWhole);
    }
    if digits.is_empty() {
        return Err(SizeError::NoNumber);
    }
    let unit = rest.trim_start();
    let factor = if unit.is_empty() {
        1
    } else {
        let known = UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit));
        known.ok_or_else(|| SizeError::UnknownUnit { unit: unit.to_owned() })?.1
    };
    let number: u64 = digits.parse().map_err(|_| SizeError::TooLarge)?;
    number.checked_mul(factor).ok_or(SizeError::TooLarge)
}

/// Writes a size so that [`parse_size`] gives the same number back: the largest binary unit that
/// divides it.
pub fn exact_size(bytes: u64) -> String {
    let binary = UNITS[..5].iter().find(|(_, factor)| bytes != 0 && bytes.is_multiple_of(*factor));
    match binary {
        Some((name, factor)) => format!("{} {name}", bytes / factor),
        None => format!("{bytes} B"),
    }
}

/// Writes a size for reading at a glance: at most two decimals, in the largest binary unit that
/// leaves at least one.
pub fn short_size(bytes: u64) -> String {
    match UNITS[..5].iter().find(|(_, factor)| bytes >= *factor) {
        Some((name, factor)) if bytes.is_multiple_of(*factor) => {
            format!("{} {name}", bytes / factor)
        }
        Some((name, factor)) => format!("{:.2} {name}", bytes as f64 / *factor as f64),
        None => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_written() {
        let table = [
            ("0", 0),
            ("4096", 4096),
            ("2 MiB", 2 << 20),
            ("2MiB", 2 << 20),
            (" 16  gib ", 16 << 30),
            ("1 TiB", 1 << 40),
            ("1 GB", 1_000_000_000),
            ("512B", 512),
            ("18446744073709551615", u64::MAX),
        ];
        for (text, bytes) in table {
            assert_eq!(parse_size(text), Ok(bytes), "{text:?}");
        }
    }

    #[test]
    fn bad_sizes_say_why() {
        let unit = |unit: &str| SizeError::UnknownUnit { unit: unit.to_owned() };
        let table = [
            ("", SizeError::NoNumber),
            ("MiB", SizeError::NoNumber),
            ("1.5 GiB", SizeError::NotWhole),
            ("-1", SizeError::NotWhole),
            ("64K", unit("K")),
            ("2 MiBs", unit("MiBs")),
            ("2 MiB 3", unit("MiB 3")),
            ("18446744073709551616", SizeError::TooLarge),
            ("17000000 TiB", SizeError::TooLarge),
        ];
        for (text, error) in table {
            assert_eq!(parse_size(text), Err(error), "{text:?}");
        }
    }

    #[test]
    fn exact_sizes_read_back() {
        for bytes in [0, 1, 1023, 1024, 1025, 3 << 20, (3 << 20) + 1024, 7 << 40, u64::MAX] {
            assert_eq!(parse_size(&exact_size(bytes)), Ok(bytes), "{}", exact_size(bytes));
        }
        assert_eq!(exact_size(1536 << 10), "1536 KiB");
    }

    #[test]
    fn short_sizes_are_short() {
        assert_eq!(short_size(0), "0 B");
        assert_eq!(short_size(4 << 20), "4 MiB");
        assert_eq!(short_size(1536 << 10), "1.50 MiB");
    }
}
