//! Listing what is stored, a bounded piece at a time.

use memkv_journal::KeyBytes;

use crate::Store;

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

impl Store {
    /// Looks at up to `looks` places from place `from` on, and lists the readable blocks there that
    /// the filter takes, at most `most`. The second value is where to go on; none at the end. A
    /// block keeps its place while it is stored.
    pub fn list(
        &self,
        from: u64,
        looks: usize,
        most: usize,
        filter: &ListFilter,
    ) -> (Vec<Listed>, Option<u64>) {
        let blocks = self.blocks.borrow();
        let keys = self.keys.borrow();
        let places = u64::from(blocks.last());
        let last = from.saturating_add(looks as u64).min(places);
        let mut listed = Vec::new();
        for place in from..last {
            if listed.len() == most {
                return (listed, Some(place));
            }
            let number = place as u32 + 1;
            let Some((slot, block)) = blocks.iter(number..=number).next() else { continue };
            let readable = block.is_published() && self.unreadable(&blocks, slot).is_none();
            let key = keys.get(slot);
            if readable && filter.takes(key) {
                listed.push(Listed {
                    key: key.clone(),
                    length: block.length(),
                    generation: block.generation(),
                    expires: block.expires(),
                    extents: blocks.spans(slot).count() as u32,
                });
            }
        }
        (listed, (last < places).then_some(last))
    }
}
