//! Answering what is stored: pages put together from small pieces, so that the store's reactor never
//! stops for long.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use memkv_admin_api as api;
use memkv_store::{ListFilter, Listed};

use crate::node::{Control, order};
use crate::status::{ANSWER, Shared};

/// Records that the store looks at for one piece, other work in between.
const LOOKS: usize = 8192;
/// How long a page is put together. The admin endpoint serves others after it.
const PAGE: Duration = Duration::from_millis(200);

/// One piece of a walk over all blocks, asked of the store's reactor.
pub struct ListPiece {
    /// Where it begins.
    pub from: u64,
    /// Places to look at.
    pub looks: usize,
    /// Most blocks to list.
    pub most: usize,
    /// Which blocks.
    pub filter: ListFilter,
}

impl Shared {
    pub(crate) fn keys_page(
        &self,
        request: &api::KeysRequest,
    ) -> Result<api::KeysPage, api::NoAnswer> {
        let filter =
            ListFilter { tenant: request.tenant.clone(), namespace: request.namespace.clone() };
        let mut page = api::KeysPage::default();
        page.next = self.walk(request.after, &filter, request.limit as usize, |listed| {
            page.keys.push(entry(&listed));
        })?;
        Ok(page)
    }

    pub(crate) fn namespaces_page(&self, after: u64) -> Result<api::NamespacesPage, api::NoAnswer> {
        let mut sums: BTreeMap<(String, String), (u64, u64)> = BTreeMap::new();
        let next = self.walk(after, &ListFilter::default(), usize::MAX, |listed| {
            let name = (listed.key.tenant().to_owned(), listed.key.namespace().to_owned());
            let (blocks, bytes) = sums.entry(name).or_default();
            *blocks += 1;
            *bytes += listed.length;
        })?;
        let sums = sums.into_iter().map(|((tenant, namespace), (blocks, bytes))| {
            api::NamespaceEntry { tenant, namespace, blocks, bytes }
        });
        Ok(api::NamespacesPage { namespaces: sums.collect(), next })
    }

    /// Walks over blocks for the time of a page, or until `most` were listed; where to go on.
    fn walk(
        &self,
        after: u64,
        filter: &ListFilter,
        most: usize,
        mut each: impl FnMut(Listed),
    ) -> Result<Option<u64>, api::NoAnswer> {
        let began = Instant::now();
        let (mut from, mut left) = (after, most);
        loop {
            let piece = ListPiece { from, looks: LOOKS, most: left, filter: filter.clone() };
            let answer = order(self.store_reactor(), |reply| Control::List(piece, reply));
            let (listed, next) = answer.recv_timeout(ANSWER).map_err(|_| api::NoAnswer)?;
            left -= listed.len();
            listed.into_iter().for_each(&mut each);
            match next {
                Some(next) if left > 0 && began.elapsed() < PAGE => from = next,
                next => return Ok(next),
            }
        }
    }
}

fn entry(listed: &Listed) -> api::KeyEntry {
    api::KeyEntry {
        tenant: listed.key.tenant().to_owned(),
        namespace: listed.key.namespace().to_owned(),
        key: listed.key.key().escape_ascii().to_string(),
        bytes: listed.length,
        generation: listed.generation,
        expires: (listed.expires != 0).then_some(listed.expires),
        extents: listed.extents,
    }
}
