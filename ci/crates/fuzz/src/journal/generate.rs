//! What a correct journal would write.

use memkv_block::Geometry;
use memkv_journal::checkpoint::codec::{
    AREA_HEADER, AreaHeader, Column, PIECE, PIECE_HEADER, PieceId, seal_piece,
};
use memkv_journal::frame::{FRAME_HEADER, FrameHeader, span_of};
use memkv_journal::superblock::{CheckpointRef, Features, Start};
use memkv_journal::{
    BlockId, DriveUuid, EXTENT_UNITS, FormatOptions, Identity, KEY_MAX, KeyBytes, Layout,
    PARTS_MAX, PartRef, Record, SUPERBLOCK_BYTES, Superblock, UnitRange,
};
use memkv_poller::Rng;
use uuid::Uuid;

use crate::draw::{array, bytes, number, once_in, one_of};

/// The record's bytes.
pub fn encoded(record: &Record) -> Vec<u8> {
    let mut out = vec![0; record.encoded_len()];
    assert_eq!(record.encode(&mut out), out.len());
    out
}

fn drive(rng: &mut Rng) -> DriveUuid {
    Uuid::from_bytes(array(rng)).into()
}

/// A key of any size.
pub fn key(rng: &mut Rng) -> KeyBytes {
    let length = if once_in(rng, 10) { KEY_MAX } else { 1 + rng.below(60) as usize };
    let tenant = one_of(rng, &["default", "t", "größe"]);
    let namespace = one_of(rng, &["llama-70b", "n"]);
    KeyBytes::new(tenant, namespace, &bytes(rng, length)).expect("within the bounds of a key")
}

/// Units and bytes that fit them.
fn extent(rng: &mut Rng) -> (UnitRange, u32) {
    let count = 1 + rng.below(u64::from(EXTENT_UNITS)) as u16;
    let extent = UnitRange { start: rng.below(1 << 30) as u32, count };
    (extent, 1 + rng.below(extent.bytes()) as u32)
}

/// A record of any kind.
pub fn record(rng: &mut Rng) -> Record {
    let hash = u128::from(rng.next_u64()) << 64 | u128::from(rng.next_u64());
    let block = BlockId { hash, generation: number(rng) };
    let (extent, length) = extent(rng);
    let (expires, flags, crc) = (number(rng), number(rng) as u16, number(rng) as u32);
    match rng.below(4) {
        0 => Record::Put { block, key: key(rng), extent, length, crc, expires, flags },
        1 => Record::Part { block, index: rng.below(16) as u16, extent, length, crc },
        2 => {
            let part = |_| PartRef {
                drive: drive(rng),
                length: 1 + rng.below(4 << 20) as u32,
                crc: number(rng) as u32,
            };
            let parts: Vec<PartRef> = (0..1 + length as usize % PARTS_MAX).map(part).collect();
            let length = parts.iter().map(|part| u64::from(part.length)).sum();
            Record::Head { block, key: key(rng), length, expires, flags, parts: parts.into() }
        }
        _ => Record::Remove { block },
    }
}

/// A frame of a few records; some have a byte of their records changed before they are summed.
pub fn frame(rng: &mut Rng) -> Vec<u8> {
    let count = rng.below(6);
    let mut body = Vec::new();
    for _ in 0..count {
        body.extend(encoded(&record(rng)));
    }
    if once_in(rng, 3) && !body.is_empty() {
        let at = rng.below(body.len() as u64) as usize;
        body[at] = number(rng) as u8;
    }
    let mut header = FrameHeader {
        drive: drive(rng),
        incarnation: number(rng),
        sequence: number(rng),
        position: (number(rng) >> 13) * 4096,
        span: span_of(body.len()) as u32,
        body_len: body.len() as u32,
        records: count as u32,
        body_crc: 0,
        generation_high: number(rng),
        clock_high: number(rng),
        epoch: number(rng),
    };
    let mut out = vec![0; header.span as usize];
    out[FRAME_HEADER..FRAME_HEADER + body.len()].copy_from_slice(&body);
    header.seal(&mut out);
    // Most of a frame's span is padding, which is no sport: most inputs go without.
    if once_in(rng, 4) { out } else { out[..FRAME_HEADER + body.len()].to_vec() }
}

/// A counter of a superblock, which no drive gets to the end of.
fn counter(rng: &mut Rng) -> u64 {
    number(rng) >> 3
}

/// A copy of the superblock of a drive of some size.
pub fn superblock(rng: &mut Rng) -> Vec<u8> {
    let capacity = (64 << 20) << rng.below(12);
    let geometry = Geometry { capacity, sector: one_of(rng, &[512, 4096]), max_transfer: 1 << 20 };
    let layout = Layout::plan(&geometry, &FormatOptions::default()).expect("large enough");
    let members = (0..rng.below(6)).map(|_| drive(rng)).collect();
    let identity = Identity {
        node: Uuid::from_bytes(array(rng)).into(),
        drive: drive(rng),
        epoch: counter(rng),
        members,
        secret: array(rng),
    };
    let checkpoint = |number: u64| CheckpointRef {
        number,
        start_sequence: number * 7 + 1,
        start_position: number * 4096,
    };
    let superblock = Superblock {
        features: Features { compatible: number(rng), ..Features::default() },
        revision: counter(rng),
        identity,
        layout,
        active: rng.below(2) as usize,
        clean: once_in(rng, 2),
        incarnation: counter(rng) + 5,
        generation_high: counter(rng),
        clock_high: counter(rng),
        checkpoints: [checkpoint(rng.below(1000)), checkpoint(rng.below(1000))],
        starts: (0..rng.below(5))
            .map(|start| Start { incarnation: start + 1, first_sequence: start * 100 })
            .collect(),
    };
    let mut out = vec![0; SUPERBLOCK_BYTES];
    superblock.encode(rng.below(4) as usize, &mut out);
    out
}

/// The header of a checkpoint's area.
pub fn area(rng: &mut Rng) -> Vec<u8> {
    let pieces: [u32; 3] = std::array::from_fn(|_| rng.below(4) as u32);
    let used = |pieces: u32| match pieces {
        0 => 0,
        _ => (PIECE_HEADER as u64 + rng.below((PIECE - PIECE_HEADER) as u64)) as u32,
    };
    let header = AreaHeader {
        drive: Uuid::from_u128(5).into(),
        number: 3,
        start_sequence: 9,
        start_position: 4096,
        rows: 17,
        pieces,
        last_used: pieces.map(used),
        generation_high: 10,
        clock_high: 11,
        epoch: 12,
    };
    let mut out = vec![0; AREA_HEADER];
    header.encode(&mut out);
    out
}

/// Which piece the target asks for.
pub fn piece_id() -> PieceId {
    PieceId { drive: Uuid::from_u128(5).into(), number: 3, column: Column::Keys, index: 1 }
}

/// A piece, mostly the one that is asked for.
pub fn piece(rng: &mut Rng) -> Vec<u8> {
    let mut id = piece_id();
    if once_in(rng, 8) {
        id.column = one_of(rng, &Column::ALL);
        id.index = number(rng) as u32;
    }
    let used = PIECE_HEADER + rng.below(2000) as usize;
    let mut out = vec![0; used.next_multiple_of(4096)];
    let items = bytes(rng, used - PIECE_HEADER);
    out[PIECE_HEADER..used].copy_from_slice(&items);
    let padded = seal_piece(&id, used, &mut out);
    out.truncate(padded);
    out
}
