//! Reading a meta from its start to its end, and the extensions that may end it.

use super::MetaError;
use crate::MAX_TEXT;

/// Extension types from here on must be understood; unknown ones below are skipped.
pub const MUST_UNDERSTAND: u16 = 0x8000;

/// A place in bytes from outside. Every step is checked; none panics.
#[derive(Clone)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes }
    }

    /// The next `count` bytes.
    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8], MetaError> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(MetaError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    /// The next `N` bytes by value.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], MetaError> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(MetaError::Truncated)?;
        self.rest = rest;
        Ok(*taken)
    }

    pub fn u8(&mut self) -> Result<u8, MetaError> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    pub fn u16(&mut self) -> Result<u16, MetaError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub fn u32(&mut self) -> Result<u32, MetaError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub fn u64(&mut self) -> Result<u64, MetaError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// `count` reserved bytes, which must be zero.
    pub fn zeros(&mut self, count: usize) -> Result<(), MetaError> {
        match self.bytes(count)?.iter().all(|&byte| byte == 0) {
            true => Ok(()),
            false => Err(MetaError::ReservedNotZero),
        }
    }

    /// A text: u16 length, then UTF-8.
    pub fn str(&mut self) -> Result<&'a str, MetaError> {
        let length = self.u16()?;
        let bytes = self.bytes(usize::from(length))?;
        std::str::from_utf8(bytes).map_err(MetaError::Text)
    }

    /// What is left.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }
}

/// The next extension, if there is one: its type and its bytes.
pub(crate) fn next_extension<'a>(
    reader: &mut Reader<'a>,
) -> Result<Option<(u16, &'a [u8])>, MetaError> {
    if reader.remaining() == 0 {
        return Ok(None);
    }
    let kind = reader.u16()?;
    let length = reader.u16()?;
    Ok(Some((kind, reader.bytes(usize::from(length))?)))
}

/// An extension of a type that nothing is known of.
pub(crate) fn unknown(kind: u16) -> Result<(), MetaError> {
    if kind >= MUST_UNDERSTAND { Err(MetaError::MustUnderstand { kind }) } else { Ok(()) }
}

/// Reads the extensions to the end: skips those it need not understand,
/// refuses the others.
pub(crate) fn finish<T>(mut reader: Reader<'_>, value: T) -> Result<T, MetaError> {
    while let Some((kind, _)) = next_extension(&mut reader)? {
        unknown(kind)?;
    }
    Ok(value)
}

/// Appends a text as u16 length and UTF-8, cut at [`MAX_TEXT`] bytes.
pub(crate) fn put_str(out: &mut Vec<u8>, text: &str) {
    let text = &text[..text.floor_char_boundary(MAX_TEXT)];
    let length = u16::try_from(text.len()).expect("MAX_TEXT is far below 64 KiB");
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// Appends one extension (type u16, length u16, bytes) after a meta.
///
/// # Panics
/// On a value of 64 KiB or more.
pub fn append_extension(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(value.len()).expect("an extension is shorter than 64 KiB");
    out.extend_from_slice(&kind.to_le_bytes());
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(value);
}
