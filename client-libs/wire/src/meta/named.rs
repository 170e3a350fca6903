//! Payload that a frame names instead of carrying it.

use super::cursor::{Reader, next_extension, unknown};
use super::{GetReply, MetaError, append_extension};
use crate::{MAX_EXTENTS, MAX_VALUE};

/// Extension of a Get's reply, 16 bytes for each span: where the payload lies. It must be understood, for
/// there is no payload without it.
const SPANS: u16 = 0x8001;
/// Extension of a Put: where its payload lies. Who cannot read it there must not store anything.
pub(super) const STAGED: u16 = 0x8002;
/// Bytes of one span.
const SPAN: usize = 16;

/// A stretch of a window, which holds a piece of a payload: `window u32 | length u32 | offset u64`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Span {
    /// The number of the window.
    pub window: u32,
    /// Bytes of it, at least one.
    pub length: u32,
    /// Where they begin in the window.
    pub offset: u64,
}

/// Where a payload lies: 1 to 16 stretches, one behind the other; it reads as a slice.
#[derive(Clone, Copy)]
pub struct Spans {
    spans: [Span; MAX_EXTENTS],
    count: usize,
}

impl Spans {
    /// None yet.
    pub const EMPTY: Spans =
        Spans { spans: [Span { window: 0, length: 0, offset: 0 }; MAX_EXTENTS], count: 0 };

    /// Adds one; false when there is no room for it.
    pub fn push(&mut self, span: Span) -> bool {
        let Some(place) = self.spans.get_mut(self.count) else { return false };
        *place = span;
        self.count += 1;
        true
    }

    /// Bytes in all of them.
    pub fn bytes(&self) -> u64 {
        self.iter().map(|span| u64::from(span.length)).sum()
    }
}

impl std::ops::Deref for Spans {
    type Target = [Span];
    fn deref(&self) -> &[Span] {
        &self.spans[..self.count]
    }
}

impl PartialEq for Spans {
    fn eq(&self, other: &Spans) -> bool {
        **self == **other
    }
}

impl Eq for Spans {}

impl std::fmt::Debug for Spans {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// The answer to one item of a Get whose header says [`NAMED`](crate::flags::NAMED): the payload is not in
/// the frame but lies in the server's memory, and stays there until the client's
/// [`consumed`](crate::Header::consumed) says that it was taken.
///
/// ```text
///   0  get reply | 0x8001 u16 | 16 × count u16 | count × (window u32, length u32, offset u64) | extensions
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NamedReply {
    /// What any Get is answered.
    pub get: GetReply,
    /// Where the payload lies.
    pub spans: Spans,
}

impl NamedReply {
    /// Appends the meta to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        self.get.encode(out);
        NamedReply::name(&self.spans, out);
    }

    /// Appends what makes a Get's reply in `out` one whose payload is named.
    ///
    /// # Panics
    /// When there is no span.
    pub fn name(spans: &Spans, out: &mut Vec<u8>) {
        assert!(!spans.is_empty(), "a payload lies somewhere");
        let mut bytes = [0; SPAN * MAX_EXTENTS];
        for (place, span) in bytes.chunks_exact_mut(SPAN).zip(spans.iter()) {
            place[..4].copy_from_slice(&span.window.to_le_bytes());
            place[4..8].copy_from_slice(&span.length.to_le_bytes());
            place[8..].copy_from_slice(&span.offset.to_le_bytes());
        }
        append_extension(out, SPANS, &bytes[..SPAN * spans.len()]);
    }

    /// Whether the meta of a Get's reply names its payload.
    pub fn is_one(meta: &[u8]) -> bool {
        let mut reader = Reader::new(meta);
        let fixed = GetReply::take(&mut reader).is_ok();
        let mut kinds = std::iter::from_fn(|| next_extension(&mut reader).ok().flatten());
        fixed && kinds.any(|(kind, _)| kind == SPANS)
    }

    /// Reads the meta.
    ///
    /// # Errors
    /// [`MetaError`] says what is wrong with it. That it has no spans, or that they have more bytes than a value,
    /// is [`MetaError::Extension`].
    pub fn parse(meta: &[u8]) -> Result<NamedReply, MetaError> {
        let mut reader = Reader::new(meta);
        let get = GetReply::take(&mut reader)?;
        let mut spans = Spans::EMPTY;
        while let Some((kind, bytes)) = next_extension(&mut reader)? {
            match kind {
                SPANS if spans.is_empty() => spans = take_spans(bytes)?,
                SPANS => return Err(MetaError::Extension { kind }),
                kind => unknown(kind)?,
            }
        }
        match (1..=MAX_VALUE).contains(&spans.bytes()) {
            true => Ok(NamedReply { get, spans }),
            false => Err(MetaError::Extension { kind: SPANS }),
        }
    }
}

fn take_spans(bytes: &[u8]) -> Result<Spans, MetaError> {
    let mut reader = Reader::new(bytes);
    let mut spans = Spans::EMPTY;
    while reader.remaining() > 0 {
        let (window, length) = (reader.u32()?, reader.u32()?);
        let span = Span { window, length, offset: reader.u64()? };
        if length == 0 || !spans.push(span) {
            return Err(MetaError::Extension { kind: SPANS });
        }
    }
    Ok(spans)
}

/// Where the payload of a Put lies that [names](crate::flags::NAMED) it: its items' bytes, one
/// behind the other, in memory that its client shares with the server. Behind the items stands
///
/// ```text
///   extension 0x8002: 0 staging u64 | 8 offset u64
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Staged {
    /// The memory's number, as the server has told it when it was given the memory.
    pub staging: u64,
    /// Where the first item begins in it, in bytes.
    pub offset: u64,
}

impl Staged {
    /// Appends the extension to the meta of a Put.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.staging.to_le_bytes());
        bytes[8..].copy_from_slice(&self.offset.to_le_bytes());
        append_extension(out, STAGED, &bytes);
    }

    /// Reads what stands in the extension.
    pub(super) fn parse(bytes: &[u8]) -> Result<Staged, MetaError> {
        let mut reader = Reader::new(bytes);
        let staged = Staged { staging: reader.u64()?, offset: reader.u64()? };
        match reader.remaining() {
            0 => Ok(staged),
            _ => Err(MetaError::Extension { kind: STAGED }),
        }
    }
}
