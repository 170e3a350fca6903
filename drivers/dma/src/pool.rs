//! The pool: one mapping, one lock, a ledger behind it.

use std::fmt;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use crate::buddy::TOP_UNITS;
use crate::buffer::{DmaBuf, Home};
use crate::ledger::{CLASSES, Class, Ledger, Run, Ticket};
use crate::mapping::{Backing, Hugepages, MapError, Mapping, Sharing};
use crate::wait::{AllocateSet, AllocateWait};
use crate::{MAX_BUFFER, UNIT};

/// The smallest pool: with less, the reserves would leave no class a whole extent.
const MIN_SIZE: u64 = 2 * MAX_BUFFER as u64;

/// How a pool is made.
#[derive(Clone, Debug)]
pub struct PoolConfig {
    /// Bytes of memory, rounded up to a multiple of 4 MiB; at least 8 MiB.
    pub size: u64,
    /// Length in bytes of the chunks that requests are received and sent in (2 MiB as a rule): a power
    /// of two between 16 KiB and 4 MiB. The pool only remembers it for its users.
    pub chunk: u64,
    /// Whether it is to lie in reserved hugepages.
    pub hugepages: Hugepages,
}

/// Why there is no pool.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// Less than 8 MiB, or more than 64 TiB.
    #[error("a pool of {size} bytes is outside of {MIN_SIZE} bytes to 64 TiB")]
    Size {
        /// Bytes asked for.
        size: u64,
    },
    /// The chunk is no power of two between 16 KiB and 4 MiB.
    #[error("a chunk of {chunk} bytes is not a power of two between {UNIT} and {MAX_BUFFER}")]
    Chunk {
        /// Bytes asked for.
        chunk: u64,
    },
    /// The memory is not to be had.
    #[error("no memory for the pool")]
    Map(#[from] MapError),
}

/// No buffer right now: back-pressure, not a failure.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("no buffer of {len} bytes is left for {class:?}")]
pub struct Exhausted {
    /// The account that asked.
    pub class: Class,
    /// Bytes asked for.
    pub len: usize,
}

/// The accounts at one moment.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct PoolStats {
    /// Bytes in the pool.
    pub size: u64,
    /// Bytes held, by [`Class::index`]; whole runs, so up to twice the lengths asked for.
    pub used: [u64; CLASSES],
    /// The most bytes ever held at once.
    pub peak: u64,
    /// Waiters now.
    pub waiting: u64,
    /// Calls of `allocate_wait` that had to wait, since the start.
    pub waits: u64,
    /// Calls of `allocate` that got nothing, since the start.
    pub exhausted: u64,
}

/// The memory that devices see, shared by all reactors; clones are handles of one pool.
///
/// The mapping is faulted in when the pool is made and stays as long as the pool or any buffer does.
#[derive(Clone)]
pub struct Pool(Arc<Shared>);

struct Shared {
    mapping: Mapping,
    backing: Backing,
    chunk: usize,
    ledger: Mutex<Ledger>,
}

impl Pool {
    /// Maps and faults in the memory; says once in the log what it is made of.
    pub fn new(config: PoolConfig) -> Result<Pool, PoolError> {
        let PoolConfig { size, chunk, hugepages } = config;
        // 64 TiB is what 32 bits of units can count.
        if !(MIN_SIZE..=(u64::from(u32::MAX) + 1 - u64::from(TOP_UNITS)) * UNIT as u64)
            .contains(&size)
        {
            return Err(PoolError::Size { size });
        }
        if !chunk.is_power_of_two() || !(UNIT as u64..=MAX_BUFFER as u64).contains(&chunk) {
            return Err(PoolError::Chunk { chunk });
        }
        let len = usize::try_from(size.next_multiple_of(MAX_BUFFER as u64))
            .map_err(|_| PoolError::Size { size })?;
        let (mapping, backing) = Mapping::new(len, hugepages, Sharing::No)?;
        match &backing {
            Backing::Ordinary { reason } if hugepages != Hugepages::Never => {
                tracing::warn!(size = len, %reason, "the DMA pool is made of ordinary pages");
            }
            _ => tracing::info!(size = len, %backing, "DMA pool"),
        }
        let ledger = Mutex::new(Ledger::new((len / UNIT) as u32));
        Ok(Pool(Arc::new(Shared { mapping, backing, chunk: chunk as usize, ledger })))
    }

    /// What the memory is made of.
    pub fn backing(&self) -> &Backing {
        &self.0.backing
    }

    /// The chunk length of the configuration, in bytes.
    pub fn chunk(&self) -> usize {
        self.0.chunk
    }

    /// A contiguous buffer of `len` bytes (1 byte to 4 MiB; anything else panics), aligned to 16 KiB.
    ///
    /// With its release it costs about 100 ns. [`Exhausted`] when the class has no right to more, others of the class wait,
    /// or no run is long enough.
    pub fn allocate(&self, class: Class, len: usize) -> Result<DmaBuf, Exhausted> {
        let run = self.ledger().allocate(class, order_of(len));
        run.map(|run| self.buffer(run, len)).ok_or(Exhausted { class, len })
    }

    /// A contiguous buffer as [`Pool::allocate`] gives it, as soon as there is one.
    ///
    /// First come, first served within a class, across reactors. Dropping the future gives up the place.
    pub fn allocate_wait(&self, class: Class, len: usize) -> AllocateWait {
        AllocateWait::new(self.clone(), class, len)
    }

    /// `count` buffers of `len` bytes, as soon as all of them are there.
    ///
    /// One place in the queue, like that of [`Pool::allocate_wait`]. As far as the reserve of the class
    /// goes it keeps those that were found while it waits for the others, beyond it none: so nobody
    /// who waits keeps from others what they could have.
    pub fn allocate_set(&self, class: Class, len: usize, count: usize) -> AllocateSet {
        AllocateSet::new(self.clone(), class, len, count)
    }

    /// The memory in stretches of at most [`crate::REGION`] bytes, in the order of their index, for
    /// registration with a device. They stay valid while this pool or a buffer of it is held.
    pub fn regions(&self) -> Vec<(NonNull<u8>, usize)> {
        self.0.mapping.regions()
    }

    /// Bytes that a class may come to have at one time while those in `keeping` keep what they have now:
    /// that, and what is kept back for others, it does not get. Who needs more need not wait for it.
    pub fn attainable(&self, class: Class, keeping: &[Class]) -> u64 {
        u64::from(self.ledger().attainable(class, keeping)) * UNIT as u64
    }

    /// The accounts at this moment.
    pub fn stats(&self) -> PoolStats {
        self.ledger().stats()
    }

    /// A panic with the lock held can only come from a broken invariant of the ledger, found before
    /// anything was changed for good; refusing everybody else would add nothing.
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.0.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn buffer(&self, run: Run, len: usize) -> DmaBuf {
        let start = self.0.mapping.at(run.unit as usize * UNIT);
        // SAFETY: the ledger handed out the run's units, which are `len` bytes or more, to nobody else,
        // and takes them back only when this buffer's home is dropped. The home holds the mapping.
        unsafe { DmaBuf::new(start, len, Home::Pool { pool: self.clone(), run: run.into() }) }
    }

    /// Gives back the run of a buffer that is dropped.
    pub(crate) fn release(&self, run: Run) {
        let mut wake = Vec::new();
        self.ledger().release(run, &mut wake);
        // Outside of the lock: a waker may run anything.
        wake.into_iter().for_each(Waker::wake);
    }

    /// Charges the run of a buffer to another account.
    pub(crate) fn charge(&self, run: &mut Run, class: Class) {
        let mut wake = Vec::new();
        self.ledger().charge(run, class, &mut wake);
        wake.into_iter().for_each(Waker::wake);
    }

    pub(crate) fn at_once(&self, class: Class, len: usize) -> Option<DmaBuf> {
        let run = self.ledger().at_once(class, order_of(len))?;
        Some(self.buffer(run, len))
    }

    pub(crate) fn begin_wait(
        &self,
        class: Class,
        len: usize,
        count: usize,
        waker: &Waker,
    ) -> Result<Vec<DmaBuf>, Ticket> {
        let runs = self.ledger().allocate_or_wait(class, order_of(len), count, waker)?;
        Ok(self.buffers(runs, len))
    }

    pub(crate) fn look(
        &self,
        class: Class,
        len: usize,
        ticket: Ticket,
        waker: &Waker,
    ) -> Option<Vec<DmaBuf>> {
        let runs = self.ledger().look(class, ticket, waker)?;
        Some(self.buffers(runs, len))
    }

    fn buffers(&self, runs: Vec<Run>, len: usize) -> Vec<DmaBuf> {
        runs.into_iter().map(|run| self.buffer(run, len)).collect()
    }

    pub(crate) fn cancel(&self, class: Class, ticket: Ticket) {
        let mut wake = Vec::new();
        self.ledger().cancel(class, ticket, &mut wake);
        wake.into_iter().for_each(Waker::wake);
    }

    pub(crate) fn mapping(&self) -> &Mapping {
        &self.0.mapping
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shared { backing, chunk, .. } = &*self.0;
        f.debug_struct("Pool")
            .field("backing", backing)
            .field("chunk", chunk)
            .finish_non_exhaustive()
    }
}

/// The order of the shortest run that holds `len` bytes.
pub(crate) fn order_of(len: usize) -> u8 {
    assert!(
        (1..=MAX_BUFFER).contains(&len),
        "a buffer of {len} bytes is outside of 1 byte to 4 MiB"
    );
    len.div_ceil(UNIT).next_power_of_two().trailing_zeros() as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn pool(size: u64) -> Pool {
        Pool::new(PoolConfig { size, chunk: 2 << 20, hugepages: Hugepages::Never }).unwrap()
    }

    #[test]
    fn lengths_round_up_to_runs() {
        for (len, order) in [(1, 0), (UNIT, 0), (UNIT + 1, 1), (3 * UNIT, 2), (MAX_BUFFER, 8)] {
            assert_eq!(order_of(len), order, "{len}");
        }
    }

    #[test]
    fn a_length_of_nothing_or_too_much_is_refused() {
        for len in [0, MAX_BUFFER + 1] {
            assert!(std::panic::catch_unwind(|| order_of(len)).is_err());
        }
    }

    #[test]
    fn configurations_are_checked() {
        let with = |size, chunk| {
            Pool::new(PoolConfig { size, chunk, hugepages: Hugepages::Never }).map(|_| ())
        };
        assert!(matches!(with(MIN_SIZE - 1, 2 << 20), Err(PoolError::Size { .. })));
        assert!(matches!(with(u64::MAX, 2 << 20), Err(PoolError::Size { .. })));
        assert!(matches!(with(MIN_SIZE, 3 << 20), Err(PoolError::Chunk { .. })));
        assert!(matches!(with(MIN_SIZE, 8 << 20), Err(PoolError::Chunk { .. })));
        assert!(with(MIN_SIZE + 1, 2 << 20).is_ok());
    }

    #[test]
    fn buffers_do_not_overlap_and_come_back() {
        let pool = pool(16 << 20);
        assert_eq!(pool.stats().size, 16 << 20);
        let mut buffers: Vec<_> = (0..8u8)
            .map(|i| {
                let mut b = pool.allocate(Class::Receive, 100_000 + usize::from(i)).unwrap();
                b.as_mut_slice().fill(i);
                b
            })
            .collect();
        assert_eq!(pool.stats().used[Class::Receive.index()], 8 * 128 * 1024);
        for (i, buffer) in buffers.iter().enumerate() {
            assert_eq!(buffer.len(), 100_000 + i);
            assert_eq!(buffer.as_ptr() as usize % UNIT, 0);
            assert!(buffer.as_slice().iter().all(|&b| usize::from(b) == i));
        }
        // Another account, for all handles: it has no share, and takes none away.
        let part = buffers[0].len();
        buffers[0].charge(Class::Drive);
        let lent = buffers.remove(0).freeze();
        let watch = lent.slice(3..4).watch();
        assert!(lent.is_pooled() && watch.is_held());
        lent.slice(0..part / 2).charge(Class::Lent);
        let used = pool.stats().used;
        assert_eq!(used[Class::Receive.index()], 7 * 128 * 1024);
        assert_eq!((used[Class::Lent.index()], used[Class::Drive.index()]), (128 * 1024, 0));
        drop(lent);
        assert!(!watch.is_held());
        assert_eq!(pool.stats().used[Class::Lent.index()], 0);
        // Shared handles keep the run until the last of them is gone.
        let shared = buffers.pop().unwrap().freeze();
        let part = shared.slice(10..20);
        drop((buffers, shared));
        assert_eq!(part.as_slice(), &[7; 10]);
        assert_eq!(pool.stats().used[Class::Receive.index()], 128 * 1024);
        drop(part);
        assert_eq!(pool.stats().used, [0; CLASSES]);
        assert_eq!(pool.stats().peak, 8 * 128 * 1024);
    }

    #[test]
    fn a_buffer_outlives_its_pool() {
        let pool = pool(8 << 20);
        let mut buffer = pool.allocate(Class::Send, UNIT).unwrap();
        drop(pool);
        buffer.as_mut_slice().fill(9);
        assert_eq!(buffer.freeze().as_slice(), [9; UNIT]);
    }

    #[test]
    fn regions_cover_the_pool_and_name_every_buffer() {
        let pool = pool(8 << 20);
        let regions = pool.regions();
        assert_eq!(regions.iter().map(|r| r.1).sum::<usize>(), 8 << 20);
        let held: Vec<_> =
            std::iter::from_fn(|| pool.allocate(Class::Receive, 1 << 20).ok()).collect();
        for buffer in &held {
            let (index, offset) = buffer.region();
            let (start, len) = regions[index];
            assert!(offset + buffer.len() <= len);
            assert_eq!(start.as_ptr() as usize + offset, buffer.as_ptr() as usize);
        }
        assert!(matches!(
            pool.allocate(Class::Receive, 1 << 20),
            Err(Exhausted { class: Class::Receive, len: 0x10_0000 })
        ));
        assert_eq!(pool.stats().exhausted, 2);
    }
}
