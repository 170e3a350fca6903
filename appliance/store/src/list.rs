//! Listing what is stored, a bounded piece at a time.

use std::ops::ControlFlow;

use memkv_journal::{KeyBytes, Kind, PLACE_BITS, View};

use crate::Store;
use crate::block::KeyHash;

/// A block, as a listing shows it.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Its whole key.
    pub key: KeyBytes,
    /// Bytes of its value.
    pub length: u64,
    /// Which value of the key it is.
    pub generation: u64,
    /// Unix seconds after which it is a miss; 0 is never.
    pub expires: u64,
    /// Extents it has.
    pub extents: u32,
}

/// Which blocks are listed.
#[derive(Clone, Debug, Default)]
pub struct ListFilter {
    /// Only those of this tenant.
    pub tenant: Option<String>,
    /// Only those of this namespace.
    pub namespace: Option<String>,
}

impl ListFilter {
    fn takes(&self, key: &KeyBytes) -> bool {
        let is = |wanted: &Option<String>, name: &str| wanted.as_ref().is_none_or(|w| w == name);
        is(&self.tenant, key.tenant()) && is(&self.namespace, key.namespace())
    }
}

/// Bits of a place that say where on a drive.
const ON_DRIVE: u32 = PLACE_BITS;

impl Store {
    /// Looks at about `looks` records of the drives from place `from` on, 0 being the beginning, and
    /// lists the readable blocks that the filter takes, at most `most`. The second value is where to
    /// go on; none at the end.
    ///
    /// Keys are on the drives alone: they are read from the last checkpoint and from the log since,
    /// drive by drive. What is stored all the while is listed, and listed once, but for this: when a
    /// checkpoint completes between two pieces some blocks before the place may be listed again; and
    /// when very many do, all of that drive. A block is listed on the drive of its first extent.
    pub async fn list(
        &self,
        from: u64,
        looks: usize,
        most: usize,
        filter: &ListFilter,
    ) -> (Vec<Listed>, Option<u64>) {
        let mut listed = Vec::new();
        let mut drive = usize::try_from(from >> ON_DRIVE).unwrap_or(usize::MAX);
        let mut place = from & ((1 << ON_DRIVE) - 1);
        let mut left = looks;
        while drive < self.drives.len() {
            let next = self.list_drive(drive, place, &mut left, most, filter, &mut listed).await;
            (drive, place) = match next {
                Some(place) => return (listed, Some((drive as u64) << ON_DRIVE | place)),
                None => (drive + 1, 0),
            };
            if drive < self.drives.len() && (left == 0 || listed.len() >= most) {
                return (listed, Some((drive as u64) << ON_DRIVE));
            }
        }
        (listed, None)
    }

    /// One drive's share. A drive that is offline, or cannot read where its records lie, has none.
    async fn list_drive(
        &self,
        drive: usize,
        place: u64,
        left: &mut usize,
        most: usize,
        filter: &ListFilter,
        listed: &mut Vec<Listed>,
    ) -> Option<u64> {
        let drive = &self.drives[drive];
        if !drive.online() {
            return None;
        }
        let mut looked = 0;
        let mut each = |record: &View<'_>| {
            looked += 1;
            listed.extend(self.listed(record, filter));
            if listed.len() < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        let walked = drive.journal.walk(place, *left, &mut each).await;
        *left = left.saturating_sub(looked);
        walked.unwrap_or_else(|error| {
            tracing::warn!(drive = drive.id.0, %error, "cannot list what is stored");
            None
        })
    }

    /// The block of a record that names its key, if it is there and can be read.
    fn listed(&self, record: &View<'_>, filter: &ListFilter) -> Option<Listed> {
        if !matches!(record.kind, Kind::Put | Kind::Head) {
            return None;
        }
        let slot = self.slot_of(KeyHash(record.block.hash))?;
        let blocks = self.blocks.borrow();
        let block = blocks.get(slot);
        let other = block.generation() != record.block.generation;
        if other || self.unreadable(&blocks, slot).is_some() {
            return None;
        }
        let key = KeyBytes::parse(record.key()).ok().filter(|key| filter.takes(key))?;
        Some(Listed {
            key,
            length: block.length(),
            generation: block.generation(),
            expires: block.expires(),
            extents: blocks.spans(slot).count() as u32,
        })
    }
}
