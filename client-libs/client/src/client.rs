//! The calls.

use std::sync::Arc;
use std::time::{Duration, Instant};

use memkv_wire::meta::ItemReply;
use memkv_wire::{MAX_KEY, MAX_VALUE, Status};

use crate::ask::{Asks, FirstMissing, Question, Totals, Whole};
use crate::config::Config;
use crate::counters::{Counters, Found, Meter, Operation};
use crate::error::ClientError;
use crate::exchange::{Exchange, Job, Terms, drive};
use crate::gate::Gate;
use crate::get::{Gets, Target, Wanted};
use crate::process::Process;
use crate::put::Puts;
use crate::route::Router;
use crate::trace::TraceId;
use crate::types::{
    GatherItem, GetItem, GetOutcome, Hint, PutItem, PutOptions, PutOutcome, ScatterItem,
    ServerStats, Value,
};

/// A client of one or more servers. Cheap to clone; all clones share their connections. Every call does
/// its work on the thread of its caller and may be made from any number of threads.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
    /// When its calls end at the latest; `None` for the configured time after each began.
    until: Option<Instant>,
    /// Through which its calls reach the memory of their caller.
    gate: Option<Arc<Gate>>,
    /// To which its calls belong.
    trace: Option<TraceId>,
}

struct Inner {
    config: Config,
    router: Router,
    process: Process,
    meter: Meter,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("config", &self.inner.config).finish_non_exhaustive()
    }
}

impl Client {
    /// A client; nobody is talked to yet.
    ///
    /// # Errors
    /// [`ClientError::Config`].
    pub fn new(config: Config) -> Result<Client, ClientError> {
        config.check()?;
        if config.auth_key.is_none() {
            tracing::warn!("no auth_key is set: using the development key, on loopback only");
        }
        let router = Router::new(&config.addresses()?);
        let process = Process::new(&config)?;
        let meter = Meter::default();
        let inner = Arc::new(Inner { config, router, process, meter });
        Ok(Client { inner, until: None, gate: None, trace: None })
    }

    /// The same client, all of whose calls end by `deadline`, whatever their options and the configuration
    /// say.
    #[must_use]
    pub fn until(&self, deadline: Instant) -> Client {
        Client { until: Some(deadline), ..self.clone() }
    }

    /// The same client, all of whose calls touch the memory of their caller inside of `gate` only. Calls that
    /// are given up by closing it end with [`ClientError::Broken`].
    #[must_use]
    pub fn through(&self, gate: &Arc<Gate>) -> Client {
        Client { gate: Some(gate.clone()), ..self.clone() }
    }

    /// The same client, all of whose calls belong to `trace`.
    #[must_use]
    pub fn traced(&self, trace: TraceId) -> Client {
        Client { trace: Some(trace), ..self.clone() }
    }

    /// What the calls of this client, and of its clones, have done so far.
    pub fn counters(&self) -> Counters {
        self.inner.meter.read()
    }

    pub(crate) fn meter(&self) -> &Meter {
        &self.inner.meter
    }

    /// The configuration it was made with.
    pub fn config(&self) -> &Config {
        &self.inner.config
    }

    /// The `host:port` of the server that `key` belongs to.
    pub fn server_of(&self, key: &[u8]) -> Arc<str> {
        let server = self.inner.router.pick(key);
        self.inner.process.servers[server].name().clone()
    }

    /// Stores one value.
    ///
    /// # Errors
    /// See [`ClientError`]; after `Timeout` and `Broken` it may be stored all the same.
    pub fn put(
        &self,
        key: &[u8],
        value: &[u8],
        options: &PutOptions,
    ) -> Result<PutOutcome, ClientError> {
        only(self.put_batch(&[PutItem { key, value, options: *options, parent: None }]))
    }

    /// Stores one value that is useless without that of `parent`: it is evicted before it, and shares its
    /// odds of coming back.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub fn put_after(
        &self,
        parent: &[u8],
        key: &[u8],
        value: &[u8],
        options: &PutOptions,
    ) -> Result<PutOutcome, ClientError> {
        let parent = Some(parent);
        only(self.put_batch(&[PutItem { key, value, options: *options, parent }]))
    }

    /// Stores many values; one result per item, in their order. Small ones share frames, larger ones are
    /// only sent if the server wants them.
    pub fn put_batch(&self, items: &[PutItem<'_>]) -> Vec<Result<PutOutcome, ClientError>> {
        self.store(Instant::now(), items)
    }

    /// Stores many values whose bytes lie in several places each, as [`Client::put_batch`]. What is read is
    /// one value: nothing tells where its pieces were.
    pub fn put_gathered(&self, items: &[GatherItem<'_>]) -> Vec<Result<PutOutcome, ClientError>> {
        self.store(Instant::now(), items)
    }

    fn store<'a, I>(&self, began: Instant, items: &'a [I]) -> Vec<Result<PutOutcome, ClientError>>
    where
        Value<'a>: From<&'a I>,
    {
        let values = || items.iter().map(Value::from);
        let patience = |value: Value<'_>| value.options.deadline.unwrap_or(self.patience());
        let deadline = began + values().map(patience).max().unwrap_or_default();
        let deadline = self.until.map_or(deadline, |until| until.min(deadline));
        let process = self.process();
        let check = |value: &Value<'_>| {
            check_key(value.key)?;
            value.parent.map_or(Ok(()), check_key)?;
            match value.bytes.len() {
                0 => Err(ClientError::EmptyValue),
                length if length > MAX_VALUE => {
                    Err(ClientError::TooLarge { length, limit: MAX_VALUE })
                }
                _ => Ok(()),
            }
        };
        let (mut results, batches) = self.sort(values(), |value| value.key, check);
        let alone = batches.len() == 1;
        let jobs = batches.into_iter().map(|batch| {
            let puts = Puts::new(process, self.name(batch.server), batch.items);
            let puts = if alone { puts.alone() } else { puts };
            (batch.places, Job { server: batch.server, exchange: puts })
        });
        for (places, puts) in self.run(process, jobs, deadline) {
            fill(&mut results, places, puts.into_results());
        }
        let results = settled(results);
        let length = |at: usize| Value::from(&items[at]).bytes.len();
        self.inner.meter.note(Operation::Put, began, &results, |at, outcome| match outcome {
            PutOutcome::Stored { .. } => Found::No(length(at)),
            PutOutcome::Present { .. } => Found::Yes(0),
        });
        results
    }

    /// Stores values that are of no use without each other (keys and values of a page, the ranks of a
    /// chunk): all of them, or none. When one cannot be stored, those that this call has stored are removed
    /// again, by their generation; a reader may have seen them meanwhile. What was there before stays.
    ///
    /// # Errors
    /// The first failure. Where a server is lost in the middle, its values may stay.
    pub fn put_group(&self, items: &[PutItem<'_>]) -> Result<Vec<PutOutcome>, ClientError> {
        self.store_group(items)
    }

    /// The same of values whose bytes lie in several places each.
    ///
    /// # Errors
    /// As [`Client::put_group`].
    pub fn put_gathered_group(
        &self,
        items: &[GatherItem<'_>],
    ) -> Result<Vec<PutOutcome>, ClientError> {
        self.store_group(items)
    }

    fn store_group<'a, I>(&self, items: &'a [I]) -> Result<Vec<PutOutcome>, ClientError>
    where
        Value<'a>: From<&'a I>,
    {
        let results = self.store(Instant::now(), items);
        let Some(error) = results.iter().find_map(|result| result.as_ref().err()).cloned() else {
            return Ok(results.into_iter().flatten().collect());
        };
        for (item, result) in items.iter().zip(&results) {
            if let Ok(PutOutcome::Stored { generation }) = result {
                // Somebody else's value by now, or a server that is lost: both are to be left alone.
                let _ = self.delete(Value::from(item).key, Some(*generation));
            }
        }
        Err(error)
    }

    /// Reads a whole value into `buf`, whatever its length; what was in `buf` is lost.
    ///
    /// A block whose bytes arrived damaged is reported to the server and is a
    /// [`Miss`](GetOutcome::Miss).
    ///
    /// # Errors
    /// See [`ClientError`]. Those of [`ClientError::is_server_lost`] mean, for a reader, a miss.
    pub fn get(&self, key: &[u8], buf: &mut Vec<u8>) -> Result<GetOutcome, ClientError> {
        let began = Instant::now();
        let results = self.read(began, vec![Wanted { key, offset: 0, target: Target::Grow(buf) }]);
        self.note_get(began, &results, |_| (0, u64::MAX));
        only(results)
    }

    /// Reads from `offset` of a value on into `buf`, until one of them ends.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn get_into(
        &self,
        key: &[u8],
        offset: u64,
        buf: &mut [u8],
    ) -> Result<GetOutcome, ClientError> {
        let (began, room) = (Instant::now(), buf.len() as u64);
        let results = self.read(began, vec![Wanted { key, offset, target: Target::Slice(buf) }]);
        self.note_get(began, &results, |_| (offset, room));
        only(results)
    }

    /// Reads many values; one result per item, in their order.
    pub fn get_batch(&self, items: &mut [GetItem<'_>]) -> Vec<Result<GetOutcome, ClientError>> {
        let began = Instant::now();
        let wanted = items.iter_mut().map(|item| Wanted {
            key: item.key,
            offset: item.offset,
            target: Target::Slice(item.buf),
        });
        let results = self.read(began, wanted.collect());
        self.note_get(began, &results, |at| (items[at].offset, items[at].buf.len() as u64));
        results
    }

    /// Reads many values into several places each; one result per item, in their order.
    pub fn get_scattered(
        &self,
        items: &mut [ScatterItem<'_>],
    ) -> Vec<Result<GetOutcome, ClientError>> {
        let began = Instant::now();
        let room =
            |item: &ScatterItem<'_>| item.pieces.iter().map(|piece| piece.len() as u64).sum();
        let ranges: Vec<(u64, u64)> = items.iter().map(|item| (item.offset, room(item))).collect();
        let wanted = items.iter_mut().map(|item| Wanted {
            key: item.key,
            offset: item.offset,
            target: Target::Pieces(item.pieces.iter_mut().map(|piece| &mut **piece).collect()),
        });
        let results = self.read(began, wanted.collect());
        self.note_get(began, &results, |at| ranges[at]);
        results
    }

    /// Counts gets; `range` gives the offset of an item and the room it had.
    fn note_get(
        &self,
        began: Instant,
        results: &[Result<GetOutcome, ClientError>],
        range: impl Fn(usize) -> (u64, u64),
    ) {
        self.inner.meter.note(Operation::Get, began, results, |at, outcome| match outcome {
            GetOutcome::Hit { length, .. } => {
                let (offset, room) = range(at);
                Found::Yes(length.saturating_sub(offset).min(room))
            }
            GetOutcome::Miss(_) => Found::No(0),
        });
    }

    fn read(
        &self,
        began: Instant,
        wanted: Vec<Wanted<'_>>,
    ) -> Vec<Result<GetOutcome, ClientError>> {
        let deadline = self.deadline(began);
        let process = self.process();
        let check = |item: &Wanted<'_>| check_key(item.key);
        let (mut results, batches) = self.sort(wanted.into_iter(), |item| item.key, check);
        let jobs = batches.into_iter().map(|batch| {
            let gets = Gets::new(process, self.name(batch.server), batch.items);
            (batch.places, Job { server: batch.server, exchange: gets })
        });
        for (places, gets) in self.run(process, jobs, deadline) {
            fill(&mut results, places, gets.into_results());
        }
        settled(results)
    }

    /// Which keys are stored. It pins nothing: a block may be gone the next moment. Keys of a server that
    /// cannot be reached count as not stored.
    ///
    /// # Errors
    /// See [`ClientError`]; never those of a server that is gone.
    pub fn exists(&self, keys: &[&[u8]]) -> Result<Vec<bool>, ClientError> {
        let answer = |result: Result<bool, ClientError>| match result {
            Err(error) if error.is_server_lost() => Ok(false),
            known => known,
        };
        self.ask(Question::Presence, keys, is_there, known).into_iter().map(answer).collect()
    }

    /// How many bytes the value of each key has, [`None`] where there is none. Like [`Client::exists`] it pins
    /// nothing, but a server that cannot be reached is an error of its keys.
    pub fn lengths(&self, keys: &[&[u8]]) -> Vec<Result<Option<u64>, ClientError>> {
        let length = |reply: ItemReply| (reply.status != Status::NotFound).then_some(reply.length);
        self.ask(Question::Exists, keys, length, |length| known(&length.is_some()))
    }

    /// How many keys at the front of `keys` are stored: the length of the longest prefix without a gap. One
    /// request per server.
    ///
    /// # Errors
    /// See [`ClientError`]; never those of a server that is gone, whose keys count as not stored.
    pub fn match_prefix(&self, keys: &[&[u8]]) -> Result<usize, ClientError> {
        let began = Instant::now();
        let result = self.first_missing(keys, self.deadline(began));
        self.inner.meter.note_prefix(began, keys.len(), result.as_ref().ok().copied());
        result
    }

    fn first_missing(&self, keys: &[&[u8]], deadline: Instant) -> Result<usize, ClientError> {
        let process = self.process();
        let numbered = keys.iter().copied().enumerate().map(|(at, key)| (at as u32, key));
        let check = |item: &(u32, &[u8])| check_key(item.1);
        let (results, batches) = self.sort::<_, ()>(numbered, |item| item.1, check);
        if let Some(Err(error)) = results.into_iter().flatten().next() {
            return Err(error);
        }
        let jobs = batches.into_iter().map(|batch| {
            let first = batch.places[0];
            let query =
                FirstMissing { keys: batch.items, matched: 0, asked: std::cell::Cell::new(0) };
            let exchange = Whole::new(process, self.name(batch.server), query);
            (first, Job { server: batch.server, exchange })
        });
        let mut matched = keys.len();
        for (first, whole) in self.run(process, jobs, deadline) {
            let missing = match whole.into_result() {
                Ok(missing) => missing.map_or(keys.len(), |position| position as usize),
                Err(error) if error.is_server_lost() => first,
                Err(error) => return Err(error),
            };
            matched = matched.min(missing);
        }
        Ok(matched)
    }

    /// Keeps blocks readable for `duration`, which the server cuts to its limit; one result per key. A
    /// lease ends by [`Client::release`], by its time, or with the connections of this client.
    pub fn lease(
        &self,
        keys: &[&[u8]],
        duration: Duration,
    ) -> Vec<Result<GetOutcome, ClientError>> {
        let lease_ms = u32::try_from(duration.as_millis()).unwrap_or(u32::MAX);
        self.ask(Question::Lease(lease_ms), keys, outcome, read)
    }

    /// Gives leases back before their time; a key without one is no error.
    pub fn release(&self, keys: &[&[u8]]) -> Vec<Result<(), ClientError>> {
        self.ask(Question::Release, keys, drop, |()| Found::No(0))
    }

    /// Says what will become of a chain of blocks, its keys in the order of the chain; per key, whether there
    /// is a block. A block that is not there is no error.
    pub fn hint(&self, keys: &[&[u8]], hint: Hint) -> Vec<Result<GetOutcome, ClientError>> {
        self.ask(Question::Hint(hint), keys, outcome, read)
    }

    /// Removes a block, if it has this generation; true when there was one.
    ///
    /// # Errors
    /// [`ClientError::GenerationMismatch`], and see [`ClientError`]; after `Timeout` and `Broken` it may be
    /// gone all the same.
    pub fn delete(&self, key: &[u8], generation: Option<u64>) -> Result<bool, ClientError> {
        let question = Question::Delete(generation.unwrap_or(0));
        only(self.ask(question, &[key], is_there, known))
    }

    /// Removes many blocks, whatever their generation; per key, whether there was one.
    pub fn delete_batch(&self, keys: &[&[u8]]) -> Vec<Result<bool, ClientError>> {
        self.ask(Question::Delete(0), keys, is_there, known)
    }

    /// The counters of every server, by its `host:port`, in the order of the configuration.
    pub fn server_stats(&self) -> Vec<(String, Result<ServerStats, ClientError>)> {
        let deadline = self.deadline(Instant::now());
        let process = self.process();
        let jobs = (0..process.servers.len()).map(|server| {
            let exchange = Whole::new(process, self.name(server), Totals);
            (server, Job { server, exchange })
        });
        let answers = self.run(process, jobs, deadline);
        answers
            .map(|(server, whole)| (self.name(server).to_string(), whole.into_result()))
            .collect()
    }

    fn ask<A>(
        &self,
        question: Question,
        keys: &[&[u8]],
        answer: fn(ItemReply) -> A,
        found: fn(&A) -> Found,
    ) -> Vec<Result<A, ClientError>> {
        let began = Instant::now();
        let deadline = self.deadline(began);
        let process = self.process();
        let check = |key: &&[u8]| check_key(key);
        let (mut results, batches) = self.sort(keys.iter().copied(), |key| key, check);
        let jobs = batches.into_iter().map(|batch| {
            let asks = Asks::new(process, self.name(batch.server), question, batch.items, answer);
            (batch.places, Job { server: batch.server, exchange: asks })
        });
        for (places, asks) in self.run(process, jobs, deadline) {
            fill(&mut results, places, asks.into_results());
        }
        let results = settled(results);
        self.inner.meter.note(question.operation(), began, &results, |_, answer| found(answer));
        results
    }

    fn process(&self) -> &Process {
        self.inner.process.current(&self.inner.config)
    }

    fn patience(&self) -> Duration {
        self.inner.config.request_timeout()
    }

    /// When a call ends at the latest that began at `began`.
    fn deadline(&self, began: Instant) -> Instant {
        self.until.unwrap_or_else(|| began + self.patience())
    }

    fn name(&self, server: usize) -> &Arc<str> {
        self.inner.process.servers[server].name()
    }

    /// Deals items out to the servers of their keys; those that fail `check` get that as their result.
    fn sort<'k, I, T>(
        &self,
        items: impl Iterator<Item = I>,
        key: impl Fn(&I) -> &'k [u8],
        check: impl Fn(&I) -> Result<(), ClientError>,
    ) -> (Results<T>, Vec<Batch<I>>) {
        let servers = self.inner.process.servers.len();
        let most = items.size_hint().0;
        let mut results = Vec::with_capacity(most);
        let mut batches: Vec<Option<Batch<I>>> = Vec::new();
        batches.resize_with(servers, || None);
        for (place, item) in items.enumerate() {
            if let Err(error) = check(&item) {
                results.push(Some(Err(error)));
                continue;
            }
            results.push(None);
            let server = self.inner.router.pick(key(&item));
            let batch = batches[server].get_or_insert_with(|| Batch {
                server,
                places: Vec::with_capacity(most / servers),
                items: Vec::with_capacity(most / servers),
            });
            batch.places.push(place);
            batch.items.push(item);
        }
        (results, batches.into_iter().flatten().collect())
    }

    /// Drives jobs with a tag each, and gives the exchanges back.
    fn run<T, E: Exchange>(
        &self,
        process: &Process,
        jobs: impl Iterator<Item = (T, Job<E>)>,
        deadline: Instant,
    ) -> impl Iterator<Item = (T, E)> {
        let (tags, mut jobs): (Vec<T>, Vec<Job<E>>) = jobs.unzip();
        let terms = Terms { gate: self.gate.as_deref(), trace: self.trace };
        drive(process, &mut jobs, deadline, terms);
        tags.into_iter().zip(jobs.into_iter().map(|job| job.exchange))
    }
}

/// Whether there is, or was, a block.
fn is_there(reply: ItemReply) -> bool {
    reply.status != Status::NotFound
}

fn outcome(reply: ItemReply) -> GetOutcome {
    match reply.status {
        Status::NotFound => GetOutcome::Miss(reply.reason),
        _ => GetOutcome::Hit { length: reply.length, generation: reply.generation },
    }
}

/// For the counters: a question without bytes, answered by yes or no.
fn known(there: &bool) -> Found {
    if *there { Found::Yes(0) } else { Found::No(0) }
}

/// The same of what is answered like a get and brings no bytes.
fn read(outcome: &GetOutcome) -> Found {
    known(&outcome.is_hit())
}

/// One result per item of a call; none yet for those that go to a server.
type Results<T> = Vec<Option<Result<T, ClientError>>>;

/// The items of a call that belong to one server, and their places in the call.
struct Batch<I> {
    server: usize,
    places: Vec<usize>,
    items: Vec<I>,
}

fn fill<T>(
    results: &mut [Option<Result<T, ClientError>>],
    places: Vec<usize>,
    answers: impl Iterator<Item = Result<T, ClientError>>,
) {
    for (place, answer) in places.into_iter().zip(answers) {
        results[place] = Some(answer);
    }
}

fn settled<T>(results: Results<T>) -> Vec<Result<T, ClientError>> {
    let result = |result: Option<_>| result.expect("every item belongs to a server that was asked");
    results.into_iter().map(result).collect()
}

fn only<T>(results: Vec<Result<T, ClientError>>) -> Result<T, ClientError> {
    results.into_iter().next().expect("one item in, one result out")
}

fn check_key(key: &[u8]) -> Result<(), ClientError> {
    match key.len() {
        1..=MAX_KEY => Ok(()),
        length => Err(ClientError::BadKey { length }),
    }
}
