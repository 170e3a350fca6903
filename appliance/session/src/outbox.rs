//! Replies on their way out: sealed in the order they are sent.
//!
//! Small replies go before bulk ones and share a send; a bulk reply is sent header and payload in
//! one call, straight from where the bytes lie; payload that is still being read follows piece by
//! piece. What keeps those bytes in place (the lease, the permit to send) is dropped only after the
//! carrier needs the memory no more, and no drive is asked for it any more.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::pin::pin;
use std::rc::Rc;

use memkv_dma::DmaRef;
use memkv_net::{Connection, PayloadRef, SendOp, push};
use memkv_poller::Instant;
use memkv_poller::local::{Event, LocalPermit};
use memkv_poller::spare::{self, Row};
use memkv_store::ReadLease;
use memkv_wire::{Header, NamedReply, Sealer};

use crate::Context;
use crate::backlog::Promise;
use crate::join::hastened;
use crate::lent::Lent;
use crate::reads::Reading;

/// Sealed bytes of small replies that share one send, at most.
const COALESCE: usize = 64 * 1024;

/// Replies that wait to be sent before requests of many items make no more.
const REPLIES: usize = 4096;

/// One reply.
pub struct Reply {
    pub header: Header,
    pub meta: Row<u8>,
    pub payload: Row<Reading>,
    /// The payload may be named.
    pub by_name: bool,
    /// Keeps the payload where it is.
    pub lease: Option<ReadLease>,
    /// The share of the connection's sending budget, and the promise that the reply keeps.
    pub budget: Option<(LocalPermit, Promise)>,
    pub ready: Instant,
}

impl Reply {
    /// One without payload.
    pub fn bare(header: Header, meta: Row<u8>, ready: Instant) -> Reply {
        let payload = Row::default();
        Reply { header, meta, payload, by_name: false, lease: None, budget: None, ready }
    }
}

/// The queue between requests and the wire. It knows no context: the context knows it.
#[derive(Default)]
pub struct Outbox {
    small: RefCell<VecDeque<Reply>>,
    bulk: RefCell<VecDeque<Reply>>,
    /// Requests whose last reply is in one of the queues.
    answered: Cell<usize>,
    /// Somebody waits for replies to be sent.
    awaited: Cell<bool>,
    /// The frame that ends the connection; sent when nothing else is left.
    last: RefCell<Option<Reply>>,
    /// There was a last frame: nothing may follow it.
    ending: Cell<bool>,
    changed: Event,
    /// Replies that left by it and whose memory the peer may still read.
    pub lent: Lent,
    closed: Cell<bool>,
    idle: Cell<bool>,
}

/// What goes out in one go.
struct Batch {
    /// Sealed headers and metas.
    head: Vec<u8>,
    /// Payload that is there.
    payload: Vec<DmaRef>,
    /// Payload that comes after it.
    coming: Row<Reading>,
    /// The payload is a loan, but for pieces with less bytes.
    lend: Option<usize>,
    /// Payload of some replies is named, and theirs are loans.
    named: bool,
    replies: Row<Reply>,
}

impl Outbox {
    /// Queues a reply; dropped when the connection is gone or has had its last frame.
    pub fn push(&self, context: &Rc<Context>, reply: Reply) {
        if self.closed.get() || self.ending.get() {
            return discard(context, reply);
        }
        log_traced(&reply.header);
        self.answered.set(self.answered.get() + usize::from(!reply.header.has_more()));
        let queue = if reply.payload.is_empty() { &self.small } else { &self.bulk };
        queue.borrow_mut().push_back(reply);
        self.changed.notify_all();
    }

    /// Resolves when fewer than `most` requests are answered and wait for their replies to be sent, or the
    /// connection is gone: a peer that does not read gets no more answers, which would be kept for it.
    pub async fn has_room(&self, most: usize) {
        self.until(|| self.answered.get() < most).await;
    }

    /// Whether so many replies wait to be sent that a request which is answered by a reply for each of its
    /// items is to [wait](Self::has_few) for that.
    pub fn is_full(&self) -> bool {
        self.small.borrow().len() >= REPLIES
    }

    /// Resolves when it is not full, or the connection is gone.
    pub async fn has_few(&self) {
        self.until(|| !self.is_full()).await;
    }

    async fn until(&self, is_so: impl Fn() -> bool) {
        while !self.closed.get() && !is_so() {
            self.awaited.set(true);
            self.changed.listen().await;
        }
    }

    /// The next reply of a queue, to be sent.
    fn pop(&self, queue: &RefCell<VecDeque<Reply>>) -> Option<Reply> {
        let reply = queue.borrow_mut().pop_front()?;
        self.answered.set(self.answered.get() - usize::from(!reply.header.has_more()));
        if self.awaited.take() {
            self.changed.notify_all();
        }
        Some(reply)
    }

    /// Queues the last frame of the connection: it is sent after everything that is queued now, and
    /// nothing after it.
    pub fn end(&self, reply: Reply) {
        if self.closed.get() || self.ending.replace(true) {
            return;
        }
        *self.last.borrow_mut() = Some(reply);
        self.changed.notify_all();
    }

    /// Nothing more is sent; what is queued is dropped, leases and all.
    pub fn close(&self, context: &Rc<Context>) {
        self.closed.set(true);
        self.small.borrow_mut().clear();
        let bulk = std::mem::take(&mut *self.bulk.borrow_mut());
        bulk.into_iter().for_each(|reply| discard(context, reply));
        self.last.borrow_mut().take();
        self.changed.notify_all();
    }

    /// Resolves when everything queued has been sent, or the connection is gone.
    pub async fn flushed(&self) {
        while !(self.closed.get() || self.is_empty() && self.idle.get()) {
            self.changed.listen().await;
        }
    }

    fn is_empty(&self) -> bool {
        let queues = self.small.borrow().is_empty() && self.bulk.borrow().is_empty();
        queues && self.last.borrow().is_none()
    }

    /// The sending task.
    pub async fn run(
        self: Rc<Self>,
        context: Rc<Context>,
        connection: Rc<dyn Connection>,
        mut sealer: Sealer,
    ) {
        let mut head = Vec::new();
        loop {
            while self.is_empty() && !self.closed.get() {
                self.idle.set(true);
                self.changed.notify_all();
                self.changed.listen().await;
            }
            self.idle.set(false);
            if self.closed.get() {
                return;
            }
            head.clear();
            let batch = self.gather(&context, &mut sealer, head);
            // It may still be reading from drives when the connection is gone.
            let work = context.work();
            let lent = batch.lend.is_some() || batch.named;
            let sent = self.send(&context, &*connection, batch).await;
            if lent {
                self.lent.sent(&context);
            }
            drop(work);
            let Ok(used) = sent else {
                self.close(&context);
                connection.shutdown();
                return;
            };
            head = used;
        }
    }

    /// Seals the replies of the next send: small ones, and those whose payload is named; behind them at most
    /// one whose payload goes with it, or the last frame when nothing else is left.
    fn gather(&self, context: &Context, sealer: &mut Sealer, mut head: Vec<u8>) -> Batch {
        let mut replies = Row::new();
        while head.len() < COALESCE
            && let Some(mut reply) = self.pop(&self.small)
        {
            sealer.seal(&mut reply.header, &reply.meta, &mut head);
            replies.push(reply);
        }
        let (mut payload, mut coming, mut lend, mut named) =
            (spare::vec(), Row::new(), None, false);
        let mut bulk = self.pop(&self.bulk);
        while let Some(mut reply) = bulk.take_if(|reply| self.name(context, reply)) {
            named = true;
            sealer.seal(&mut reply.header, &reply.meta, &mut head);
            replies.push(reply);
            bulk = if head.len() < COALESCE { self.pop(&self.bulk) } else { None };
        }
        if let Some(mut reply) = bulk {
            for read in std::mem::take(&mut reply.payload) {
                match read.ready() {
                    Ok(bytes) if coming.is_empty() => payload.push(bytes),
                    Ok(bytes) => coming.push(Reading::Ready(bytes)),
                    Err(running) => coming.push(running),
                }
            }
            let pooled = !coming.is_empty() || payload.iter().any(DmaRef::is_pooled);
            let what = (reply.header.payload_length(), pooled);
            lend = self.lent.begin(context, what, &mut reply.lease);
            if lend.is_some() {
                reply.header = reply.header.with_lent();
            }
            sealer.seal(&mut reply.header, &reply.meta, &mut head);
            replies.push(reply);
        } else if self.small.borrow().is_empty()
            && self.bulk.borrow().is_empty()
            && let Some(mut reply) = self.last.borrow_mut().take()
        {
            sealer.seal(&mut reply.header, &reply.meta, &mut head);
            replies.push(reply);
        }
        Batch { head, payload, coming, lend, named, replies }
    }

    /// Names the payload of a reply, if its getter may read it for itself and it may be lent.
    fn name(&self, context: &Context, reply: &mut Reply) -> bool {
        let bytes = reply.header.payload_length();
        if !reply.by_name {
            return false;
        }
        let Some(spans) = self.lent.spans(&reply.payload) else { return false };
        if !self.lent.begin_named(context, &mut reply.payload, &mut reply.lease, bytes) {
            return false;
        }
        NamedReply::name(&spans, &mut reply.meta);
        reply.header = reply.header.with_payload_length(0).with_named();
        true
    }

    /// Sends a batch; gives the memory of its head back.
    async fn send(
        &self,
        context: &Context,
        connection: &dyn Connection,
        batch: Batch,
    ) -> Result<Vec<u8>, Broken> {
        let Batch { head, payload, coming, lend, named: _, replies } = batch;
        let keep = |piece: &DmaRef| {
            if lend.is_some_and(|least| piece.len() >= least) {
                self.lent.keep(piece);
            }
        };
        payload.iter().for_each(keep);
        let op = SendOp { head, payload, lend, ..SendOp::default() };
        let mut outcome = send_part(context, connection, op).await;
        // Every read is waited for, also when nobody reads the reply any more.
        for read in coming {
            let piece = read.finish_reply(context).await;
            outcome = match (outcome, piece) {
                (Ok(head), Some(piece)) => {
                    keep(&piece);
                    let mut payload = spare::vec();
                    payload.push(piece);
                    let op = SendOp { payload, lend, ..SendOp::default() };
                    send_part(context, connection, op).await.map(|_| head)
                }
                _ => Err(Broken),
            };
        }
        let now = context.local.now();
        for reply in &replies {
            context.counters.wait_send.record(now.saturating_duration_since(reply.ready));
            if let Some((_, promise)) = reply.budget.as_ref().filter(|_| outcome.is_ok()) {
                promise.kept(now);
            }
        }
        outcome
    }
}

/// The connection takes nothing more, or a reply that has begun cannot be finished.
struct Broken;

/// Drops a reply that nobody reads. What is being read for it is waited for first: no unit is used
/// again while a command names it.
fn discard(context: &Rc<Context>, mut reply: Reply) {
    let reads = std::mem::take(&mut reply.payload);
    if reads.iter().all(Reading::is_ready) {
        return;
    }
    let (context, work) = (context.clone(), context.work());
    context.local.clone().spawn(async move {
        for read in reads {
            read.finish_reply(&context).await;
        }
        drop((reply, work));
    });
}

async fn send_part(
    context: &Context,
    connection: &dyn Connection,
    op: SendOp,
) -> Result<Vec<u8>, Broken> {
    // A peer that does not read holds leases and memory that others wait for.
    let until = context.local.turn_began() + context.limits().longest();
    let sending = pin!(push(connection, PayloadRef::Inline, op));
    let hasten = || connection.shutdown();
    let (result, op) = hastened(&context.local, until, hasten, sending).await;
    spare::keep_vec(op.payload);
    result.map(|()| op.head).map_err(|_| Broken)
}

/// Writes down an answer that belongs to an engine's request, by which it can be found.
fn log_traced(header: &Header) {
    let trace = u128::from_be_bytes(header.trace_id());
    if trace != 0 {
        let trace = format_args!("{trace:032x}");
        let (opcode, status) = (header.opcode(), header.status());
        let (request, bytes) = (header.request_id(), header.payload_length());
        tracing::debug!(%trace, %opcode, %status, request, bytes, "answered");
    }
}
