//! Metas of requests.

use super::cursor::{Reader, append_extension, finish, next_extension, unknown};
use super::named::{STAGED, Staged};
use super::{Item, MetaError, parse_list, put_list, take_list};
use crate::{Advice, CrcList, MAX_EXTENTS, MAX_INLINE, MAX_KEY, MAX_VALUE};

/// The length of a [`GetItem`] that reads to the end of the value.
pub const TO_THE_END: u64 = u64::MAX;

const DURABLE: u32 = 1;
/// Extensions of a Put or an Offer: the key of an item's parent, for how long an item is pinned.
const PARENT: u16 = 1;
const PIN: u16 = 2;

/// Appends `length u16` of a key; the bytes follow at the end of the item.
fn put_key_length(out: &mut Vec<u8>, key: &[u8]) {
    assert!((1..=MAX_KEY).contains(&key.len()), "a key has 1 to {MAX_KEY} bytes");
    out.extend_from_slice(&(key.len() as u16).to_le_bytes());
}

fn take_key_length(reader: &mut Reader<'_>) -> Result<usize, MetaError> {
    let got = usize::from(reader.u16()?);
    if !(1..=MAX_KEY).contains(&got) {
        return Err(MetaError::KeyLength { got });
    }
    Ok(got)
}

/// `count u8` CRCs, the count having been read elsewhere.
pub(super) fn take_crcs(reader: &mut Reader<'_>, count: u8) -> Result<CrcList, MetaError> {
    if usize::from(count) > MAX_EXTENTS {
        return Err(MetaError::TooManyCrcs { got: count });
    }
    let mut list = CrcList::EMPTY;
    for _ in 0..count {
        assert!(list.push(reader.u32()?), "the count was checked above");
    }
    Ok(list)
}

pub(super) fn put_crcs(out: &mut Vec<u8>, crcs: &CrcList) {
    for crc in crcs.iter() {
        out.extend_from_slice(&crc.to_le_bytes());
    }
}

/// A key alone: `length u16 | key`.
impl<'a> Item<'a> for &'a [u8] {
    const LEAST: usize = 3;

    fn put(&self, out: &mut Vec<u8>) {
        put_key_length(out, self);
        out.extend_from_slice(self);
    }

    fn take(reader: &mut Reader<'a>) -> Result<Self, MetaError> {
        let length = take_key_length(reader)?;
        reader.bytes(length)
    }
}

/// Keys of Exists and Release.
///
/// ```text
///   count u32 | count × (key_length u16 | key) | extensions
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyList<'a> {
    /// 1 to [`MAX_ITEMS`](crate::MAX_ITEMS) keys.
    pub keys: Vec<&'a [u8]>,
}

impl<'a> KeyList<'a> {
    /// Appends the meta to `out`.
    ///
    /// # Panics
    /// On too many keys, or a key that is empty or too long.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_list(&self.keys, out);
    }

    /// Reads the meta.
    ///
    /// # Errors
    /// [`MetaError`] says what is wrong with it.
    pub fn parse(meta: &'a [u8]) -> Result<KeyList<'a>, MetaError> {
        KeyList::parse_into(meta, Vec::new())
    }

    /// Reads the meta into the memory of `keys`.
    ///
    /// # Errors
    /// As [`parse`](Self::parse).
    pub fn parse_into(meta: &'a [u8], keys: Vec<&'a [u8]>) -> Result<KeyList<'a>, MetaError> {
        Ok(KeyList { keys: parse_list(meta, keys)? })
    }
}

/// Keys to lease: `lease_ms u32`, then as [`KeyList`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LeaseList<'a> {
    /// For how long, in milliseconds; the server cuts it to its `lease_ms_max`.
    pub lease_ms: u32,
    /// 1 to [`MAX_ITEMS`](crate::MAX_ITEMS) keys.
    pub keys: Vec<&'a [u8]>,
}

impl<'a> LeaseList<'a> {
    /// Appends the meta to `out`.
    ///
    /// # Panics
    /// On too many keys, or a key that is empty or too long.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.lease_ms.to_le_bytes());
        put_list(&self.keys, out);
    }

    /// Reads the meta.
    ///
    /// # Errors
    /// [`MetaError`] says what is wrong with it.
    pub fn parse(meta: &'a [u8]) -> Result<LeaseList<'a>, MetaError> {
        LeaseList::parse_into(meta, Vec::new())
    }

    /// Reads the meta into the memory of `keys`.
    ///
    /// # Errors
    /// As [`parse`](Self::parse).
    pub fn parse_into(meta: &'a [u8], keys: Vec<&'a [u8]>) -> Result<LeaseList<'a>, MetaError> {
        let mut reader = Reader::new(meta);
        let lease_ms = reader.u32()?;
        let keys = take_list(&mut reader, keys)?;
        if keys.is_empty() {
            return Err(MetaError::NoItems);
        }
        finish(reader, LeaseList { lease_ms, keys })
    }
}

/// What is said of a chain of blocks, its keys in the order of the chain: `advice u8 | reserved
/// 3 × u8 = 0 | seconds u32`, then as [`KeyList`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HintList<'a> {
    /// What is said.
    pub advice: Advice,
    /// Pin: for how long; the server cuts it to its limit. Else 0.
    pub seconds: u32,
    /// 1 to [`MAX_ITEMS`](crate::MAX_ITEMS) keys.
    pub keys: Vec<&'a [u8]>,
}

impl<'a> HintList<'a> {
    /// Appends the meta to `out`.
    ///
    /// # Panics
    /// On too many keys, or a key that is empty or too long.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[self.advice.raw(), 0, 0, 0]);
        out.extend_from_slice(&self.seconds.to_le_bytes());
        put_list(&self.keys, out);
    }

    /// Reads the meta.
    ///
    /// # Errors
    /// [`MetaError`] says what is wrong with it.
    pub fn parse(meta: &'a [u8]) -> Result<HintList<'a>, MetaError> {
        HintList::parse_into(meta, Vec::new())
    }

    /// Reads the meta into the memory of `keys`.
    ///
    /// # Errors
    /// As [`parse`](Self::parse).
    pub fn parse_into(meta: &'a [u8], keys: Vec<&'a [u8]>) -> Result<HintList<'a>, MetaError> {
        let mut reader = Reader::new(meta);
        let got = reader.u8()?;
        reader.zeros(3)?;
        let seconds = reader.u32()?;
        let advice = match (Advice::from_raw(got), seconds) {
            (Some(Advice::Pin), 0) | (None, _) => return Err(MetaError::Advice { got, seconds }),
            (Some(Advice::Pin), _) => Advice::Pin,
            (Some(advice), 0) => advice,
            (Some(_), _) => return Err(MetaError::Advice { got, seconds }),
        };
        let keys = take_list(&mut reader, keys)?;
        if keys.is_empty() {
            return Err(MetaError::NoItems);
        }
        finish(reader, HintList { advice, seconds, keys })
    }
}

/// Which generation a put may replace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PutMode {
    /// Only if the key is not there; else Present (same length) or Conflict.
    Absent,
    /// Whatever is there.
    Replace,
    /// Only exactly this generation; else GenerationMismatch.
    Generation(u64),
}

impl PutMode {
    fn encode(self) -> (u8, u64) {
        match self {
            PutMode::Absent => (0, 0),
            PutMode::Replace => (1, 0),
            PutMode::Generation(generation) => (2, generation),
        }
    }

    fn decode(mode: u8, generation: u64) -> Result<PutMode, MetaError> {
        match (mode, generation) {
            (0, 0) => Ok(PutMode::Absent),
            (1, 0) => Ok(PutMode::Replace),
            (2, _) => Ok(PutMode::Generation(generation)),
            _ => Err(MetaError::Mode { mode, generation }),
        }
    }
}

/// What a putter says about a value besides: it travels in extensions, and who does not know them
/// stores the value all the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PutAdvice<'a> {
    /// The key of the block before it in its chain: 1 to [`MAX_KEY`] bytes.
    pub parent: Option<&'a [u8]>,
    /// Seconds for which it is evicted after all others, which reads do not extend; 0 for none.
    pub pin_seconds: u32,
}

impl<'a> PutAdvice<'a> {
    /// Bytes that it takes in a meta.
    pub fn encoded_length(&self) -> usize {
        let pin = if self.pin_seconds == 0 { 0 } else { 12 };
        self.parent.map_or(0, |parent| parent.len() + 8) + pin
    }

    fn encode(&self, item: u32, out: &mut Vec<u8>) {
        if let Some(parent) = self.parent {
            assert!((1..=MAX_KEY).contains(&parent.len()), "a key has 1 to {MAX_KEY} bytes");
            append_extension(out, PARENT, &[&item.to_le_bytes()[..], parent].concat());
        }
        if self.pin_seconds != 0 {
            let bytes = [item.to_le_bytes(), self.pin_seconds.to_le_bytes()].concat();
            append_extension(out, PIN, &bytes);
        }
    }

    /// Reads the extensions to the end; one that says where payload lies goes into `staged`, where
    /// there may be such.
    fn take_all(
        reader: &mut Reader<'a>,
        items: &mut [PutItem<'a>],
        mut staged: Option<&mut Option<Staged>>,
    ) -> Result<(), MetaError> {
        while let Some((kind, bytes)) = next_extension(reader)? {
            if kind == STAGED
                && let Some(staged) = &mut staged
            {
                if staged.replace(Staged::parse(bytes)?).is_some() {
                    return Err(MetaError::Extension { kind });
                }
                continue;
            }
            if kind != PARENT && kind != PIN {
                unknown(kind)?;
                continue;
            }
            let mut reader = Reader::new(bytes);
            let item = reader.u32()?;
            let wrong = MetaError::ExtendedItem { kind, item };
            let place = usize::try_from(item).unwrap_or(usize::MAX);
            let advice = &mut items.get_mut(place).ok_or(wrong)?.advice;
            if kind == PARENT {
                let got = reader.remaining();
                if !(1..=MAX_KEY).contains(&got) {
                    return Err(MetaError::KeyLength { got });
                }
                if advice.parent.replace(reader.bytes(got)?).is_some() {
                    return Err(wrong);
                }
            } else {
                let seconds = reader.u32()?;
                let known = std::mem::replace(&mut advice.pin_seconds, seconds);
                if known != 0 || seconds == 0 || reader.remaining() > 0 {
                    return Err(wrong);
                }
            }
        }
        Ok(())
    }
}

/// One value to store.
///
/// ```text
///   0  key_length u16 | 2 mode u8 | 3 crc_count u8 | 4 flags u32 (1 = durable)
///   8  ttl_seconds u32 | 12 reserved u32 = 0 | 16 length u64 | 24 generation u64
///  32  crcs u32 × crc_count | key
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PutItem<'a> {
    /// 1 to [`MAX_KEY`] bytes.
    pub key: &'a [u8],
    /// Bytes of the value, 1 to [`MAX_VALUE`].
    pub length: u64,
    /// Which generation it may replace.
    pub mode: PutMode,
    /// Answer only when it survives a power cut, whatever the server's default.
    pub durable: bool,
    /// Seconds to live; 0 for ever.
    pub ttl_seconds: u32,
    /// One CRC-32C per extent. Put: all of them. Offer: may be empty, Data brings them.
    pub crcs: CrcList,
    /// What is said about it besides.
    pub advice: PutAdvice<'a>,
}

impl<'a> Item<'a> for PutItem<'a> {
    const LEAST: usize = 33;

    fn put(&self, out: &mut Vec<u8>) {
        assert!((1..=MAX_VALUE).contains(&self.length), "a value has 1 to {MAX_VALUE} bytes");
        let (mode, generation) = self.mode.encode();
        put_key_length(out, self.key);
        out.extend_from_slice(&[mode, self.crcs.len() as u8]);
        out.extend_from_slice(&if self.durable { DURABLE } else { 0 }.to_le_bytes());
        out.extend_from_slice(&self.ttl_seconds.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.length.to_le_bytes());
        out.extend_from_slice(&generation.to_le_bytes());
        put_crcs(out, &self.crcs);
        out.extend_from_slice(self.key);
    }

    fn take(reader: &mut Reader<'a>) -> Result<Self, MetaError> {
        let key_length = take_key_length(reader)?;
        let mode = reader.u8()?;
        let crc_count = reader.u8()?;
        let flags = reader.u32()?;
        if flags & !DURABLE != 0 {
            return Err(MetaError::ItemFlags { got: flags });
        }
        let ttl_seconds = reader.u32()?;
        reader.zeros(4)?;
        let length = reader.u64()?;
        if !(1..=MAX_VALUE).contains(&length) {
            return Err(MetaError::ValueLength { got: length });
        }
        let mode = PutMode::decode(mode, reader.u64()?)?;
        let crcs = take_crcs(reader, crc_count)?;
        let key = reader.bytes(key_length)?;
        let durable = flags & DURABLE != 0;
        let advice = PutAdvice::default();
        Ok(PutItem { key, length, mode, durable, ttl_seconds, crcs, advice })
    }
}

/// Values of a Put (their bytes follow as payload, one after the other in this order) or of an
/// Offer (no payload): `count u32 | items | extensions`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PutItems<'a> {
    /// 1 to [`MAX_ITEMS`](crate::MAX_ITEMS) values.
    pub items: Vec<PutItem<'a>>,
}

impl<'a> PutItems<'a> {
    /// Appends the meta to `out`.
    ///
    /// # Panics
    /// On too many items, or a key or value out of bounds.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_list(&self.items, out);
        for (at, item) in self.items.iter().enumerate() {
            item.advice.encode(at as u32, out);
        }
    }

    /// Reads the meta. For a Put, compare [`inline_length`](Self::inline_length) with the header's
    /// payload length next.
    ///
    /// # Errors
    /// [`MetaError`] says what is wrong with it.
    pub fn parse(meta: &'a [u8]) -> Result<PutItems<'a>, MetaError> {
        PutItems::parse_into(meta, Vec::new())
    }

    /// Reads the meta into the memory of `items`.
    ///
    /// # Errors
    /// As [`parse`](Self::parse).
    pub fn parse_into(meta: &'a [u8], items: Vec<PutItem<'a>>) -> Result<PutItems<'a>, MetaError> {
        PutItems::take(meta, items, None)
    }

    /// Reads the meta of a Put that names its payload, into the memory of `items`, and where that
    /// lies: [`inline_length`](Self::inline_length) bytes.
    ///
    /// # Errors
    /// [`MetaError`] says what is wrong with it.
    pub fn parse_staged(
        meta: &'a [u8],
        items: Vec<PutItem<'a>>,
    ) -> Result<(PutItems<'a>, Staged), MetaError> {
        let mut staged = None;
        let items = PutItems::take(meta, items, Some(&mut staged))?;
        Ok((items, staged.ok_or(MetaError::Extension { kind: STAGED })?))
    }

    fn take(
        meta: &'a [u8],
        items: Vec<PutItem<'a>>,
        staged: Option<&mut Option<Staged>>,
    ) -> Result<PutItems<'a>, MetaError> {
        let mut reader = Reader::new(meta);
        let mut items = take_list(&mut reader, items)?;
        if items.is_empty() {
            return Err(MetaError::NoItems);
        }
        PutAdvice::take_all(&mut reader, &mut items, staged)?;
        Ok(PutItems { items })
    }

    /// The item of a meta that is well formed and has one alone. A batch is told from it by four bytes.
    pub fn lone(meta: &'a [u8]) -> Option<PutItem<'a>> {
        let mut reader = Reader::new(meta);
        if reader.u32().ok()? != 1 {
            return None;
        }
        let mut item = [PutItem::take(&mut reader).ok()?];
        PutAdvice::take_all(&mut reader, &mut item, None).ok()?;
        let [item] = item;
        Some(item)
    }

    /// The payload bytes of a Put with these items.
    ///
    /// # Errors
    /// [`MetaError::InlineLength`] when they are more than [`MAX_INLINE`].
    pub fn inline_length(&self) -> Result<u64, MetaError> {
        let got = self.items.iter().map(|item| item.length).fold(0, u64::saturating_add);
        if got > u64::from(MAX_INLINE) { Err(MetaError::InlineLength { got }) } else { Ok(got) }
    }
}

/// Which item of an Offer the payload of this Data frame is: `item u32 | reserved u32 = 0`. The
/// frame's request id is the Offer's; its trailer holds the CRCs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DataMeta {
    /// Index into the Offer's items.
    pub item: u32,
}

impl DataMeta {
    /// Appends the meta to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.item.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
    }

    /// Reads the meta.
    ///
    /// # Errors
    /// [`MetaError`] says what is wrong with it.
    pub fn parse(meta: &[u8]) -> Result<DataMeta, MetaError> {
        let mut reader = Reader::new(meta);
        let item = reader.u32()?;
        reader.zeros(4)?;
        finish(reader, DataMeta { item })
    }
}

/// One value, or a range of it, to read.
///
/// ```text
///   0  key_length u16 | 2 reserved = 0, 6 bytes | 8 offset u64 | 16 length u64 | 24 key
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GetItem<'a> {
    /// 1 to [`MAX_KEY`] bytes.
    pub key: &'a [u8],
    /// First byte wanted.
    pub offset: u64,
    /// Bytes wanted; [`TO_THE_END`] for the rest, 0 to learn length and generation only. A range
    /// that goes beyond the end of the value is cut there.
    pub length: u64,
}

impl<'a> Item<'a> for GetItem<'a> {
    const LEAST: usize = 25;

    fn put(&self, out: &mut Vec<u8>) {
        put_key_length(out, self.key);
        out.extend_from_slice(&[0; 6]);
        out.extend_from_slice(&self.offset.to_le_bytes());
        out.extend_from_slice(&self.length.to_le_bytes());
        out.extend_from_slice(self.key);
    }

    fn take(reader: &mut Reader<'a>) -> Result<Self, MetaError> {
        let key_length = take_key_length(reader)?;
        reader.zeros(6)?;
        let offset = reader.u64()?;
        let length = reader.u64()?;
        Ok(GetItem { key: reader.bytes(key_length)?, offset, length })
    }
}

impl<'a> GetItems<'a> {
    /// The item of a meta that is well formed and has one alone, as [`PutItems::lone`].
    pub fn lone(meta: &'a [u8]) -> Option<GetItem<'a>> {
        let mut reader = Reader::new(meta);
        if reader.u32().ok()? != 1 {
            return None;
        }
        let item = GetItem::take(&mut reader).ok()?;
        finish(reader, item).ok()
    }
}

/// A key with a generation: `generation u64 | key_length u16 | key`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeleteItem<'a> {
    /// 1 to [`MAX_KEY`] bytes.
    pub key: &'a [u8],
    /// Delete only this generation; 0 for any.
    pub generation: u64,
}

/// The block whose bytes were wrong: laid out as [`DeleteItem`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SuspectItem<'a> {
    /// 1 to [`MAX_KEY`] bytes.
    pub key: &'a [u8],
    /// The generation that the getter was answered.
    pub generation: u64,
}

/// A key of a run and its place in it: `position u32 | key_length u16 | key`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MatchItem<'a> {
    /// Index of the key in the client's whole run, which may lie on several servers. Ascending.
    pub position: u32,
    /// 1 to [`MAX_KEY`] bytes.
    pub key: &'a [u8],
}

/// Items of one number and a key.
macro_rules! numbered_key {
    ($item:ident, $field:ident: $type:ty, $take:ident, $least:literal) => {
        impl<'a> Item<'a> for $item<'a> {
            const LEAST: usize = $least;

            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.$field.to_le_bytes());
                self.key.put(out);
            }

            fn take(reader: &mut Reader<'a>) -> Result<Self, MetaError> {
                let $field = reader.$take()?;
                Ok($item { $field, key: <&[u8]>::take(reader)? })
            }
        }
    };
}

numbered_key!(DeleteItem, generation: u64, u64, 11);
numbered_key!(SuspectItem, generation: u64, u64, 11);
numbered_key!(MatchItem, position: u32, u32, 7);

/// Metas that are one list of items: `count u32 | items | extensions`.
macro_rules! lists {
    ($($(#[$doc:meta])* $list:ident of $item:ident;)+) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Debug)]
        pub struct $list<'a> {
            /// 1 to [`MAX_ITEMS`](crate::MAX_ITEMS) items.
            pub items: Vec<$item<'a>>,
        }

        impl<'a> $list<'a> {
            /// Appends the meta to `out`.
            ///
            /// # Panics
            /// On too many items, or a key that is empty or too long.
            pub fn encode(&self, out: &mut Vec<u8>) {
                put_list(&self.items, out);
            }

            /// Reads the meta.
            ///
            /// # Errors
            /// [`MetaError`] says what is wrong with it.
            pub fn parse(meta: &'a [u8]) -> Result<$list<'a>, MetaError> {
                $list::parse_into(meta, Vec::new())
            }

            /// Reads the meta into the memory of `items`.
            ///
            /// # Errors
            /// As [`parse`](Self::parse).
            pub fn parse_into(
                meta: &'a [u8],
                items: Vec<$item<'a>>,
            ) -> Result<$list<'a>, MetaError> {
                Ok($list { items: parse_list(meta, items)? })
            }
        }
    )+};
}

lists! {
    /// Values to read: `count u32 | items | extensions`. Each is answered by a frame of its own.
    GetItems of GetItem;
    /// Blocks to remove: `count u32 | items | extensions`.
    DeleteItems of DeleteItem;
    /// Blocks to verify: `count u32 | items | extensions`.
    SuspectItems of SuspectItem;
    /// A run of keys in ascending position: `count u32 | items | extensions`.
    MatchItems of MatchItem;
}
