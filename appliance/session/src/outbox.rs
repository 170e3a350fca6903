//! Replies on their way out: sealed in the order they are sent.
//!
//! Small replies go before bulk ones and share a send; a bulk reply is sent header and payload in
//! one call, straight from where the bytes lie. What keeps those bytes in place (the lease, the
//! permit to send) is dropped only after the carrier needs the memory no more.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use memkv_dma::DmaRef;
use memkv_net::{Connection, PayloadRef, SendOp, push};
use memkv_poller::Instant;
use memkv_poller::local::{Event, LocalPermit};
use memkv_store::ReadLease;
use memkv_wire::{Header, Sealer};

use crate::Context;
use crate::join::hastened;

/// Sealed bytes of small replies that share one send, at most.
const COALESCE: usize = 64 * 1024;

/// One reply.
pub struct Reply {
    pub header: Header,
    pub meta: Vec<u8>,
    pub payload: Vec<DmaRef>,
    /// Keeps the payload where it is.
    #[expect(dead_code, reason = "held until the reply is sent, never read")]
    pub lease: Option<ReadLease>,
    /// The share of the connection's sending budget.
    #[expect(dead_code, reason = "held until the reply is sent, never read")]
    pub budget: Option<LocalPermit>,
    pub ready: Instant,
}

/// The queue between requests and the wire.
#[derive(Default)]
pub struct Outbox {
    small: RefCell<VecDeque<Reply>>,
    bulk: RefCell<VecDeque<Reply>>,
    /// The frame that ends the connection; sent when nothing else is left.
    last: RefCell<Option<Reply>>,
    /// There was a last frame: nothing may follow it.
    ending: Cell<bool>,
    changed: Event,
    closed: Cell<bool>,
    idle: Cell<bool>,
}

impl Outbox {
    /// Queues a reply; dropped when the connection is gone or has had its last frame.
    pub fn push(&self, reply: Reply) {
        if self.closed.get() || self.ending.get() {
            return;
        }
        let queue = if reply.payload.is_empty() { &self.small } else { &self.bulk };
        queue.borrow_mut().push_back(reply);
        self.changed.notify_all();
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
    pub fn close(&self) {
        self.closed.set(true);
        self.small.borrow_mut().clear();
        self.bulk.borrow_mut().clear();
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
            let (payload, sent) = self.gather(&mut sealer, &mut head);
            let op = SendOp { head: std::mem::take(&mut head), payload, tail: Vec::new() };
            // A peer that does not read holds leases and memory that others wait for.
            let until = context.local.now() + context.limits.longest();
            let sending = push(&*connection, PayloadRef::Inline, op);
            let (result, op) =
                hastened(&context.local, until, || connection.shutdown(), sending).await;
            let SendOp { head: used, payload, .. } = op;
            head = used;
            // First the references to the bytes, then what kept them in place.
            drop(payload);
            let now = context.local.now();
            for reply in &sent {
                context.counters.wait_send.record(now.saturating_duration_since(reply.ready));
            }
            drop(sent);
            if result.is_err() {
                self.close();
                connection.shutdown();
                return;
            }
        }
    }

    /// Seals the replies of the next send: small ones, and behind them at most one bulk one, or the
    /// last frame when nothing else is left.
    fn gather(&self, sealer: &mut Sealer, head: &mut Vec<u8>) -> (Vec<DmaRef>, Vec<Reply>) {
        let mut sent = Vec::new();
        while head.len() < COALESCE
            && let Some(mut reply) = self.small.borrow_mut().pop_front()
        {
            sealer.seal(&mut reply.header, &reply.meta, head);
            sent.push(reply);
        }
        let mut payload = Vec::new();
        if let Some(mut reply) = self.bulk.borrow_mut().pop_front() {
            sealer.seal(&mut reply.header, &reply.meta, head);
            payload = std::mem::take(&mut reply.payload);
            sent.push(reply);
        } else if self.small.borrow().is_empty()
            && let Some(mut reply) = self.last.borrow_mut().take()
        {
            sealer.seal(&mut reply.header, &reply.meta, head);
            sent.push(reply);
        }
        (payload, sent)
    }
}
