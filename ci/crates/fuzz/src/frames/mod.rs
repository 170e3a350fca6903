//! Frames of the wire protocol.
//!
//! An input begins with a byte that says how it is fed:
//!
//! ```text
//! 0 | header 128 | meta            sealed here, so that its MAC is valid: reaches the parsers of metas
//! 1 | bytes of a stream            read as a server reads it: headers, MACs, sequences, trailers
//! ```
//!
//! What must hold: no panic; what was sealed opens; a meta that parses encodes to what parses to the
//! same; a frame is accepted from a stream only when it is, byte for byte, what the client sealed.

mod generate;
mod stream;

use memkv_poller::Rng;
use memkv_wire::handshake::{ServerHello, connect_keys, session_keys};
use memkv_wire::meta::{Reply, Request};
use memkv_wire::{
    CrcList, FrameError, HEADER_LEN, Header, MAX_EXTENTS, Opcode, Opener, Sealer, SharedKey, Side,
};

use crate::draw::{mutate, once_in};
use crate::target::{Counts, Target, variant};

const SEALED: u8 = 0;
const STREAM: u8 = 1;

/// Errors that a stream must run into in any run worth its time. The others need a key.
const ERRORS: [&str; 18] = [
    "Truncated",
    "BadMagic",
    "NewerVersion",
    "UnknownVersion",
    "ReservedNotZero",
    "UnknownOpcode",
    "Unsupported",
    "UnknownStatus",
    "BadFlags",
    "MetaTooLong",
    "PayloadTooLong",
    "Reflected",
    "Duplicate",
    "Gap",
    "BadMac",
    "BadTrailer",
    "TooManyCrcs",
    "End",
];

/// The target: parsers of headers, metas and trailers.
pub struct Frames {
    counts: Counts,
}

impl Default for Frames {
    fn default() -> Frames {
        let mut names = vec!["header refused".to_owned(), "trailer opened".to_owned()];
        for opcode in Opcode::ALL {
            for kind in ["request", "reply"] {
                for end in ["parsed", "refused"] {
                    names.push(format!("{opcode} {kind} {end}"));
                }
            }
            names.push(format!("{opcode} refusal parsed"));
        }
        names.extend(ERRORS.iter().map(|error| format!("stream {error}")));
        names.push("stream frame accepted".to_owned());
        Frames { counts: Counts::of(names) }
    }
}

impl Target for Frames {
    fn name(&self) -> &'static str {
        "frames"
    }

    fn draw(&self, rng: &mut Rng) -> Vec<u8> {
        if once_in(rng, 3) {
            let mut input = vec![STREAM];
            input.extend(stream::draw(rng));
            return input;
        }
        let (header, mut meta) = generate::frame(rng);
        // One in four stays whole, so that every operation is also seen to work.
        for _ in 0..rng.below(4) {
            mutate(rng, &mut meta);
        }
        let mut raw = header.as_bytes().to_vec();
        if once_in(rng, 8) {
            mutate(rng, &mut raw);
            raw.resize(HEADER_LEN, 0);
        }
        [&[SEALED][..], &raw, &meta].concat()
    }

    fn feed(&mut self, input: &[u8]) {
        match input.split_first() {
            Some((&SEALED, rest)) => self.feed_sealed(rest),
            Some((_, rest)) => stream::feed(rest, &mut self.counts),
            None => {}
        }
    }

    fn counts(&self) -> &Counts {
        &self.counts
    }
}

/// Sealer and opener for frames that `side` sends: Connect or later.
fn ends(opcode: Opcode, side: Side) -> (Sealer, Opener) {
    let shared = SharedKey::from_bytes([7; 32]);
    let keys = |side| match opcode {
        Opcode::Connect => connect_keys(&shared, 1, side),
        _ => session_keys(&shared, 1, 1, &[1; 32], &[2; 32], side),
    };
    (keys(side).0, keys(side.peer()).1)
}

impl Frames {
    fn feed_sealed(&mut self, bytes: &[u8]) {
        let Ok(mut header) = Header::parse(bytes) else {
            return self.counts.bump("header refused");
        };
        let opcode = header.opcode();
        // Some mutated headers lack the direction's flag, which the sealer puts right.
        let side = if header.is_reply() { Side::Server } else { Side::Client };
        let meta = &bytes[HEADER_LEN..];
        let meta = &meta[..meta.len().min(opcode.meta_limit() as usize)];
        let (mut sealer, mut opener) = ends(opcode, side);
        let mut frame = Vec::new();
        sealer.seal(&mut header, meta, &mut frame);
        let (raw, rest) = frame.split_first_chunk().expect("a sealed frame has a header");
        assert_eq!(opener.open(raw, rest), Ok(header), "what was sealed opens");
        if header.is_reply() {
            self.feed_reply(&header, meta);
        } else {
            self.feed_request(opcode, meta);
        }
        if header.has_trailer() {
            trailer(&header, &sealer, &opener);
            self.counts.bump("trailer opened");
        }
    }

    fn feed_request(&mut self, opcode: Opcode, meta: &[u8]) {
        let Ok(request) = Request::parse(opcode, meta) else {
            return self.counts.bump(&format!("{opcode} request refused"));
        };
        let mut again = Vec::new();
        request.encode(&mut again);
        assert_eq!(Request::parse(opcode, &again).as_ref(), Ok(&request), "said again");
        assert!(again.len() <= meta.len(), "only extensions are left out");
        match &request {
            Request::Put(items) | Request::Offer(items) => drop(items.inline_length()),
            Request::Connect(hello) => assert!(hello.negotiate().is_none_or(|v| v == 1)),
            _ => {}
        }
        self.counts.bump(&format!("{opcode} request parsed"));
    }

    fn feed_reply(&mut self, header: &Header, meta: &[u8]) {
        let opcode = header.opcode();
        let Ok(reply) = Reply::parse(opcode, header.status(), meta) else {
            return self.counts.bump(&format!("{opcode} reply refused"));
        };
        let mut again = Vec::new();
        reply.encode(&mut again);
        let parsed = Reply::parse(opcode, header.status(), &again);
        assert_eq!(parsed.as_ref(), Ok(&reply), "said again");
        match &reply {
            Reply::Refused(_) => return self.counts.bump(&format!("{opcode} refusal parsed")),
            Reply::Connect(ServerHello { limits, .. }) => {
                let extents = limits.max_value.div_ceil(u64::from(limits.extent));
                assert!(extents <= MAX_EXTENTS as u64, "limits were checked");
            }
            _ => {}
        }
        self.counts.bump(&format!("{opcode} reply parsed"));
    }
}

/// A trailer of some CRCs opens, and does not with one byte changed.
fn trailer(header: &Header, sealer: &Sealer, opener: &Opener) {
    let seed = header.trace_id();
    let crcs: Vec<u32> = (0..u32::from(seed[0]) % (MAX_EXTENTS as u32 + 1)).collect();
    let mut bytes = Vec::new();
    sealer.seal_trailer(header.mac(), &crcs, &mut bytes);
    let list = CrcList::from_slice(&crcs).expect("at most 16");
    assert_eq!(opener.open_trailer(header.mac(), &bytes), Ok(list));
    let at = usize::from(seed[1]) % bytes.len();
    bytes[at] ^= 1 << (seed[2] % 8);
    let error = opener.open_trailer(header.mac(), &bytes).expect_err("changed");
    assert!(matches!(
        error,
        FrameError::BadTrailer | FrameError::TooManyCrcs { .. } | FrameError::Truncated { .. }
    ));
}

/// The count of an error that ended a stream.
fn stream_count(error: &FrameError) -> String {
    format!("stream {}", variant(error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::{Until, run};

    #[test]
    fn every_operation_is_reached_both_ways() {
        let mut frames = Frames::default();
        let report = run(&mut frames, &[], 11, Until::Inputs(10_000));
        assert!(report.passed(), "{report}");
    }

    #[test]
    fn any_input_may_be_fed() {
        let mut rng = Rng::seeded(2);
        let mut frames = Frames::default();
        for length in 0..300 {
            let input = crate::draw::bytes(&mut rng, length);
            frames.feed(&input);
            frames.feed(&[&[SEALED][..], &input].concat());
        }
    }
}
