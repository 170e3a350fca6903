//! One stretch of operations against one server, and what it cost.

use std::thread;
use std::time::{Duration, Instant};

use memkv_client::{Client, GetItem, GetOutcome, PutItem, PutMode, PutOptions};
use memkv_workload::latency::Latency;
use serde::Serialize;

use crate::cpu::CpuClock;
use crate::error::{BenchError, doing};
use crate::plain::{self, summed};
use crate::ring::{Ring, is_stamped, stamp};

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// Store a value in place of an old one.
    Put,
    /// Fetch a whole value.
    Get,
}

impl Operation {
    /// Both, in the order in which they are measured: gets find what puts stored.
    pub const ALL: [Operation; 2] = [Operation::Put, Operation::Get];

    /// As a table names it.
    pub fn name(self) -> &'static str {
        match self {
            Operation::Put => "PUT",
            Operation::Get => "GET",
        }
    }
}

/// One connection's worth of a store: blocking calls, one at a time.
pub trait Worker: Send {
    /// Stores a value under the slot's name.
    ///
    /// # Errors
    /// When it is not stored.
    fn put(&mut self, slot: u32, value: &[u8]) -> Result<(), BenchError>;

    /// Fetches the whole value of a slot.
    ///
    /// # Errors
    /// When it is not there whole.
    fn get(&mut self, slot: u32, into: &mut [u8]) -> Result<(), BenchError>;

    /// Stores the values of several slots: one after the other, where there is no better way.
    ///
    /// # Errors
    /// When one is not stored.
    fn put_batch(&mut self, values: &[(u32, &mut [u8])]) -> Result<(), BenchError> {
        values.iter().try_for_each(|(slot, value)| self.put(*slot, value))
    }

    /// Fetches the whole values of several slots.
    ///
    /// # Errors
    /// When one is not there whole.
    fn get_batch(&mut self, values: &mut [(u32, &mut [u8])]) -> Result<(), BenchError> {
        values.iter_mut().try_for_each(|(slot, into)| self.get(*slot, into))
    }
}

/// One connection that can ask whether a block is there.
pub trait Asker: Send {
    /// Asks after one that never was.
    ///
    /// # Errors
    /// When there is no answer, or it is there.
    fn ask(&mut self) -> Result<(), BenchError>;
}

impl Asker for plain::Client {
    /// A ping: the least that a question and its answer can cost.
    fn ask(&mut self) -> Result<(), BenchError> {
        self.ping().map_err(doing("the plain server"))
    }
}

impl Asker for MemkvWorker {
    fn ask(&mut self) -> Result<(), BenchError> {
        match self.0.exists(&[NEVER.as_bytes()])?[..] {
            [false] => Ok(()),
            _ => Err(BenchError::Answer { what: "an answer to Exists", source: None }),
        }
    }
}

/// Asks until `most` questions are answered, or for as long as `patience`.
///
/// # Errors
/// The first failure.
pub fn questions(
    asker: &mut dyn Asker,
    server: CpuClock,
    most: u32,
    patience: Duration,
) -> Result<Sample, BenchError> {
    let clock = |clock: CpuClock| clock.read().map_err(doing("a CPU clock"));
    let mut sample = Sample::default();
    let (client, before, begun) = (clock(CpuClock::OWN)?, clock(server)?, Instant::now());
    let mut last = begun;
    while sample.operations < u64::from(most) && last - begun < patience {
        asker.ask()?;
        let now = Instant::now();
        sample.latency.record(now - last);
        sample.operations += 1;
        last = now;
    }
    sample.wall = last - begun;
    sample.client = clock(CpuClock::OWN)? - client;
    sample.server = clock(server)? - before;
    Ok(sample)
}

impl Worker for plain::Client {
    fn put(&mut self, slot: u32, value: &[u8]) -> Result<(), BenchError> {
        plain::Client::put(self, slot, value).map_err(doing("the plain server"))
    }

    fn get(&mut self, slot: u32, into: &mut [u8]) -> Result<(), BenchError> {
        plain::Client::get(self, slot, into).map_err(doing("the plain server"))
    }
}

impl Worker for summed::Client {
    fn put(&mut self, slot: u32, value: &[u8]) -> Result<(), BenchError> {
        summed::Client::put(self, slot, value).map_err(doing("the summing server"))
    }

    fn get(&mut self, slot: u32, into: &mut [u8]) -> Result<(), BenchError> {
        summed::Client::get(self, slot, into).map_err(doing("the summing server"))
    }
}

/// memkv's client; clones share its connections.
pub struct MemkvWorker(pub Client);

/// A key under which nothing is ever stored.
pub const NEVER: &str = "0/never";

/// The key of a slot; values of another length are other blocks.
pub fn key(slot: u32, len: usize) -> String {
    format!("{len}/{slot}")
}

impl Worker for MemkvWorker {
    fn put(&mut self, slot: u32, value: &[u8]) -> Result<(), BenchError> {
        let options = PutOptions { mode: PutMode::Replace, ..PutOptions::default() };
        self.0.put(key(slot, value.len()).as_bytes(), value, &options)?;
        Ok(())
    }

    fn get(&mut self, slot: u32, into: &mut [u8]) -> Result<(), BenchError> {
        let length = into.len() as u64;
        match self.0.get_into(key(slot, into.len()).as_bytes(), 0, into)? {
            GetOutcome::Hit { length: found, .. } if found == length => Ok(()),
            _ => Err(BenchError::Missing { slot }),
        }
    }

    fn put_batch(&mut self, values: &[(u32, &mut [u8])]) -> Result<(), BenchError> {
        let options = PutOptions { mode: PutMode::Replace, ..PutOptions::default() };
        let keys: Vec<_> = values.iter().map(|(slot, value)| key(*slot, value.len())).collect();
        let items: Vec<_> = values
            .iter()
            .zip(&keys)
            .map(|((_, value), key)| PutItem { key: key.as_bytes(), value, options, parent: None })
            .collect();
        for result in self.0.put_batch(&items) {
            result?;
        }
        Ok(())
    }

    fn get_batch(&mut self, values: &mut [(u32, &mut [u8])]) -> Result<(), BenchError> {
        let told: Vec<_> = values
            .iter()
            .map(|(slot, into)| (*slot, into.len() as u64, key(*slot, into.len())))
            .collect();
        let mut items: Vec<_> = values
            .iter_mut()
            .zip(&told)
            .map(|((_, buf), (.., key))| GetItem { key: key.as_bytes(), offset: 0, buf })
            .collect();
        for (result, (slot, length, _)) in self.0.get_batch(&mut items).into_iter().zip(told) {
            match result? {
                GetOutcome::Hit { length: found, .. } if found == length => {}
                _ => return Err(BenchError::Missing { slot }),
            }
        }
        Ok(())
    }
}

/// A server and the connections to it.
pub struct Party {
    /// The server's CPU time, where there is a server.
    pub server: Option<CpuClock>,
    /// One per connection.
    pub workers: Vec<Box<dyn Worker>>,
}

/// What is asked of a party.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Load {
    /// What is done.
    pub operation: Operation,
    /// Bytes of a value.
    pub value_bytes: usize,
    /// Values that all workers together go round in.
    pub slots: u32,
    /// Connections, each with one call at a time.
    pub depth: usize,
    /// Values of one call.
    pub batch: usize,
}

/// How far each worker has come in its slots.
#[derive(Clone, Debug, Default)]
pub struct Progress(Vec<u32>);

impl Progress {
    /// Where a lone worker goes on; `count` slots further, in `share` of them, it will stop.
    pub fn advance(&mut self, share: u32, count: u32) -> u32 {
        self.0.resize(1, 0);
        let start = self.0[0];
        self.0[0] = (start + count) % share;
        start
    }
}

/// What a stretch, or several of them, cost.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// Operations done.
    pub operations: u64,
    /// Bytes of their values.
    pub bytes: u64,
    /// Time.
    pub wall: Duration,
    /// CPU time of the client's process.
    pub client: Duration,
    /// CPU time of the server's process.
    pub server: Duration,
    /// How long each operation took.
    pub latency: Latency,
}

impl Sample {
    /// Adds another stretch of the same load.
    pub fn absorb(&mut self, other: &Sample) {
        self.operations += other.operations;
        self.bytes += other.bytes;
        self.wall += other.wall;
        self.client += other.client;
        self.server += other.server;
        self.latency.merge(&other.latency);
    }

    fn gib(&self) -> f64 {
        self.bytes as f64 / f64::from(1 << 30)
    }

    /// CPU seconds per GiB of the client.
    pub fn client_cost(&self) -> f64 {
        self.client.as_secs_f64() / self.gib()
    }

    /// CPU seconds per GiB of the server.
    pub fn server_cost(&self) -> f64 {
        self.server.as_secs_f64() / self.gib()
    }

    /// CPU seconds per GiB of both.
    pub fn cost(&self) -> f64 {
        self.client_cost() + self.server_cost()
    }

    /// Microseconds of CPU of both for one operation.
    pub fn operation_cost_us(&self) -> f64 {
        (self.client + self.server).as_secs_f64() * 1e6 / self.operations as f64
    }

    /// Microseconds that half of the operations stayed below.
    pub fn p50_us(&self) -> f64 {
        self.latency.summary().p50_us
    }

    /// Microseconds that 99 of 100 operations stayed below.
    pub fn p99_us(&self) -> f64 {
        self.latency.summary().p99_us
    }

    /// GiB per second.
    pub fn speed(&self) -> f64 {
        self.gib() / self.wall.as_secs_f64()
    }
}

/// Carries `operations`, whole batches of them, out per worker and says what they cost.
///
/// # Errors
/// The first failure; a value that comes back as another one is a failure.
pub fn stretch(
    party: &mut Party,
    rings: &mut [Ring],
    load: Load,
    progress: &mut Progress,
    operations: u32,
) -> Result<Sample, BenchError> {
    let depth = load.depth;
    assert!(rings.len() == depth && party.workers.len() >= depth, "a ring and a worker each");
    progress.0.resize(depth, 0);
    let share = load.slots / depth as u32;
    let clock = |clock: CpuClock| clock.read().map_err(doing("a CPU clock"));
    let server = |party: &Party| party.server.map_or(Ok(Duration::ZERO), clock);
    let (client, before) = (clock(CpuClock::OWN)?, server(party)?);
    let begun = Instant::now();
    let workers = party.workers.iter_mut().zip(rings).zip(&mut progress.0).zip(0..);
    let tasks = workers.map(|(((worker, ring), next), number)| Task {
        worker: worker.as_mut(),
        ring,
        next,
        first: number * share,
        share,
    });
    let latency = run(tasks.collect(), load, operations)?;
    let wall = begun.elapsed();
    let operations = u64::from(operations) * depth as u64;
    Ok(Sample {
        operations,
        bytes: operations * load.value_bytes as u64,
        wall,
        client: clock(CpuClock::OWN)? - client,
        server: server(party)? - before,
        latency,
    })
}

/// One worker's part of a stretch.
struct Task<'a> {
    worker: &'a mut dyn Worker,
    ring: &'a mut Ring,
    next: &'a mut u32,
    first: u32,
    share: u32,
}

/// A single task runs on this thread, several on one each.
fn run(mut tasks: Vec<Task<'_>>, load: Load, operations: u32) -> Result<Latency, BenchError> {
    if let [task] = &mut tasks[..] {
        return task.run(load, operations);
    }
    thread::scope(|scope| {
        let threads: Vec<_> =
            tasks.iter_mut().map(|task| scope.spawn(move || task.run(load, operations))).collect();
        let mut all = Latency::default();
        for thread in threads {
            all.merge(&thread.join().expect("a worker does not panic")?);
        }
        Ok(all)
    })
}

impl Task<'_> {
    fn run(&mut self, load: Load, operations: u32) -> Result<Latency, BenchError> {
        let mut latency = Latency::default();
        let Load { operation, value_bytes, batch, .. } = load;
        for _ in 0..operations / batch as u32 {
            let mut buffer = self.ring.next(value_bytes * batch);
            if batch == 1 {
                let slot = self.slot();
                latency.record(self.one(operation, slot, buffer.as_mut_slice())?);
                continue;
            }
            let values = buffer.as_mut_slice().chunks_exact_mut(value_bytes);
            let mut values: Vec<_> = values.map(|value| (self.slot(), value)).collect();
            latency.record(self.many(operation, &mut values)?);
        }
        Ok(latency)
    }

    /// The next one.
    fn slot(&mut self) -> u32 {
        let slot = self.first + *self.next;
        *self.next = (*self.next + 1) % self.share;
        slot
    }

    fn one(
        &mut self,
        operation: Operation,
        slot: u32,
        value: &mut [u8],
    ) -> Result<Duration, BenchError> {
        if operation == Operation::Put {
            stamp(value, slot);
        }
        let begun = Instant::now();
        match operation {
            Operation::Put => self.worker.put(slot, value)?,
            Operation::Get => self.worker.get(slot, value)?,
        }
        let took = begun.elapsed();
        checked(operation, slot, value)?;
        Ok(took)
    }

    fn many(
        &mut self,
        operation: Operation,
        values: &mut [(u32, &mut [u8])],
    ) -> Result<Duration, BenchError> {
        if operation == Operation::Put {
            values.iter_mut().for_each(|(slot, value)| stamp(value, *slot));
        }
        let begun = Instant::now();
        match operation {
            Operation::Put => self.worker.put_batch(values)?,
            Operation::Get => self.worker.get_batch(values)?,
        }
        let took = begun.elapsed();
        values.iter().try_for_each(|(slot, value)| checked(operation, *slot, value))?;
        Ok(took)
    }
}

/// A value that was fetched has to be the right one.
fn checked(operation: Operation, slot: u32, value: &[u8]) -> Result<(), BenchError> {
    match operation == Operation::Put || is_stamped(value, slot) {
        true => Ok(()),
        false => Err(BenchError::Wrong { slot }),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::{Arc, Mutex};

    use memkv_dma::{Arena, Hugepages};

    use super::*;

    #[derive(Clone, Default)]
    struct Fake(Arc<Mutex<HashMap<u32, Vec<u8>>>>);

    impl Worker for Fake {
        fn put(&mut self, slot: u32, value: &[u8]) -> Result<(), BenchError> {
            self.0.lock().unwrap().insert(slot, value.to_vec());
            Ok(())
        }

        fn get(&mut self, slot: u32, into: &mut [u8]) -> Result<(), BenchError> {
            let values = self.0.lock().unwrap();
            into.copy_from_slice(values.get(&slot).ok_or(BenchError::Missing { slot })?);
            Ok(())
        }
    }

    fn party(fake: &Fake) -> Party {
        let worker = || Box::new(fake.clone()) as Box<dyn Worker>;
        Party { server: Some(CpuClock::OWN), workers: vec![worker(), worker()] }
    }

    #[test]
    fn workers_go_round_in_slots_of_their_own_and_check_what_comes_back() {
        let arena = Arena::new(1 << 20, Hugepages::Never).unwrap();
        let mut rings = Ring::cut(&arena, 2);
        let (fake, mut progress) = (Fake::default(), Progress::default());
        let put =
            Load { operation: Operation::Put, value_bytes: 1000, slots: 8, depth: 2, batch: 1 };
        let sample = stretch(&mut party(&fake), &mut rings, put, &mut progress, 6).unwrap();
        assert_eq!((sample.operations, sample.bytes), (12, 12_000));
        assert_eq!(fake.0.lock().unwrap().len(), 8, "4 slots each, all used");
        assert_eq!(progress.0, [2, 2]);
        assert_eq!(sample.latency.summary().count, 12);

        let get = Load { operation: Operation::Get, ..put };
        stretch(&mut party(&fake), &mut rings, get, &mut progress, 4).unwrap();
        fake.0.lock().unwrap().get_mut(&5).unwrap()[0] ^= 1;
        let batches = Load { batch: 2, ..get };
        let wrong = stretch(&mut party(&fake), &mut rings, batches, &mut progress, 4).unwrap_err();
        assert!(matches!(wrong, BenchError::Wrong { slot: 5 }), "{wrong}");
        let wrong = stretch(&mut party(&fake), &mut rings, get, &mut progress, 4).unwrap_err();
        assert!(matches!(wrong, BenchError::Wrong { slot: 5 }), "{wrong}");
    }

    #[test]
    fn costs_and_speeds_are_per_gib() {
        let half = Sample {
            operations: 128,
            bytes: 1 << 29,
            wall: Duration::from_millis(250),
            client: Duration::from_millis(100),
            server: Duration::from_millis(50),
            latency: Latency::default(),
        };
        let mut whole = half.clone();
        whole.absorb(&half);
        assert!((whole.cost() - 0.3).abs() < 1e-9 && (whole.speed() - 2.0).abs() < 1e-9);
        assert_eq!(whole.operations, 256);
    }
}
