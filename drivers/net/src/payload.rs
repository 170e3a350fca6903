//! The seam of a carrier: where a payload is, and the two moves on it.

use memkv_dma::DmaBuf;

use crate::{Connection, NetError, RecvBuf, SendOp, recv, send};

/// A piece of the peer's memory, as one-sided RDMA names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoteSpan {
    /// Where it begins in the peer's address space.
    pub address: u64,
    /// The key that grants access to it.
    pub rkey: u32,
    /// Its length in bytes.
    pub length: u32,
}

/// Where a payload is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PayloadRef {
    /// It follows the frame on the connection.
    Inline,
    /// It lies in memory of the peer, in this order.
    Remote(Vec<RemoteSpan>),
}

/// Brings a payload into `buf[at..]`, at least `min` bytes of it; the count is what arrived, fewer than
/// `min` when the peer sends no more.
///
/// Every carrier takes [`PayloadRef::Inline`]; one without remote access answers
/// [`NetError::Unsupported`] to [`PayloadRef::Remote`] and gives the buffer back untouched.
pub async fn pull(
    connection: &dyn Connection,
    from: PayloadRef,
    buf: DmaBuf,
    at: usize,
    min: usize,
) -> (Result<usize, NetError>, DmaBuf) {
    if let PayloadRef::Remote(_) = from {
        return (Err(NetError::Unsupported), buf);
    }
    match recv(connection, RecvBuf::Dma(buf), at, min).await {
        (result, RecvBuf::Dma(buf)) => (result, buf),
        (_, RecvBuf::Small(_)) => unreachable!("a connection gives back the buffer it was given"),
    }
}

/// Brings `op` to the peer: behind its frame, or into the memory the peer named.
///
/// [`NetError::Unsupported`] as for [`pull`], with nothing sent.
pub async fn push(
    connection: &dyn Connection,
    to: PayloadRef,
    op: SendOp,
) -> (Result<(), NetError>, SendOp) {
    if let PayloadRef::Remote(_) = to {
        return (Err(NetError::Unsupported), op);
    }
    send(connection, op).await
}
