//! Streams of frames with something wrong, read as a server reads them.

use memkv_poller::Rng;
use memkv_wire::handshake::{ClientHello, peek_connect};
use memkv_wire::{FrameError, HEADER_LEN, Header, Opcode, Side, crc32c, trailer_len};

use super::{ends, generate, stream_count};
use crate::draw::{bytes, mutate, number, once_in, one_of, overwrite};
use crate::target::Counts;

/// Offset and length of each header field, so that every one of them is tried.
const FIELDS: [(usize, usize); 20] = [
    (0, 4),
    (4, 1),
    (5, 1),
    (6, 2),
    (8, 4),
    (12, 4),
    (16, 8),
    (24, 8),
    (32, 8),
    (40, 4),
    (44, 4),
    (48, 8),
    (56, 1),
    (57, 1),
    (58, 2),
    (60, 4),
    (64, 8),
    (72, 8),
    (80, 16),
    (96, 32),
];

/// A few frames of a client in a row, then lost, repeated, exchanged, changed or cut.
pub fn draw(rng: &mut Rng) -> Vec<u8> {
    let (mut sealer, _) = ends(Opcode::Exists, Side::Client);
    let mut frames: Vec<Vec<u8>> = Vec::new();
    for _ in 0..1 + rng.below(4) {
        let (header, meta, payload) = generate::request_with_payload(rng);
        let mut header = header;
        let mut frame = Vec::new();
        sealer.seal(&mut header, &meta, &mut frame);
        frame.extend_from_slice(&payload);
        if header.has_trailer() {
            sealer.seal_trailer(header.mac(), &[crc32c(&payload)], &mut frame);
        }
        frames.push(frame);
    }
    let victim = rng.below(frames.len() as u64) as usize;
    match rng.below(8) {
        0 => drop(frames.remove(victim)),
        1 => frames.insert(victim, frames[victim].clone()),
        2 => frames.swap(0, victim),
        3 => header_field(rng, &mut frames[victim]),
        4 => near_the_end(rng, &mut frames[victim]),
        5 => frames[victim] = reply(rng),
        6 => mutate(rng, &mut frames[victim]),
        _ => {}
    }
    frames.concat()
}

/// Offset, length and value of what each check of the header is there for.
const WRONG: [(usize, usize, u64); 10] = [
    (0, 4, 0x5054_5448),
    (4, 1, 0),
    (4, 1, 2),
    (5, 1, 0x26),
    (5, 1, 0x41),
    (6, 2, 19),
    (8, 4, 1 << 4),
    (12, 4, (1 << 20) + 1),
    (16, 8, (64 << 20) + 1),
    (58, 2, 1),
];

/// Another value in one field of the header.
fn header_field(rng: &mut Rng, frame: &mut [u8]) {
    let (at, length, value) = if once_in(rng, 2) {
        one_of(rng, &WRONG)
    } else {
        let (at, length) = one_of(rng, &FIELDS);
        (at, length, number(rng))
    };
    let mut with = value.to_le_bytes().to_vec();
    with.extend(bytes(rng, 24));
    overwrite(frame, at, &with[..length]);
}

/// The trailer, if there is one, is at the end.
fn near_the_end(rng: &mut Rng, frame: &mut Vec<u8>) {
    let at = frame.len() - 1 - rng.below(trailer_len(1) as u64) as usize;
    match rng.below(4) {
        0 => frame.truncate(at),
        1 => {
            let count = frame.len() - trailer_len(1);
            frame[count] = number(rng) as u8;
        }
        _ => frame[at] ^= 1 << rng.below(8),
    }
}

/// What the server itself might have said.
fn reply(rng: &mut Rng) -> Vec<u8> {
    let request = Header::request(Opcode::Stats, number(rng));
    let (mut sealer, _) = ends(Opcode::Stats, Side::Server);
    let mut frame = Vec::new();
    sealer.seal(&mut Header::reply(&request, memkv_wire::Status::Ok), &[], &mut frame);
    frame
}

/// Reads the stream to its end or first error.
pub fn feed(stream: &[u8], counts: &mut Counts) {
    if let Some((raw, rest)) = stream.split_first_chunk::<HEADER_LEN>() {
        if let Ok(header) = peek_connect(raw) {
            assert_eq!(header.opcode(), Opcode::Connect);
        }
        let _ = ClientHello::parse(rest);
    }
    let error = read_all(stream, counts).err();
    counts.bump(&error.as_ref().map_or("stream End".to_owned(), stream_count));
}

fn read_all(mut stream: &[u8], counts: &mut Counts) -> Result<(), FrameError> {
    // The client's own sealer says the same frames again: only they may be accepted.
    let (mut sealer, mut opener) = ends(Opcode::Exists, Side::Client);
    while !stream.is_empty() {
        let start = stream;
        let raw = take(&mut stream, HEADER_LEN)?.first_chunk().expect("as many as were asked for");
        let peeked = opener.peek(raw)?;
        let meta = take(&mut stream, peeked.meta_length() as usize)?;
        let header = opener.open(raw, meta)?;
        assert_eq!(header, peeked, "peek and open see the same");
        let mut again = Vec::new();
        sealer.seal(&mut header.clone(), meta, &mut again);
        assert!(start.starts_with(&again), "a frame was accepted that nobody sealed");
        let payload = take(&mut stream, header.payload_length() as usize)?;
        if header.has_trailer() {
            let trailer = take(&mut stream, trailer_len(1))?;
            let crcs = opener.open_trailer(header.mac(), trailer)?;
            assert_eq!(crcs.len(), 1);
            let _ = crcs[0] == crc32c(payload);
        }
        counts.bump("stream frame accepted");
    }
    Ok(())
}

fn take<'a>(stream: &mut &'a [u8], count: usize) -> Result<&'a [u8], FrameError> {
    let (wanted, got) = (count as u64, stream.len() as u64);
    let (taken, rest) =
        stream.split_at_checked(count).ok_or(FrameError::Truncated { wanted, got })?;
    *stream = rest;
    Ok(taken)
}
