//! What setup finds on a drive that it is asked to format: signs of foreign owners, and superblocks
//! of our own, whole or not.
//!
//! An input is a list of patches to a blank drive. What must hold: no panic; every sign is on the
//! drive; a drive whose start is not blank is never taken for blank; and a superblock is believed
//! only when two copies agree on it.

use memkv_block::Geometry;
use memkv_journal::probe::{BLANK, Edges, HEAD, Owner, TAIL, signatures};
use memkv_journal::{CopyState, ReadError, SUPERBLOCK_BYTES, Superblock, copy_offset, inspect};
use memkv_poller::Rng;

use crate::draw::{bytes, mutate, once_in, one_of};
use crate::journal::superblock;
use crate::patches::{Patch, Patches};
use crate::target::{Counts, Target, variant};

/// The largest drive that is made: both of its ends are looked at, and some of its middle is not.
const CAPACITY_MAX: usize = HEAD + TAIL + (1 << 20);

/// Signs and where they stand, from the start or, when negative, from the end.
const SIGNS: [(i64, &[u8]); 16] = [
    (0, b"XFSB"),
    (1080, b"\x53\xef"),
    (65_600, b"_BHRfS_M"),
    (4086, b"SWAPSPACE2"),
    (512, b"LABELONE"),
    (0, b"LUKS\xba\xbe"),
    (0x4000, b"SKUL\xba\xbe"),
    (4096, b"\xfc\x4e\x2b\xa9"),
    (-8192, b"\xfc\x4e\x2b\xa9"),
    (-65_536, b"\xfc\x4e\x2b\xa9"),
    (512, b"EFI PART"),
    (-512, b"EFI PART"),
    (510, b"\x55\xaa"),
    (450, b"\x83"),
    (131_072, b"\x0c\xb1\xba\0\0\0\0\0"),
    (3, b"NTFS    "),
];

/// The target: probing.
pub struct Probe {
    counts: Counts,
}

impl Default for Probe {
    fn default() -> Probe {
        let owners =
            [Owner::FileSystem, Owner::Partitions, Owner::Layer, Owner::Swap, Owner::Unknown];
        let owners = owners.map(|owner| format!("signed by {owner:?}"));
        let copies = ["current", "stale", "blank", "damaged"].map(|word| format!("copy {word}"));
        let ends = ["believed", "NotFormatted", "NoQuorum", "Fork", "Shrunk", "Superblock"];
        let ends = ends.map(|end| format!("superblock {end}"));
        let blank = ["blank".to_owned()];
        Probe { counts: Counts::of(owners.into_iter().chain(copies).chain(ends).chain(blank)) }
    }
}

impl Target for Probe {
    fn name(&self) -> &'static str {
        "probe"
    }

    fn draw(&self, rng: &mut Rng) -> Vec<u8> {
        let capacity = match rng.below(4) {
            0 => rng.below(70_000) as usize,
            1 => CAPACITY_MAX,
            _ => rng.below(CAPACITY_MAX as u64) as usize / 512 * 512,
        };
        let mut patches = Patches { size: capacity as u32, patches: Vec::new() };
        for _ in 0..rng.below(4) {
            let (at, sign) = one_of(rng, &SIGNS);
            let at = if at < 0 { capacity as i64 + at } else { at };
            let at = u32::try_from(at).unwrap_or(0);
            patches.patches.push(Patch { at, bytes: sign.to_vec() });
        }
        if once_in(rng, 3) {
            patches.patches.extend(copies(rng));
        }
        if once_in(rng, 4) {
            let at = rng.below(capacity as u64 + 1) as u32;
            let count = rng.below(40) as usize;
            patches.patches.push(Patch { at, bytes: bytes(rng, count) });
        }
        patches.encode()
    }

    fn feed(&mut self, input: &[u8]) {
        let Some(patches) = Patches::parse(input) else { return };
        if patches.size as usize > CAPACITY_MAX {
            return;
        }
        let mut image = vec![0; patches.size as usize];
        patches.apply(&mut image);
        self.feed_edges(&image);
        self.feed_copies(&image);
    }

    fn counts(&self) -> &Counts {
        &self.counts
    }
}

/// Copies of one superblock, or of two, some of them changed.
fn copies(rng: &mut Rng) -> Vec<Patch> {
    let (one, other) = (superblock(rng), superblock(rng));
    let mut patches = Vec::new();
    for copy in 0..4 {
        let mut bytes = if once_in(rng, 4) { other.clone() } else { one.clone() };
        bytes[8..10].copy_from_slice(&(copy as u16).to_le_bytes());
        if once_in(rng, 4) {
            mutate(rng, &mut bytes);
            bytes.truncate(SUPERBLOCK_BYTES);
        }
        if !once_in(rng, 6) {
            patches.push(Patch { at: copy_offset(copy) as u32, bytes });
        }
    }
    let (at, field) = match rng.below(6) {
        // Of one revision and of different bytes: two nodes wrote at once.
        0 | 1 => (48, one[48..56].to_vec()),
        // A later version of the format, and features of one.
        2 => (16, vec![2]),
        3 => (one_of(rng, &[32, 40]), vec![1]),
        _ => (0, Vec::new()),
    };
    if !field.is_empty() {
        for patch in &mut patches {
            if patch.bytes.len() == SUPERBLOCK_BYTES {
                patch.bytes[at..at + field.len()].copy_from_slice(&field);
                let crc = memkv_wire::crc32c(&patch.bytes[16..]);
                patch.bytes[12..16].copy_from_slice(&crc.to_le_bytes());
            }
        }
    }
    patches
}

impl Probe {
    fn feed_edges(&mut self, image: &[u8]) {
        let head = &image[..image.len().min(HEAD)];
        let tail = &image[image.len().saturating_sub(TAIL)..];
        let found = signatures(&Edges::new(image.len() as u64, head, tail));
        for signature in &found {
            assert!(signature.offset < image.len() as u64, "{signature:?}");
            self.counts.bump(&format!("signed by {:?}", signature.owner));
        }
        assert!(found.is_sorted_by_key(|signature| signature.offset));
        let marked = image.iter().take(BLANK).any(|byte| *byte != 0);
        assert!(!marked || !found.is_empty(), "something is there, and nobody is named");
        if found.is_empty() {
            self.counts.bump("blank");
        }
    }

    fn feed_copies(&mut self, image: &[u8]) {
        // A drive as large as the largest that a superblock is drawn for, or too small for any.
        let capacity = if image.len().is_multiple_of(2) { 1 << 60 } else { image.len() as u64 };
        let copies = std::array::from_fn(|copy| {
            let at = copy_offset(copy) as usize;
            Ok(image.get(at..at + SUPERBLOCK_BYTES).unwrap_or_default().to_vec())
        });
        let geometry = Geometry { capacity, sector: 512, max_transfer: 1 << 20 };
        let found = inspect(copies, &geometry);
        let current = found.copies.iter().filter(|copy| **copy == CopyState::Current).count();
        for copy in found.copies {
            self.counts.bump(&format!("copy {}", copy.word()));
        }
        match &found.superblock {
            Ok(superblock) => {
                assert!(current >= 2, "{current} copies make no quorum");
                let mut again = vec![0; SUPERBLOCK_BYTES];
                superblock.encode(0, &mut again);
                assert_eq!(Superblock::parse(&again).as_ref(), Ok(superblock));
                self.counts.bump("superblock believed");
            }
            Err(error) => {
                if matches!(error, ReadError::NotFormatted) {
                    assert_eq!(found.copies, [CopyState::Blank; 4]);
                }
                self.counts.bump(&format!("superblock {}", variant(error)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::{Until, run};

    #[test]
    fn everything_setup_may_find_is_reached() {
        let report = run(&mut Probe::default(), &[], 5, Until::Inputs(4_000));
        assert!(report.passed(), "{report}");
    }

    #[test]
    fn any_input_may_be_fed() {
        let mut rng = Rng::seeded(2);
        let mut probe = Probe::default();
        for length in 0..200 {
            probe.feed(&bytes(&mut rng, length));
        }
    }
}
