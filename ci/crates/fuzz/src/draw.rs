//! Drawing: numbers that sit on edges, bytes, and mutations of bytes.

#![cfg_attr(not(feature = "server"), allow(dead_code, reason = "most of it is for those targets"))]

use memkv_poller::Rng;

/// One of `choices`.
pub fn one_of<T: Copy>(rng: &mut Rng, choices: &[T]) -> T {
    choices[rng.below(choices.len() as u64) as usize]
}

/// True once in `n` times.
pub fn once_in(rng: &mut Rng, n: u64) -> bool {
    rng.below(n) == 0
}

/// `count` random bytes.
pub fn bytes(rng: &mut Rng, count: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(count + 8);
    while bytes.len() < count {
        bytes.extend_from_slice(&rng.next_u64().to_le_bytes());
    }
    bytes.truncate(count);
    bytes
}

/// `N` random bytes.
pub fn array<const N: usize>(rng: &mut Rng) -> [u8; N] {
    bytes(rng, N).try_into().expect("as many as were asked for")
}

/// A number of any size, often one at an edge.
pub fn number(rng: &mut Rng) -> u64 {
    const EDGES: [u64; 14] = [
        0,
        1,
        2,
        16,
        17,
        255,
        512,
        513,
        4096,
        4097,
        1 << 20,
        (64 << 20) + 1,
        u32::MAX as u64,
        u64::MAX,
    ];
    match rng.below(3) {
        0 => one_of(rng, &EDGES),
        1 => rng.below(300),
        _ => rng.next_u64() >> rng.below(64),
    }
}

/// Changes `bytes` a little, in one of the ways in which bytes go wrong, or are made to.
pub fn mutate(rng: &mut Rng, bytes: &mut Vec<u8>) {
    let at = rng.below(bytes.len() as u64 + 1) as usize;
    let until = at + rng.below((bytes.len() - at) as u64 + 1) as usize;
    match rng.below(9) {
        0 | 1 => flip(rng, bytes),
        2 => overwrite(bytes, at, &number(rng).to_le_bytes()[..1 << rng.below(4)]),
        3 => bytes.truncate(at),
        4 => drop(bytes.drain(at..until.min(at + 16))),
        5 => {
            let count = rng.below(16) as usize;
            let more = self::bytes(rng, count);
            drop(bytes.splice(at..at, more));
        }
        6 => {
            let again = bytes[at..until].to_vec();
            drop(bytes.splice(until..until, again));
        }
        7 => bytes[at..until].fill(one_of(rng, &[0, 1, 0x7f, 0x80, 0xff])),
        _ => {
            let count = rng.below(40) as usize;
            bytes.extend(self::bytes(rng, count));
        }
    }
}

/// Changes one bit, if there is one.
fn flip(rng: &mut Rng, bytes: &mut [u8]) {
    if !bytes.is_empty() {
        let at = rng.below(bytes.len() as u64) as usize;
        bytes[at] ^= 1 << rng.below(8);
    }
}

/// Puts `with` at `at`, as much of it as there is room for.
pub fn overwrite(bytes: &mut [u8], at: usize, with: &[u8]) {
    for (place, byte) in bytes.iter_mut().skip(at).zip(with) {
        *place = *byte;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mutations_change_something_often_and_never_panic() {
        let mut rng = Rng::seeded(1);
        mutate(&mut rng, &mut Vec::new());
        for length in 1..200 {
            let original = bytes(&mut rng, length);
            let mut changed = 0;
            for _ in 0..50 {
                let mut mutated = original.clone();
                mutate(&mut rng, &mut mutated);
                changed += usize::from(mutated != original);
            }
            assert!(changed > 10, "{changed} of 50 at {length} bytes");
        }
    }

    #[test]
    fn the_same_seed_draws_the_same() {
        let draw = |seed| {
            let mut rng = Rng::seeded(seed);
            let mut drawn = bytes(&mut rng, 100);
            (0..20).for_each(|_| mutate(&mut rng, &mut drawn));
            (drawn, number(&mut rng), array::<5>(&mut rng))
        };
        assert_eq!(draw(5), draw(5));
        assert_ne!(draw(5), draw(6));
    }
}
