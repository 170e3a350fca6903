//! Metas of replies.

use super::cursor::{Reader, finish};
use super::request::{put_crcs, take_crcs};
use super::{Item, MetaError, put_list, take_list};
use crate::{CrcList, MAX_ITEMS, MissReason, Status};

/// The result of one item, wherever items are answered.
///
/// ```text
///   0  status u16 | 2 reason u8 | 3 crc_count u8 | 4 retry_ms u32 | 8 length u64
///  16  generation u64 | 24 crcs u32 × crc_count
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ItemReply {
    /// What became of it.
    pub status: Status,
    /// Why it is not there, with [`Status::NotFound`].
    pub reason: MissReason,
    /// With [`Status::Busy`]: when to try again, in milliseconds.
    pub retry_ms: u32,
    /// Bytes of the stored value, 0 when there is none.
    pub length: u64,
    /// Generation of the stored value, 0 when there is none.
    pub generation: u64,
    /// CRC-32C per extent of the stored value, or of what is sent of it; may be empty.
    pub crcs: CrcList,
}

impl ItemReply {
    /// A bare status; all other fields zero.
    pub const fn new(status: Status) -> ItemReply {
        ItemReply {
            status,
            reason: MissReason::Never,
            retry_ms: 0,
            length: 0,
            generation: 0,
            crcs: CrcList::EMPTY,
        }
    }

    /// [`Status::NotFound`] with its reason.
    pub const fn miss(reason: MissReason) -> ItemReply {
        ItemReply { reason, ..ItemReply::new(Status::NotFound) }
    }

    /// [`Status::Busy`] with the time to come back.
    pub const fn busy(retry_ms: u32) -> ItemReply {
        ItemReply { retry_ms, ..ItemReply::new(Status::Busy) }
    }
}

impl Item<'_> for ItemReply {
    const LEAST: usize = 24;

    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.status.raw().to_le_bytes());
        out.extend_from_slice(&[self.reason.raw(), self.crcs.len() as u8]);
        out.extend_from_slice(&self.retry_ms.to_le_bytes());
        out.extend_from_slice(&self.length.to_le_bytes());
        out.extend_from_slice(&self.generation.to_le_bytes());
        put_crcs(out, &self.crcs);
    }

    #[inline]
    fn take(reader: &mut Reader<'_>) -> Result<Self, MetaError> {
        let got = reader.u16()?;
        let status = Status::from_raw(got).ok_or(MetaError::UnknownStatus { got })?;
        let got = reader.u8()?;
        let reason = MissReason::from_raw(got).ok_or(MetaError::UnknownReason { got })?;
        let crc_count = reader.u8()?;
        Ok(ItemReply {
            status,
            reason,
            retry_ms: reader.u32()?,
            length: reader.u64()?,
            generation: reader.u64()?,
            crcs: take_crcs(reader, crc_count)?,
        })
    }
}

/// One result per item of the request, in its order: `count u32 | items | extensions`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ItemReplies {
    /// As many as the request had items.
    pub items: Vec<ItemReply>,
}

impl ItemReplies {
    /// Appends the meta to `out`.
    ///
    /// # Panics
    /// On more than [`MAX_ITEMS`](crate::MAX_ITEMS) items.
    pub fn encode(&self, out: &mut Vec<u8>) {
        ItemReplies::encode_all(&self.items, out);
    }

    /// Appends the meta with these items to `out`.
    ///
    /// # Panics
    /// On more than [`MAX_ITEMS`](crate::MAX_ITEMS) items.
    pub fn encode_all(items: &[ItemReply], out: &mut Vec<u8>) {
        put_list(items, out);
    }

    /// Appends the meta with so many items to `out`, each made when it is its turn.
    ///
    /// # Panics
    /// On more than [`MAX_ITEMS`](crate::MAX_ITEMS) items.
    pub fn encode_each(items: impl ExactSizeIterator<Item = ItemReply>, out: &mut Vec<u8>) {
        assert!(items.len() <= MAX_ITEMS, "a list has at most {MAX_ITEMS} items");
        out.extend_from_slice(&(items.len() as u32).to_le_bytes());
        items.for_each(|item| item.put(out));
    }

    /// Reads the meta, if it has as many items as the request, and hands each to `take` as soon as it is
    /// read; false when it has another number of them.
    ///
    /// # Errors
    /// [`MetaError`] says what is wrong with it. Items before that were handed over.
    pub fn parse_each(
        meta: &[u8],
        count: usize,
        mut take: impl FnMut(usize, ItemReply),
    ) -> Result<bool, MetaError> {
        let mut reader = Reader::new(meta);
        if reader.u32()? as usize != count {
            return Ok(false);
        }
        for at in 0..count {
            take(at, ItemReply::take(&mut reader)?);
        }
        finish(reader, true)
    }

    /// Reads the meta. The caller compares the number of items with its request's.
    ///
    /// # Errors
    /// [`MetaError`] says what is wrong with it.
    pub fn parse(meta: &[u8]) -> Result<ItemReplies, MetaError> {
        let mut reader = Reader::new(meta);
        let items = take_list(&mut reader, Vec::new())?;
        finish(reader, ItemReplies { items })
    }
}

/// Whether each key of a Presence is there, in the order of the request: `count u32`, then one byte for
/// each key: 0 when its block is there, else one more than the number of its [`MissReason`]; extensions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PresenceReply {
    /// Why each block is missing; `None` for one that is there.
    pub missing: Vec<Option<MissReason>>,
}

impl PresenceReply {
    /// Appends the meta to `out`.
    ///
    /// # Panics
    /// On more than [`MAX_ITEMS`](crate::MAX_ITEMS) keys.
    pub fn encode(&self, out: &mut Vec<u8>) {
        PresenceReply::encode_each(self.missing.iter().copied(), out);
    }

    /// Appends the meta about so many keys to `out`, each looked for when it is its turn.
    ///
    /// # Panics
    /// On more than [`MAX_ITEMS`](crate::MAX_ITEMS) keys.
    pub fn encode_each(
        missing: impl ExactSizeIterator<Item = Option<MissReason>>,
        out: &mut Vec<u8>,
    ) {
        assert!(missing.len() <= MAX_ITEMS, "a list has at most {MAX_ITEMS} items");
        out.extend_from_slice(&(missing.len() as u32).to_le_bytes());
        out.extend(missing.map(|missing| missing.map_or(0, |reason| 1 + reason.raw())));
    }

    /// Reads the meta, if it has as many keys as the request, and hands the answer about each to `take`;
    /// false when it has another number of them.
    ///
    /// # Errors
    /// [`MetaError`] says what is wrong with it. Answers before that were handed over.
    pub fn parse_each(
        meta: &[u8],
        count: usize,
        mut take: impl FnMut(usize, Option<MissReason>),
    ) -> Result<bool, MetaError> {
        let mut reader = Reader::new(meta);
        if reader.u32()? as usize != count {
            return Ok(false);
        }
        for (at, &got) in reader.bytes(count)?.iter().enumerate() {
            take(at, presence(got)?);
        }
        finish(reader, true)
    }

    /// Reads the meta. The caller compares the number of answers with its request's.
    ///
    /// # Errors
    /// [`MetaError`] says what is wrong with it.
    pub fn parse(meta: &[u8]) -> Result<PresenceReply, MetaError> {
        let mut reader = Reader::new(meta);
        let got = reader.u32()?;
        let count = got as usize;
        if count > MAX_ITEMS {
            return Err(MetaError::TooManyItems { got });
        }
        let missing =
            reader.bytes(count)?.iter().map(|&got| presence(got)).collect::<Result<_, _>>()?;
        finish(reader, PresenceReply { missing })
    }
}

/// The answer about one key.
fn presence(got: u8) -> Result<Option<MissReason>, MetaError> {
    let Some(reason) = got.checked_sub(1) else { return Ok(None) };
    match MissReason::from_raw(reason) {
        None => Err(MetaError::UnknownReason { got: reason }),
        reason => Ok(reason),
    }
}

/// The result of one Data frame: `item u32 | reserved u32 = 0 | item reply | extensions`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DataReply {
    /// Index into the Offer's items.
    pub item: u32,
    /// What became of it.
    pub reply: ItemReply,
}

impl DataReply {
    /// Appends the meta to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.item.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        self.reply.put(out);
    }

    /// Reads the meta.
    ///
    /// # Errors
    /// [`MetaError`] says what is wrong with it.
    pub fn parse(meta: &[u8]) -> Result<DataReply, MetaError> {
        let mut reader = Reader::new(meta);
        let item = reader.u32()?;
        reader.zeros(4)?;
        let reply = ItemReply::take(&mut reader)?;
        finish(reader, DataReply { item, reply })
    }
}

/// The answer to one item of a Get; the header's payload length says how many bytes follow.
///
/// ```text
///   0  item u32 | 4 reserved u32 = 0 | 8 offset u64 | 16 item reply | extensions
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GetReply {
    /// Index into the request's items.
    pub item: u32,
    /// Where in the value the payload begins.
    pub offset: u64,
    /// The whole value's length and generation; one CRC per extent that the payload touches, each
    /// over the bytes that are sent of it.
    pub reply: ItemReply,
}

impl GetReply {
    /// Appends the meta to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.item.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.offset.to_le_bytes());
        self.reply.put(out);
    }

    /// Reads the meta.
    ///
    /// # Errors
    /// [`MetaError`] says what is wrong with it.
    pub fn parse(meta: &[u8]) -> Result<GetReply, MetaError> {
        let mut reader = Reader::new(meta);
        let reply = GetReply::take(&mut reader)?;
        finish(reader, reply)
    }

    /// Reads what stands in front of the extensions.
    pub(super) fn take(reader: &mut Reader<'_>) -> Result<GetReply, MetaError> {
        let item = reader.u32()?;
        reader.zeros(4)?;
        let offset = reader.u64()?;
        Ok(GetReply { item, offset, reply: ItemReply::take(reader)? })
    }
}

/// The answer to MatchPrefix: `first_missing u32 | examined u32 | extensions`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MatchReply {
    /// The position of the first key that is not there; [`MatchReply::NONE`] when all are.
    pub first_missing: u32,
    /// How many keys the server looked at.
    pub examined: u32,
}

impl MatchReply {
    /// No key is missing.
    pub const NONE: u32 = u32::MAX;

    /// Appends the meta to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.first_missing.to_le_bytes());
        out.extend_from_slice(&self.examined.to_le_bytes());
    }

    /// Reads the meta.
    ///
    /// # Errors
    /// [`MetaError`] says what is wrong with it.
    pub fn parse(meta: &[u8]) -> Result<MatchReply, MetaError> {
        let mut reader = Reader::new(meta);
        let reply = MatchReply { first_missing: reader.u32()?, examined: reader.u32()? };
        finish(reader, reply)
    }
}
