//! The faults a simulated disk can have, how often, and the record of what they harmed.
//!
//! An oracle that allows a block to be missing "because of a fault" must be able to ask whether a fault
//! really touched it; otherwise one bad sector would excuse every bug. So a fault tells an observer, at
//! the moment it happens, the bytes that it harmed ([`DiskEvent::Harmed`]), and the disk keeps the
//! harmed ranges until somebody overwrites them ([`Damage`]).

use std::collections::BTreeMap;

use memkv_block::Op;

/// The ways in which a simulated disk fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum FaultKind {
    /// A read is answered with an error; half of the time the sectors stay bad until they are written.
    ReadError,
    /// A write is answered with an error, and some of its sectors may have changed.
    WriteError,
    /// A bit of a stored sector flips, silently.
    BitFlip,
    /// A write is answered "done", but it went to another place of the disk.
    Misdirected,
    /// A write is answered "done", but nothing was written.
    Lost,
    /// A command takes a hundred to ten thousand times as long as usual.
    Slow,
    /// The disk stops answering: no command is done before the machine stops.
    Stall,
    /// The disk dies: from now on every command fails.
    Dead,
    /// A write that was on its way when the machine stopped was written in part.
    Torn,
}

impl FaultKind {
    /// Every kind, in the order of their numbers.
    pub const ALL: [FaultKind; 9] = [
        FaultKind::ReadError,
        FaultKind::WriteError,
        FaultKind::BitFlip,
        FaultKind::Misdirected,
        FaultKind::Lost,
        FaultKind::Slow,
        FaultKind::Stall,
        FaultKind::Dead,
        FaultKind::Torn,
    ];

    /// A short name for counters and reports.
    pub fn name(self) -> &'static str {
        match self {
            FaultKind::ReadError => "read error",
            FaultKind::WriteError => "write error",
            FaultKind::BitFlip => "bit flip",
            FaultKind::Misdirected => "misdirected write",
            FaultKind::Lost => "lost write",
            FaultKind::Slow => "slow command",
            FaultKind::Stall => "stalled disk",
            FaultKind::Dead => "dead disk",
            FaultKind::Torn => "torn write",
        }
    }
}

/// How often each fault happens, in faults per million commands. The default is never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultRates {
    /// Of reads.
    pub read_error: u32,
    /// Of writes.
    pub write_error: u32,
    /// Of all commands: with each, one stored sector rots.
    pub bit_flip: u32,
    /// Of writes.
    pub misdirected: u32,
    /// Of writes.
    pub lost: u32,
    /// Of all commands.
    pub slow: u32,
    /// Of all commands: with each, the disk stalls.
    pub stall: u32,
    /// Of all commands.
    pub dead: u32,
}

/// How often each fault has happened on one disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultCounts([u64; FaultKind::ALL.len()]);

impl FaultCounts {
    /// Count of one kind.
    pub fn get(&self, kind: FaultKind) -> u64 {
        self.0[kind as usize]
    }

    /// Adds `more` to the count of `kind`.
    pub fn add(&mut self, kind: FaultKind, more: u64) {
        self.0[kind as usize] += more;
    }
}

/// What an observer of a disk is told. Offsets and lengths are in bytes.
#[derive(Debug)]
pub enum DiskEvent<'a> {
    /// A command was handed to the disk. `data` holds the bytes of a write and is empty otherwise; the
    /// offset of a flush is its number on this disk.
    Submitted {
        /// What is asked for.
        op: Op,
        /// Where.
        offset: u64,
        /// The bytes of a write.
        data: &'a [u8],
    },
    /// A flush is done: what had completed when it was submitted survives a power cut from now on.
    Flushed {
        /// Its number, as in `Submitted`.
        number: u64,
    },
    /// A fault harmed stored bytes, or bytes that should have been stored.
    Harmed {
        /// Which fault.
        kind: FaultKind,
        /// Where the bytes are, or should have been.
        offset: u64,
        /// What the place held, or should have held: an oracle finds out from it who is harmed.
        content: &'a [u8],
    },
    /// The disk died: everything on it is harmed.
    Died,
    /// The disk stalled: nothing on it is harmed, but nobody gets at it.
    Stalled,
}

/// A range of a disk that a fault touched and nobody has overwritten since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Harm {
    /// Which fault.
    pub kind: FaultKind,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// The harmed ranges of one disk, by their first byte; never overlapping.
#[derive(Debug, Default)]
pub(crate) struct Damage(BTreeMap<u64, Harm>);

impl Damage {
    /// Remembers a harm; it takes the place of what it overlaps.
    pub(crate) fn add(&mut self, harm: Harm) {
        self.heal(harm.offset, harm.len);
        self.0.insert(harm.offset, harm);
    }

    /// The first harm that touches the range.
    pub(crate) fn find(&self, offset: u64, len: u64) -> Option<Harm> {
        let (_, harm) = self.0.range(..offset + len).next_back()?;
        (harm.offset + harm.len > offset).then_some(*harm)
    }

    /// The range was written anew.
    pub(crate) fn heal(&mut self, offset: u64, len: u64) {
        while let Some(harm) = self.find(offset, len) {
            self.0.remove(&harm.offset);
            if harm.offset < offset {
                let len = offset - harm.offset;
                self.0.insert(harm.offset, Harm { len, ..harm });
            }
            let (end, harm_end) = (offset + len, harm.offset + harm.len);
            if harm_end > end {
                self.0.insert(end, Harm { offset: end, len: harm_end - end, ..harm });
            }
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn harm(offset: u64, len: u64) -> Harm {
        Harm { kind: FaultKind::BitFlip, offset, len }
    }

    #[test]
    fn damage_is_found_by_any_overlap_and_healed_in_part() {
        let mut damage = Damage::default();
        damage.add(harm(4096, 4096));
        assert_eq!(damage.find(0, 4096), None);
        assert_eq!(damage.find(8192, 4096), None);
        assert_eq!(damage.find(0, 4097), Some(harm(4096, 4096)));
        assert_eq!(damage.find(8191, 1), Some(harm(4096, 4096)));
        damage.heal(5120, 1024);
        assert_eq!(damage.find(5120, 1024), None);
        assert_eq!(damage.find(4096, 4096), Some(harm(6144, 2048)));
        assert_eq!(damage.find(4096, 1024), Some(harm(4096, 1024)));
        damage.heal(0, 1 << 20);
        assert!(damage.is_empty());
    }

    #[test]
    fn a_newer_harm_takes_the_place_of_an_older_one() {
        let mut damage = Damage::default();
        damage.add(harm(0, 1024));
        damage.add(Harm { kind: FaultKind::Lost, offset: 512, len: 1024 });
        assert_eq!(damage.find(0, 512), Some(harm(0, 512)));
        assert_eq!(damage.find(512, 512).map(|h| h.kind), Some(FaultKind::Lost));
    }
}
