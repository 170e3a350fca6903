//! One connection: its state, its reader, its end.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use memkv_journal::{KEY_MAX, KeyBytes, KeyError};
use memkv_net::Connection;
use memkv_net::shm::Staged;
use memkv_poller::local::{Event, Semaphore};
use memkv_poller::spare::Row;
use memkv_poller::{Instant, timeout};
use memkv_store::{Caller, KeyHash, NamespaceHasher};
use memkv_wire::{
    CreditAccount, FrameError, GoodbyeMeta, Header, MetaError, Opcode, Opener, Refusal, Status,
};

use crate::Context;
use crate::backlog::Share;
use crate::connect::{Connected, connect};
use crate::context::Live;
use crate::input::{Input, InputError};
use crate::lent::{BadCount, Peer};
use crate::offers::Offers;
use crate::outbox::{Outbox, Reply};

/// How long a peer that broke the protocol has to read why.
const LAST_WORD: Duration = Duration::from_secs(1);

/// Requests of a connection that its reader answers itself in one pass of the reactor, at most.
const AT_ONCE: u32 = 32;

/// Pauses between looks whether the end of a peer is gone that was lent something: its system answers
/// as soon as it has dealt with our last word.
const LAST_LOOKS: [Duration; 4] = [
    Duration::ZERO,
    Duration::from_millis(1),
    Duration::from_millis(10),
    Duration::from_millis(100),
];

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub enum End {
    /// The peer said goodbye, or the node drains.
    #[error("the session is over")]
    Goodbye,
    /// The stream ended or broke.
    #[error("the connection ended")]
    Input(#[from] InputError),
    /// A frame that no correct client sends.
    #[error("a frame was refused")]
    Frame(#[from] FrameError),
    /// A meta that no correct client sends where there is payload behind it.
    #[error("a meta was refused")]
    Meta(#[from] MetaError),
    /// Another count of lent payload than a correct client's.
    #[error("a count of lent payload was refused")]
    Count(#[from] BadCount),
    /// More payload than there is credit for.
    #[error("payload came without credit")]
    NoCredit,
    /// Payload for a put that was not offered, or has run out.
    #[error("payload came for request {request}, item {item}, which is not waiting for any")]
    NotWanted {
        /// The request id of the frame.
        request: u64,
        /// The item it names.
        item: u32,
    },
    /// Payload without the trailer that holds its CRCs.
    #[error("payload came without its CRCs")]
    NoTrailer,
    /// Payload with an Offer of another number of items than one, or of one that cannot be read.
    #[error("payload came with an offer that is not of one value")]
    NotLone,
    /// Payload with an Offer, in front of that of offers that have a place already.
    #[error("payload came with an offer while another had a place and no payload yet")]
    OutOfTurn,
    /// Payload of another length than was offered.
    #[error("{got} bytes of payload came where {offered} were offered")]
    WrongLength {
        /// Bytes in the frame.
        got: u64,
        /// Bytes offered.
        offered: u64,
    },
}

/// A connection's state.
pub(crate) struct Session {
    pub context: Rc<Context>,
    pub number: u64,
    pub client: u128,
    /// Encoded tenant and namespace: what precedes every key's bytes.
    pub tenant: Arc<str>,
    pub namespace: String,
    hasher: NamespaceHasher,
    pub outbox: Rc<Outbox>,
    pub credits: RefCell<CreditAccount>,
    /// Offered puts with a place, waiting for their payload.
    pub offers: Offers,
    /// What it has promised to move.
    pub share: Rc<Share>,
    pub requests: Semaphore,
    /// Permits of `requests`, and requests that may be answered while their replies wait to be sent.
    pub requests_most: usize,
    pub sending: Semaphore,
    /// Permits of `sending`.
    pub sending_most: u64,
    /// Keys this session holds leases on, and until when.
    pub held: RefCell<BTreeMap<KeyHash, Instant>>,
    pub closed: Cell<bool>,
    /// Its key was retired: what it was promised is finished, nothing more is promised.
    pub retired: Cell<bool>,
    /// The payload of an offered put is being received.
    pub receiving: Cell<bool>,
    /// It was told that it may name what it puts.
    pub names_puts: bool,
    /// Memory of the client's, and its number, in which it does.
    pub staged: RefCell<Option<(u64, Arc<Staged>)>>,
    /// Told when an offered put has its payload, or will not get it.
    pub payload_done: Event,
    /// The pass in which the reader answered last, and how often it has in that pass.
    at_once: Cell<(Instant, u32)>,
}

/// Serves one connection to its end.
pub async fn serve(context: Rc<Context>, connection: Rc<dyn Connection>) {
    let _work = context.work();
    let patience = context.limits().longest();
    let mut input = Input::new(connection.clone(), context.local.clone(), patience);
    let deadline = context.local.now() + context.limits().handshake;
    let hello = connect(&context, &connection, &mut input);
    let connected = match timeout(&context.local, deadline, hello).await {
        Ok(Ok(connected)) => connected,
        Ok(Err(error)) => {
            context.counters.refused.bump();
            tracing::warn!(peer = connection.peer(), error = chain(&error), "handshake refused");
            return connection.shutdown();
        }
        Err(_) => {
            context.counters.refused.bump();
            return connection.shutdown();
        }
    };
    context.counters.connected.bump();
    context.counters.connections.add(1);
    run(&context, &connection, &mut input, connected).await;
    context.counters.connections.set(context.counters.connections.get() - 1);
}

async fn run(
    context: &Rc<Context>,
    connection: &Rc<dyn Connection>,
    input: &mut Input,
    connected: Connected,
) {
    let Connected { sealer, mut opener, client, proof, limits, namespace, .. } = connected;
    let Connected { counts_lent, windows, names_puts, .. } = connected;
    let session = Rc::new(Session {
        context: context.clone(),
        number: context.session_number(),
        client,
        hasher: context.store.hasher().within(&proof.tenant, &namespace),
        tenant: proof.tenant.clone(),
        namespace,
        outbox: Rc::default(),
        credits: RefCell::new(CreditAccount::new(limits.credits)),
        offers: Offers::default(),
        share: context.backlog.share(),
        requests: Semaphore::new(limits.requests as usize),
        requests_most: limits.requests as usize,
        sending: Semaphore::new(limits.sending as usize),
        sending_most: limits.sending,
        held: RefCell::default(),
        closed: Cell::new(false),
        retired: Cell::new(false),
        receiving: Cell::new(false),
        names_puts,
        staged: RefCell::default(),
        payload_done: Event::default(),
        at_once: Cell::new((context.local.pass_began(), 0)),
    });
    let outbox = session.outbox.clone();
    if counts_lent && connection.lends() {
        outbox.lent.allow();
    }
    outbox.lent.allow_windows(windows);
    context.local.spawn(outbox.run(context.clone(), connection.clone(), sealer));
    let live = Live {
        session: Rc::downgrade(&session),
        outbox: session.outbox.clone(),
        requests: session.requests.clone(),
        requests_most: limits.requests,
        connection: connection.clone(),
        proof,
    };
    context.joined(session.number, live);

    let end = session.clone().read(input, &mut opener).await;
    session.ended(&end, connection).await;
    context.left(session.number);
}

/// An error and its sources in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}

impl Session {
    /// Reads frames until the end; every request becomes a task.
    async fn read(self: Rc<Self>, input: &mut Input, opener: &mut Opener) -> End {
        loop {
            if let Err(end) = self.read_frame(input, opener).await {
                return end;
            }
        }
    }

    async fn read_frame(
        self: &Rc<Self>,
        input: &mut Input,
        opener: &mut Opener,
    ) -> Result<(), End> {
        self.outbox.has_room(self.requests_most).await;
        let raw = input.header().await?;
        let began = self.context.local.turn_began();
        let peeked = opener.peek(&raw)?;
        let meta = input.bytes(peeked.meta_length() as usize).await?;
        let header = opener.open(&raw, &meta)?;
        self.outbox.lent.consumed(&self.context, header.consumed())?;
        match header.opcode() {
            Opcode::Put => {
                self.admit_inline(&header)?;
                match self.place_at_once(&header, &meta) {
                    Some((place, claimed)) => {
                        self.put_in_place(input, header, place, claimed, began).await
                    }
                    None => self.put_inline(input, header, meta, began).await,
                }
            }
            Opcode::Offer if header.payload_length() > 0 => {
                self.offer_with_payload(input, opener, header, &meta, began).await
            }
            Opcode::Data => self.put_data(input, opener, header, &meta, began).await,
            Opcode::Goodbye => Err(End::Goodbye),
            Opcode::Exists
            | Opcode::Presence
            | Opcode::MatchPrefix
            | Opcode::Stats
            | Opcode::Get
                if self.answer_at_once(&header, &meta, began) =>
            {
                Ok(())
            }
            _ => {
                let permit = self.requests.acquire(1).await;
                let work = self.context.work();
                let session = self.clone();
                self.context.local.spawn(async move {
                    session.answer(header, meta, began).await;
                    drop((permit, work));
                });
                Ok(())
            }
        }
    }

    /// Answers what needs nobody else, without a task of its own. False when it needs one after all: the
    /// store is on another reactor, there are as many requests under way as there may be, so many were
    /// answered at once that others are to have their turn, or a block has to be read or waited for.
    fn answer_at_once(&self, header: &Header, meta: &[u8], began: Instant) -> bool {
        let Some(store) = self.context.store.here() else { return false };
        let (pass, answered) = self.at_once.get();
        let now = self.context.local.pass_began();
        let answered = if pass == now { answered + 1 } else { 1 };
        if answered > AT_ONCE {
            return false;
        }
        let Some(_permit) = self.requests.try_acquire(1) else { return false };
        let done = match header.opcode() {
            Opcode::Get => self.get_at_once(header, meta, began),
            _ => {
                if let Err(error) = self.answer_here(store, header, meta) {
                    self.refuse(header, error.status(), &error.to_string());
                }
                true
            }
        };
        if done {
            self.at_once.set((now, answered));
        }
        done
    }

    async fn answer(self: &Rc<Self>, header: Header, meta: Row<u8>, began: Instant) {
        let result = match header.opcode() {
            Opcode::Exists | Opcode::Presence => self.exists(&header, &meta).await,
            Opcode::MatchPrefix => self.match_prefix(&header, &meta).await,
            Opcode::Lease => self.lease(&header, &meta).await,
            Opcode::Release => self.release(&header, &meta).await,
            Opcode::Hint => self.hint(&header, &meta).await,
            Opcode::Get => self.get(&header, &meta, began).await,
            Opcode::Delete => self.delete(&header, &meta).await,
            Opcode::Offer => self.offer(&header, &meta).await,
            Opcode::Suspect => self.suspect(&header, &meta).await,
            Opcode::Stats => self.stats(&header, &meta),
            Opcode::Connect | Opcode::Put | Opcode::Data | Opcode::Goodbye => {
                self.refuse(&header, Status::Unsupported, "not at this point of a session");
                Ok(())
            }
        };
        if let Err(error) = result {
            self.refuse(&header, error.status(), &error.to_string());
        }
    }

    /// Queues a reply without payload.
    pub fn reply(&self, request: &Header, status: Status, meta: Row<u8>) {
        self.send(Header::reply(request, status), meta);
    }

    /// Refuses a request as a whole, and says why.
    pub fn refuse(&self, request: &Header, status: Status, text: &str) {
        tracing::debug!(%status, text, "request refused");
        let mut meta = Row::new();
        Refusal { retry_ms: 0, text }.encode(&mut meta);
        self.reply(request, status, meta);
    }

    /// Queues a reply with a header of its own.
    pub fn send(&self, header: Header, meta: Row<u8>) {
        self.context.counters.requests.bump();
        let ready = self.context.local.turn_began();
        self.outbox.push(&self.context, Reply::bare(header, meta, ready));
    }

    /// When a request must have given up.
    pub fn deadline(&self, header: &Header) -> Instant {
        let given = header.deadline_ms();
        let limits = self.context.limits();
        let limit = limits.deadline;
        let wait = if given == 0 { limit } else { Duration::from_millis(u64::from(given)) };
        self.context.local.turn_began() + wait.min(limits.longest())
    }

    /// Whether a put that was offered and has a place still waits for payload.
    pub fn owes_payload(&self) -> bool {
        !self.closed.get() && (self.receiving.get() || !self.offers.is_empty())
    }

    /// Who asks, for retries.
    pub fn caller(&self, header: &Header, item: usize) -> Caller {
        Caller { client: self.client, request: header.request_id(), item: item as u32 }
    }

    /// The whole key, for records.
    pub fn full_key(&self, key: &[u8]) -> Result<KeyBytes, KeyError> {
        KeyBytes::new(&self.tenant, &self.namespace, key)
    }

    /// The key's hash; `None` when the key's length is not allowed.
    pub fn hash(&self, key: &[u8]) -> Option<KeyHash> {
        (1..=KEY_MAX).contains(&key.len()).then(|| self.hasher.hash(key))
    }

    /// The reader is done: offered places go back, replies of running requests are dropped.
    async fn ended(&self, end: &End, connection: &Rc<dyn Connection>) {
        self.closed.set(true);
        let waiting = self.offers.take_all();
        if !waiting.is_empty() {
            self.context.counters.lost_after_reserve.bump();
        }
        drop(waiting);
        self.payload_done.notify_all();
        if !matches!(end, End::Goodbye | End::Input(_)) {
            self.context.counters.violations.bump();
            let error = chain(end);
            tracing::warn!(peer = connection.peer(), error, "connection closed");
            // The peer is told why, if it still reads.
            self.outbox.end(goodbye(&self.context, end.status(), error));
            self.flush_last_word().await;
        } else if self.outbox.lent.is_out() {
            // Where there is nobody any more to hear it, the peer's system says so.
            self.outbox.end(goodbye(&self.context, Status::Ok, "the connection ended".into()));
            self.flush_last_word().await;
        }
        let peer = self.peer(connection).await;
        self.outbox.close(&self.context);
        connection.shutdown();
        self.outbox.lent.end(&self.context, peer);
        // Leases live for as long as their connection.
        let held = std::mem::take(&mut *self.held.borrow_mut());
        if !held.is_empty() {
            self.context.store.unhold(held.into_keys().collect::<Row<_>>(), self.number).await;
        }
    }

    async fn flush_last_word(&self) {
        let local = &self.context.local;
        let _ = timeout(local, local.now() + LAST_WORD, self.outbox.flushed()).await;
    }

    /// What became of the peer's end, if that matters.
    async fn peer(&self, connection: &Rc<dyn Connection>) -> Peer {
        let local = &self.context.local;
        if !self.outbox.lent.is_out() {
            return Peer::MayRead;
        }
        for pause in LAST_LOOKS {
            if connection.is_peer_gone() {
                return Peer::Gone;
            }
            local.sleep(pause).await;
        }
        if connection.is_peer_gone() { Peer::Gone } else { Peer::MayRead }
    }
}

impl End {
    /// The status that names the violation to the peer.
    fn status(&self) -> Status {
        match self {
            Self::NoCredit => Status::CreditExceeded,
            Self::Frame(error) => error.status(),
            Self::Meta(error) => error.status(),
            _ => Status::BadRequest,
        }
    }
}

/// The server's last frame on a connection: why it ends.
pub(crate) fn goodbye(context: &Context, status: Status, text: String) -> Reply {
    let header = Header::request(Opcode::Goodbye, 0).with_status(status);
    let mut meta = Row::new();
    GoodbyeMeta { text: &text }.encode(&mut meta);
    Reply::bare(header, meta, context.local.now())
}
