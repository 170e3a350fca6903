//! The bytes of a value, derived from its key and version, so that wrong bytes are known at once.
//!
//! Every 512-byte sector of a value begins with a stamp (magic, key, version, number of the sector);
//! the rest comes from a table of noise at a place that key and version choose. So a sector of another
//! key, of another version or from another place of the same value is told apart by its first bytes,
//! and making or checking a value is a matter of copying or comparing memory. The stamps also tell the
//! disk oracle whose bytes a fault has harmed.

use std::sync::OnceLock;

/// Bytes between two stamps. No disk of the simulation has smaller sectors.
pub const SECTOR: usize = 512;
/// Bytes of a stamp.
pub const STAMP: usize = 16;

const MAGIC: u32 = 0x564b_4d73;
const NOISE: usize = 64 * 1024;

/// Who a sector belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Number of the key, over all tenants.
    pub key: u32,
    /// Number of the value, over all keys.
    pub version: u32,
    /// Which sector of the value.
    pub sector: u32,
}

impl Stamp {
    fn bytes(self) -> [u8; STAMP] {
        let mut bytes = [0; STAMP];
        bytes[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.key.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.version.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.sector.to_le_bytes());
        bytes
    }

    /// The stamp at the beginning of `sector`, if there is one.
    pub fn read(sector: &[u8]) -> Option<Stamp> {
        let word = |at: usize| -> Option<u32> {
            Some(u32::from_le_bytes(sector.get(at..at + 4)?.try_into().ok()?))
        };
        (word(0)? == MAGIC).then_some(())?;
        Some(Stamp { key: word(4)?, version: word(8)?, sector: word(12)? })
    }
}

fn noise() -> &'static [u8] {
    static TABLE: OnceLock<Vec<u8>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let mut rng = memkv_poller::Rng::seeded(0x6e01_5e00);
        let words = (NOISE + SECTOR).div_ceil(8);
        (0..words).flat_map(|_| rng.next_u64().to_le_bytes()).collect()
    })
}

/// Where in the noise the sectors of a value begin.
fn phase(key: u32, version: u32) -> usize {
    let mixed = (u64::from(key) << 32 | u64::from(version)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 40) as usize
}

/// Calls `part` for each piece of `offset..offset + len`: first the bytes, then whether they are a stamp's.
fn pieces(
    key: u32,
    version: u32,
    offset: u64,
    len: usize,
    mut part: impl FnMut(usize, &[u8]) -> bool,
) -> bool {
    let (noise, phase) = (noise(), phase(key, version));
    let mut done = 0;
    while done < len {
        let at = offset + done as u64;
        let (sector, within) = ((at / SECTOR as u64) as u32, (at % SECTOR as u64) as usize);
        let take = (SECTOR - within).min(len - done);
        let base = (phase + sector as usize * SECTOR) % NOISE;
        let stamped = STAMP.saturating_sub(within).min(take);
        let stamp = Stamp { key, version, sector }.bytes();
        let good = (stamped == 0 || part(done, &stamp[within..within + stamped]))
            && (stamped == take
                || part(done + stamped, &noise[base + within + stamped..base + within + take]));
        if !good {
            return false;
        }
        done += take;
    }
    true
}

/// Appends the value of `length` bytes.
pub fn append(key: u32, version: u32, length: u64, out: &mut Vec<u8>) {
    out.reserve(length as usize);
    pieces(key, version, 0, length as usize, |_, bytes| {
        out.extend_from_slice(bytes);
        true
    });
}

/// Whether `bytes` are what a value holds at `offset`.
pub fn matches(key: u32, version: u32, offset: u64, bytes: &[u8]) -> bool {
    pieces(key, version, offset, bytes.len(), |at, want| bytes[at..at + want.len()] == *want)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Appends the bytes `offset..offset + len` of a value.
    fn append_range(key: u32, version: u32, offset: u64, len: usize, out: &mut Vec<u8>) {
        pieces(key, version, offset, len, |_, bytes| {
            out.extend_from_slice(bytes);
            true
        });
    }

    #[test]
    fn a_value_matches_itself_and_nothing_else() {
        for length in [1, 15, 16, 17, 511, 512, 513, 16_384, 70_001] {
            let mut value = Vec::new();
            append(7, 9, length, &mut value);
            assert_eq!(value.len() as u64, length);
            assert!(matches(7, 9, 0, &value));
            if length > 8 {
                assert!(!matches(8, 9, 0, &value) && !matches(7, 10, 0, &value));
            }
            let last = value.len() - 1;
            value[last] ^= 1;
            assert!(!matches(7, 9, 0, &value));
        }
    }

    #[test]
    fn any_range_matches_at_its_place_only() {
        let mut value = Vec::new();
        append(1, 2, 5_000, &mut value);
        for (from, to) in
            [(0, 10), (3, 600), (511, 513), (512, 528), (1_030, 5_000), (4_999, 5_000)]
        {
            assert!(matches(1, 2, from as u64, &value[from..to]), "{from}..{to}");
            let mut range = Vec::new();
            append_range(1, 2, from as u64, to - from, &mut range);
            assert_eq!(range, value[from..to]);
        }
        assert!(!matches(1, 2, 512, &value[1_024..2_048]));
    }

    #[test]
    fn sectors_say_whose_they_are() {
        let mut value = Vec::new();
        append(3, 4, 1_500, &mut value);
        assert_eq!(Stamp::read(&value[1_024..]), Some(Stamp { key: 3, version: 4, sector: 2 }));
        assert_eq!(Stamp::read(&value[1..]), None);
        assert_eq!(Stamp::read(&value[..10]), None);
    }
}
