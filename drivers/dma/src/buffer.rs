//! The two shapes of a buffer: exclusive, and shared for reading.
//!
//! Both are a pointer, a length and a *home* that takes the memory back when the last holder is gone.
//! A driver that hands a buffer to a device keeps the `DmaBuf` or `DmaRef` itself until the device is
//! done, and takes only the raw pointer from it, so no reference exists meanwhile.

use std::cell::RefCell;
use std::fmt;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::arena::{Arena, Lend};
use crate::ledger::{Class, Run};
use crate::mapping::Mapping;
use crate::pool::Pool;

/// Where a buffer's memory goes back to.
pub(crate) enum Home {
    /// The lock is for the account that the run is charged to.
    Pool {
        pool: Pool,
        run: Mutex<Run>,
    },
    Arena {
        arena: Arena,
        lend: Lend,
    },
}

impl Home {
    fn mapping(&self) -> &Mapping {
        match self {
            Home::Pool { pool, .. } => pool.mapping(),
            Home::Arena { arena, .. } => arena.mapping(),
        }
    }

    fn charge(&self, class: Class) {
        if let Home::Pool { pool, run } = self {
            pool.charge(&mut run.lock().unwrap_or_else(PoisonError::into_inner), class);
        }
    }

    fn region(&self, start: NonNull<u8>) -> (usize, usize) {
        let offset = start.as_ptr() as usize - self.mapping().base().as_ptr() as usize;
        (offset / crate::REGION, offset % crate::REGION)
    }

    fn published(&self, start: NonNull<u8>) -> Option<(u32, u64)> {
        let Home::Arena { arena, .. } = self else { return None };
        let offset = start.as_ptr() as usize - self.mapping().base().as_ptr() as usize;
        Some((arena.number()?, offset as u64))
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        match self {
            Home::Pool { pool, run } => {
                pool.release(*run.get_mut().unwrap_or_else(PoisonError::into_inner));
            }
            Home::Arena { arena, lend } => arena.give_back(lend),
        }
    }
}

/// Counts of shared homes that a thread keeps for the next ones, at most.
const KEPT: usize = 4096;

thread_local! {
    static SPARE: RefCell<Vec<Arc<Option<Home>>>> = const { RefCell::new(Vec::new()) };
}

/// The home that the handles of one buffer share. What counts them is memory that is used again.
#[derive(Clone)]
struct SharedHome(Option<Arc<Option<Home>>>);

impl SharedHome {
    fn new(home: Home) -> SharedHome {
        let spare = SPARE.try_with(|spare| spare.borrow_mut().pop()).ok().flatten();
        let mut shared = spare.unwrap_or_default();
        *Arc::get_mut(&mut shared).expect("nobody else has what is kept") = Some(home);
        SharedHome(Some(shared))
    }

    fn get(&self) -> &Home {
        let shared = self.0.as_ref().expect("it is there until it is dropped");
        Option::as_ref(shared).expect("a home was put into it")
    }

    /// What is watched is not used for another home.
    fn watch(&self) -> Watch {
        Watch(Arc::downgrade(self.0.as_ref().expect("it is there until it is dropped")))
    }
}

impl Drop for SharedHome {
    /// Where two handles go at one moment on two threads, neither may be the last: the home goes all
    /// the same, and the count with it.
    fn drop(&mut self) {
        let Some(mut shared) = self.0.take() else { return };
        let Some(home) = Arc::get_mut(&mut shared) else { return };
        drop(home.take());
        let _ = SPARE.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            if spare.len() < KEPT {
                spare.push(shared);
            }
        });
    }
}

/// An exclusive buffer: its owner alone may read and write the memory, or hand it to one device.
///
/// The bytes are whatever the last owner left there.
// Begins as a `DmaRef` does, so that who has one of both finds its bytes without asking which it is.
#[repr(C)]
pub struct DmaBuf {
    start: NonNull<u8>,
    len: usize,
    capacity: usize,
    home: Home,
}

// SAFETY: a `DmaBuf` is the sole right to its bytes, which belong to no thread; the pool and the arena
// that take them back are shared by threads already.
unsafe impl Send for DmaBuf {}
// SAFETY: through `&DmaBuf` the bytes can only be read, and nobody writes them while it exists.
unsafe impl Sync for DmaBuf {}

impl DmaBuf {
    /// # Safety
    /// `start .. start + len`, and the whole run when it is from a pool, must be initialised memory that nobody else reads or writes until `home`
    /// is dropped, and that stays mapped until then.
    pub(crate) unsafe fn new(start: NonNull<u8>, len: usize, home: Home) -> DmaBuf {
        let capacity = match &home {
            Home::Pool { run, .. } => {
                crate::UNIT << run.lock().unwrap_or_else(PoisonError::into_inner).order
            }
            Home::Arena { .. } => len,
        };
        assert!(len <= capacity, "a buffer fits its run");
        DmaBuf { start, len, capacity, home }
    }

    /// Length in bytes: what was asked for, or set since.
    #[allow(clippy::len_without_is_empty, reason = "no buffer is empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Bytes that it can be set to hold: whole units from a pool, exactly what was lent from an arena.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Sets the length, so that a receive ends with the payload and a write covers whole sectors.
    ///
    /// # Panics
    /// When `len` is 0 or beyond the [capacity](Self::capacity).
    pub fn set_len(&mut self, len: usize) {
        assert!((1..=self.capacity).contains(&len), "1 to {} bytes, not {len}", self.capacity);
        self.len = len;
    }

    /// Charges it to another account of its pool; an arena has none.
    pub fn charge(&mut self, class: Class) {
        self.home.charge(class);
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: by `new` the memory is initialised, mapped and this buffer's alone; `&self` keeps
        // writers away as long as the slice lives.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    /// The bytes, to be written.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: by `new` the memory is initialised, mapped and this buffer's alone; `&mut self`
        // keeps everybody else away as long as the slice lives.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }

    /// Address of the first byte, for a device that reads. It is valid while this buffer is held.
    pub fn as_ptr(&self) -> *const u8 {
        self.start.as_ptr()
    }

    /// Address of the first byte, for a device that writes. It is valid while this buffer is held; as
    /// long as the device may write, the holder makes no slice of it.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Gives up the right to write: from now on any number of readers may hold the bytes.
    pub fn freeze(self) -> DmaRef {
        let DmaBuf { start, len, mut home, .. } = self;
        if let Home::Arena { arena, lend } = &mut home {
            arena.share(lend);
        }
        DmaRef { start, len, home: SharedHome::new(home) }
    }

    /// Which of the regions that were registered with a device it lies in, and at which offset in it.
    /// The numbers are those of the pool or arena it came from.
    pub fn region(&self) -> (usize, usize) {
        self.home.region(self.start)
    }
}

impl fmt::Debug for DmaBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DmaBuf { start, len, .. } = self;
        f.debug_struct("DmaBuf").field("start", start).field("len", len).finish_non_exhaustive()
    }
}

/// A shared, read-only buffer, or a part of one; the memory goes back when the last handle is gone.
#[derive(Clone)]
#[repr(C)]
pub struct DmaRef {
    start: NonNull<u8>,
    len: usize,
    home: SharedHome,
}

// SAFETY: while any handle exists nobody writes the bytes, so any thread may read them; the home is
// shared through an `Arc` and takes the memory back from whichever thread drops it last.
unsafe impl Send for DmaRef {}
// SAFETY: as above; `&DmaRef` gives nothing that `DmaRef` does not.
unsafe impl Sync for DmaRef {}

impl DmaRef {
    /// # Safety
    /// `start .. start + len`, and the whole run when it is from a pool, must be initialised memory that nobody writes until `home` is dropped,
    /// and that stays mapped until then.
    pub(crate) unsafe fn new(start: NonNull<u8>, len: usize, home: Home) -> DmaRef {
        DmaRef { start, len, home: SharedHome::new(home) }
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it is a part of no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: by `new` and `DmaBuf::freeze` the memory is initialised, mapped and not written
        // while a handle exists; `slice` only ever makes it shorter.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    /// Address of the first byte, for a device that reads. It is valid while this handle is held.
    pub fn as_ptr(&self) -> *const u8 {
        self.start.as_ptr()
    }

    /// A handle of a part of it; a range outside of it panics.
    pub fn slice(&self, range: Range<usize>) -> DmaRef {
        let Range { start, end } = range;
        assert!(start <= end && end <= self.len, "{start}..{end} is outside of {}", self.len);
        // SAFETY: just checked: at most one past the end of the same memory.
        let first = unsafe { self.start.add(start) };
        DmaRef { start: first, len: end - start, home: self.home.clone() }
    }

    /// Whether it is from a pool. From an arena it is only as long as its lender keeps the place.
    pub fn is_pooled(&self) -> bool {
        matches!(self.home.get(), Home::Pool { .. })
    }

    /// The number of the window in which others can read it, and where it begins in it; `None` where nobody
    /// was given one.
    pub fn published(&self) -> Option<(u32, u64)> {
        self.home.get().published(self.start)
    }

    /// Something to ask by whether the memory was given back.
    pub fn watch(&self) -> Watch {
        self.home.watch()
    }

    /// Charges the whole buffer, of which this may be a part, to another account of its pool; an arena
    /// has none.
    pub fn charge(&self, class: Class) {
        self.home.get().charge(class);
    }

    /// Which of the regions that were registered with a device it lies in, and at which offset in it.
    /// The numbers are those of the pool or arena it came from.
    pub fn region(&self) -> (usize, usize) {
        self.home.get().region(self.start)
    }
}

/// Tells whether memory is still held, and does not hold it.
#[derive(Clone)]
pub struct Watch(Weak<Option<Home>>);

impl Watch {
    /// Whether a handle of the memory exists; if not, it may be somebody else's by now.
    pub fn is_held(&self) -> bool {
        self.0.strong_count() > 0
    }
}

impl From<DmaBuf> for DmaRef {
    fn from(buffer: DmaBuf) -> DmaRef {
        buffer.freeze()
    }
}

impl fmt::Debug for DmaRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DmaRef { start, len, .. } = self;
        f.debug_struct("DmaRef").field("start", start).field("len", len).finish_non_exhaustive()
    }
}
