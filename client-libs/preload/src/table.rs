//! Which descriptors of the program are ours, and what this process knows.
//!
//! A look at a descriptor that is not ours is one load. Everything else is under one lock, which is never held
//! while memkv is talked to, and is free in the child of a fork: it is taken before and given back on both
//! sides. In the child the table is empty; in what vfork(2) makes, which has its parent's memory but another
//! process id, nobody is ours.

#![allow(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::ffi::c_int;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::files::{File, report};
use crate::memory;
use crate::prefix::Prefix;
use crate::store::Store;

/// Descriptors that can be ours are less than this.
pub(crate) const DESCRIPTORS: usize = 1 << 16;

static FILES: [AtomicPtr<File>; DESCRIPTORS] =
    [const { AtomicPtr::new(std::ptr::null_mut()) }; DESCRIPTORS];
/// No place from here on was ever used.
static USED: AtomicUsize = AtomicUsize::new(0);
/// The process whose table it is.
static OWNER: AtomicU32 = AtomicU32::new(0);
static LOCK: Mutex<Locked> = Mutex::new(Locked { directories: None });
/// How many directories are being read.
static DIRECTORIES: AtomicUsize = AtomicUsize::new(0);
static STATE: OnceLock<Option<State>> = OnceLock::new();

struct Locked {
    /// Streams of directories that are ours, by their address.
    directories: Option<HashSet<usize>>,
}

/// What does not change.
pub(crate) struct State {
    /// Which paths are ours.
    pub prefix: Prefix,
    /// What is behind them.
    pub store: Store,
}

thread_local! {
    /// Whether this thread is in here already.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
    /// The lock, while this thread forks.
    static FORKING: RefCell<Option<MutexGuard<'static, Locked>>> = const { RefCell::new(None) };
}

/// While it lives, what this thread calls goes to libc.
pub(crate) struct Inside(());

impl Inside {
    /// `None` when this thread is in here already.
    pub fn enter() -> Option<Inside> {
        (!INSIDE.replace(true)).then_some(Inside(()))
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        INSIDE.set(false);
    }
}

/// What there is, if the variable says that anything is ours.
#[inline]
pub(crate) fn state() -> Option<&'static State> {
    STATE.get_or_init(begin).as_ref()
}

fn begin() -> Option<State> {
    use std::os::unix::ffi::OsStrExt;
    let text = std::env::var_os("MEMKV_PRELOAD_PREFIX").filter(|text| !text.is_empty())?;
    let Some(prefix) = Prefix::new(text.as_bytes()) else {
        report(
            text.as_bytes(),
            "MEMKV_PRELOAD_PREFIX must be an absolute path: nothing is redirected",
        );
        return None;
    };
    OWNER.store(std::process::id(), Ordering::Relaxed);
    // SAFETY: the three are functions of this library, which is never unloaded.
    unsafe { libc::pthread_atfork(Some(before_fork), Some(after_fork), Some(in_child)) };
    Some(State { prefix, store: Store::new() })
}

extern "C" fn before_fork() {
    FORKING.with(|forking| *forking.borrow_mut() = Some(lock()));
}

extern "C" fn after_fork() {
    FORKING.with(|forking| drop(forking.borrow_mut().take()));
}

extern "C" fn in_child() {
    // The files are the parent's, and so is the memory behind these pointers.
    for file in &FILES[..USED.load(Ordering::Relaxed)] {
        file.store(std::ptr::null_mut(), Ordering::Relaxed);
    }
    OWNER.store(std::process::id(), Ordering::Relaxed);
    after_fork();
}

fn lock() -> MutexGuard<'static, Locked> {
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a descriptor may be ours: all that others pay.
#[inline]
pub(crate) fn may_be(fd: c_int) -> bool {
    let file = usize::try_from(fd).ok().and_then(|fd| FILES.get(fd));
    file.is_some_and(|file| !file.load(Ordering::Acquire).is_null())
}

/// The file of a descriptor, if it is ours.
pub(crate) fn get(fd: c_int) -> Option<Arc<File>> {
    if !may_be(fd) || OWNER.load(Ordering::Relaxed) != std::process::id() {
        return None;
    }
    let locked = lock();
    let file = shared(fd, &locked)?;
    if memory::identity(fd).is_ok_and(|identity| identity == file.identity) {
        return Some(file);
    }
    // Somebody closed it behind our back, and another file may have its number.
    let stale = taken(fd, &locked);
    drop(locked);
    drop(file);
    lost(stale);
    None
}

/// A file whose descriptor went by a way that was not seen. With it went what was not stored.
fn lost(file: Option<Arc<File>>) {
    if let Some(file) = file.filter(|file| Arc::strong_count(file) == 1) {
        file.lost();
    }
}

fn shared(fd: c_int, _: &MutexGuard<'_, Locked>) -> Option<Arc<File>> {
    let file = FILES.get(usize::try_from(fd).ok()?)?.load(Ordering::Acquire);
    // SAFETY: what stands in the table came from an `Arc` that belongs to the table, and is taken out of it
    // only under the lock, which is held.
    (!file.is_null()).then(|| unsafe {
        Arc::increment_strong_count(file);
        Arc::from_raw(file)
    })
}

fn taken(fd: c_int, _: &MutexGuard<'_, Locked>) -> Option<Arc<File>> {
    let place = FILES.get(usize::try_from(fd).ok()?)?;
    let file = place.swap(std::ptr::null_mut(), Ordering::AcqRel);
    // SAFETY: the `Arc` belonged to the table, and does not any more.
    (!file.is_null()).then(|| unsafe { Arc::from_raw(file) })
}

/// Makes a descriptor that of a file. False when its number is too large.
pub(crate) fn put(fd: c_int, file: Arc<File>) -> bool {
    let Some(at) = usize::try_from(fd).ok().filter(|at| *at < DESCRIPTORS) else { return false };
    let locked = lock();
    let stale = taken(fd, &locked);
    FILES[at].store(Arc::into_raw(file).cast_mut(), Ordering::Release);
    USED.fetch_max(at + 1, Ordering::Relaxed);
    drop(locked);
    lost(stale);
    true
}

/// Makes a descriptor nobody's; its file, and whether this was the last of it. Two threads that close the last
/// two at one time do not both get false.
pub(crate) fn take(fd: c_int) -> Option<(Arc<File>, bool)> {
    let file = get(fd)?;
    let locked = lock();
    let taken = taken(fd, &locked)?;
    let same =
        |place: &AtomicPtr<File>| place.load(Ordering::Relaxed).cast_const() == Arc::as_ptr(&file);
    let last = !FILES[..USED.load(Ordering::Relaxed)].iter().any(same);
    Some((taken, last))
}

/// All files of this process that are open for writing, each with a descriptor.
pub(crate) fn writers() -> Vec<(c_int, Arc<File>)> {
    if OWNER.load(Ordering::Relaxed) != std::process::id() {
        return Vec::new();
    }
    let locked = lock();
    let all = (0..USED.load(Ordering::Relaxed)).filter_map(|fd| {
        let fd = fd as c_int;
        Some((fd, shared(fd, &locked)?))
    });
    all.filter(|(_, file)| file.writable).collect()
}

/// Descriptors between these two that may be ours.
pub(crate) fn descriptors(first: u32, last: u32) -> Vec<c_int> {
    let used = USED.load(Ordering::Relaxed) as u32;
    (first..last.saturating_add(1).min(used))
        .map(|fd| fd as c_int)
        .filter(|fd| may_be(*fd))
        .collect()
}

/// Makes an address that of a directory's stream.
pub(crate) fn put_directory(address: usize) {
    lock().directories.get_or_insert_default().insert(address);
    DIRECTORIES.fetch_add(1, Ordering::Release);
}

/// Whether an address is that of a directory's stream of ours.
#[inline]
pub(crate) fn is_directory(address: usize) -> bool {
    DIRECTORIES.load(Ordering::Acquire) > 0
        && lock().directories.as_ref().is_some_and(|known| known.contains(&address))
}

/// Forgets the stream of a directory; whether it was one.
pub(crate) fn take_directory(address: usize) -> bool {
    let known = is_directory(address);
    if known && lock().directories.as_mut().is_some_and(|known| known.remove(&address)) {
        DIRECTORIES.fetch_sub(1, Ordering::Release);
    }
    known
}
