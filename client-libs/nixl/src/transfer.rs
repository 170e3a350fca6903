//! One transfer: prepared once, posted as often as it is done.
//!
//! ```text
//!   Prepared ── post ──► Posting ── parts ──► workers: read or write their runs
//!      │                    │ left: parts that are not done
//!      │ check ─────────────┤ outcome: of the first that failed
//!      └ release ───────────┴─► gate closed: nobody touches the memory any more
//! ```
//!
//! A posting is given up when it is released under way. Parts that no worker has taken yet are never begun; a
//! worker in the middle of a call loses its connection and is out of the memory before the release returns,
//! which waits for nothing but that. Whether a write that was given up is stored is not known: the old value or
//! the new one, never a part.

#![allow(unsafe_code)]

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use memkv_client::{
    Client, ClientError, Gate, GatherItem, GetOutcome, LocalCopy, Piece, Plan, PutOptions,
    PutOutcome, Run, ScatterItem, one_line,
};

use crate::memory::Region;
use crate::staging::Staging;
use crate::status::{Refusal, Status, of_error, say_once_a_second};
use crate::workers::Workers;

/// Bytes of a posting from which on it is cut into parts of at least this size.
const PART: u64 = 4 << 20;

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From objects into memory.
    Read,
    /// From memory into objects.
    Write,
}

/// Where the memory of a transfer is.
pub(crate) enum Place {
    /// In the host.
    Host,
    /// In GPUs.
    Gpu {
        staging: Arc<Staging>,
        /// Of each descriptor.
        gpus: Vec<u64>,
    },
}

/// What is to be done, with the keys and the memory of each descriptor.
pub(crate) struct Work {
    pub direction: Direction,
    pub keys: Vec<Arc<[u8]>>,
    pub memory: Vec<Region>,
    pub place: Place,
    pub plan: Plan,
    pub options: PutOptions,
}

/// See the module.
pub(crate) struct Prepared {
    work: Arc<Work>,
    posting: Mutex<Option<Arc<Posting>>>,
}

/// One time that it was posted.
pub(crate) struct Posting {
    work: Arc<Work>,
    gate: Arc<Gate>,
    deadline: Instant,
    /// The process that posted it; its children have neither its workers nor its memory.
    pid: u32,
    left: AtomicUsize,
    outcome: AtomicI32,
    /// Its gate is closed, and nobody is inside.
    is_given_up: AtomicBool,
}

/// Runs of a posting that one call carries.
pub(crate) struct Part {
    posting: Arc<Posting>,
    runs: Range<usize>,
}

impl Prepared {
    /// Of what is to be done.
    pub fn new(work: Work) -> Prepared {
        Prepared { work: Arc::new(work), posting: Mutex::default() }
    }

    /// Hands it to the workers.
    pub fn post(&self, client: &Client, workers: &Workers) -> Result<(), Refusal> {
        let mut posting = self.lock();
        if posting.as_ref().is_some_and(|before| before.status() == Status::InProgress) {
            return Err(Refusal::Active);
        }
        let work = &self.work;
        let runs = work.plan.runs.len();
        let parts = (work.plan.saving.bytes_moved / PART).clamp(1, workers.most() as u64) as usize;
        let parts = parts.min(runs).max(1);
        let timeout = client.config().request_timeout_ms;
        let next = Arc::new(Posting {
            work: work.clone(),
            gate: Arc::new(Gate::new()),
            deadline: Instant::now() + std::time::Duration::from_millis(timeout),
            pid: std::process::id(),
            left: AtomicUsize::new(parts),
            outcome: AtomicI32::new(Status::Ok as i32),
            is_given_up: AtomicBool::new(false),
        });
        let part = |number: usize| Part {
            posting: next.clone(),
            runs: runs * number / parts..runs * (number + 1) / parts,
        };
        workers.submit((0..parts).map(part))?;
        client.note_plan(&work.plan);
        *posting = Some(next);
        Ok(())
    }

    /// How it stands. Never waits.
    pub fn status(&self) -> Status {
        self.lock().as_ref().map_or(Status::NotPosted, |posting| posting.status())
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Posting>>> {
        self.posting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Prepared {
    /// Gives up what is under way.
    fn drop(&mut self) {
        if let Some(posting) = self.lock().take() {
            posting.give_up();
        }
    }
}

impl Posting {
    fn status(&self) -> Status {
        if self.left.load(Ordering::Acquire) == 0 {
            Status::from_number(self.outcome.load(Ordering::Relaxed))
        } else if self.pid != std::process::id() || self.is_given_up.load(Ordering::Acquire) {
            Status::Canceled
        } else {
            Status::InProgress
        }
    }

    /// When it returns nobody touches the memory any more.
    pub fn give_up(&self) {
        if self.pid == std::process::id() {
            self.gate.close();
            self.is_given_up.store(true, Ordering::Release);
        }
    }

    fn fail(&self, status: Status) {
        let ok = Status::Ok as i32;
        let (success, failure) = (Ordering::Relaxed, Ordering::Relaxed);
        let _ = self.outcome.compare_exchange(ok, status as i32, success, failure);
    }
}

impl Part {
    /// The posting that it belongs to.
    pub fn posting(&self) -> &Arc<Posting> {
        &self.posting
    }

    /// Does it, unless it is given up.
    pub fn run(self, client: &Client) {
        let Part { posting, runs } = &self;
        if posting.gate.is_closed() {
            posting.fail(Status::Canceled);
        } else {
            let client = client.until(posting.deadline).through(&posting.gate);
            let runs = &posting.work.plan.runs[runs.clone()];
            let carried = catch_unwind(AssertUnwindSafe(|| {
                match (posting.work.direction, &posting.work.place) {
                    (Direction::Read, Place::Host) => posting.read(&client, runs),
                    (Direction::Write, Place::Host) => posting.write(&client, runs),
                    (Direction::Read, Place::Gpu { staging, .. }) => {
                        posting.read_staged(&client, runs, staging)
                    }
                    (Direction::Write, Place::Gpu { staging, .. }) => {
                        posting.write_staged(&client, runs, staging)
                    }
                }
            }));
            if let Err(status) = carried.unwrap_or(Err(Status::Backend)) {
                posting.fail(status);
            }
        }
        posting.left.fetch_sub(1, Ordering::Release);
    }
}

impl Posting {
    /// The key of a run.
    pub fn key(&self, run: &Run) -> &[u8] {
        &self.work.keys[run.pieces[0].descriptor]
    }

    /// Through which the memory is touched.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// How objects are stored.
    pub fn options(&self) -> PutOptions {
        self.work.options
    }

    /// The GPU and the memory of a descriptor.
    pub fn memory_of(&self, descriptor: usize) -> (u64, &Region) {
        let gpu = match &self.work.place {
            Place::Host => 0,
            Place::Gpu { gpus, .. } => gpus[descriptor],
        };
        (gpu, &self.work.memory[descriptor])
    }

    fn read(&self, client: &Client, runs: &[Run]) -> Result<(), Status> {
        let piece = |piece: &Piece| {
            let region = &self.work.memory[piece.descriptor];
            // SAFETY: NIXL's user lends the memory until the transfer is done or released; the client touches it
            // inside of the gate only, which a release closes first. No two pieces share a byte: descriptors
            // that do have been refused, or are the same and have one piece.
            unsafe { region.bytes_mut(piece.start as usize) }
        };
        let item = |run: &Run| ScatterItem {
            key: self.key(run),
            offset: run.offset,
            pieces: run.pieces.iter().map(piece).collect(),
        };
        let mut items: Vec<ScatterItem<'_>> = runs.iter().map(item).collect();
        let answers = client.get_scattered(&mut items);
        drop(items);
        for (run, answer) in runs.iter().zip(answers) {
            self.check_hit(run, answer)?;
            let copied =
                self.gate.with_memory(|| run.copies.iter().for_each(|copy| self.copy(copy)));
            copied.ok_or(Status::Canceled)?;
        }
        Ok(())
    }

    /// Whether a run has been read whole.
    pub fn check_hit(
        &self,
        run: &Run,
        answer: Result<GetOutcome, ClientError>,
    ) -> Result<(), Status> {
        let end = run.offset + run.length;
        match answer {
            Ok(GetOutcome::Hit { length, .. }) if length < end => {
                let key = String::from_utf8_lossy(self.key(run));
                say_once_a_second(&format!(
                    "`{key}` has {length} bytes, and bytes {}..{end} of it were to be read",
                    run.offset
                ));
                Err(Status::Mismatch)
            }
            Ok(GetOutcome::Hit { .. }) => Ok(()),
            Ok(GetOutcome::Miss(_)) => Err(Status::NotFound),
            Err(error) => Err(failed("read", &error)),
        }
    }

    fn copy(&self, copy: &LocalCopy) {
        let LocalCopy { from: (source, start), to: (target, place), length } = *copy;
        let (source, target) = (&self.work.memory[source], &self.work.memory[target]);
        // SAFETY: as for reading; the run has been read, and its memory is nobody else's.
        unsafe { target.copy_from(place as usize, source, start as usize, length as usize) };
    }

    fn write(&self, client: &Client, runs: &[Run]) -> Result<(), Status> {
        let piece = |piece: &Piece| {
            let region = &self.work.memory[piece.descriptor];
            // SAFETY: as for reading: lent until it is done or released. Its user does not change it meanwhile.
            unsafe { region.bytes(piece.start as usize) }
        };
        let pieces: Vec<Vec<&[u8]>> =
            runs.iter().map(|run| run.pieces.iter().map(piece).collect()).collect();
        let item = |(run, pieces)| {
            let pieces: &Vec<&[u8]> = pieces;
            GatherItem { key: self.key(run), pieces, options: self.work.options, parent: None }
        };
        let items: Vec<GatherItem<'_>> = runs.iter().zip(&pieces).map(item).collect();
        self.check_stored(client.put_gathered(&items))
    }

    /// Whether all of them are stored.
    pub fn check_stored(
        &self,
        answers: Vec<Result<PutOutcome, ClientError>>,
    ) -> Result<(), Status> {
        for answer in answers {
            answer.map_err(|error| failed("written", &error))?;
        }
        Ok(())
    }
}

/// What NIXL is told of an error, and people are.
fn failed(what: &str, error: &ClientError) -> Status {
    let status = of_error(error);
    if status != Status::Canceled {
        say_once_a_second(&format!("an object could not be {what}: {}", one_line(error)));
    }
    status
}
