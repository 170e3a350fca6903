//! Carriers: what moves bytes between a node and its clients.
//!
//! A carrier knows nothing of frames. It offers a [`Connection`]: "fill this buffer until at least so
//! many bytes are there", "send these pieces in this order". What the bytes mean is parsed by
//! `memkv-wire` and decided by the session; the same sessions run over the simulator's network, which
//! implements the same trait.
//!
//! # Who owns a buffer
//!
//! A buffer handed to [`Connection::start_recv`] or [`Connection::start_send`] belongs to the connection
//! until the matching `poll_*` gives it back. Nothing shortens that: not the future that waited (it may
//! be dropped and another may wait later), not the peer's death (the buffer comes back with the error).
//! This is the rule that lets a carrier hand the memory to a kernel ring or a network card: no buffer is
//! reused while something that can still write or read it is outstanding.
//!
//! # The seam of a carrier
//!
//! [`pull`] and [`push`] move a payload by a [`PayloadRef`]: the bytes that follow the frame on the
//! connection ([`PayloadRef::Inline`]), or memory of the peer named by address and key
//! ([`PayloadRef::Remote`], for one-sided RDMA). TCP carries inline payload only.
//!
//! # Here
//!
//! * [`tcp`]: an engine for reactors (io_uring or epoll on Linux, kqueue elsewhere), and a blocking stream
//!   with deadlines for clients, which have no reactor.
//! * [`shm`]: memory of a server that clients on its machine read for themselves; what is to be read where is
//!   told over TCP.

mod payload;
#[cfg_attr(not(target_os = "linux"), path = "no_shm.rs")]
pub mod shm;
pub mod tcp;

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll};

use memkv_dma::{DmaBuf, DmaRef};

pub use payload::{PayloadRef, RemoteSpan, pull, push};

/// Memory a connection receives into.
pub enum RecvBuf {
    /// Ordinary memory: headers, metas, small requests.
    Small(Vec<u8>),
    /// Memory of the DMA pool, or the medium itself: payload in its final place.
    Dma(DmaBuf),
}

impl RecvBuf {
    /// The whole buffer, received bytes or not.
    pub fn as_slice(&self) -> &[u8] {
        match self {
            RecvBuf::Small(bytes) => bytes,
            RecvBuf::Dma(buf) => buf.as_slice(),
        }
    }

    /// The whole buffer, writable.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        match self {
            RecvBuf::Small(bytes) => bytes,
            RecvBuf::Dma(buf) => buf.as_mut_slice(),
        }
    }

    /// Bytes the buffer can hold.
    pub fn len(&self) -> usize {
        match self {
            RecvBuf::Small(bytes) => bytes.len(),
            RecvBuf::Dma(buf) => buf.len(),
        }
    }

    /// True when the buffer can hold nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// One thing to send: `head`, then every piece of `payload`, then `tail`, in that order and with nothing
/// between them; in one system call where it fits.
#[derive(Default)]
pub struct SendOp {
    /// Header and meta of one frame, or several small frames back to back.
    pub head: Vec<u8>,
    /// Payload, sent from where it lies.
    pub payload: Vec<DmaRef>,
    /// What follows the payload: a trailer, or nothing.
    pub tail: Vec<u8>,
    /// Pieces of the payload of at least so many bytes stay as they are, after the send is done too, until
    /// the peer has said that it has taken them: a carrier that [lends](Connection::lends) need not copy them.
    pub lend: Option<usize>,
}

impl SendOp {
    /// A frame without payload.
    pub fn head(head: Vec<u8>) -> SendOp {
        SendOp { head, ..SendOp::default() }
    }

    /// Bytes to send in all.
    pub fn len(&self) -> usize {
        let payload: usize = self.payload.iter().map(DmaRef::len).sum();
        self.head.len() + payload + self.tail.len()
    }

    /// True when there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes behind the `index`-th piece.
    fn len_after(&self, index: usize) -> usize {
        let payload: usize = self.payload.iter().skip(index).map(DmaRef::len).sum();
        if index > self.payload.len() { 0 } else { payload + self.tail.len() }
    }

    /// The `index`-th piece in sending order: head, payload, tail.
    fn piece(&self, index: usize) -> Option<&[u8]> {
        let last = self.payload.len() + 1;
        match index {
            0 => Some(&self.head),
            i if i < last => Some(self.payload[i - 1].as_slice()),
            i if i == last => Some(&self.tail),
            _ => None,
        }
    }
}

/// Why bytes did not move.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// This end was shut down, or the peer no longer reads.
    #[error("the connection is closed")]
    Closed,
    /// The peer ended the connection without finishing it (RFC 9293, RST), or was lost.
    #[error("the peer reset the connection")]
    Reset,
    /// The deadline of a blocking call passed. What was moved until then is unknown to the caller.
    #[error("the deadline passed")]
    TimedOut,
    /// The system refused.
    #[error("the system refused a socket operation")]
    Os(#[source] io::Error),
    /// This carrier cannot do that: a remote payload over TCP.
    #[error("this carrier does not support the operation")]
    Unsupported,
    /// A fault planted by the simulator, by name.
    #[error("injected fault: {0}")]
    Injected(&'static str),
}

impl From<io::Error> for NetError {
    fn from(error: io::Error) -> NetError {
        match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::NotConnected => NetError::Closed,
            io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted => NetError::Reset,
            io::ErrorKind::TimedOut => NetError::Reset,
            _ => NetError::Os(error),
        }
    }
}

/// One connection, owned by one reactor (not `Send`). At most one receive and one send are outstanding at
/// a time; they do not wait for each other. Dropping it closes it.
pub trait Connection {
    /// Starts filling `buf[at..]`. Done when at least `min` bytes have arrived (perhaps more, up to the end
    /// of the buffer), at the end of the stream, or on an error.
    ///
    /// Panics when a receive is outstanding or not yet given back, when `min` is 0, or when
    /// `at + min` is beyond the buffer.
    fn start_recv(&self, buf: RecvBuf, at: usize, min: usize);

    /// Gives the receive back with the number of bytes that arrived; fewer than `min` (perhaps 0) means
    /// that the peer sends no more.
    ///
    /// Panics when no receive was started.
    fn poll_recv(&self, cx: &mut Context<'_>) -> Poll<(Result<usize, NetError>, RecvBuf)>;

    /// Starts sending all of `op`. Panics when a send is outstanding or not yet given back.
    fn start_send(&self, op: SendOp);

    /// Gives the send back once the carrier needs its memory no more: all of it was taken, or it failed
    /// (then an unknown part reached the peer). Panics when no send was started.
    fn poll_send(&self, cx: &mut Context<'_>) -> Poll<(Result<(), NetError>, SendOp)>;

    /// Ends the connection in both directions. Outstanding operations finish soon, and later ones fail or
    /// report the end of the stream. What the carrier has taken to send before is still sent.
    fn shutdown(&self);

    /// The peer's address, for logs.
    fn peer(&self) -> String;

    /// True when the peer runs on this machine.
    fn is_loopback(&self) -> bool;

    /// Whether a send that [may lend](SendOp::lend) its payload saves something. The peer may then read the
    /// memory long after the send is done, and after the connection was closed.
    fn lends(&self) -> bool {
        false
    }

    /// Whether the peer's end is known to exist no more, so that nobody reads what was lent to it. Not
    /// known: false, as after a [shutdown](Connection::shutdown) of ours.
    fn is_peer_gone(&self) -> bool {
        false
    }
}

/// Receives at least `min` bytes into `buf[at..]`; see [`Connection::start_recv`].
///
/// Dropping this future abandons the wait, not the receive: `poll_recv` gives it back later.
pub async fn recv(
    connection: &dyn Connection,
    buf: RecvBuf,
    at: usize,
    min: usize,
) -> (Result<usize, NetError>, RecvBuf) {
    connection.start_recv(buf, at, min);
    poll_fn(|cx| connection.poll_recv(cx)).await
}

/// Sends all of `op`; see [`Connection::start_send`].
///
/// Dropping this future abandons the wait, not the send: `poll_send` gives it back later.
pub async fn send(connection: &dyn Connection, op: SendOp) -> (Result<(), NetError>, SendOp) {
    connection.start_send(op);
    poll_fn(|cx| connection.poll_send(cx)).await
}
