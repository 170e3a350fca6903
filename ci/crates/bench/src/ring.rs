//! Client memory that is always cold.
//!
//! Values are sent from and received into buffers that go round in a region larger than what the
//! processor caches, as an inference engine's do: it never touches a block between two transfers,
//! and the next block lies somewhere else. All sides of the bench share one region, one after the
//! other, so none of them finds what it left there itself.

use std::ops::Range;

use memkv_dma::{Arena, DmaBuf};

/// Bytes at each end of a value that name its slot.
const STAMP: usize = 8;

/// A stretch of the region, walked round and round.
pub struct Ring {
    arena: Arena,
    range: Range<u64>,
    at: u64,
}

impl Ring {
    /// Cuts the arena into `count` rings of equal size.
    pub fn cut(arena: &Arena, count: usize) -> Vec<Ring> {
        let each = arena.size() / count as u64;
        let ring = |number: u64| {
            let range = number * each..(number + 1) * each;
            Ring { arena: arena.clone(), at: range.start, range }
        };
        (0..count as u64).map(ring).collect()
    }

    /// The next buffer of `len` bytes, at most as long as the ring.
    pub fn next(&mut self, len: usize) -> DmaBuf {
        if self.at + len as u64 > self.range.end {
            self.at = self.range.start;
        }
        let buffer = self.arena.lend_mut(self.at, len);
        self.at += len as u64;
        buffer
    }
}

/// Fills the whole region with bytes that nothing compresses or shares.
pub fn fill(arena: &Arena) {
    const STEP: usize = 1 << 20;
    let mut rng = fastrand::Rng::with_seed(0x6d65_6d6b_7662_656e);
    for at in (0..arena.size()).step_by(STEP) {
        let len = STEP.min((arena.size() - at) as usize);
        rng.fill(arena.lend_mut(at, len).as_mut_slice());
    }
}

/// Writes the name of a slot into both ends of a value, which has at least 16 bytes.
pub fn stamp(value: &mut [u8], slot: u32) {
    let name = name(slot, value.len());
    value[..STAMP].copy_from_slice(&name);
    let end = value.len() - STAMP;
    value[end..].copy_from_slice(&name);
}

/// Whether both ends of a value name the slot.
pub fn is_stamped(value: &[u8], slot: u32) -> bool {
    let name = name(slot, value.len());
    value.starts_with(&name) && value.ends_with(&name)
}

fn name(slot: u32, len: usize) -> [u8; STAMP] {
    ((u64::from(slot) << 32) ^ len as u64).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use memkv_dma::Hugepages;

    use super::*;

    #[test]
    fn rings_walk_round_in_their_own_stretch() {
        let arena = Arena::new(1 << 20, Hugepages::Never).unwrap();
        let mut rings = Ring::cut(&arena, 2);
        let place = |buffer: &DmaBuf| buffer.as_ptr() as usize;
        let first = place(&rings[0].next(200_000));
        let other = place(&rings[1].next(200_000));
        assert_eq!(other - first, 1 << 19);
        assert_eq!(place(&rings[0].next(200_000)) - first, 200_000);
        assert_eq!(place(&rings[0].next(200_000)), first, "the third does not fit behind");
    }

    #[test]
    fn a_stamp_names_slot_and_length_at_both_ends() {
        let mut value = vec![0; 64];
        assert!(!is_stamped(&value, 3));
        stamp(&mut value, 3);
        assert!(is_stamped(&value, 3) && !is_stamped(&value, 4));
        value[63] ^= 1;
        assert!(!is_stamped(&value, 3));
    }

    #[test]
    fn the_region_is_filled_with_noise() {
        let arena = Arena::new(3 << 20, Hugepages::Never).unwrap();
        fill(&arena);
        let bytes = arena.lend(0, 3 << 20);
        let zeroes = bytes.as_slice().iter().filter(|byte| **byte == 0).count();
        assert!(zeroes < 20_000, "{zeroes} of 3 Mi bytes are zero, one in 256 is due");
    }
}
