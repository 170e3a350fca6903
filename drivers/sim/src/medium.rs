//! What a simulated disk stores: pages that know what would survive a power cut.
//!
//! A drive with a write cache answers "done" long before a write is stable. So each page of 4 KiB has up
//! to two contents: `current`, what a read returns, and what is `stable`, what a power cut leaves. A
//! flush makes the two one again. Between flushes the drive may also write back a page whenever it
//! likes ("destage"): the medium does so at random when a page is written again, so a power cut can
//! also bring up versions that are neither the newest nor the last flushed one.
//!
//! A whole-page write copies its bytes once: the old page *becomes* the stable one and a spare page
//! takes the new bytes. Spare pages are shared by all disks of a thread, from one seed to the next.

use std::sync::{Arc, Mutex, PoisonError};

use memkv_poller::Rng;

/// Bytes of a page: the grain of storage of a [`crate::SimDisk`] (not of its faults, that is the sector).
pub const PAGE: usize = 4 * 1024;

/// Spare pages, shared by the disks of many runs so that a run does not start with page faults.
#[derive(Clone, Default)]
pub struct Pages(Arc<Mutex<Vec<Box<[u8]>>>>);

impl Pages {
    /// A page with unspecified content.
    fn take(&self) -> Box<[u8]> {
        let spare = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        spare.unwrap_or_else(|| vec![0; PAGE].into_boxed_slice())
    }

    fn put(&self, page: Box<[u8]>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(page);
    }
}

impl std::fmt::Debug for Pages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pages")
    }
}

/// What a power cut would leave of a page.
enum Stable {
    /// The current content: the page is clean.
    Same,
    /// Another content; `None` is zeros (never written).
    Other(Option<Box<[u8]>>),
}

struct Page {
    /// What a read returns; `None` is zeros.
    current: Option<Box<[u8]>>,
    stable: Stable,
    /// The flush epoch of the last write: a flush makes stable what is older than itself.
    epoch: u32,
}

/// What a power cut does to the pages that were not stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Every unstable page falls back: the longest possible loss.
    LoseAll,
    /// Each page is kept, lost, or mixed sector by sector.
    Mixed,
}

/// The content of one disk.
pub(crate) struct Medium {
    pages: Vec<Page>,
    spare: Pages,
    sector: usize,
    /// Indexes of pages with bytes, in order of their first write: where rot finds something to harm.
    present: Vec<u32>,
    /// Indexes of pages whose stable content differs from the current one.
    dirty: Vec<u32>,
    epoch: u32,
    rng: Rng,
}

impl Medium {
    pub(crate) fn new(capacity: u64, sector: u32, spare: Pages, rng: Rng) -> Medium {
        let count = capacity.div_ceil(PAGE as u64) as usize;
        let blank = || Page { current: None, stable: Stable::Same, epoch: 0 };
        Medium {
            pages: std::iter::repeat_with(blank).take(count).collect(),
            spare,
            sector: sector as usize,
            present: Vec::new(),
            dirty: Vec::new(),
            epoch: 1,
            rng,
        }
    }

    /// Splits a byte range into (page index, range in the page).
    fn spans(offset: u64, len: usize) -> impl Iterator<Item = (usize, usize, usize)> {
        let mut at = offset;
        let end = offset + len as u64;
        std::iter::from_fn(move || {
            if at == end {
                return None;
            }
            let page = (at / PAGE as u64) as usize;
            let from = (at % PAGE as u64) as usize;
            let take = (PAGE - from).min((end - at) as usize);
            at += take as u64;
            Some((page, from, take))
        })
    }

    pub(crate) fn read(&self, offset: u64, into: &mut [u8]) {
        let mut done = 0;
        for (page, from, take) in Self::spans(offset, into.len()) {
            let part = &mut into[done..done + take];
            match &self.pages[page].current {
                Some(bytes) => part.copy_from_slice(&bytes[from..from + take]),
                None => part.fill(0),
            }
            done += take;
        }
    }

    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) {
        let mut done = 0;
        for (page, from, take) in Self::spans(offset, bytes.len()) {
            self.write_page(page, from, &bytes[done..done + take]);
            done += take;
        }
    }

    /// Writes only some sectors of `bytes`: what a crash leaves of a write that was on its way.
    pub(crate) fn write_torn(&mut self, offset: u64, bytes: &[u8]) {
        let sectors = bytes.len() / self.sector;
        // Half of the tears are a prefix (a transfer cut off), half are any set of sectors.
        let prefix = (self.rng.below(2) == 0).then(|| self.rng.below(sectors as u64 + 1) as usize);
        for index in 0..sectors {
            let keep = prefix.map_or_else(|| self.rng.below(2) == 0, |count| index < count);
            if keep {
                let at = index * self.sector;
                self.write(offset + at as u64, &bytes[at..at + self.sector]);
            }
        }
    }

    pub(crate) fn zero(&mut self, offset: u64, len: usize) {
        const ZEROS: [u8; PAGE] = [0; PAGE];
        for (page, from, take) in Self::spans(offset, len) {
            self.write_page(page, from, &ZEROS[..take]);
        }
    }

    fn write_page(&mut self, index: usize, from: usize, bytes: &[u8]) {
        let whole = bytes.len() == PAGE;
        let page = &mut self.pages[index];
        if page.current.is_none() {
            self.present.push(index as u32);
        }
        let clean = matches!(page.stable, Stable::Same);
        // A page of an older epoch may be waited for by a flush; a page of this one is destaged now and
        // then, because a real cache writes back when it likes.
        let destage = clean || page.epoch < self.epoch || self.rng.below(16) == 0;
        if destage {
            let mut fresh = self.spare.take();
            match &page.current {
                _ if whole => {}
                Some(old) => fresh.copy_from_slice(old),
                None => fresh.fill(0),
            }
            let old = page.current.replace(fresh);
            if let Stable::Other(Some(stale)) =
                std::mem::replace(&mut page.stable, Stable::Other(old))
            {
                self.spare.put(stale);
            }
        }
        if clean {
            self.dirty.push(index as u32);
        }
        page.epoch = self.epoch;
        let current = page.current.as_mut().expect("a page that was written before has bytes");
        current[from..from + bytes.len()].copy_from_slice(bytes);
    }

    /// Starts a flush and returns its mark: all that was written until now is to become stable.
    pub(crate) fn begin_flush(&mut self) -> u32 {
        self.epoch += 1;
        self.epoch
    }

    /// Ends the flush that began with `mark`: what was written before it is stable now. What was written
    /// since is *not*, though a drive could have destaged it: the unkind answer finds more bugs.
    pub(crate) fn end_flush(&mut self, mark: u32) {
        let (pages, spare) = (&mut self.pages, &self.spare);
        self.dirty.retain(|&index| {
            let page = &mut pages[index as usize];
            if page.epoch >= mark {
                return true;
            }
            if let Stable::Other(Some(stale)) = std::mem::replace(&mut page.stable, Stable::Same) {
                spare.put(stale);
            }
            false
        });
    }

    /// Makes the pages of a range stable, as they are now, and nothing else.
    pub(crate) fn make_stable(&mut self, offset: u64, len: usize) {
        for (index, _, _) in Self::spans(offset, len) {
            let stable = std::mem::replace(&mut self.pages[index].stable, Stable::Same);
            if let Stable::Other(stale) = stable {
                self.dirty.retain(|&dirty| dirty != index as u32);
                if let Some(stale) = stale {
                    self.spare.put(stale);
                }
            }
        }
    }

    /// The power goes: what was not stable is kept, lost or mixed. Returns how many pages lost something.
    pub(crate) fn power_cut(&mut self, cut: Cut) -> u64 {
        let dirty = std::mem::take(&mut self.dirty);
        let mut harmed = 0;
        for index in dirty {
            let page = &mut self.pages[index as usize];
            let Stable::Other(stable) = std::mem::replace(&mut page.stable, Stable::Same) else {
                continue;
            };
            let choice = if cut == Cut::LoseAll { 0 } else { self.rng.below(3) };
            let dropped = match choice {
                0 => std::mem::replace(&mut page.current, stable),
                1 => stable,
                _ => {
                    let sectors = PAGE / self.sector;
                    let current = page.current.as_mut().expect("a dirty page has bytes");
                    for sector in 0..sectors {
                        if self.rng.below(2) == 0 {
                            let range = sector * self.sector..(sector + 1) * self.sector;
                            match &stable {
                                Some(old) => current[range.clone()].copy_from_slice(&old[range]),
                                None => current[range].fill(0),
                            }
                        }
                    }
                    stable
                }
            };
            harmed += u64::from(choice != 1);
            if let Some(stale) = dropped {
                self.spare.put(stale);
            }
        }
        // A page that fell back to "never written" is present no more.
        self.present.retain(|&index| self.pages[index as usize].current.is_some());
        harmed
    }

    /// Flips one bit, in what is read and in what is stable if the two are one.
    pub(crate) fn flip(&mut self, offset: u64, bit: u8) {
        let page = &mut self.pages[(offset / PAGE as u64) as usize];
        if let Some(bytes) = page.current.as_mut() {
            bytes[(offset % PAGE as u64) as usize] ^= 1 << (bit % 8);
        }
    }

    /// A random sector with stored bytes, as a byte offset; `None` on an empty disk.
    pub(crate) fn pick_stored(&mut self) -> Option<u64> {
        if self.present.is_empty() {
            return None;
        }
        let page = self.present[self.rng.below(self.present.len() as u64) as usize];
        let sector = self.rng.below((PAGE / self.sector) as u64);
        Some(u64::from(page) * PAGE as u64 + sector * self.sector as u64)
    }

    /// How many pages hold bytes.
    pub(crate) fn stored_pages(&self) -> usize {
        self.present.len()
    }
}

impl Drop for Medium {
    fn drop(&mut self) {
        for page in self.pages.drain(..) {
            if let Some(bytes) = page.current {
                self.spare.put(bytes);
            }
            if let Stable::Other(Some(bytes)) = page.stable {
                self.spare.put(bytes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn medium() -> Medium {
        Medium::new(1 << 20, 512, Pages::default(), Rng::seeded(7))
    }

    fn byte(medium: &Medium, offset: u64) -> u8 {
        let mut one = [0];
        medium.read(offset, &mut one);
        one[0]
    }

    #[test]
    fn reads_zeros_where_nothing_was_written() {
        let mut medium = medium();
        medium.write(PAGE as u64 - 512, &[7; 1024]);
        let mut all = vec![9; 2 * PAGE];
        medium.read(0, &mut all);
        assert!(all[..PAGE - 512].iter().all(|&b| b == 0));
        assert!(all[PAGE - 512..PAGE + 512].iter().all(|&b| b == 7));
        assert!(all[PAGE + 512..].iter().all(|&b| b == 0));
    }

    #[test]
    fn a_flush_keeps_what_came_before_it_and_a_cut_takes_the_rest() {
        let mut medium = medium();
        medium.write(0, &[1; PAGE]);
        let mark = medium.begin_flush();
        medium.write(PAGE as u64, &[2; PAGE]);
        medium.write(0, &[3; 512]);
        medium.end_flush(mark);
        medium.power_cut(Cut::LoseAll);
        assert_eq!(byte(&medium, 0), 1, "flushed, then overwritten without a flush");
        assert_eq!(byte(&medium, 512), 1);
        assert_eq!(byte(&medium, PAGE as u64), 0, "written while the flush was on its way");
    }

    #[test]
    fn a_mixed_cut_leaves_each_sector_old_or_new() {
        let mut medium = medium();
        medium.write(0, &[1; 8 * PAGE]);
        let mark = medium.begin_flush();
        medium.end_flush(mark);
        medium.write(0, &[2; 8 * PAGE]);
        medium.power_cut(Cut::Mixed);
        let mut all = vec![0; 8 * PAGE];
        medium.read(0, &mut all);
        let mut seen = [0usize; 3];
        for sector in all.chunks(512) {
            assert!(sector.iter().all(|&b| b == sector[0]), "a sector is atomic");
            seen[sector[0] as usize] += 1;
        }
        assert_eq!(seen[0], 0);
        assert!(seen[1] > 0 && seen[2] > 0, "both versions are to be found: {seen:?}");
    }

    #[test]
    fn a_second_cut_changes_nothing() {
        let mut medium = medium();
        medium.write(0, &[1; 4 * PAGE]);
        medium.power_cut(Cut::Mixed);
        let mut first = vec![0; 4 * PAGE];
        medium.read(0, &mut first);
        assert_eq!(medium.power_cut(Cut::LoseAll), 0);
        let mut second = vec![0; 4 * PAGE];
        medium.read(0, &mut second);
        assert_eq!(first, second);
    }

    #[test]
    fn a_destaged_version_can_come_back() {
        let mut found = false;
        for seed in 0..200 {
            let mut medium = Medium::new(1 << 20, 512, Pages::default(), Rng::seeded(seed));
            for version in 1..=3 {
                medium.write(0, &[version; PAGE]);
            }
            medium.power_cut(Cut::LoseAll);
            found |= matches!(byte(&medium, 0), 1 | 2);
        }
        assert!(found, "the cache wrote back in between in none of 200 runs");
    }

    #[test]
    fn rot_is_found_where_bytes_are() {
        let mut medium = medium();
        assert_eq!(medium.pick_stored(), None);
        medium.write(3 * PAGE as u64, &[0; PAGE]);
        let at = medium.pick_stored().unwrap();
        assert_eq!(at / PAGE as u64, 3);
        medium.flip(at, 3);
        assert_eq!(byte(&medium, at), 8);
    }
}
