//! Requests as a client would make them, most of them whole, some with a field gone wrong.
//!
//! Metas are written byte by byte here, not by the encoders of the house: those refuse to say what
//! must not be said.

use memkv_poller::Rng;
use memkv_wire::meta::{MUST_UNDERSTAND, append_extension};
use memkv_wire::{MAX_INLINE, MAX_KEY, Opcode, crc32c};

use super::machine::EXTENT;
use crate::draw::{bytes, mutate, number, once_in, one_of};

/// The meta of a request, perhaps mutated, and the payload, which only a Put has. `generations` are
/// some that were seen.
pub fn draft(rng: &mut Rng, opcode: Opcode, generations: &[u64]) -> (Vec<u8>, Vec<u8>) {
    let (mut meta, mut payload) = (Vec::new(), Vec::new());
    match opcode {
        Opcode::Put | Opcode::Offer => puts(rng, opcode, generations, &mut meta, &mut payload),
        _ => other(rng, opcode, generations, &mut meta),
    }
    match rng.below(40) {
        0 => append_extension(&mut meta, rng.next_u64() as u16 % MUST_UNDERSTAND, b"skip me"),
        1 => append_extension(&mut meta, MUST_UNDERSTAND | rng.next_u64() as u16, b"mind me"),
        2..=5 => mutate(rng, &mut meta),
        _ => {}
    }
    meta.truncate(opcode.meta_limit() as usize);
    (meta, payload)
}

fn other(rng: &mut Rng, opcode: Opcode, generations: &[u64], meta: &mut Vec<u8>) {
    match opcode {
        Opcode::Exists | Opcode::Presence | Opcode::Release => {
            list(rng, meta, |rng, meta| {
                let key = key(rng);
                length_and(meta, &key);
            });
        }
        Opcode::Lease => {
            let ms = one_of(rng, &[0, 1, 50, 5_000, 60_000, u32::MAX]);
            meta.extend(ms.to_le_bytes());
            list(rng, meta, |rng, meta| {
                let key = key(rng);
                length_and(meta, &key);
            });
        }
        Opcode::Hint => {
            let (advice, seconds) = match rng.below(8) {
                0..=2 => (0, 0),
                3..=4 => (1, 0),
                5..=6 => (2, one_of(rng, &[1, 5, 60, u32::MAX])),
                _ => (rng.next_u64() as u8 % 5, number(rng) as u32),
            };
            meta.extend([advice, 0, 0, 0]);
            meta.extend(seconds.to_le_bytes());
            list(rng, meta, |rng, meta| {
                let key = key(rng);
                length_and(meta, &key);
            });
        }
        Opcode::MatchPrefix => {
            let mut at = number(rng) as u32;
            list(rng, meta, |rng, meta| {
                let position = if once_in(rng, 8) { number(rng) as u32 } else { at };
                at = at.wrapping_add(1);
                meta.extend(position.to_le_bytes());
                let key = key(rng);
                length_and(meta, &key);
            });
        }
        Opcode::Delete | Opcode::Suspect => {
            list(rng, meta, |rng, meta| {
                meta.extend(generation(rng, generations).to_le_bytes());
                let key = key(rng);
                length_and(meta, &key);
            });
        }
        Opcode::Get => list(rng, meta, get_item),
        Opcode::Stats => {}
        Opcode::Goodbye => length_and(meta, "farewell, €".as_bytes()),
        Opcode::Connect | Opcode::Data | Opcode::Put | Opcode::Offer => {
            // Not what such a request holds: these have makers of their own.
            let count = rng.below(100) as usize;
            meta.extend(bytes(rng, count));
        }
    }
}

/// A count, now and then a lie, and so many items.
fn list(rng: &mut Rng, meta: &mut Vec<u8>, mut item: impl FnMut(&mut Rng, &mut Vec<u8>)) {
    let items = count(rng);
    said(rng, meta, items);
    for _ in 0..items {
        item(rng, meta);
    }
}

fn count(rng: &mut Rng) -> usize {
    match rng.below(40) {
        0 => 0,
        1 => 30,
        2 if once_in(rng, 30) => 4097,
        _ => 1 + rng.below(4) as usize,
    }
}

fn said(rng: &mut Rng, meta: &mut Vec<u8>, count: usize) {
    let said = if once_in(rng, 40) { number(rng) as u32 } else { count as u32 };
    meta.extend(said.to_le_bytes());
}

fn length_and(meta: &mut Vec<u8>, bytes: &[u8]) {
    meta.extend((bytes.len() as u16).to_le_bytes());
    meta.extend(bytes);
}

/// A key of the few there are; now and then one that is too short or too long.
pub fn key(rng: &mut Rng) -> Vec<u8> {
    let length = match rng.below(100) {
        0 => 0,
        1 => MAX_KEY + 1,
        2..=9 => MAX_KEY,
        10..=19 => 1,
        _ => 8,
    };
    vec![b'a' + rng.below(8) as u8; length]
}

/// One that was seen, any, or none.
fn generation(rng: &mut Rng, seen: &[u64]) -> u64 {
    match rng.below(4) {
        0 | 1 => 0,
        2 if !seen.is_empty() => one_of(rng, seen),
        _ => number(rng),
    }
}

fn get_item(rng: &mut Rng, meta: &mut Vec<u8>) {
    let key = key(rng);
    let (offset, length) = match rng.below(4) {
        0 | 1 => (0, u64::MAX),
        2 => (rng.below(3 * u64::from(EXTENT)), rng.below(2 * u64::from(EXTENT))),
        _ => (number(rng), number(rng)),
    };
    meta.extend((key.len() as u16).to_le_bytes());
    meta.extend([0; 6]);
    meta.extend(offset.to_le_bytes());
    meta.extend(length.to_le_bytes());
    meta.extend(key);
}

/// Bytes of a value: often those that its key has always, mostly few, at times all that a block may
/// have.
fn value_length(rng: &mut Rng, key: &[u8]) -> usize {
    let extent = u64::from(EXTENT);
    let length = match rng.below(18) {
        12.. => 100 * u64::from(key.first().copied().unwrap_or(1)),
        0 => one_of(rng, &[1, extent - 1, extent, extent + 1, 16 * extent]),
        1..=3 => 1 + rng.below(16 * extent),
        4..=6 => 1 + rng.below(3 * extent),
        _ => 1 + rng.below(2_000),
    };
    length as usize
}

/// A value: random at its ends, and in between what costs little to make.
pub fn value(rng: &mut Rng, length: usize) -> Vec<u8> {
    let mut value = vec![rng.next_u64() as u8; length];
    let ends = bytes(rng, length.min(64));
    let half = ends.len() / 2;
    value[..half].copy_from_slice(&ends[..half]);
    value[length - (ends.len() - half)..].copy_from_slice(&ends[half..]);
    value
}

/// One CRC per extent.
pub fn crcs(value: &[u8]) -> Vec<u32> {
    value.chunks(EXTENT as usize).map(crc32c).collect()
}

fn puts(
    rng: &mut Rng,
    opcode: Opcode,
    generations: &[u64],
    meta: &mut Vec<u8>,
    payload: &mut Vec<u8>,
) {
    let items = count(rng);
    said(rng, meta, items);
    let again = key(rng);
    let mut left = MAX_INLINE as usize;
    for _ in 0..items {
        // One key in a few comes twice in its batch.
        let key = if once_in(rng, 3) { again.clone() } else { key(rng) };
        let mut length = value_length(rng, &key);
        if opcode == Opcode::Put {
            length = length.min(left.max(1));
            left -= length.min(left);
        }
        let value = value(rng, length);
        put_item(rng, meta, (&key, &value), opcode, generations);
        if opcode == Opcode::Put {
            payload.extend(value);
        }
    }
    for item in 0..items as u32 {
        if !once_in(rng, 8) {
            continue;
        }
        let parent = key(rng);
        append_extension(meta, 1, &[&item.to_le_bytes()[..], &parent].concat());
        let seconds = one_of(rng, &[0, 1, 1, 30, 30, 600, 600, u32::MAX]);
        append_extension(meta, 2, &[item.to_le_bytes(), seconds.to_le_bytes()].concat());
    }
    if once_in(rng, 20) {
        mutate(rng, payload);
    }
    payload.truncate(if opcode == Opcode::Put { MAX_INLINE as usize } else { 0 });
}

/// The meta of an Offer of one value, and the value.
pub fn offer_along(rng: &mut Rng, generations: &[u64]) -> (Vec<u8>, Vec<u8>) {
    let mut meta = 1u32.to_le_bytes().to_vec();
    let key = key(rng);
    let length = value_length(rng, &key);
    let value = value(rng, length);
    put_item(rng, &mut meta, (&key, &value), Opcode::Offer, generations);
    (meta, value)
}

fn put_item(
    rng: &mut Rng,
    meta: &mut Vec<u8>,
    (key, value): (&[u8], &[u8]),
    opcode: Opcode,
    generations: &[u64],
) {
    let (mode, of) = match rng.below(8) {
        0..=3 => (0, 0),
        4..=5 => (1, 0),
        6 => (2, generation(rng, generations)),
        _ if once_in(rng, 6) => (rng.next_u64() as u8, number(rng)),
        _ => (1, 0),
    };
    let mut crcs = if opcode == Opcode::Put || once_in(rng, 4) { crcs(value) } else { Vec::new() };
    if once_in(rng, 16) {
        match rng.below(3) {
            0 => crcs.push(7),
            1 => drop(crcs.pop()),
            _ => crcs.iter_mut().for_each(|crc| *crc ^= 1),
        }
    }
    let flags = if once_in(rng, 24) { one_of(rng, &[1, 2, 1 << 31]) } else { 0u32 };
    let ttl = one_of(rng, &[0, 0, 0, 0, 1, 3, u32::MAX]);
    let length = if once_in(rng, 30) { number(rng) } else { value.len() as u64 };
    meta.extend((key.len() as u16).to_le_bytes());
    meta.extend([mode, crcs.len() as u8]);
    meta.extend(flags.to_le_bytes());
    meta.extend(ttl.to_le_bytes());
    meta.extend([0; 4]);
    meta.extend(length.to_le_bytes());
    meta.extend(of.to_le_bytes());
    meta.extend(crcs.iter().flat_map(|crc| crc.to_le_bytes()));
    meta.extend(key);
}

#[cfg(test)]
mod tests {
    use super::*;
    use memkv_wire::meta::Request;

    #[test]
    fn most_requests_can_be_read_and_some_cannot() {
        let mut rng = Rng::seeded(6);
        for &opcode in &Opcode::ALL[1..] {
            if opcode == Opcode::Data {
                continue;
            }
            let mut parsed = 0;
            for _ in 0..400 {
                let (meta, _) = draft(&mut rng, opcode, &[5]);
                parsed += u32::from(Request::parse(opcode, &meta).is_ok());
            }
            assert!((100..400).contains(&parsed), "{opcode}: {parsed} of 400");
        }
    }
}
