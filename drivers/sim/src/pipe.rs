//! One direction of a simulated stream: bytes that were sent, of which some have arrived.
//!
//! The bytes lie in one buffer in the order in which they were sent; "arrival" only moves a mark. So a
//! stream cannot be reordered, whatever its delays, and the receiver can parse a whole frame in place.

/// Consumed bytes that are kept before the buffer is compacted: a compaction moves at most as many bytes
/// as were consumed since the last one, so each byte moves once at most.
const COMPACT: usize = 64 * 1024;

/// One direction of a stream. Positions are counted in bytes since its beginning.
#[derive(Debug, Default)]
pub(crate) struct Pipe {
    bytes: Vec<u8>,
    /// Index in `bytes` of the first byte that was not consumed.
    head: usize,
    /// Position of `bytes[head]`.
    consumed: u64,
    /// Position up to which the receiver may see.
    arrived: u64,
}

impl Pipe {
    /// Position after the last byte sent.
    pub(crate) fn sent(&self) -> u64 {
        self.consumed + (self.bytes.len() - self.head) as u64
    }

    /// Position after the last byte that was consumed.
    pub(crate) fn consumed(&self) -> u64 {
        self.consumed
    }

    /// Bytes that are on their way.
    pub(crate) fn in_flight(&self) -> u64 {
        self.sent() - self.arrived
    }

    /// What has arrived and was not consumed.
    pub(crate) fn readable(&self) -> &[u8] {
        &self.bytes[self.head..self.head + (self.arrived - self.consumed) as usize]
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Lets the sender append in place.
    pub(crate) fn send_with(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let before = self.bytes.len();
        write(&mut self.bytes);
        assert!(self.bytes.len() >= before, "a sender only appends");
    }

    /// Everything up to `mark` has arrived.
    pub(crate) fn arrive(&mut self, mark: u64) {
        self.arrived = self.arrived.max(mark.min(self.sent()));
    }

    /// The receiver has taken `count` bytes.
    pub(crate) fn consume(&mut self, count: usize) {
        assert!(count <= self.readable().len(), "a receiver takes what has arrived");
        self.head += count;
        self.consumed += count as u64;
        if self.head == self.bytes.len() {
            self.bytes.clear();
            self.head = 0;
        } else if self.head > COMPACT && self.head * 2 > self.bytes.len() {
            self.bytes.drain(..self.head);
            self.head = 0;
        }
    }

    /// Forgets everything but the buffer's memory.
    pub(crate) fn reset(&mut self) {
        self.bytes.clear();
        (self.head, self.consumed, self.arrived) = (0, 0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_readable_once_they_arrived_and_in_order() {
        let mut pipe = Pipe::default();
        pipe.send(b"hello");
        assert_eq!(pipe.readable(), b"");
        pipe.arrive(3);
        assert_eq!(pipe.readable(), b"hel");
        pipe.consume(2);
        pipe.send_with(|out| out.extend_from_slice(b" world"));
        pipe.arrive(2);
        assert_eq!(pipe.readable(), b"l", "marks never go back");
        pipe.arrive(11);
        assert_eq!(pipe.readable(), b"llo world");
        assert_eq!((pipe.sent(), pipe.in_flight()), (11, 0));
    }

    #[test]
    fn a_long_stream_keeps_a_short_buffer() {
        let mut pipe = Pipe::default();
        let piece: Vec<u8> = (0..10_000u32).map(|n| n as u8).collect();
        for round in 0..1_000u64 {
            pipe.send(&piece);
            pipe.arrive(pipe.sent() - 100);
            let take = pipe.readable().len();
            for (at, byte) in pipe.readable().iter().enumerate() {
                let position =
                    (round * 10_000 + at as u64).saturating_sub(if round > 0 { 100 } else { 0 });
                assert_eq!(*byte, (position % 10_000) as u8);
            }
            pipe.consume(take);
        }
        assert!(pipe.bytes.capacity() < 1 << 20);
    }
}
