//! Streams of bytes between simulated clients and real server connections.
//!
//! [`SimNet::connect`] makes a pair. The server's end is a [`Connection`] like any other: the session
//! cannot tell. The client's end is a plain handle for a client that is a state machine of the
//! simulation: it appends bytes, looks at what has arrived, and is listed by [`SimNet::pop_ready`] when
//! there is something new to look at.
//!
//! What is sent travels in segments, each with a delay of its own; a segment may be cut anywhere, so a
//! header can arrive in two pieces, and a stream can be reset at any segment. Segments of one stream
//! arrive in order, for this is TCP; between streams nothing is ordered.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::ops::Range;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use memkv_dma::Watch;
use memkv_net::{Connection, NetError, RecvBuf, SendOp};
use memkv_poller::{Clock, Instant, Rng};

use crate::clock::SimClock;
use crate::pipe::Pipe;
use crate::world::Source;

/// How the network behaves. Rates are per million segments.
#[derive(Clone, Debug)]
pub struct NetOptions {
    /// Shortest and longest delay of a segment in microseconds.
    pub latency: (u32, u32),
    /// Delays are rounded up to a multiple of this many microseconds, so that arrivals meet.
    pub grain: u32,
    /// Bytes that a server's send may have on their way before it has to wait.
    pub window: u64,
    /// Segments that are cut in two (both parts may be cut again).
    pub split: u32,
    /// Sends of the server that hand over only a part at first, and the rest one delay later.
    pub linger: u32,
    /// Segments at which the connection is reset instead.
    pub reset: u32,
    /// Payload is lent where the server allows it: whoever reads it late finds that the memory is held
    /// still, or the run panics.
    pub lend: bool,
    /// Decides everything that is left to chance.
    pub seed: u64,
}

impl NetOptions {
    /// A quick and reliable network.
    pub fn new(seed: u64) -> NetOptions {
        NetOptions {
            latency: (5, 50),
            grain: 5,
            window: 1 << 20,
            split: 50_000,
            linger: 0,
            reset: 0,
            lend: false,
            seed,
        }
    }
}

/// How a stream stands, as its client sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Both ends are open.
    Open,
    /// The server sends no more; what it sent before can be read.
    Closed,
    /// The stream was torn down; what was on its way is gone.
    Reset,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    /// Bytes arrive at the server, up to this position.
    ToServer(u64),
    /// Bytes arrive at the client, up to this position.
    ToClient(u64),
    /// The server's send goes on.
    Linger,
    /// The client has closed: the server reads to the end and then gets an end of stream.
    ClientClosed,
    /// The server has closed.
    ServerClosed,
    /// Everything on its way is lost; both ends see a reset.
    Reset,
}

/// Events are ordered by their time; ties are broken by the seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Event {
    at: Instant,
    tie: u32,
    index: u32,
    generation: u32,
    what: What,
}

enum Receive {
    Idle,
    Waiting { buf: RecvBuf, at: usize, min: usize, got: usize, waker: Option<Waker> },
    Done(Result<usize, NetError>, RecvBuf),
}

enum Send {
    Idle,
    /// `part` counts head, payloads, tail; `done` bytes of it are handed over.
    Sending {
        op: SendOp,
        part: usize,
        done: usize,
        waker: Option<Waker>,
    },
    Done(Result<(), NetError>, SendOp),
}

struct Stream {
    generation: u32,
    tag: u64,
    to_server: Pipe,
    to_client: Pipe,
    /// What of it lies in the server's memory: which positions, and whether it is held.
    lent: VecDeque<(Range<u64>, Watch)>,
    /// When the last segment of each direction is due: the next one is never earlier.
    due_server: Instant,
    due_client: Instant,
    receive: Receive,
    send: Send,
    /// The client has closed: when the server has read everything, the stream ends.
    server_eof: bool,
    /// The server has shut its end down: it neither reads nor sends any more.
    shut: bool,
    reset: bool,
    fate: Fate,
    server_gone: bool,
    client_gone: bool,
    ready: bool,
    linger_pending: bool,
    /// The client has stopped reading: what has arrived takes room in the window until it is read.
    stopped: bool,
}

struct State {
    options: NetOptions,
    clock: SimClock,
    rng: Rng,
    streams: Vec<Stream>,
    free: Vec<u32>,
    due: BinaryHeap<Reverse<Event>>,
    ready: Vec<(u32, u32)>,
    resets: u64,
}

/// The network of a simulated world. Clones are the same network.
#[derive(Clone)]
pub struct SimNet(Rc<RefCell<State>>);

impl SimNet {
    /// An empty network.
    pub fn new(options: NetOptions, clock: SimClock) -> SimNet {
        let rng = Rng::seeded(options.seed);
        SimNet(Rc::new(RefCell::new(State {
            options,
            clock,
            rng,
            streams: Vec::new(),
            free: Vec::new(),
            due: BinaryHeap::new(),
            ready: Vec::new(),
            resets: 0,
        })))
    }

    /// A new stream. `tag` names the client in [`SimNet::pop_ready`].
    pub fn connect(&self, tag: u64) -> (ClientEnd, Rc<dyn Connection>) {
        let mut state = self.0.borrow_mut();
        let index = state.open(tag);
        let generation = state.streams[index as usize].generation;
        let server = ServerEnd { net: self.clone(), index, generation };
        (ClientEnd { net: self.clone(), index, generation }, Rc::new(server))
    }

    /// A client, picked by the seed, whose stream has news for it: bytes, an end, a reset.
    pub fn pop_ready(&self) -> Option<u64> {
        let mut state = self.0.borrow_mut();
        while !state.ready.is_empty() {
            let count = state.ready.len() as u64;
            let pick = state.rng.below(count) as usize;
            let (index, generation) = state.ready.swap_remove(pick);
            let stream = &mut state.streams[index as usize];
            if stream.generation == generation && !stream.client_gone {
                stream.ready = false;
                return Some(stream.tag);
            }
        }
        None
    }

    /// True when [`SimNet::pop_ready`] may have something.
    pub fn has_ready(&self) -> bool {
        !self.0.borrow().ready.is_empty()
    }

    /// Changes how often streams are reset, per million segments.
    pub fn set_reset_rate(&self, reset: u32) {
        self.0.borrow_mut().options.reset = reset;
    }

    /// How many streams were reset by the network (not by a client, not by a crash).
    pub fn resets(&self) -> u64 {
        self.0.borrow().resets
    }

    /// The server's machine is gone: every stream is reset, and the clients will find out one delay
    /// later. Server ends that are still held see a reset too.
    pub fn cut_all(&self) {
        let mut wakers = Vec::new();
        {
            let mut state = self.0.borrow_mut();
            state.due.clear();
            for index in 0..state.streams.len() as u32 {
                // What a machine leaves behind nobody uses again.
                state.streams[index as usize].lent.clear();
                if state.streams[index as usize].client_gone {
                    state.break_stream(index, &mut wakers);
                } else {
                    state.schedule(index, What::Reset);
                }
            }
        }
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl Source for SimNet {
    fn next(&self) -> Option<Instant> {
        self.0.borrow().due.peek().map(|Reverse(event)| event.at)
    }

    fn deliver(&self, limit: usize) -> usize {
        let mut delivered = 0;
        while delivered < limit {
            // A waker is called with nothing borrowed: it may drop what it wakes.
            let Some(wakers) = self.0.borrow_mut().deliver_next() else { break };
            for waker in wakers.into_iter().flatten() {
                waker.wake();
            }
            delivered += 1;
        }
        delivered
    }
}

impl State {
    fn open(&mut self, tag: u64) -> u32 {
        let now = self.clock.now();
        let index = self.free.pop().unwrap_or_else(|| {
            self.streams.push(Stream::unused());
            (self.streams.len() - 1) as u32
        });
        let stream = &mut self.streams[index as usize];
        let (generation, mut to_server, mut to_client) = (
            stream.generation + 1,
            std::mem::take(&mut stream.to_server),
            std::mem::take(&mut stream.to_client),
        );
        to_server.reset();
        to_client.reset();
        *stream = Stream {
            generation,
            tag,
            to_server,
            to_client,
            due_server: now,
            due_client: now,
            fate: Fate::Open,
            server_gone: false,
            client_gone: false,
            ..Stream::unused()
        };
        index
    }

    fn delay(&mut self) -> Duration {
        let (min, max) = self.options.latency;
        let micros = u64::from(min) + self.rng.below(u64::from(max.saturating_sub(min)) + 1);
        let grain = u64::from(self.options.grain.max(1));
        Duration::from_micros(micros.div_ceil(grain) * grain)
    }

    fn schedule(&mut self, index: u32, what: What) {
        let at = self.clock.now() + self.delay();
        let stream = &mut self.streams[index as usize];
        let at = match what {
            What::ToServer(_) | What::ClientClosed => {
                stream.due_server = stream.due_server.max(at);
                stream.due_server
            }
            What::ToClient(_) | What::ServerClosed => {
                stream.due_client = stream.due_client.max(at);
                stream.due_client
            }
            What::Linger | What::Reset => at,
        };
        let generation = stream.generation;
        let tie = self.rng.next_u64() as u32;
        self.due.push(Reverse(Event { at, tie, index, generation, what }));
    }

    /// Sends the bytes from `from` to the end of a pipe on their way, cut as the seed likes it.
    fn dispatch(&mut self, index: u32, to_client: bool, mut from: u64) {
        let stream = &self.streams[index as usize];
        let end = if to_client { stream.to_client.sent() } else { stream.to_server.sent() };
        let what = |mark| if to_client { What::ToClient(mark) } else { What::ToServer(mark) };
        while from < end {
            if self.options.reset > 0 && self.rng.below(1_000_000) < u64::from(self.options.reset) {
                self.resets += 1;
                self.schedule(index, What::Reset);
            }
            let split = self.rng.below(1_000_000) < u64::from(self.options.split);
            let mark = if split { from + 1 + self.rng.below(end - from) } else { end };
            self.schedule(index, what(mark));
            from = mark;
        }
    }

    fn deliver_next(&mut self) -> Option<[Option<Waker>; 2]> {
        let now = self.clock.now();
        if self.due.peek().is_none_or(|Reverse(event)| event.at > now) {
            return None;
        }
        let Reverse(Event { index, generation, what, .. }) = self.due.pop()?;
        let mut wakers = [None, None];
        let stream = &mut self.streams[index as usize];
        if stream.generation != generation || stream.reset {
            return Some(wakers);
        }
        match what {
            What::ToServer(mark) => {
                stream.to_server.arrive(mark);
                wakers[0] = stream.pump_receive();
            }
            What::ClientClosed => {
                stream.to_server.arrive(u64::MAX);
                stream.server_eof = true;
                wakers[0] = stream.pump_receive();
            }
            What::ToClient(mark) => {
                stream.to_client.arrive(mark);
                self.tell_client(index);
                wakers[0] = self.pump_send(index);
            }
            What::ServerClosed => {
                stream.to_client.arrive(u64::MAX);
                if stream.fate == Fate::Open {
                    stream.fate = Fate::Closed;
                }
                self.tell_client(index);
            }
            What::Linger => {
                stream.linger_pending = false;
                wakers[0] = self.pump_send(index);
            }
            What::Reset => {
                let mut woken = Vec::new();
                self.break_stream(index, &mut woken);
                for (slot, waker) in wakers.iter_mut().zip(woken) {
                    *slot = Some(waker);
                }
            }
        }
        Some(wakers)
    }

    fn tell_client(&mut self, index: u32) {
        let stream = &mut self.streams[index as usize];
        if !stream.ready && !stream.client_gone {
            stream.ready = true;
            self.ready.push((index, stream.generation));
        }
    }

    /// Both ends see a reset; nothing more arrives.
    fn break_stream(&mut self, index: u32, wakers: &mut Vec<Waker>) {
        let stream = &mut self.streams[index as usize];
        stream.reset = true;
        stream.fate = Fate::Reset;
        wakers.extend(stream.pump_receive());
        wakers.extend(stream.finish_send(Err(NetError::Reset)));
        self.tell_client(index);
    }

    /// Hands over as much of the server's send as the window takes.
    fn pump_send(&mut self, index: u32) -> Option<Waker> {
        let window = self.options.window;
        let linger = u64::from(self.options.linger);
        let stream = &mut self.streams[index as usize];
        if stream.linger_pending {
            return None;
        }
        let Send::Sending { op, part, done, .. } = &mut stream.send else { return None };
        let from = stream.to_client.sent();
        let unread = if stream.stopped { stream.to_client.readable().len() as u64 } else { 0 };
        let mut room = window.saturating_sub(stream.to_client.in_flight() + unread);
        let linger_now = linger > 0 && self.rng.below(1_000_000) < linger;
        if linger_now && room > 0 {
            room = self.rng.below(room.min(4096)) + 1;
        }
        let parts = op.payload.len() + 2;
        while *part < parts && room > 0 {
            let bytes: &[u8] = match *part {
                0 => &op.head,
                last if last == parts - 1 => &op.tail,
                middle => op.payload[middle - 1].as_slice(),
            };
            let take = (bytes.len() - *done).min(room as usize);
            stream.to_client.send(&bytes[*done..*done + take]);
            let may = op.lend.is_some_and(|least| bytes.len() >= least) && self.options.lend;
            if may && take > 0 && (1..parts - 1).contains(part) {
                let end = stream.to_client.sent();
                let range = end - take as u64..end;
                stream.lent.push_back((range, op.payload[*part - 1].watch()));
            }
            room -= take as u64;
            *done += take;
            if *done == bytes.len() {
                (*part, *done) = (*part + 1, 0);
            }
        }
        // Parts without bytes need no room.
        while *part < parts && part_len(op, *part) == *done {
            (*part, *done) = (*part + 1, 0);
        }
        let finished = *part == parts;
        let waker = if finished { stream.finish_send(Ok(())) } else { None };
        if stream.client_gone {
            // Nobody reads: what is sent vanishes, as it does in a kernel whose peer has closed.
            stream.to_client.arrive(u64::MAX);
            stream.to_client.consume(stream.to_client.readable().len());
            stream.lent.clear();
        } else {
            self.dispatch(index, true, from);
        }
        if linger_now && !finished {
            self.streams[index as usize].linger_pending = true;
            self.schedule(index, What::Linger);
        }
        waker
    }

    /// A stream whose two ends are gone can be used again.
    fn release(&mut self, index: u32) {
        let stream = &mut self.streams[index as usize];
        if stream.server_gone && stream.client_gone {
            stream.generation += 1;
            stream.receive = Receive::Idle;
            stream.send = Send::Idle;
            self.free.push(index);
        }
    }
}

fn part_len(op: &SendOp, part: usize) -> usize {
    match part {
        0 => op.head.len(),
        last if last == op.payload.len() + 1 => op.tail.len(),
        middle => op.payload[middle - 1].len(),
    }
}

impl Stream {
    fn unused() -> Stream {
        Stream {
            generation: 0,
            tag: 0,
            to_server: Pipe::default(),
            to_client: Pipe::default(),
            lent: VecDeque::new(),
            due_server: Instant::default(),
            due_client: Instant::default(),
            receive: Receive::Idle,
            send: Send::Idle,
            server_eof: false,
            shut: false,
            reset: false,
            fate: Fate::Closed,
            server_gone: true,
            client_gone: true,
            ready: false,
            linger_pending: false,
            stopped: false,
        }
    }

    /// Moves what has arrived into the waiting buffer; a waker when the receive is done.
    fn pump_receive(&mut self) -> Option<Waker> {
        let Receive::Waiting { buf, at, min, got, .. } = &mut self.receive else { return None };
        if !self.reset && !self.shut {
            let room = &mut buf.as_mut_slice()[*at + *got..];
            let readable = self.to_server.readable();
            let take = room.len().min(readable.len());
            room[..take].copy_from_slice(&readable[..take]);
            self.to_server.consume(take);
            *got += take;
        }
        let finished = *got >= *min && *got > 0;
        if !finished && !self.reset && !self.shut && !self.server_eof {
            return None;
        }
        let got = *got;
        let Receive::Waiting { buf, waker, .. } =
            std::mem::replace(&mut self.receive, Receive::Idle)
        else {
            unreachable!("matched above")
        };
        let result = if finished || !self.reset { Ok(got) } else { Err(NetError::Reset) };
        self.receive = Receive::Done(result, buf);
        waker
    }

    /// The client has read on: what it read of the server's memory was still there.
    fn check_lent(&mut self) {
        let consumed = self.to_client.consumed();
        while let Some((range, watch)) = self.lent.front()
            && range.start < consumed
        {
            assert!(watch.is_held(), "a client read memory that the server had given back");
            if range.end > consumed {
                return;
            }
            self.lent.pop_front();
        }
    }

    /// Ends a send that is on its way; a waker when somebody waits for it.
    fn finish_send(&mut self, result: Result<(), NetError>) -> Option<Waker> {
        match std::mem::replace(&mut self.send, Send::Idle) {
            Send::Sending { op, waker, .. } => {
                self.send = Send::Done(result, op);
                waker
            }
            other => {
                self.send = other;
                None
            }
        }
    }
}

/// The waker to keep: the old one if it wakes the same task.
fn renewed(old: Option<Waker>, cx: &Context<'_>) -> Waker {
    old.filter(|old| old.will_wake(cx.waker())).unwrap_or_else(|| cx.waker().clone())
}

/// The server's end.
struct ServerEnd {
    net: SimNet,
    index: u32,
    generation: u32,
}

impl ServerEnd {
    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.net.0.borrow_mut();
        let stream = &state.streams[self.index as usize];
        assert_eq!(stream.generation, self.generation, "a held end keeps its stream");
        act(&mut state)
    }

    /// Shuts the end down; the wakers of what was outstanding.
    fn close(&self) -> [Option<Waker>; 2] {
        self.with(|state| {
            let stream = &mut state.streams[self.index as usize];
            if stream.shut || stream.reset {
                return [None, None];
            }
            stream.shut = true;
            let wakers = [stream.pump_receive(), stream.finish_send(Err(NetError::Closed))];
            state.schedule(self.index, What::ServerClosed);
            wakers
        })
    }
}

impl Connection for ServerEnd {
    fn start_recv(&self, buf: RecvBuf, at: usize, min: usize) {
        self.with(|state| {
            let stream = &mut state.streams[self.index as usize];
            assert!(matches!(stream.receive, Receive::Idle), "one receive at a time");
            assert!(min > 0 && at + min <= buf.len(), "a receive fits its buffer");
            stream.receive = Receive::Waiting { buf, at, min, got: 0, waker: None };
            let nobody = stream.pump_receive();
            assert!(nobody.is_none(), "a receive that was just started has no waker");
        });
    }

    fn poll_recv(&self, cx: &mut Context<'_>) -> Poll<(Result<usize, NetError>, RecvBuf)> {
        self.with(|state| {
            let stream = &mut state.streams[self.index as usize];
            match std::mem::replace(&mut stream.receive, Receive::Idle) {
                Receive::Done(result, buf) => Poll::Ready((result, buf)),
                Receive::Waiting { buf, at, min, got, waker } => {
                    let waker = Some(renewed(waker, cx));
                    stream.receive = Receive::Waiting { buf, at, min, got, waker };
                    Poll::Pending
                }
                Receive::Idle => panic!("poll_recv without start_recv"),
            }
        })
    }

    fn start_send(&self, op: SendOp) {
        self.with(|state| {
            let stream = &mut state.streams[self.index as usize];
            assert!(matches!(stream.send, Send::Idle), "one send at a time");
            if stream.reset || stream.shut {
                let error = if stream.reset { NetError::Reset } else { NetError::Closed };
                stream.send = Send::Done(Err(error), op);
                return;
            }
            stream.send = Send::Sending { op, part: 0, done: 0, waker: None };
            let nobody = state.pump_send(self.index);
            assert!(nobody.is_none(), "a send that was just started has no waker");
        });
    }

    fn poll_send(&self, cx: &mut Context<'_>) -> Poll<(Result<(), NetError>, SendOp)> {
        self.with(|state| {
            let stream = &mut state.streams[self.index as usize];
            match std::mem::replace(&mut stream.send, Send::Idle) {
                Send::Done(result, op) => Poll::Ready((result, op)),
                Send::Sending { op, part, done, waker } => {
                    let waker = Some(renewed(waker, cx));
                    stream.send = Send::Sending { op, part, done, waker };
                    Poll::Pending
                }
                Send::Idle => panic!("poll_send without start_send"),
            }
        })
    }

    fn shutdown(&self) {
        self.close().into_iter().flatten().for_each(Waker::wake);
    }

    fn peer(&self) -> String {
        self.with(|state| format!("sim:{}", state.streams[self.index as usize].tag))
    }

    fn is_loopback(&self) -> bool {
        true
    }

    fn lends(&self) -> bool {
        self.with(|state| state.options.lend)
    }

    fn is_peer_gone(&self) -> bool {
        self.with(|state| state.streams[self.index as usize].client_gone)
    }
}

impl Drop for ServerEnd {
    fn drop(&mut self) {
        drop(self.close());
        self.with(|state| {
            let stream = &mut state.streams[self.index as usize];
            stream.server_gone = true;
            // The buffers go back to their pool now, also when the client holds its end for long.
            (stream.receive, stream.send) = (Receive::Idle, Send::Idle);
            state.release(self.index);
        });
    }
}

/// The client's end: a handle without wakers, for a client that is a state machine.
pub struct ClientEnd {
    net: SimNet,
    index: u32,
    generation: u32,
}

impl ClientEnd {
    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.net.0.borrow_mut();
        let stream = &state.streams[self.index as usize];
        assert_eq!(stream.generation, self.generation, "a held end keeps its stream");
        act(&mut state)
    }

    /// Sends what `write` appends. Bytes sent on a reset stream vanish.
    pub fn send_with(&self, write: impl FnOnce(&mut Vec<u8>)) {
        self.with(|state| {
            let stream = &mut state.streams[self.index as usize];
            if stream.reset {
                return;
            }
            let from = stream.to_server.sent();
            stream.to_server.send_with(write);
            state.dispatch(self.index, false, from);
        });
    }

    /// Sends `bytes`.
    pub fn send(&self, bytes: &[u8]) {
        self.send_with(|out| out.extend_from_slice(bytes));
    }

    /// Shows what has arrived to `read`, which answers how many bytes it has taken.
    pub fn read<T>(&self, read: impl FnOnce(&[u8]) -> (usize, T)) -> T {
        self.with(|state| {
            let stream = &mut state.streams[self.index as usize];
            let (taken, result) = read(stream.to_client.readable());
            stream.to_client.consume(taken);
            stream.check_lent();
            result
        })
    }

    /// Reads nothing until [`ClientEnd::read_on`]: what the server sends meanwhile fills the window, and then
    /// its sends wait.
    pub fn stop_reading(&self) {
        self.with(|state| state.streams[self.index as usize].stopped = true);
    }

    /// Reads again.
    pub fn read_on(&self) {
        self.with(|state| {
            let stream = &mut state.streams[self.index as usize];
            if std::mem::replace(&mut stream.stopped, false) && !stream.reset {
                // The window has room again, as soon as the server hears of it.
                state.schedule(self.index, What::Linger);
            }
        });
    }

    /// How the stream stands.
    pub fn fate(&self) -> Fate {
        self.with(|state| state.streams[self.index as usize].fate)
    }

    /// Closes the sending side: the server reads what was sent and then an end of stream.
    pub fn close(&self) {
        self.with(|state| state.schedule(self.index, What::ClientClosed));
    }

    /// Tears the stream down now: what is on its way is lost, and the server finds out one delay later.
    pub fn reset(&self) {
        self.with(|state| {
            state.schedule(self.index, What::Reset);
        });
    }
}

impl Drop for ClientEnd {
    fn drop(&mut self) {
        self.with(|state| {
            let stream = &mut state.streams[self.index as usize];
            let open = !stream.reset;
            stream.client_gone = true;
            if open {
                state.schedule(self.index, What::Reset);
            }
            state.release(self.index);
        });
    }
}

#[cfg(test)]
#[path = "net_tests.rs"]
mod tests;
