//! What is stored: namespaces and keys, page by page.
//!
//! A node may hold millions of blocks and has one core for all of them, so nobody gets them at once:
//! a page says where the next one begins. Between two pages the node goes on. What was there all the
//! while is listed, and once, but for blocks that a checkpoint moved meanwhile, which may be listed again;
//! what came or went may be listed or not.

use serde::{Deserialize, Serialize};

/// Most keys of one page, and their number when none is named.
pub const PAGE_MAX: u32 = 10_000;
/// See [`PAGE_MAX`].
pub const PAGE_DEFAULT: u32 = 1000;

/// Which keys are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeysRequest {
    /// Only those of this tenant.
    pub tenant: Option<String>,
    /// Only those of this namespace.
    pub namespace: Option<String>,
    /// Where the page begins: 0, or what the last page said.
    pub after: u64,
    /// Most keys of the page, 1 to [`PAGE_MAX`].
    pub limit: u32,
}

/// A block by its key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyEntry {
    /// Whose it is.
    pub tenant: String,
    /// The namespace.
    pub namespace: String,
    /// The key; bytes that are no printable ASCII, and backslashes, are escaped (`\xff`).
    pub key: String,
    /// Bytes of the value.
    pub bytes: u64,
    /// Which value of the key it is.
    pub generation: u64,
    /// Unix seconds after which it is gone; none when it stays.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub expires: Option<u64>,
    /// Extents it has.
    pub extents: u32,
}

/// One page of keys, in no order that means anything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeysPage {
    /// The keys; there may be fewer than asked for, or none, and more on the next page.
    pub keys: Vec<KeyEntry>,
    /// Where the next page begins; none when this was the last.
    pub next: Option<u64>,
}

/// What one namespace holds, as far as a page saw.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceEntry {
    /// Whose it is.
    pub tenant: String,
    /// Its name.
    pub namespace: String,
    /// Blocks in it.
    pub blocks: u64,
    /// Bytes of their values.
    pub bytes: u64,
}

/// A page of the walk over all blocks, counted by namespace. The sums of all pages are those of the
/// node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespacesPage {
    /// Namespaces of which the page saw a block.
    pub namespaces: Vec<NamespaceEntry>,
    /// Where the next page begins; none when this was the last.
    pub next: Option<u64>,
}

/// The node's store does not answer: it is very busy, or the node is stopping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoAnswer;

impl std::fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the store does not answer; ask again")
    }
}

impl std::error::Error for NoAnswer {}
