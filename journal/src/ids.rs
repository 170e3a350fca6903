//! The names things have on a drive: uuids, unit ranges, block ids and whole keys.
//!
//! Bare integers never cross a module edge: a drive is a [`DriveUuid`], a run of units a
//! [`UnitRange`], a value a [`BlockId`], and what the client called it is a [`KeyBytes`].

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};

use memkv_poller::spare::{Reuse, Shared};
use thiserror::Error;
use uuid::Uuid;

/// Bytes of a unit, the grain of allocation on a drive (16 KiB).
pub const UNIT: usize = 16 * 1024;
/// Units of the largest extent (256 units, 4 MiB).
pub const EXTENT_UNITS: u16 = 256;
/// Most parts a block may have (64 MiB in extents of 4 MiB).
pub const PARTS_MAX: usize = 16;
/// Longest tenant and longest namespace name, in bytes.
pub const NAME_MAX: usize = 255;
/// Longest key proper, in bytes; the shortest has one.
pub const KEY_MAX: usize = 512;
/// Longest encoded [`KeyBytes`]: two length bytes, tenant, namespace and key.
pub const KEY_BYTES_MAX: usize = 2 + 2 * NAME_MAX + KEY_MAX;

/// Identity of one formatted drive. Formatting again makes a new one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct DriveUuid(pub Uuid);

/// Identity of the node a drive belongs to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct NodeUuid(pub Uuid);

impl From<Uuid> for DriveUuid {
    fn from(uuid: Uuid) -> Self {
        DriveUuid(uuid)
    }
}

impl From<Uuid> for NodeUuid {
    fn from(uuid: Uuid) -> Self {
        NodeUuid(uuid)
    }
}

impl fmt::Display for DriveUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for NodeUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A run of contiguous units: `start .. start + count`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct UnitRange {
    /// First unit, counted from the start of the data region.
    pub start: u32,
    /// Units in the run, 1 to [`EXTENT_UNITS`] for anything the journal records.
    pub count: u16,
}

impl UnitRange {
    /// The unit after the last one. `u64`, because the last unit of a full drive is `u32::MAX`.
    pub fn end(self) -> u64 {
        u64::from(self.start) + u64::from(self.count)
    }

    /// Bytes the run holds.
    pub fn bytes(self) -> u64 {
        u64::from(self.count) * UNIT as u64
    }
}

/// One value of one key: the key's 128-bit keyed hash and the value's generation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct BlockId {
    /// Hash of the whole key under the store's secret.
    pub hash: u128,
    /// Which of the key's values this is.
    pub generation: u64,
}

impl std::hash::Hash for BlockId {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        // The hash is keyed and uniform already; folding it is enough for any table.
        let folded = (self.hash as u64) ^ ((self.hash >> 64) as u64).rotate_left(32);
        state.write_u64(folded ^ self.generation.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    }
}

/// Why bytes are not a whole key.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum KeyError {
    /// The bytes end before the tenant, the namespace or the key begins.
    #[error("the key is cut short: {len} bytes")]
    Short {
        /// Bytes given.
        len: usize,
    },
    /// The tenant's or the namespace's name is longer than [`NAME_MAX`].
    #[error("a tenant or namespace name has {len} bytes, more than {NAME_MAX}")]
    NameTooLong {
        /// Bytes of the name.
        len: usize,
    },
    /// The key proper has no byte, or more than [`KEY_MAX`].
    #[error("a key has 1 to {KEY_MAX} bytes, not {len}")]
    KeyLength {
        /// Bytes of the key.
        len: usize,
    },
    /// The tenant's or the namespace's name is not UTF-8.
    #[error("a tenant or namespace name is not UTF-8")]
    NotUtf8,
}

/// A whole key: tenant, namespace and the client's key, in memory that clones share and that is used
/// again.
///
/// ```text
/// tenant length u8 | tenant | namespace length u8 | namespace | key (1..=512 bytes, to the end)
/// ```
#[derive(Clone)]
pub struct KeyBytes(Shared<Encoded>);

/// The encoded form.
#[derive(Default)]
struct Encoded(Vec<u8>);

impl Reuse for Encoded {
    fn reset(&mut self) {
        self.0.clear();
    }

    fn bytes(&self) -> usize {
        self.0.capacity()
    }
}

impl PartialEq for KeyBytes {
    fn eq(&self, other: &KeyBytes) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for KeyBytes {}

impl PartialOrd for KeyBytes {
    fn partial_cmp(&self, other: &KeyBytes) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for KeyBytes {
    fn cmp(&self, other: &KeyBytes) -> Ordering {
        self.as_bytes().cmp(other.as_bytes())
    }
}

impl Hash for KeyBytes {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

impl KeyBytes {
    /// Joins the three names. Fails when one is too long or the key is empty.
    pub fn new(tenant: &str, namespace: &str, key: &[u8]) -> Result<KeyBytes, KeyError> {
        KeyBytes::check_parts(tenant, namespace, key)?;
        Ok(KeyBytes(Shared::new(|Encoded(bytes)| {
            bytes.reserve(2 + tenant.len() + namespace.len() + key.len());
            KeyBytes::put_names(tenant, namespace, bytes);
            bytes.extend_from_slice(key);
        })))
    }

    /// Appends what stands before the key proper in the encoded form.
    ///
    /// # Panics
    /// On a name that is too long.
    pub fn put_names(tenant: &str, namespace: &str, out: &mut Vec<u8>) {
        for name in [tenant, namespace] {
            assert!(name.len() <= NAME_MAX, "a name has at most {NAME_MAX} bytes");
            out.push(name.len() as u8);
            out.extend_from_slice(name.as_bytes());
        }
    }

    /// Whether the three make a whole key. Fails when one is too long or the key is empty.
    ///
    /// # Errors
    /// [`KeyError`] says which.
    pub fn check_parts(tenant: &str, namespace: &str, key: &[u8]) -> Result<(), KeyError> {
        for name in [tenant, namespace] {
            if name.len() > NAME_MAX {
                return Err(KeyError::NameTooLong { len: name.len() });
            }
        }
        if key.is_empty() || key.len() > KEY_MAX {
            return Err(KeyError::KeyLength { len: key.len() });
        }
        Ok(())
    }

    /// Checks and takes encoded bytes, as they came from a drive.
    pub fn parse(bytes: &[u8]) -> Result<KeyBytes, KeyError> {
        KeyBytes::check(bytes)?;
        Ok(KeyBytes(Shared::new(|Encoded(own)| own.extend_from_slice(bytes))))
    }

    /// Checks encoded bytes.
    pub fn check(bytes: &[u8]) -> Result<(), KeyError> {
        let (tenant, rest) = take_name(bytes, bytes.len())?;
        let (namespace, key) = take_name(rest, bytes.len())?;
        if key.is_empty() || key.len() > KEY_MAX {
            return Err(KeyError::KeyLength { len: key.len() });
        }
        for name in [tenant, namespace] {
            std::str::from_utf8(name).map_err(|_| KeyError::NotUtf8)?;
        }
        Ok(())
    }

    /// The encoded form.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0.0
    }

    /// Bytes of the encoded form, at most [`KEY_BYTES_MAX`].
    #[allow(clippy::len_without_is_empty, reason = "a whole key is never empty")]
    pub fn len(&self) -> usize {
        self.as_bytes().len()
    }

    /// The tenant's name.
    pub fn tenant(&self) -> &str {
        let bytes = self.as_bytes();
        utf8(&bytes[1..1 + usize::from(bytes[0])])
    }

    /// The namespace's name.
    pub fn namespace(&self) -> &str {
        let bytes = self.as_bytes();
        let at = 1 + usize::from(bytes[0]);
        utf8(&bytes[at + 1..at + 1 + usize::from(bytes[at])])
    }

    /// The client's key.
    pub fn key(&self) -> &[u8] {
        let bytes = self.as_bytes();
        let at = 1 + usize::from(bytes[0]);
        &bytes[at + 1 + usize::from(bytes[at])..]
    }
}

impl fmt::Debug for KeyBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.tenant(), self.namespace(), self.key().escape_ascii())
    }
}

fn take_name(bytes: &[u8], whole: usize) -> Result<(&[u8], &[u8]), KeyError> {
    let (&len, rest) = bytes.split_first().ok_or(KeyError::Short { len: whole })?;
    rest.split_at_checked(usize::from(len)).ok_or(KeyError::Short { len: whole })
}

fn utf8(bytes: &[u8]) -> &str {
    // Both constructors took UTF-8 only.
    std::str::from_utf8(bytes).expect("names were checked when the key was made")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_are_shown_as_uuids() {
        let uuid = Uuid::from_u128(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
        let shown = "01234567-89ab-cdef-0123-456789abcdef";
        assert_eq!(NodeUuid(uuid).to_string(), shown);
        assert_eq!(DriveUuid(uuid).to_string(), shown);
    }

    #[test]
    fn every_bit_of_a_block_changes_its_hash() {
        use std::hash::BuildHasher;
        let state = std::hash::BuildHasherDefault::<std::hash::DefaultHasher>::default();
        let pairs = [(0, 0), (u128::MAX, u64::MAX), (0xB10C << 60 | 77, 3)];
        for (hash, generation) in pairs {
            let block = BlockId { hash, generation };
            let others = (0..128)
                .map(|bit| BlockId { hash: hash ^ 1 << bit, generation })
                .chain((0..64).map(|bit| BlockId { hash, generation: generation ^ 1 << bit }));
            for other in others {
                assert_ne!(state.hash_one(block), state.hash_one(other), "{block:?} {other:?}");
            }
        }
    }

    #[test]
    fn a_key_keeps_its_three_names() {
        let key = KeyBytes::new("acme", "llama", b"prefix/\xff\x00").unwrap();
        assert_eq!(
            (key.tenant(), key.namespace(), key.key()),
            ("acme", "llama", &b"prefix/\xff\x00"[..])
        );
        assert_eq!(KeyBytes::parse(key.as_bytes()).unwrap(), key);
    }

    #[test]
    fn wrong_lengths_are_refused() {
        assert_eq!(KeyBytes::new("", "", b""), Err(KeyError::KeyLength { len: 0 }));
        assert_eq!(KeyBytes::new("", "", &[1; 513]), Err(KeyError::KeyLength { len: 513 }));
        let long = "x".repeat(256);
        assert_eq!(KeyBytes::new(&long, "", b"k"), Err(KeyError::NameTooLong { len: 256 }));
        assert_eq!(KeyBytes::parse(&[]), Err(KeyError::Short { len: 0 }));
        assert_eq!(KeyBytes::parse(&[3, b'a', b'b']), Err(KeyError::Short { len: 3 }));
        assert_eq!(KeyBytes::parse(&[0, 0]), Err(KeyError::KeyLength { len: 0 }));
        assert_eq!(KeyBytes::parse(&[1, 0xff, 0, 1]), Err(KeyError::NotUtf8));
    }

    #[test]
    fn the_longest_key_has_the_documented_length() {
        let name = "n".repeat(NAME_MAX);
        assert_eq!(KeyBytes::new(&name, &name, &[7; KEY_MAX]).unwrap().len(), KEY_BYTES_MAX);
    }
}
