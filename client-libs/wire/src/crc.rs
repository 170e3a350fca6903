//! CRC-32C (Castagnoli; RFC 3720, section 12.1), the checksum of every extent of a value.

use crc_fast::{CrcAlgorithm, Digest};

use crate::MAX_EXTENTS;

/// CRC-32C of `bytes`.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

/// CRC-32C taken piece by piece, so that it can be computed beside a recv or a send while the bytes
/// are still in the cache.
#[derive(Clone, Copy)]
pub struct Crc32c(Digest);

impl Crc32c {
    /// Of nothing yet.
    pub fn new() -> Crc32c {
        Crc32c(Digest::new(CrcAlgorithm::Crc32Iscsi))
    }

    /// Takes the next bytes in.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The CRC of all bytes so far; more may follow.
    pub fn value(&self) -> u32 {
        self.0.finalize() as u32
    }
}

impl Default for Crc32c {
    fn default() -> Self {
        Crc32c::new()
    }
}

impl std::fmt::Debug for Crc32c {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Crc32c({:08x})", self.value())
    }
}

/// Up to [`MAX_EXTENTS`] CRCs in place: one per extent of a value, in the order of the extents.
/// Dereferences to a slice.
#[derive(Clone, Copy, Default)]
pub struct CrcList {
    count: u8,
    crcs: [u32; MAX_EXTENTS],
}

impl CrcList {
    /// No CRC.
    pub const EMPTY: CrcList = CrcList { count: 0, crcs: [0; MAX_EXTENTS] };

    /// A copy of `crcs`; `None` when there are more than [`MAX_EXTENTS`].
    pub fn from_slice(crcs: &[u32]) -> Option<CrcList> {
        let mut list = CrcList::EMPTY;
        list.crcs.get_mut(..crcs.len())?.copy_from_slice(crcs);
        list.count = crcs.len() as u8;
        Some(list)
    }

    /// The CRCs of `value` cut into extents of `extent` bytes; `None` when it has more than
    /// [`MAX_EXTENTS`] of them.
    pub fn of(value: &[u8], extent: usize) -> Option<CrcList> {
        assert!(extent > 0, "an extent has at least one byte");
        let mut list = CrcList::EMPTY;
        value.chunks(extent).all(|bytes| list.push(crc32c(bytes))).then_some(list)
    }

    /// Adds one at the end; false (and nothing done) when the list is full.
    #[must_use]
    pub fn push(&mut self, crc: u32) -> bool {
        let Some(place) = self.crcs.get_mut(usize::from(self.count)) else { return false };
        *place = crc;
        self.count += 1;
        true
    }

    /// The CRCs.
    pub fn as_slice(&self) -> &[u32] {
        &self.crcs[..usize::from(self.count)]
    }
}

impl std::ops::Deref for CrcList {
    type Target = [u32];
    fn deref(&self) -> &[u32] {
        self.as_slice()
    }
}

impl PartialEq for CrcList {
    fn eq(&self, other: &CrcList) -> bool {
        self.as_slice() == other.as_slice()
    }
}

impl Eq for CrcList {}

/// A CRC as people read it.
struct Hex(u32);

impl std::fmt::Debug for Hex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

impl std::fmt::Debug for CrcList {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter().map(|&crc| Hex(crc))).finish()
    }
}

/// How many extents of `extent` bytes the range `offset..offset + length` of a value touches: the
/// number of CRCs that go with these bytes. 0 for an empty range.
pub fn extents_touched(offset: u64, length: u64, extent: u64) -> u64 {
    assert!(extent > 0, "an extent has at least one byte");
    match length {
        0 => 0,
        _ => offset.saturating_add(length - 1) / extent - offset / extent + 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    /// RFC 3720, appendix B.4.
    #[test]
    fn known_answers() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(&std::array::from_fn::<u8, 32, _>(|i| i as u8)), 0x46dd_794e);
        assert_eq!(crc32c(&[]), 0);
        assert_eq!(Crc32c::new().value(), 0);
    }

    #[test]
    fn a_list_never_overflows() {
        assert!(CrcList::from_slice(&[1; 17]).is_none());
        let mut list = CrcList::from_slice(&[1; 15]).expect("15 fit");
        assert!(list.push(2));
        assert!(!list.push(3));
        assert_eq!(list.len(), 16);
        assert_eq!(list[15], 2);
        assert!(CrcList::of(&[0; 17], 1).is_none());
        assert_eq!(CrcList::of(&[], 4), Some(CrcList::EMPTY));
    }

    #[test]
    fn lists_compare_by_what_they_hold() {
        let mut long = CrcList::from_slice(&[1, 2]).expect("fits");
        let short = CrcList::from_slice(&[1]).expect("fits");
        assert_ne!(long, short);
        long.count = 1;
        assert_eq!(long, short, "what lies beyond the count does not matter");
    }

    #[test]
    fn extents_touched_by_ranges() {
        let cases = [
            ((0, 0), 0),
            ((0, 1), 1),
            ((0, 4), 1),
            ((0, 5), 2),
            ((3, 1), 1),
            ((3, 2), 2),
            ((4, 4), 1),
            ((2, 8), 3),
            ((u64::MAX, u64::MAX), 1),
        ];
        for ((offset, length), want) in cases {
            assert_eq!(extents_touched(offset, length, 4), want, "{offset}+{length}");
        }
    }

    proptest! {
        #[test]
        fn pieces_equal_the_whole(bytes in vec(any::<u8>(), 0..2000), cut in 0usize..2000) {
            let (head, tail) = bytes.split_at(cut.min(bytes.len()));
            let mut crc = Crc32c::new();
            crc.update(head);
            prop_assert_eq!(crc.value(), crc32c(head));
            crc.update(tail);
            prop_assert_eq!(crc.value(), crc32c(&bytes));
        }

        #[test]
        fn of_cuts_where_extents_end(
            bytes in vec(any::<u8>(), 1..160),
            extent in 10usize..40,
        ) {
            let list = CrcList::of(&bytes, extent).expect("at most 16");
            let touched = extents_touched(0, bytes.len() as u64, extent as u64);
            prop_assert_eq!(list.len() as u64, touched);
            for (index, crc) in list.iter().enumerate() {
                let end = bytes.len().min((index + 1) * extent);
                prop_assert_eq!(*crc, crc32c(&bytes[index * extent..end]));
            }
        }
    }
}
