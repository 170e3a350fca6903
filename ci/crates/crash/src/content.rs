//! What is stored: the key's name, and the length and bytes of each of its versions.
//!
//! Everything follows from the key's number and the version's, so that two processes agree without
//! talking.

use memkv_workload::block::BlockHash;
use memkv_workload::values;

use crate::ledger::{Content, Key, Ledger, Violation};

/// The longest value, bytes: three extents of 4 MiB.
pub const LENGTH_MAX: usize = 9 << 20;

/// The name of a key.
#[must_use]
pub fn name(key: Key) -> Vec<u8> {
    format!("crash/{key}").into_bytes()
}

/// What the bytes of a version follow from.
fn block(key: Key, version: u32) -> BlockHash {
    BlockHash(u64::from(key) << 32 | u64::from(version))
}

/// The length of a version. Even keys always have the same length, as KV blocks do; odd keys change
/// theirs with every version. Half are smaller than a unit, a few take several extents.
#[must_use]
pub fn length(key: Key, version: u32) -> usize {
    let version = if key.is_multiple_of(2) { 0 } else { version };
    let mut rng = fastrand::Rng::with_seed(block(key, version).then(0).0);
    match rng.u32(..100) {
        0..50 => rng.usize(1..=16 << 10),
        50..80 => rng.usize(16 << 10..=256 << 10),
        80..97 => rng.usize(256 << 10..=1 << 20),
        _ => rng.usize((4 << 20) + 1..=LENGTH_MAX),
    }
}

/// The bytes of a version.
#[must_use]
pub fn value(key: Key, version: u32) -> Vec<u8> {
    values::value(block(key, version), length(key, version))
}

/// Which version of `key` the bytes are.
///
/// # Errors
/// [`Violation::WrongBytes`] when they are none that was ever sent.
pub fn recognise(ledger: &Ledger, key: Key, bytes: &[u8]) -> Result<Content, Violation> {
    let is = |version: &u32| {
        length(key, *version) == bytes.len()
            && values::check(block(key, *version), 0, bytes).is_ok()
    };
    let likely = ledger.possible(key).into_iter().flatten().find(is);
    let found = likely.or_else(|| (0..ledger.next_version(key)).rev().find(is));
    found.map(Some).ok_or(Violation::WrongBytes(key, bytes.len() as u64))
}

#[cfg(test)]
mod tests {
    use memkv_workload::store::Present;

    use super::*;
    use crate::ledger::Event;

    #[test]
    fn lengths_are_as_various_as_they_should_be() {
        let lengths: Vec<usize> = (0..2000).map(|key| length(key, 0)).collect();
        assert!(lengths.iter().all(|length| (1..=LENGTH_MAX).contains(length)));
        let small = lengths.iter().filter(|length| **length <= 16 << 10).count();
        let several_extents = lengths.iter().filter(|length| **length > 4 << 20).count();
        assert!((900..1100).contains(&small), "{small}");
        assert!((30..100).contains(&several_extents), "{several_extents}");
        assert_eq!(length(4, 0), length(4, 9));
        assert_ne!(length(5, 0), length(5, 1));
    }

    #[test]
    fn versions_are_told_apart_and_foreign_bytes_are_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(&folder.path().join("ledger")).unwrap();
        for version in 0..3 {
            ledger.note(Event::Put(2, version, Present::Replace)).unwrap();
            ledger.note(Event::Stored(2, version)).unwrap();
        }
        for version in 0..3 {
            assert_eq!(recognise(&ledger, 2, &value(2, version)), Ok(Some(version)));
        }
        let mut bytes = value(2, 1);
        bytes[0] ^= 1;
        let wrong = Violation::WrongBytes(2, bytes.len() as u64);
        assert_eq!(recognise(&ledger, 2, &bytes), Err(wrong));
        assert!(recognise(&ledger, 2, &value(2, 3)).is_err(), "never sent");
    }
}
