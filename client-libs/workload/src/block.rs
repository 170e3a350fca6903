//! What a workload calls a block, and the key it stores one under.
//!
//! An inference engine names a block of KV cache by the hash of the whole prefix that ends with it:
//! two prompts that begin alike name their first blocks alike. Traces carry those hashes, the
//! generator of conversations makes them, and everything else here (keys, value bytes) derives from
//! them, so that any process can tell what must be stored under a key without asking another.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The name an engine gives a block: a hash of all tokens up to and with it.
///
/// Equal hashes mean equal prefixes. In a Mooncake trace they are small integers (`hash_ids`).
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BlockHash(pub u64);

impl BlockHash {
    /// The hash of the block that follows `self` in a prompt and holds `content`.
    ///
    /// Chained, as engines chain theirs: a block's hash fixes every block before it.
    #[must_use]
    pub const fn then(self, content: u64) -> BlockHash {
        BlockHash(mix(self.0.rotate_left(17) ^ mix(content)))
    }
}

/// The finalizer of SplitMix64: spreads every input bit over the whole word, and is a bijection, so
/// distinct inputs stay distinct.
pub(crate) const fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// Names the keys of one workload: `<label>/<bytes per block>/<hash in hex>`.
///
/// The block's size is part of the key: one trace may be replayed with two block sizes against one
/// server, and a key has one length for all who use it. The label keeps workloads apart.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Keys {
    prefix: String,
}

impl Keys {
    /// Keys under `label` for blocks of `block_bytes` bytes.
    #[must_use]
    pub fn new(label: &str, block_bytes: usize) -> Keys {
        Keys { prefix: format!("{label}/{block_bytes}/") }
    }

    /// The key of one block. ASCII; longer than the prefix by 16 bytes.
    #[must_use]
    pub fn key(&self, block: BlockHash) -> Vec<u8> {
        format!("{}{block}", self.prefix).into_bytes()
    }

    /// The block that `key` names, when it is one of these keys.
    #[must_use]
    pub fn block(&self, key: &[u8]) -> Option<BlockHash> {
        let digits = str::from_utf8(key.strip_prefix(self.prefix.as_bytes())?).ok()?;
        let block = BlockHash(u64::from_str_radix(digits, 16).ok()?);
        (self.key(block) == key).then_some(block)
    }
}

impl fmt::Display for BlockHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn keys_tell_blocks_and_sizes_apart() {
        let small = Keys::new("replay", 65536);
        let large = Keys::new("replay", 4 << 20);
        assert_eq!(small.key(BlockHash(42)), b"replay/65536/000000000000002a");
        assert_ne!(small.key(BlockHash(42)), small.key(BlockHash(43)));
        assert_ne!(small.key(BlockHash(42)), large.key(BlockHash(42)));
        assert_eq!(small.block(&small.key(BlockHash(42))), Some(BlockHash(42)));
        assert_eq!(small.block(&large.key(BlockHash(42))), None);
        assert_eq!(small.block(b"replay/65536/2a"), None);
        assert_eq!(small.block(b"replay/65536/+00000000000002a"), None);
    }

    #[test]
    fn a_chained_hash_depends_on_every_block_before_it() {
        let mut seen = HashSet::new();
        for first in 0..50 {
            for second in 0..50 {
                assert!(seen.insert(BlockHash(first).then(second)));
            }
        }
        assert_eq!(BlockHash(1).then(2), BlockHash(1).then(2));
        assert_ne!(BlockHash(1).then(2), BlockHash(2).then(1));
    }
}
