//! Batches that run while their caller does something else.
//!
//! Engines look things up and move blocks from threads that may not wait. They hand a batch to a queue, go
//! on, and are told by a file descriptor when there is something to fetch. The queue's workers make the
//! calls of [`Client`], each on a connection of its own.
//!
//! ```text
//!   submit ─► quick: lookups, deletes ──► 1 worker ──┐
//!        └──► bulk: puts, gets, in pieces ► n workers ┴─► completions, bell ─► drain
//! ```
//!
//! * No thread exists before the first batch. The quick lane has a worker of its own, so that a lookup does
//!   not stand behind gigabytes; workers of the bulk lane help there, too.
//! * A large batch is cut into pieces that travel side by side, and is complete when all are.
//! * The time of a batch runs from its submission, and its calls end by its deadline. What waits until then
//!   is given up by the next worker that is free, which may be at a batch with more time.
//! * Its memory belongs to the queue until its completion gives it back. Nothing of a caller is dropped by a
//!   worker.
//! * After fork(2) the child has a queue of its own, empty and with another file descriptor.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::bell::Bell;
use crate::client::Client;
use crate::counters::Operation;
use crate::error::{ClientError, LinkFault};
use crate::trace::TraceId;
use crate::types::{GatherItem, GetItem, GetOutcome, PutItem, PutOptions, PutOutcome, ScatterItem};

/// Bytes of a batch from which on it is cut into pieces of at least this size.
const PIECE: u64 = 8 << 20;
/// Batches that may be under way at one time.
const BATCHES_MAX: usize = 1 << 16;

/// Memory that a put reads.
pub type Source = Box<dyn AsRef<[u8]> + Send>;
/// Memory that a get fills.
pub type Sink = Box<dyn AsMut<[u8]> + Send>;

/// Many keys in one piece of memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keys {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Keys {
    /// None yet, and room for `count` of `length` bytes each.
    pub fn with_capacity(count: usize, length: usize) -> Keys {
        Keys { bytes: Vec::with_capacity(count * length), ends: Vec::with_capacity(count) }
    }

    /// Adds a key, made of `prefix` and `rest`.
    pub fn push(&mut self, prefix: &[u8], rest: &[u8]) {
        self.bytes.extend_from_slice(prefix);
        self.bytes.extend_from_slice(rest);
        self.ends.push(self.bytes.len());
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// All of them, in order.
    pub fn slices(&self) -> Vec<&[u8]> {
        self.range(0..self.len())
    }

    fn range(&self, range: Range<usize>) -> Vec<&[u8]> {
        let start = |at: usize| if at == 0 { 0 } else { self.ends[at - 1] };
        range.map(|at| &self.bytes[start(at)..self.ends[at]]).collect()
    }
}

/// What is to be done.
pub enum Batch {
    /// Store values, in the order of their chain.
    Put {
        /// Their keys.
        keys: Keys,
        /// One for each key.
        values: Vec<Source>,
        /// How to store them. Its deadline counts from the submission, as that of a batch.
        options: PutOptions,
    },
    /// Read values.
    Get {
        /// Their keys.
        keys: Keys,
        /// One for each key.
        buffers: Vec<Sink>,
    },
    /// Store values whose bytes lie in several places each, in the order of their chain.
    Gather {
        /// Their keys.
        keys: Keys,
        /// How many of `pieces` belong to each key.
        counts: Vec<usize>,
        /// Those of the first key, of the second and so on.
        pieces: Vec<Source>,
        /// As those of a put.
        options: PutOptions,
    },
    /// Read values into several places each.
    Scatter {
        /// Their keys.
        keys: Keys,
        /// How many of `pieces` belong to each key.
        counts: Vec<usize>,
        /// Those of the first key, of the second and so on.
        pieces: Vec<Sink>,
    },
    /// Which keys are stored?
    Exists(Keys),
    /// How many keys at the front are stored?
    MatchPrefix(Keys),
    /// Remove blocks.
    Delete(Keys),
}

/// What became of a batch, one for each key in their order where it is a list.
#[derive(Debug)]
pub enum Answers {
    /// See [`Client::put_batch`] and [`Client::put_gathered`].
    Put(Vec<Result<PutOutcome, ClientError>>),
    /// See [`Client::get_batch`] and [`Client::get_scattered`].
    Get(Vec<Result<GetOutcome, ClientError>>),
    /// See [`Client::exists`].
    Exists(Result<Vec<bool>, ClientError>),
    /// See [`Client::match_prefix`].
    MatchPrefix(Result<usize, ClientError>),
    /// See [`Client::delete_batch`].
    Delete(Vec<Result<bool, ClientError>>),
}

impl Answers {
    /// Bytes of values that were stored or read, into or from memory of these lengths.
    fn moved(&self, lengths: &[u64]) -> u64 {
        match self {
            Answers::Put(answers) => {
                let stored = |(answer, length): (&Result<PutOutcome, _>, &u64)| match answer {
                    Ok(PutOutcome::Stored { .. }) => *length,
                    _ => 0,
                };
                answers.iter().zip(lengths).map(stored).sum()
            }
            Answers::Get(answers) => {
                let read = |(answer, room): (&Result<GetOutcome, _>, &u64)| match answer {
                    Ok(GetOutcome::Hit { length, .. }) => *length.min(room),
                    _ => 0,
                };
                answers.iter().zip(lengths).map(read).sum()
            }
            _ => 0,
        }
    }
}

/// A batch that is done.
pub struct Completion {
    /// What [`Queue::submit`] gave.
    pub ticket: u64,
    /// What became of it.
    pub answers: Answers,
    /// From its submission until the first worker took it.
    pub waited: Duration,
    /// From then until it was done.
    pub took: Duration,
    /// Bytes of values moved.
    pub bytes: u64,
    /// Of a put or get: bytes of memory that each key has. None where the memory's own code panics.
    pub lengths: Vec<u64>,
    /// The memory of a put, in its order.
    pub sources: Vec<Source>,
    /// The memory of a get, in its order.
    pub sinks: Vec<Sink>,
}

/// Why a batch was not taken. Its memory is dropped by the caller's thread.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// [`Queue::close`] was called.
    #[error("the queue is closed")]
    Closed,
    /// Nobody drains it.
    #[error("{BATCHES_MAX} batches are under way or not drained: drain completions first")]
    Full,
    /// No worker could be started, or no file descriptor made.
    #[error("the queue cannot work")]
    System(#[from] io::Error),
}

/// A queue of batches of one client. It may be used by any number of threads. Dropped, it is closed.
pub struct Queue {
    client: Client,
    workers: usize,
    process: PerProcess,
}

/// What cannot be shared across fork(2): threads, locks and what they hold.
struct PerProcess {
    pid: u32,
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    child: OnceLock<Box<PerProcess>>,
}

struct Shared {
    client: Client,
    state: Mutex<State>,
    /// Work for the workers of a lane, or the end.
    wake: [Condvar; 2],
    /// A batch is complete.
    done: Condvar,
    bell: Bell,
}

struct State {
    closed: bool,
    next_ticket: u64,
    /// Batches that are not complete.
    running: usize,
    lanes: [Lane; 2],
    completions: Vec<Completion>,
}

#[derive(Default)]
struct Lane {
    pieces: VecDeque<Piece>,
    workers: usize,
    idle: usize,
}

/// Places in `lanes` and `wake`.
const QUICK: usize = 0;
const BULK: usize = 1;

impl Queue {
    /// A queue whose puts and gets are carried by up to `workers` threads, fewer where the client has not the
    /// connections: one is left for lookups, which have one more thread.
    ///
    /// # Errors
    /// No file descriptor can be made.
    pub fn new(client: &Client, workers: usize) -> Result<Queue, QueueError> {
        let connections = client.config().num_connections;
        let workers = workers.min(connections.saturating_sub(1)).max(1);
        let process = PerProcess::new(client)?;
        Ok(Queue { client: client.clone(), workers, process })
    }

    /// Takes a batch and gives the ticket by which its completion is known. It never waits for the network,
    /// nor for workers.
    ///
    /// # Errors
    /// [`QueueError`]; nothing will be done.
    ///
    /// # Panics
    /// When there are not as many buffers as keys, or as their counts say.
    pub fn submit(&self, batch: Batch, timeout: Option<Duration>) -> Result<u64, QueueError> {
        self.submit_traced(batch, timeout, None)
    }

    /// The same, of a batch that belongs to `trace`.
    ///
    /// # Errors
    /// As [`Queue::submit`].
    ///
    /// # Panics
    /// As [`Queue::submit`].
    pub fn submit_traced(
        &self,
        batch: Batch,
        timeout: Option<Duration>,
        trace: Option<TraceId>,
    ) -> Result<u64, QueueError> {
        let process = self.process.current(&self.client)?;
        let timeout = timeout.unwrap_or_else(|| self.client.config().request_timeout());
        let shared = &process.shared;
        let mut state = shared.lock();
        if state.closed {
            return Err(QueueError::Closed);
        }
        if state.running + state.completions.len() >= BATCHES_MAX {
            return Err(QueueError::Full);
        }
        let ticket = state.next_ticket;
        let (lane, pieces) = cut(batch, ticket, timeout, trace, self.workers);
        let most = if lane == QUICK { 1 } else { self.workers };
        // Workers that were told of what waits already are still counted as idle until they wake.
        let mut wanted = (state.lanes[lane].pieces.len() + pieces.len()).min(most);
        while wanted > state.lanes[lane].idle && state.lanes[lane].workers < most {
            match process.start(lane) {
                Ok(()) => state.lanes[lane].workers += 1,
                Err(error) if state.lanes[lane].workers == 0 => return Err(error.into()),
                // Those that there are will do.
                Err(_) => break,
            }
            wanted -= 1;
        }
        state.next_ticket += 1;
        state.running += 1;
        // One for each piece: the others would wake to find nothing.
        let wakes = pieces.len().min(state.lanes[lane].idle);
        state.lanes[lane].pieces.extend(pieces);
        drop(state);
        (0..wakes).for_each(|_| shared.wake[lane].notify_one());
        Ok(ticket)
    }

    /// A file descriptor that is readable while there are completions. It is not to be read from.
    ///
    /// # Errors
    /// In the child of a fork: no file descriptor can be made.
    pub fn event_fd(&self) -> Result<RawFd, QueueError> {
        Ok(self.process.current(&self.client)?.shared.bell.as_raw_fd())
    }

    /// The completions so far. Never waits.
    ///
    /// # Errors
    /// In the child of a fork: no file descriptor can be made.
    pub fn drain(&self) -> Result<Vec<Completion>, QueueError> {
        let shared = &self.process.current(&self.client)?.shared;
        let mut state = shared.lock();
        shared.bell.silence();
        Ok(std::mem::take(&mut state.completions))
    }

    /// Waits until there is a completion, at most for `timeout`; whether there is one. Without anything under
    /// way it does not wait.
    ///
    /// # Errors
    /// In the child of a fork: no file descriptor can be made.
    pub fn wait(&self, timeout: Duration) -> Result<bool, QueueError> {
        let shared = &self.process.current(&self.client)?.shared;
        let idle = |state: &mut State| state.completions.is_empty() && state.running > 0;
        let state = shared.done.wait_timeout_while(shared.lock(), timeout, idle);
        let (state, _) = state.unwrap_or_else(PoisonError::into_inner);
        Ok(!state.completions.is_empty())
    }

    /// Batches that are not drained yet.
    ///
    /// # Errors
    /// In the child of a fork: no file descriptor can be made.
    pub fn pending(&self) -> Result<usize, QueueError> {
        let state = self.process.current(&self.client)?.shared.lock();
        Ok(state.running + state.completions.len())
    }

    /// Takes no more batches, waits for those that are under way and ends the workers. Completions can be
    /// drained for as long as the queue lives.
    pub fn close(&self) {
        // A child that did nothing here has nothing to close.
        if let Some(process) = self.process.existing() {
            process.close(None);
        }
    }

    /// The same, but waits for `patience` at most; whether nothing is under way any more.
    pub fn close_within(&self, patience: Duration) -> bool {
        self.process.existing().is_none_or(|process| process.close(Some(patience)))
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.close();
    }
}

impl PerProcess {
    fn new(client: &Client) -> io::Result<PerProcess> {
        let state = State {
            closed: false,
            next_ticket: 1,
            running: 0,
            lanes: Default::default(),
            completions: Vec::new(),
        };
        let shared = Shared {
            client: client.clone(),
            state: Mutex::new(state),
            wake: Default::default(),
            done: Condvar::new(),
            bell: Bell::new()?,
        };
        Ok(PerProcess {
            pid: std::process::id(),
            shared: Arc::new(shared),
            threads: Mutex::new(Vec::new()),
            child: OnceLock::new(),
        })
    }

    /// The one of the process that calls, if it has one.
    fn existing(&self) -> Option<&PerProcess> {
        let pid = std::process::id();
        let mut process = self;
        while process.pid != pid {
            process = process.child.get()?;
        }
        Some(process)
    }

    /// The one of the process that calls, made when it is the first call after a fork.
    fn current(&self, client: &Client) -> io::Result<&PerProcess> {
        let pid = std::process::id();
        let mut process = self;
        while process.pid != pid {
            if process.child.get().is_none() {
                // Another thread may be faster; then this one is not used.
                let _ = process.child.set(Box::new(PerProcess::new(client)?));
            }
            process = process.child.get().expect("it was just set");
        }
        Ok(process)
    }

    fn start(&self, lane: usize) -> io::Result<()> {
        let shared = self.shared.clone();
        let thread = std::thread::Builder::new().name("memkv-queue".to_owned());
        let thread = thread.spawn(move || shared.work(lane))?;
        self.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        Ok(())
    }

    /// Whether all is done; without `patience` it waits until it is.
    fn close(&self, patience: Option<Duration>) -> bool {
        let mut state = self.shared.lock();
        state.closed = true;
        self.shared.wake.iter().for_each(Condvar::notify_all);
        let busy = |state: &mut State| state.running > 0;
        let state = match patience {
            None => {
                self.shared.done.wait_while(state, busy).unwrap_or_else(PoisonError::into_inner)
            }
            Some(time) => {
                let state = self.shared.done.wait_timeout_while(state, time, busy);
                state.unwrap_or_else(PoisonError::into_inner).0
            }
        };
        if state.running > 0 {
            return false;
        }
        drop(state);
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        for thread in threads.drain(..) {
            thread.join().expect("a worker catches what its calls throw");
        }
        true
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a worker does until the queue is closed and nothing is left.
    fn work(&self, lane: usize) {
        let mut state = self.lock();
        loop {
            // Those of the bulk lane look into the quick one first.
            let piece = state.lanes[QUICK].pieces.pop_front();
            if let Some(piece) = piece.or_else(|| state.lanes[lane].pieces.pop_front()) {
                drop(state);
                let complete = piece.run(&self.client);
                state = self.lock();
                if let Some(completion) = complete {
                    self.complete(&mut state, completion);
                }
            } else if state.closed {
                return;
            } else {
                state.lanes[lane].idle += 1;
                state = self.wake[lane].wait(state).unwrap_or_else(PoisonError::into_inner);
                state.lanes[lane].idle -= 1;
            }
        }
    }

    fn complete(&self, state: &mut State, completion: Completion) {
        self.client.meter().note_wait(completion.waited);
        if state.completions.is_empty() {
            self.bell.ring();
        }
        state.completions.push(completion);
        state.running -= 1;
        self.done.notify_all();
    }
}

/// A batch under way.
struct Group {
    ticket: u64,
    operation: Operation,
    keys: Keys,
    /// Where the memory of each key begins, where a key has not just one piece.
    starts: Option<Vec<usize>>,
    options: PutOptions,
    submitted: Instant,
    deadline: Instant,
    trace: Option<TraceId>,
    progress: Mutex<Progress>,
}

struct Progress {
    /// When the first worker took a piece of it.
    began: Option<Instant>,
    /// One for each piece, `None` while it is not done.
    parts: Vec<Option<Part>>,
}

struct Part {
    answers: Answers,
    sources: Vec<Source>,
    sinks: Vec<Sink>,
}

/// Items of a batch that one call carries.
struct Piece {
    group: Arc<Group>,
    number: usize,
    items: Range<usize>,
    sources: Vec<Source>,
    sinks: Vec<Sink>,
}

/// A batch taken apart.
struct Parts {
    lane: usize,
    operation: Operation,
    keys: Keys,
    starts: Option<Vec<usize>>,
    options: PutOptions,
    sources: Vec<Source>,
    sinks: Vec<Sink>,
}

impl Parts {
    fn of(batch: Batch) -> Parts {
        let quick = |operation, keys| Parts {
            lane: QUICK,
            operation,
            keys,
            starts: None,
            options: PutOptions::default(),
            sources: Vec::new(),
            sinks: Vec::new(),
        };
        match batch {
            Batch::Exists(keys) => quick(Operation::Exists, keys),
            Batch::MatchPrefix(keys) => quick(Operation::MatchPrefix, keys),
            Batch::Delete(keys) => quick(Operation::Delete, keys),
            Batch::Put { keys, values, options } => {
                assert_eq!(keys.len(), values.len(), "a value for each key");
                Parts { lane: BULK, options, sources: values, ..quick(Operation::Put, keys) }
            }
            Batch::Get { keys, buffers } => {
                assert_eq!(keys.len(), buffers.len(), "a buffer for each key");
                Parts { lane: BULK, sinks: buffers, ..quick(Operation::Get, keys) }
            }
            Batch::Gather { keys, counts, pieces, options } => {
                let starts = Some(sums(&keys, &counts, pieces.len()));
                let parts = quick(Operation::Put, keys);
                Parts { lane: BULK, starts, options, sources: pieces, ..parts }
            }
            Batch::Scatter { keys, counts, pieces } => {
                let starts = Some(sums(&keys, &counts, pieces.len()));
                let parts = quick(Operation::Get, keys);
                Parts { lane: BULK, starts, sinks: pieces, ..parts }
            }
        }
    }

    /// Bytes that may move.
    fn bytes(&mut self) -> u64 {
        let read = self.sources.iter().map(|source| (**source).as_ref().len() as u64);
        let written = self.sinks.iter_mut().map(|sink| (**sink).as_mut().len() as u64);
        read.sum::<u64>() + written.sum::<u64>()
    }
}

/// Where the pieces of each key begin, and where the last end.
fn sums(keys: &Keys, counts: &[usize], pieces: usize) -> Vec<usize> {
    assert_eq!(keys.len(), counts.len(), "a count for each key");
    let mut starts = vec![0];
    starts.extend(counts.iter().scan(0, |sum, count| {
        *sum += count;
        Some(*sum)
    }));
    assert_eq!(starts.last(), Some(&pieces), "as many pieces as the counts say");
    starts
}

/// The lane of a batch, and its pieces.
fn cut(
    batch: Batch,
    ticket: u64,
    timeout: Duration,
    trace: Option<TraceId>,
    most: usize,
) -> (usize, Vec<Piece>) {
    let submitted = Instant::now();
    let mut parts = Parts::of(batch);
    let pieces = (parts.bytes() / PIECE).clamp(1, most as u64) as usize;
    let pieces = pieces.min(parts.keys.len()).max(1);
    let Parts { lane, operation, keys, starts, mut options, mut sources, mut sinks } = parts;
    let deadline = submitted + options.deadline.take().unwrap_or(timeout);
    let items = keys.len();
    let parts = std::iter::repeat_with(|| None).take(pieces).collect();
    let progress = Mutex::new(Progress { began: None, parts });
    let group =
        Group { ticket, operation, keys, starts, options, submitted, deadline, trace, progress };
    let group = Arc::new(group);
    let piece = |number: usize| {
        let items = items * number / pieces..items * (number + 1) / pieces;
        let memory = group.memory(items.end) - group.memory(items.start);
        let sources = sources.drain(..memory.min(sources.len())).collect();
        let sinks = sinks.drain(..memory.min(sinks.len())).collect();
        Piece { group: group.clone(), number, items, sources, sinks }
    };
    (lane, (0..pieces).map(piece).collect())
}

impl Piece {
    /// Makes the call; the completion of the batch when nothing of it is left.
    fn run(mut self, client: &Client) -> Option<Completion> {
        let began = Instant::now();
        self.group.lock().began.get_or_insert(began);
        let mut client = client.until(self.group.deadline);
        if let Some(trace) = self.group.trace {
            client = client.traced(trace);
        }
        let answers = catch_unwind(AssertUnwindSafe(|| self.call(&client)));
        // What a call broke off in the middle did is not known.
        let answers = answers.unwrap_or_else(|_| self.failed());
        let Piece { group, number, sources, sinks, .. } = self;
        let mut progress = group.lock();
        progress.parts[number] = Some(Part { answers, sources, sinks });
        if progress.parts.iter().any(Option::is_none) {
            return None;
        }
        let parts = std::mem::take(&mut progress.parts);
        let began = progress.began.unwrap_or(began);
        let mut whole = parts.into_iter().flatten().reduce(Part::join).expect("a piece at least");
        // The caller's own code again, which may have failed the calls.
        let lengths = catch_unwind(AssertUnwindSafe(|| group.lengths(&mut whole)));
        let lengths = lengths.unwrap_or_default();
        Some(Completion {
            bytes: whole.answers.moved(&lengths),
            lengths,
            ticket: group.ticket,
            answers: whole.answers,
            waited: began - group.submitted,
            took: began.elapsed(),
            sources: whole.sources,
            sinks: whole.sinks,
        })
    }

    fn call(&mut self, client: &Client) -> Answers {
        let group = &self.group;
        match group.operation {
            Operation::Put => Answers::Put(self.put(client)),
            Operation::Get => Answers::Get(self.get(client)),
            operation => {
                let keys = group.keys.range(self.items.clone());
                match operation {
                    Operation::Exists => Answers::Exists(client.exists(&keys)),
                    Operation::MatchPrefix => Answers::MatchPrefix(client.match_prefix(&keys)),
                    Operation::Delete => Answers::Delete(client.delete_batch(&keys)),
                    other => unreachable!("no batch is made of {}", other.name()),
                }
            }
        }
    }

    fn put(&self, client: &Client) -> Vec<Result<PutOutcome, ClientError>> {
        let (group, items) = (&self.group, &self.items);
        let options = group.options;
        // A chain that was cut goes on: each says what it belongs to, for a server takes the order of a
        // call for the chain only where nothing else is said.
        let keys = group.keys.range(0..items.end);
        let parent = |at: usize| (items.start > 0).then(|| keys[at - 1]);
        let bytes: Vec<&[u8]> = self.sources.iter().map(|source| (**source).as_ref()).collect();
        if group.starts.is_none() {
            let one = |(at, value)| PutItem { key: keys[at], value, options, parent: parent(at) };
            let values: Vec<PutItem<'_>> = items.clone().zip(bytes).map(one).collect();
            return client.put_batch(&values);
        }
        let first = group.memory(items.start);
        let many = |at: usize| {
            let pieces = &bytes[group.memory(at) - first..group.memory(at + 1) - first];
            GatherItem { key: keys[at], pieces, options, parent: parent(at) }
        };
        let values: Vec<GatherItem<'_>> = items.clone().map(many).collect();
        client.put_gathered(&values)
    }

    fn get(&mut self, client: &Client) -> Vec<Result<GetOutcome, ClientError>> {
        let (group, items) = (&self.group, &self.items);
        let keys = group.keys.range(items.clone());
        let mut bytes = self.sinks.iter_mut().map(|sink| (**sink).as_mut());
        if group.starts.is_none() {
            let one = |(key, buf)| GetItem { key, offset: 0, buf };
            let mut values: Vec<GetItem<'_>> = keys.into_iter().zip(bytes).map(one).collect();
            return client.get_batch(&mut values);
        }
        let many = |(at, key)| {
            let count = group.memory(at + 1) - group.memory(at);
            ScatterItem { key, offset: 0, pieces: bytes.by_ref().take(count).collect() }
        };
        let mut values: Vec<ScatterItem<'_>> = items.clone().zip(keys).map(many).collect();
        client.get_scattered(&mut values)
    }

    /// The answers of a call that threw.
    fn failed(&self) -> Answers {
        let error = || {
            let source = Arc::new(LinkFault::Unexpected("a worker of the queue panicked"));
            ClientError::Broken { server: "a server".into(), source }
        };
        let count = self.items.len();
        match self.group.operation {
            Operation::Put => Answers::Put((0..count).map(|_| Err(error())).collect()),
            Operation::Get => Answers::Get((0..count).map(|_| Err(error())).collect()),
            Operation::Exists => Answers::Exists(Err(error())),
            Operation::MatchPrefix => Answers::MatchPrefix(Err(error())),
            _ => Answers::Delete((0..count).map(|_| Err(error())).collect()),
        }
    }
}

impl Part {
    /// The next part's behind one's own. Only puts and gets have several.
    fn join(mut self, next: Part) -> Part {
        match (&mut self.answers, next.answers) {
            (Answers::Put(answers), Answers::Put(more)) => answers.extend(more),
            (Answers::Get(answers), Answers::Get(more)) => answers.extend(more),
            _ => unreachable!("only puts and gets are cut"),
        }
        self.sources.extend(next.sources);
        self.sinks.extend(next.sinks);
        self
    }
}

impl Group {
    /// Bytes of memory that each key has, of a whole batch.
    fn lengths(&self, whole: &mut Part) -> Vec<u64> {
        let read = whole.sources.iter().map(|source| (**source).as_ref().len() as u64);
        let written = whole.sinks.iter_mut().map(|sink| (**sink).as_mut().len() as u64);
        let pieces: Vec<u64> = read.chain(written).collect();
        match &self.starts {
            Some(starts) => {
                starts.windows(2).map(|pair| pieces[pair[0]..pair[1]].iter().sum()).collect()
            }
            None => pieces,
        }
    }

    /// Pieces of memory that the first `items` keys have.
    fn memory(&self, items: usize) -> usize {
        self.starts.as_ref().map_or(items, |starts| starts[items])
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
