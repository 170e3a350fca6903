//! The bytes of a block, derived from its hash: nobody has to remember what was stored.
//!
//! A value is cut into pieces of 4 KiB. Every piece is one fixed pseudo-random pattern, each word of
//! it xored with a seed that depends on the block's hash and on the piece's position. So a byte that
//! comes from another block, from another place of the same block, or from nowhere, is seen; the
//! value does not compress; and making or checking it costs one pass of xor at the speed of memory,
//! because the pattern stays in the first-level cache.

use serde::{Deserialize, Serialize};

use crate::block::{BlockHash, mix};

/// Bytes per piece: the grain at which values differ by block and position.
pub const PIECE: usize = 4096;

const WORDS: usize = PIECE / size_of::<u64>();

/// The pattern under every piece. Words are pairwise different, so shifted bytes do not match.
static PATTERN: [u64; WORDS] = pattern();

const fn pattern() -> [u64; WORDS] {
    let mut words = [0; WORDS];
    let mut index = 0;
    while index < WORDS {
        words[index] = mix(index as u64);
        index += 1;
    }
    words
}

/// Bytes of a value that are not what they must be.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Mismatch {
    /// Offset of the first wrong byte within the value.
    pub first: u64,
    /// How many bytes of those checked are wrong.
    pub bytes: u64,
}

/// Fills `into` with the value of `block` from byte `offset` on. `offset` must be a multiple of
/// [`PIECE`]; the length is free.
///
/// # Panics
/// When `offset` is not a multiple of [`PIECE`].
pub fn fill(block: BlockHash, offset: u64, into: &mut [u8]) {
    for (seed, piece) in seeds(block, offset).zip(into.chunks_mut(PIECE)) {
        let (words, rest) = piece.as_chunks_mut();
        for (word, pattern) in words.iter_mut().zip(&PATTERN) {
            *word = (pattern ^ seed).to_le_bytes();
        }
        if !rest.is_empty() {
            rest.copy_from_slice(&(PATTERN[words.len()] ^ seed).to_le_bytes()[..rest.len()]);
        }
    }
}

/// The whole value of `block`, `length` bytes long.
#[must_use]
pub fn value(block: BlockHash, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    fill(block, 0, &mut bytes);
    bytes
}

/// Compares `bytes` with the value of `block` from byte `offset` on (a multiple of [`PIECE`]).
///
/// # Errors
/// [`Mismatch`] says where the first wrong byte is and how many are wrong.
///
/// # Panics
/// When `offset` is not a multiple of [`PIECE`].
pub fn check(block: BlockHash, offset: u64, bytes: &[u8]) -> Result<(), Mismatch> {
    let mut mismatch: Option<Mismatch> = None;
    let mut expected = [0; PIECE];
    for (index, (seed, piece)) in seeds(block, offset).zip(bytes.chunks(PIECE)).enumerate() {
        if piece_is_right(seed, piece) {
            continue;
        }
        // Rare, so slow is fine: say exactly which bytes are wrong.
        let at = offset + (index * PIECE) as u64;
        let expected = &mut expected[..piece.len()];
        fill(block, at, expected);
        let wrong = |(got, want): &(&u8, &u8)| got != want;
        let first = piece.iter().zip(&*expected).position(|pair| wrong(&pair));
        let count = piece.iter().zip(&*expected).filter(wrong).count() as u64;
        let found = mismatch
            .get_or_insert(Mismatch { first: at + first.unwrap_or_default() as u64, bytes: 0 });
        found.bytes += count;
    }
    mismatch.map_or(Ok(()), Err)
}

fn piece_is_right(seed: u64, piece: &[u8]) -> bool {
    let (words, rest) = piece.as_chunks();
    let mut difference = 0;
    // No early exit: a straight run of xor and or is what the compiler makes wide instructions of.
    for (word, pattern) in words.iter().zip(&PATTERN) {
        difference |= u64::from_le_bytes(*word) ^ pattern ^ seed;
    }
    difference == 0
        && (rest.is_empty() || *rest == (PATTERN[words.len()] ^ seed).to_le_bytes()[..rest.len()])
}

/// The seeds of the pieces of `block` from byte `offset` on, without end.
fn seeds(block: BlockHash, offset: u64) -> impl Iterator<Item = u64> {
    assert!(offset.is_multiple_of(PIECE as u64), "offset {offset} is not at the start of a piece");
    let block = mix(block.0);
    (offset / PIECE as u64..).map(move |piece| mix(block ^ piece.rotate_left(32)))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_piece_differs_by_block_and_position() {
        let mut seen = HashSet::new();
        for block in 0..64 {
            for piece in value(BlockHash(block), 64 * PIECE).chunks(PIECE) {
                assert!(seen.insert(piece.to_vec()), "two pieces are alike");
            }
        }
    }

    #[test]
    fn a_known_value_never_changes() {
        // Stored blocks outlive a build: the bytes of a hash are fixed for ever.
        let bytes = value(BlockHash(7), 20);
        assert_eq!(
            bytes,
            [
                0xea, 0x03, 0xb6, 0x05, 0xae, 0x6a, 0x94, 0x5a, 0x84, 0x92, 0xa9, 0xf7, 0x7b, 0xef,
                0xbe, 0x29, 0x8b, 0x98, 0x3c, 0x62
            ]
        );
    }

    #[test]
    fn swapped_pieces_shifted_bytes_and_foreign_blocks_are_wrong() {
        let block = BlockHash(99);
        let right = value(block, 4 * PIECE);
        let mut swapped = right.clone();
        swapped[..2 * PIECE].rotate_left(PIECE);
        let found = check(block, 0, &swapped).unwrap_err();
        assert!(found.first < 16 && found.bytes > 8000, "{found:?}");
        let mut shifted = right.clone();
        shifted.rotate_left(8);
        assert!(check(block, 0, &shifted).unwrap_err().bytes > 15_000);
        assert!(check(BlockHash(98), 0, &right).is_err());
        assert!(check(block, PIECE as u64, &right[PIECE..]).is_ok());
    }

    proptest! {
        #[test]
        fn one_flipped_bit_is_found_where_it_is(
            hash: u64, length in 1..20_000usize, at: prop::sample::Index, bit in 0..8u8,
        ) {
            let block = BlockHash(hash);
            let mut bytes = value(block, length);
            prop_assert_eq!(check(block, 0, &bytes), Ok(()));
            let at = at.index(length);
            bytes[at] ^= 1 << bit;
            let mismatch = Mismatch { first: at as u64, bytes: 1 };
            prop_assert_eq!(check(block, 0, &bytes), Err(mismatch));
        }

        #[test]
        fn a_part_filled_alone_is_the_part_of_the_whole(
            hash: u64, pieces in 0..5u64, length in 0..9000usize,
        ) {
            let block = BlockHash(hash);
            let offset = pieces * PIECE as u64;
            let whole = value(block, offset as usize + length);
            let mut part = vec![0; length];
            fill(block, offset, &mut part);
            prop_assert_eq!(&part, &whole[offset as usize..]);
        }
    }
}
