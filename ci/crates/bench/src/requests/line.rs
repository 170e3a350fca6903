//! A connection in memory: what is fed to it arrives, what is sent is counted.
//!
//! It costs next to nothing, so that what is left is the cost of whoever serves it.

use std::cell::RefCell;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use memkv_net::{Connection, NetError, RecvBuf, SendOp, recv, send};

/// One end; the other is whoever feeds it.
#[derive(Default)]
pub struct Line {
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    /// What has come, and how much of it was received.
    arrived: Vec<u8>,
    taken: usize,
    receive: Option<(RecvBuf, usize, usize)>,
    waker: Option<Waker>,
    send: Option<SendOp>,
    /// Bytes sent since the beginning, and the head of what was sent last.
    sent: u64,
    last: Vec<u8>,
}

impl Line {
    /// These bytes arrive.
    pub fn feed(&self, bytes: &[u8]) {
        let mut state = self.state.borrow_mut();
        let taken = std::mem::take(&mut state.taken);
        state.arrived.drain(..taken);
        state.arrived.extend_from_slice(bytes);
        let waker = state.waker.take();
        drop(state);
        waker.into_iter().for_each(Waker::wake);
    }

    /// Bytes that were sent.
    pub fn sent(&self) -> u64 {
        self.state.borrow().sent
    }

    /// Header and meta of what was sent last.
    pub fn last(&self) -> Vec<u8> {
        self.state.borrow().last.clone()
    }
}

impl Connection for Line {
    fn start_recv(&self, buf: RecvBuf, at: usize, min: usize) {
        self.state.borrow_mut().receive = Some((buf, at, min));
    }

    fn poll_recv(&self, cx: &mut Context<'_>) -> Poll<(Result<usize, NetError>, RecvBuf)> {
        let mut state = self.state.borrow_mut();
        let (mut buf, at, min) = state.receive.take().expect("a receive was started");
        let rest = &state.arrived[state.taken..];
        if rest.len() < min {
            state.receive = Some((buf, at, min));
            state.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let place = &mut buf.as_mut_slice()[at..];
        let count = rest.len().min(place.len());
        place[..count].copy_from_slice(&rest[..count]);
        state.taken += count;
        Poll::Ready((Ok(count), buf))
    }

    fn start_send(&self, op: SendOp) {
        let mut state = self.state.borrow_mut();
        state.sent += op.len() as u64;
        state.last.clear();
        state.last.extend_from_slice(&op.head);
        state.send = Some(op);
    }

    fn poll_send(&self, _: &mut Context<'_>) -> Poll<(Result<(), NetError>, SendOp)> {
        Poll::Ready((Ok(()), self.state.borrow_mut().send.take().expect("a send was started")))
    }

    fn shutdown(&self) {}

    fn peer(&self) -> String {
        "memory".to_owned()
    }

    fn is_loopback(&self) -> bool {
        true
    }
}

/// Answers each message of so many bytes with one of so many, for ever: what a reactor costs that does
/// nothing else.
pub async fn echo(line: Rc<Line>, asked: usize, answered: usize) {
    let (mut buffer, mut op) = (RecvBuf::Small(vec![0; asked]), SendOp::head(vec![0; answered]));
    loop {
        (_, buffer) = recv(&*line, buffer, 0, asked).await;
        (_, op) = send(&*line, op).await;
    }
}
