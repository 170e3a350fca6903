//! CRCs of a value as its bytes go by.

use memkv_wire::{Crc32c, CrcList};

/// Computes one CRC-32C per extent over bytes that come in slices of any length.
pub(crate) struct ExtentCrcs {
    extent: u64,
    /// Bytes until the current extent ends.
    left: u64,
    crc: Crc32c,
    begun: bool,
    list: CrcList,
    overflow: bool,
}

impl ExtentCrcs {
    /// For bytes that begin at `offset` of their value, whose extents have `extent` bytes.
    pub fn new(offset: u64, extent: u32) -> ExtentCrcs {
        let extent = u64::from(extent);
        ExtentCrcs {
            extent,
            left: extent - offset % extent,
            crc: Crc32c::new(),
            begun: false,
            list: CrcList::EMPTY,
            overflow: false,
        }
    }

    /// Takes the next bytes in.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let count = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
            let (now, later) = bytes.split_at(count);
            self.crc.update(now);
            self.begun = true;
            self.left -= count as u64;
            if self.left == 0 {
                self.close();
            }
            bytes = later;
        }
    }

    fn close(&mut self) {
        let crc = std::mem::take(&mut self.crc);
        self.overflow |= !self.list.push(crc.value());
        self.begun = false;
        self.left = self.extent;
    }

    /// The CRCs of all bytes taken in, which are to be all there are; `None` when they touch more than 16
    /// extents.
    pub fn list(&mut self) -> Option<CrcList> {
        if self.begun {
            self.close();
        }
        (!self.overflow).then_some(self.list)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memkv_wire::extents_touched;

    #[test]
    fn slices_of_any_length_give_the_crcs_of_the_extents() {
        let value: Vec<u8> = (0..1000_u32).map(|at| ((at * 7) ^ (at >> 3)) as u8).collect();
        for slice in [1, 3, 99, 100, 101, 1000] {
            for range in [0..1000, 0..1, 37..38, 99..101, 100..200, 250..999, 5..5] {
                let mut crcs = ExtentCrcs::new(range.start as u64, 100);
                value[range.clone()].chunks(slice).for_each(|bytes| crcs.update(bytes));
                let list = crcs.list().expect("at most 10 extents");
                let length = (range.end - range.start) as u64;
                let touched = extents_touched(range.start as u64, length, 100);
                assert_eq!(list.len() as u64, touched);
                let mut at = range.start;
                for crc in list.iter() {
                    let end = range.end.min((at / 100 + 1) * 100);
                    assert_eq!(*crc, memkv_wire::crc32c(&value[at..end]));
                    at = end;
                }
            }
        }
    }

    #[test]
    fn more_than_sixteen_extents_are_noticed() {
        let mut crcs = ExtentCrcs::new(0, 1);
        crcs.update(&[0; 16]);
        assert_eq!(crcs.list().expect("16 fit").len(), 16);
        let mut crcs = ExtentCrcs::new(0, 1);
        crcs.update(&[0; 17]);
        assert!(crcs.list().is_none());
    }
}
