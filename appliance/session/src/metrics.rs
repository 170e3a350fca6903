//! What sessions count. One writing thread per set, see [`memkv_store::metrics`].

use memkv_store::Histogram;
use memkv_store::metrics::Counter;

/// Counters of one reactor's sessions.
#[derive(Default, Debug)]
pub struct SessionCounters {
    /// Connections that finished their handshake.
    pub connected: Counter,
    /// Connections open now.
    pub connections: Counter,
    /// Connections refused in the handshake.
    pub refused: Counter,
    /// Connections closed for breaking the protocol (bad MAC, wrong sequence, no credit, …).
    pub violations: Counter,
    /// Requests answered.
    pub requests: Counter,
    /// Blocks sent.
    pub reads: Counter,
    /// Payload bytes sent.
    pub read_bytes: Counter,
    /// Payload bytes that were lent and not copied, of those sent.
    pub lent_bytes: Counter,
    /// Payload bytes that were named, for the peer to read in our memory, and not sent.
    pub named_bytes: Counter,
    /// Payload bytes of puts that were named, for us to read in the putter's memory, and not sent.
    pub staged_bytes: Counter,
    /// Bytes that are lent now, or named; those that were retired among them.
    pub lent_out: Counter,
    /// Bytes whose peer may still read them, though its connection is over: they are kept for good.
    pub lent_retired: Counter,
    /// Blocks stored.
    pub writes: Counter,
    /// Payload bytes stored.
    pub write_bytes: Counter,
    /// Puts refused because the putter's CRC did not fit its bytes.
    pub crc_refused: Counter,
    /// Gets and offers answered by Busy, for what was promised before them or for memory that others keep.
    pub busy: Counter,
    /// Blocks found bad before they were sent.
    pub crc_bad: Counter,
    /// Reports of bad bytes from getters.
    pub suspects: Counter,
    /// Connections lost while a request held reserved space.
    pub lost_after_reserve: Counter,
    /// Connections lost while a commit was under way.
    pub lost_after_append: Counter,
    /// Offers that ran out before their payload came.
    pub offers_expired: Counter,
    /// Stage: waiting for the store's place for a put.
    pub wait_reserve: Histogram,
    /// Stage: payload from the socket.
    pub wait_receive: Histogram,
    /// Stage: waiting for a receive or send chunk.
    pub wait_chunk: Histogram,
    /// Stage: drive writes still under way after the payload had arrived.
    pub wait_write: Histogram,
    /// Stage: journal and publication.
    pub wait_commit: Histogram,
    /// Stage: lookup and pin.
    pub wait_lease: Histogram,
    /// Stage: from the start of the reads to the first bytes of a reply being there.
    pub wait_read: Histogram,
    /// Stage: from the first bytes of a reply being there to all of it being with the carrier.
    pub wait_send: Histogram,
    /// Whole puts, from their frame to their reply.
    pub put_total: Histogram,
    /// Whole gets, from their frame to the reply being ready.
    pub get_total: Histogram,
}
