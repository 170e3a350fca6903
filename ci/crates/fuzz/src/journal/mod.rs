//! What lies on a drive: superblock, frames of the log, checkpoints, records, keys.
//!
//! An input begins with a byte that says what the rest of it pretends to be. It is fed twice: as it
//! is, and with its checksums put right, since rot is stopped by a checksum but a program's mistake
//! is not.
//!
//! What must hold: no panic; what parses can be written again, and reads the same.

mod generate;

pub use generate::superblock;

use memkv_journal::checkpoint::codec::{
    AREA_HEADER, AreaHeader, Column, PIECE_HEADER, parse_header, parse_piece,
};
use memkv_journal::frame::{self, FRAME_HEADER};
use memkv_journal::{KeyBytes, Record, SUPERBLOCK_BYTES, Superblock};
use memkv_poller::Rng;
use memkv_wire::crc32c;

use crate::draw::{mutate, one_of, overwrite};
use crate::target::{Counts, Target, variant};

/// What an input may pretend to be. The number is the input's first byte.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Frame,
    Superblock,
    Area,
    Piece,
    Record,
    Key,
}

const KINDS: [Kind; 6] =
    [Kind::Frame, Kind::Superblock, Kind::Area, Kind::Piece, Kind::Record, Kind::Key];

/// The target: everything the journal reads from a drive.
pub struct Drive {
    counts: Counts,
}

impl Default for Drive {
    fn default() -> Drive {
        let both = |name: String| [format!("{name} parsed"), format!("{name} refused")];
        let records = ["Put", "Part", "Head", "Remove"].map(|kind| format!("record {kind}"));
        let names = KINDS.iter().flat_map(|kind| both(format!("{kind:?}"))).chain(records);
        Drive { counts: Counts::of(names) }
    }
}

impl Target for Drive {
    fn name(&self) -> &'static str {
        "journal"
    }

    fn draw(&self, rng: &mut Rng) -> Vec<u8> {
        let kind = one_of(rng, &KINDS);
        let mut bytes = match kind {
            Kind::Frame => generate::frame(rng),
            Kind::Superblock => generate::superblock(rng),
            Kind::Area => generate::area(rng),
            Kind::Piece => generate::piece(rng),
            Kind::Record => generate::encoded(&generate::record(rng)),
            Kind::Key => generate::key(rng).as_bytes().to_vec(),
        };
        for _ in 0..rng.below(4) {
            mutate(rng, &mut bytes);
        }
        [&[kind as u8][..], &bytes].concat()
    }

    fn feed(&mut self, input: &[u8]) {
        let Some((&first, bytes)) = input.split_first() else { return };
        let kind = KINDS[usize::from(first) % KINDS.len()];
        self.feed_as(kind, bytes);
        let mut summed = bytes.to_vec();
        put_right(kind, &mut summed);
        self.feed_as(kind, &summed);
    }

    fn counts(&self) -> &Counts {
        &self.counts
    }
}

impl Drive {
    fn feed_as(&mut self, kind: Kind, bytes: &[u8]) {
        let parsed = match kind {
            Kind::Frame => self.feed_frame(bytes),
            Kind::Superblock => feed_superblock(bytes),
            Kind::Area => feed_area(bytes),
            Kind::Piece => feed_piece(bytes),
            Kind::Record => self.feed_record(bytes).is_some(),
            Kind::Key => feed_key(bytes),
        };
        let end = if parsed { "parsed" } else { "refused" };
        self.counts.bump(&format!("{kind:?} {end}"));
    }

    fn feed_frame(&mut self, bytes: &[u8]) -> bool {
        let Ok((header, records)) = frame::parse(bytes) else { return false };
        assert_eq!(records.len(), header.records as usize);
        let body = frame::body_of(&header, bytes).expect("the frame was parsed");
        if header.records > 0 {
            let again: Vec<u8> = records.iter().flat_map(generate::encoded).collect();
            assert_eq!(again, body, "records have one way to be written");
        }
        for record in &records {
            self.counts.bump(&format!("record {}", variant(record)));
        }
        true
    }

    fn feed_record(&mut self, bytes: &[u8]) -> Option<Record> {
        let (record, length) = Record::parse(bytes).ok()?;
        assert_eq!(generate::encoded(&record), bytes[..length]);
        assert_eq!(record.encoded_len(), length);
        assert_eq!(record.check(), Ok(()));
        self.counts.bump(&format!("record {}", variant(&record)));
        Some(record)
    }
}

fn feed_superblock(bytes: &[u8]) -> bool {
    let Ok(superblock) = Superblock::parse(bytes) else { return false };
    let mut again = vec![0; SUPERBLOCK_BYTES];
    superblock.encode(0, &mut again);
    assert_eq!(Superblock::parse(&again), Ok(superblock));
    true
}

fn feed_area(bytes: &[u8]) -> bool {
    let Ok(header) = parse_header(bytes) else { return false };
    let mut again = vec![0; AREA_HEADER];
    header.encode(&mut again);
    assert_eq!(parse_header(&again), Ok(header));
    for column in Column::ALL {
        check_pieces(&header, column);
    }
    true
}

/// Whatever the header says, a piece's size is one that may be read into a buffer.
fn check_pieces(header: &AreaHeader, column: Column) {
    let pieces = header.pieces[column.index()];
    for index in [0, pieces / 2, pieces.saturating_sub(1)] {
        let bytes = header.piece_bytes(column, index);
        assert!(bytes <= memkv_journal::checkpoint::codec::PIECE, "{bytes}");
    }
}

fn feed_piece(bytes: &[u8]) -> bool {
    let Ok(items) = parse_piece(&generate::piece_id(), bytes) else { return false };
    assert!(items.len() + PIECE_HEADER <= bytes.len());
    true
}

fn feed_key(bytes: &[u8]) -> bool {
    let Ok(key) = KeyBytes::parse(bytes) else { return false };
    assert_eq!(key.as_bytes(), bytes);
    let again = KeyBytes::new(key.tenant(), key.namespace(), key.key());
    assert_eq!(again.as_ref(), Ok(&key), "a key is what it is made of");
    true
}

/// Puts the checksums of `bytes` right, where `docs/format.md` says they are.
fn put_right(kind: Kind, bytes: &mut [u8]) {
    match kind {
        Kind::Frame => {
            let length = bytes.get(60..64).map_or(0, |word| {
                u32::from_le_bytes([word[0], word[1], word[2], word[3]]) as usize
            });
            let body = bytes.get(FRAME_HEADER..FRAME_HEADER.saturating_add(length));
            if let Some(crc) = body.map(crc32c) {
                overwrite(bytes, 68, &crc.to_le_bytes());
            }
            sum(bytes, 0..124, 124);
        }
        Kind::Superblock => sum(bytes, 16..SUPERBLOCK_BYTES, 12),
        Kind::Area => sum(bytes, 12..AREA_HEADER, 8),
        Kind::Piece => {
            let used = bytes.get(40..44).map_or(0, |word| {
                u32::from_le_bytes([word[0], word[1], word[2], word[3]]) as usize
            });
            sum(bytes, 4..used, 0);
        }
        Kind::Record | Kind::Key => {}
    }
}

/// Writes the CRC of a range, if there is such a range, at `at`.
fn sum(bytes: &mut [u8], range: std::ops::Range<usize>, at: usize) {
    if let Some(crc) = bytes.get(range).map(crc32c) {
        overwrite(bytes, at, &crc.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::{Until, run};

    #[test]
    fn everything_on_a_drive_is_reached() {
        let mut drive = Drive::default();
        let report = run(&mut drive, &[], 12, Until::Inputs(3_000));
        assert!(report.passed(), "{report}");
    }

    #[test]
    fn checksums_are_where_they_are_put_right() {
        let mut rng = Rng::seeded(4);
        for kind in [Kind::Frame, Kind::Superblock, Kind::Area, Kind::Piece] {
            let (whole, places): (Vec<u8>, &[usize]) = match kind {
                Kind::Frame => (generate::frame(&mut rng), &[68, 124]),
                Kind::Superblock => (generate::superblock(&mut rng), &[12]),
                Kind::Area => (generate::area(&mut rng), &[8]),
                _ => (generate::piece(&mut rng), &[0]),
            };
            let mut broken = whole.clone();
            for place in places {
                overwrite(&mut broken, *place, &[0xab; 4]);
            }
            assert_ne!(broken, whole);
            put_right(kind, &mut broken);
            assert_eq!(broken, whole, "{kind:?}");
        }
    }

    #[test]
    fn any_input_may_be_fed() {
        let mut rng = Rng::seeded(2);
        let mut drive = Drive::default();
        for length in 0..300 {
            drive.feed(&crate::draw::bytes(&mut rng, length));
        }
    }
}
