//! The items of one exchange: which are settled, which are to be asked for again.

use std::sync::Arc;

use memkv_wire::meta::{ItemReply, Refusal};
use memkv_wire::{Header, ITEM_OVERHEAD, MAX_META, Status};

use crate::error::{ClientError, LinkFault};
use crate::exchange::Busy;
use crate::link::Link;

/// Room left in a meta for its counts and extensions.
const META_RESERVE: usize = 64;

/// Where one item stands.
enum State<T> {
    Open,
    Busy { retry_ms: u32 },
    Settled(Result<T, ClientError>),
}

/// The items of one exchange, by their place in it.
pub(crate) struct Items<T> {
    server: Arc<str>,
    states: Vec<State<T>>,
    open: usize,
}

impl<T> Items<T> {
    /// `count` items, none of them settled.
    pub fn new(server: &Arc<str>, count: usize) -> Items<T> {
        let states = std::iter::repeat_with(|| State::Open).take(count).collect();
        Items { server: server.clone(), states, open: count }
    }

    /// The server that they are asked of.
    pub fn server(&self) -> &Arc<str> {
        &self.server
    }

    /// True while an item has no answer.
    pub fn is_open(&self, item: usize) -> bool {
        matches!(self.states[item], State::Open)
    }

    /// True when every item is settled or busy.
    pub fn is_answered(&self) -> bool {
        self.open == 0
    }

    /// Settles an item; the first answer other than busy counts.
    pub fn settle(&mut self, item: usize, result: Result<T, ClientError>) {
        match self.states[item] {
            State::Open => self.open -= 1,
            State::Busy { .. } => {}
            State::Settled(_) => return,
        }
        self.states[item] = State::Settled(result);
    }

    /// Notes that the server was busy.
    pub fn set_busy(&mut self, item: usize, retry_ms: u32) {
        if self.is_open(item) {
            self.states[item] = State::Busy { retry_ms };
            self.open -= 1;
        }
    }

    /// Settles every open item with this error.
    pub fn fail(&mut self, error: &ClientError) {
        for state in &mut self.states {
            if matches!(state, State::Open) {
                *state = State::Settled(Err(error.clone()));
            }
        }
        self.open = 0;
    }

    /// The busy items, when there are any.
    pub fn busy(&self) -> Option<Busy> {
        let pause = |state: &State<T>| match state {
            State::Busy { retry_ms } => Some(*retry_ms),
            _ => None,
        };
        let retry_ms = self.states.iter().filter_map(pause).max()?;
        Some(Busy { items: self.states.iter().filter_map(pause).count(), retry_ms })
    }

    /// Opens the busy items again and returns them.
    pub fn reopen_busy(&mut self) -> Vec<usize> {
        let mut items = Vec::new();
        for (item, state) in self.states.iter_mut().enumerate() {
            if matches!(state, State::Busy { .. }) {
                *state = State::Open;
                items.push(item);
            }
        }
        self.open += items.len();
        items
    }

    /// Settles the busy items with [`ClientError::Busy`].
    pub fn give_up_busy(&mut self) {
        for state in &mut self.states {
            if let State::Busy { retry_ms } = *state {
                let error = ClientError::Busy { server: self.server.clone(), retry_ms };
                *state = State::Settled(Err(error));
            }
        }
    }

    /// Takes a refusal of the request as a whole (a reply whose header is not Ok) as the answer to each of
    /// `items`.
    pub fn refuse(
        &mut self,
        items: impl IntoIterator<Item = usize>,
        header: &Header,
        meta: &[u8],
    ) -> Result<(), LinkFault> {
        let refusal = Refusal::parse(meta)?;
        for item in items {
            match header.status() {
                Status::Busy => self.set_busy(item, refusal.retry_ms),
                status => {
                    let error = refused(&self.server, status, refusal.text);
                    self.settle(item, Err(error));
                }
            }
        }
        Ok(())
    }

    /// Takes an item's reply that is neither success nor a miss as its answer.
    pub fn settle_unsuccessful(&mut self, item: usize, reply: &ItemReply) {
        match reply.status {
            Status::Busy => self.set_busy(item, reply.retry_ms),
            Status::Conflict => {
                let ItemReply { length, generation, .. } = *reply;
                self.settle(item, Err(ClientError::Conflict { length, generation }));
            }
            Status::GenerationMismatch => {
                let generation = reply.generation;
                self.settle(item, Err(ClientError::GenerationMismatch { generation }));
            }
            status => {
                let error = refused(&self.server, status, "");
                self.settle(item, Err(error));
            }
        }
    }

    /// The results in the order of the items. Panics when one is not settled.
    pub fn into_results(self) -> impl Iterator<Item = Result<T, ClientError>> {
        self.states.into_iter().map(|state| match state {
            State::Settled(result) => result,
            _ => unreachable!("an exchange ends with every item settled"),
        })
    }
}

/// The error for a status that is neither success nor a miss.
fn refused(server: &Arc<str>, status: Status, text: &str) -> ClientError {
    let server = server.clone();
    match status {
        Status::Full => ClientError::Full { server },
        Status::CrcMismatch => ClientError::Corrupt { server },
        Status::IoError => ClientError::Io { server },
        // The server has decided nothing; for us it is the same as no answer in time.
        Status::DeadlineExceeded => ClientError::Timeout { server },
        Status::Unauthorized => ClientError::Unauthorized { server, text: text.into() },
        status @ Status::ShuttingDown => {
            let source = Arc::new(LinkFault::Goodbye { status, text: text.into() });
            ClientError::Unavailable { server, source }
        }
        status => ClientError::Refused { server, status, text: text.into() },
    }
}

/// Cuts `items` into runs that fit into one request each: its number of items (the server's limit and
/// `most`) and its meta.
pub(crate) fn cut(
    items: &[usize],
    most: usize,
    link: &Link,
    meta_bytes: impl Fn(usize) -> usize,
) -> Vec<Vec<usize>> {
    let count_max = most.min(link.limits.max_items as usize);
    let bytes_max = MAX_META as usize - META_RESERVE;
    let mut runs = Vec::new();
    let mut run = Vec::new();
    let mut bytes = 0;
    for &item in items {
        let more = meta_bytes(item) + ITEM_OVERHEAD;
        if run.len() == count_max || bytes + more > bytes_max {
            runs.push(std::mem::take(&mut run));
            bytes = 0;
        }
        run.push(item);
        bytes += more;
    }
    if !run.is_empty() {
        runs.push(run);
    }
    runs
}
