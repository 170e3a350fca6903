//! A block as the index knows it, and the slab that holds them.

use std::num::NonZeroU32;
use std::rc::Rc;

use memkv_journal::{BlockId, KeyBytes, UnitRange};
use memkv_poller::local::Event;

use crate::DriveId;

/// 128-bit keyed hash of a whole key (tenant, namespace and key) under the store's secret.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct KeyHash(pub u128);

/// Why a key is not here, as far as the store remembers.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum MissReason {
    /// Never stored, or gone so long that the reason is forgotten.
    Never,
    /// Evicted to make room.
    Evicted,
    /// Deleted by a client.
    Deleted,
    /// Past its time to live.
    Expired,
    /// Its drive went offline.
    DriveLost,
    /// Its bytes failed their CRC and were dropped.
    Corrupt,
}

/// One extent of a block: up to 4 MiB of contiguous units on one drive.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Extent {
    /// Which drive.
    pub drive: DriveId,
    /// Which units of it.
    pub range: UnitRange,
    /// Byte offset on the drive.
    pub offset: u64,
    /// Payload bytes in it; the rest of the last unit is padding.
    pub length: u32,
    /// CRC32C of the payload bytes (0 in a reservation, before they have arrived).
    pub crc: u32,
}

/// A slot of the slab; dense, reused.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Slot(NonZeroU32);

impl Slot {
    fn index(self) -> usize {
        self.0.get() as usize - 1
    }

    /// The slot of a number; none has number 0.
    pub fn of(number: u32) -> Option<Slot> {
        NonZeroU32::new(number).map(Slot)
    }

    /// The slot's number, for messages between reactors.
    pub fn number(self) -> u32 {
        self.0.get()
    }
}

/// Flag of a record: the block's bytes were not checked since the last unclean start when it was
/// written. A clean start trusts every block but these.
pub const UNVERIFIED: u16 = 1;

/// A block that is stored, published or on its way out.
pub struct Block {
    pub id: BlockId,
    pub key: KeyBytes,
    pub length: u64,
    /// Unix seconds after which it is a miss; 0 is never.
    pub expires: u64,
    /// Flags of its record but [`UNVERIFIED`], which is told by `verified`.
    pub flags: u16,
    pub extents: Vec<Extent>,
    /// One bit per extent whose bytes were checked since the last unclean start, or written by us.
    pub verified: u16,
    /// Its bytes failed their CRC: a miss from then on, also while its removal still waits.
    pub corrupt: bool,
    /// Reads under way; the units are not reused before this is zero.
    pub pins: u32,
    /// False once it left the index.
    pub published: bool,
    /// Told when `pins` falls to zero after the block was unpublished.
    pub unread: Rc<Event>,
}

impl Block {
    pub fn hash(&self) -> KeyHash {
        KeyHash(self.id.hash)
    }

    /// Its flags as they go into a record.
    pub fn record_flags(&self) -> u16 {
        let all = (1u32 << self.extents.len()) - 1;
        let verified = !self.corrupt && u32::from(self.verified) & all == all;
        self.flags | if verified { 0 } else { UNVERIFIED }
    }

    pub fn units(&self) -> u64 {
        self.extents.iter().map(|e| u64::from(e.range.count)).sum()
    }

    pub fn is_on(&self, drive: DriveId) -> bool {
        self.extents.iter().any(|e| e.drive == drive)
    }
}

/// All blocks with stable slots. A `Vec` with a free list: slots are small integers that travel in
/// messages and in the policy's links.
#[derive(Default)]
pub struct Slab {
    slots: Vec<Option<Block>>,
    free: Vec<Slot>,
}

impl Slab {
    pub fn insert(&mut self, block: Block) -> Slot {
        if let Some(slot) = self.free.pop() {
            let place = &mut self.slots[slot.index()];
            assert!(place.is_none(), "a free slot holds no block");
            *place = Some(block);
            return slot;
        }
        self.slots.push(Some(block));
        let number = u32::try_from(self.slots.len()).expect("fewer than 2^32 blocks");
        Slot(NonZeroU32::new(number).expect("slots count from one"))
    }

    pub fn remove(&mut self, slot: Slot) -> Block {
        let block = self.slots[slot.index()].take().expect("the slot holds a block");
        self.free.push(slot);
        block
    }

    pub fn get(&self, slot: Slot) -> &Block {
        self.slots[slot.index()].as_ref().expect("the slot holds a block")
    }

    pub fn get_mut(&mut self, slot: Slot) -> &mut Block {
        self.slots[slot.index()].as_mut().expect("the slot holds a block")
    }

    /// The block of a slot that may have been reused since: checked by generation.
    pub fn find(&mut self, slot: Slot, generation: u64) -> Option<&mut Block> {
        let block = self.slots.get_mut(slot.index())?.as_mut()?;
        (block.id.generation == generation).then_some(block)
    }

    /// The slot of a place below [`Slab::places`].
    pub fn slot_at(place: usize) -> Slot {
        let number = u32::try_from(place + 1).expect("fewer than 2^32 blocks");
        Slot(NonZeroU32::new(number).expect("slots count from one"))
    }

    /// Places for blocks, in use or not.
    pub fn places(&self) -> usize {
        self.slots.len()
    }

    /// The block at a place below [`Slab::places`], if one is there.
    pub fn at(&self, place: usize) -> Option<&Block> {
        self.slots[place].as_ref()
    }

    /// Slots in order of their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (Slot, &Block)> {
        self.slots.iter().enumerate().filter_map(|(i, b)| {
            let number = NonZeroU32::new(u32::try_from(i + 1).ok()?)?;
            b.as_ref().map(|b| (Slot(number), b))
        })
    }
}
