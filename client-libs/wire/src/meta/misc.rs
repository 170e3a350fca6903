//! Metas that are neither lists of keys nor their results.

use super::cursor::{Reader, finish, put_str};
use super::{Item, MetaError, put_list, take_list};
use crate::StatId;

/// No meta but extensions: the request of Stats, the reply to Release.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Empty;

impl Empty {
    /// Appends nothing.
    pub fn encode(&self, _out: &mut Vec<u8>) {}

    /// Reads extensions only.
    ///
    /// # Errors
    /// [`MetaError`] when there is anything else.
    pub fn parse(meta: &[u8]) -> Result<Empty, MetaError> {
        finish(Reader::new(meta), Empty)
    }
}

/// One counter: `id u16 | value u64`. Ids that this version does not know stay numbers.
impl Item<'_> for (u16, u64) {
    const LEAST: usize = 10;

    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.0.to_le_bytes());
        out.extend_from_slice(&self.1.to_le_bytes());
    }

    fn take(reader: &mut Reader<'_>) -> Result<Self, MetaError> {
        Ok((reader.u16()?, reader.u64()?))
    }
}

/// Counters of a server: `count u32 | count × (id u16 | value u64) | extensions`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct StatsReply {
    /// Pairs of [`StatId`] number and value.
    pub stats: Vec<(u16, u64)>,
}

impl StatsReply {
    /// Adds one counter.
    pub fn push(&mut self, id: StatId, value: u64) {
        self.stats.push((id.raw(), value));
    }

    /// The value of one counter, when the server sent it.
    pub fn get(&self, id: StatId) -> Option<u64> {
        self.stats.iter().find(|(raw, _)| *raw == id.raw()).map(|(_, value)| *value)
    }

    /// Appends the meta to `out`.
    ///
    /// # Panics
    /// On more than [`MAX_ITEMS`](crate::MAX_ITEMS) counters.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_list(&self.stats, out);
    }

    /// Reads the meta.
    ///
    /// # Errors
    /// [`MetaError`] says what is wrong with it.
    pub fn parse(meta: &[u8]) -> Result<StatsReply, MetaError> {
        let mut reader = Reader::new(meta);
        let stats = take_list(&mut reader, Vec::new())?;
        finish(reader, StatsReply { stats })
    }
}

/// Why a side ends the connection: `text_length u16 | text | extensions`. Nothing follows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GoodbyeMeta<'a> {
    /// For the log of the other side.
    pub text: &'a str,
}

impl<'a> GoodbyeMeta<'a> {
    /// Appends the meta to `out`; a text longer than [`MAX_TEXT`](crate::MAX_TEXT) is cut there.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_str(out, self.text);
    }

    /// Reads the meta.
    ///
    /// # Errors
    /// [`MetaError`] says what is wrong with it.
    pub fn parse(meta: &'a [u8]) -> Result<GoodbyeMeta<'a>, MetaError> {
        let mut reader = Reader::new(meta);
        let text = reader.str()?;
        finish(reader, GoodbyeMeta { text })
    }
}

/// The meta of a reply whose header's status refuses the request as a whole:
/// `retry_ms u32 | text_length u16 | text | extensions`, or nothing at all.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Refusal<'a> {
    /// With Busy: when to try again, in milliseconds.
    pub retry_ms: u32,
    /// For a log; may be empty.
    pub text: &'a str,
}

impl<'a> Refusal<'a> {
    /// Appends the meta to `out`; a text longer than [`MAX_TEXT`](crate::MAX_TEXT) is cut there.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.retry_ms.to_le_bytes());
        put_str(out, self.text);
    }

    /// Reads the meta; an empty one is a refusal without time and text.
    ///
    /// # Errors
    /// [`MetaError`] says what is wrong with it.
    pub fn parse(meta: &'a [u8]) -> Result<Refusal<'a>, MetaError> {
        if meta.is_empty() {
            return Ok(Refusal::default());
        }
        let mut reader = Reader::new(meta);
        let refusal = Refusal { retry_ms: reader.u32()?, text: reader.str()? };
        finish(reader, refusal)
    }
}
