//! The commands of a queue whose driver ends them on the reactor that gave them: a table without
//! locks, and without a count that threads share.
//!
//! ```text
//!   give ─► Pending ── end ──► Done ── the caller takes what was done ──────────► free
//!              │ └─ the caller goes ──► Orphan ── end ──► free, its buffer is dropped
//!              └─ abandon ──► Abandoned ── the caller is told ──► Orphan
//!                                 └─ end ──► Done, without the buffer
//! ```
//!
//! A buffer lies in the table from the moment that its command was given until its end, so a driver
//! needs nothing but what it was [`Given`] in its own tables. Slots are used again; there are as many as
//! there were ever commands at once that somebody still cared for. A slot stays where it is and is
//! shared by the two who have its command, driver and caller, so both go straight to it: all in it are
//! cells, and nothing of it is ever borrowed. The table may go before them; then a slot goes with the
//! last of both.
//!
//! **Who looks after them.** Whoever has to see that commands end in time ([`Commands::on_begin`]) is called
//! with the first command after a [rest](Commands::rest), and looks for as long as there are any: so
//! one that is watched costs no more than one that is not.
//!
//! A driver that holds something while commands end gathers whom to wake, and what to drop, in [`Told`]
//! and tells when it holds nothing any more.

use std::cell::{Cell, OnceCell, RefCell};
use std::ptr::NonNull;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Waker};

use crate::completion::Completion;
use crate::watch::Ended;
use crate::{Done, IoBuf, IoError};

/// A command as its driver has it, which is to end it: there is one of each.
#[derive(PartialEq, Eq, Debug)]
#[must_use = "whoever gave the command waits for its end"]
pub struct Given(SlotRef);

/// A place for a command that nobody has given yet.
pub struct Vacancy<'a> {
    table: &'a Table,
    slot: NonNull<Slot>,
}

/// A slot, for one of the two who have its command.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct SlotRef(NonNull<Slot>);

/// Who has the command.
#[derive(Copy, Clone, PartialEq, Eq, Default, Debug)]
enum Phase {
    #[default]
    Free,
    /// The driver has it and the caller waits.
    Pending,
    /// The driver has it; the caller is not interested any more.
    Orphan,
    /// The driver has it; the caller is told that it failed.
    Abandoned,
    /// It is done, and the caller has not been told.
    Done,
}

struct Slot {
    /// None once that has gone.
    table: Cell<Option<NonNull<Table>>>,
    /// The next one that is free, if it is.
    next: Cell<Option<NonNull<Slot>>>,
    /// Commands given before it.
    number: Cell<u64>,
    waker: Cell<Option<Waker>>,
    /// The driver's until it has ended the command, then the caller's.
    buf: Cell<Option<IoBuf>>,
    error: Cell<Option<IoError>>,
    phase: Cell<Phase>,
}

/// The gates of those that rest, and of those that are not watched.
static SHUT: AtomicU8 = AtomicU8::new(1);
static OPEN: AtomicU8 = AtomicU8::new(0);

struct Table {
    free: Cell<Option<NonNull<Slot>>>,
    given: Cell<u64>,
    /// Nobody looks after them, for there are none.
    resting: Cell<bool>,
    /// Whether the drive is not asked any more, if it is watched.
    ended: OnceCell<Arc<Ended>>,
    /// What is 0 when neither of the two is so: the one to be looked at now.
    gate: Cell<NonNull<AtomicU8>>,
    /// All of them, free or not.
    slots: RefCell<Vec<NonNull<Slot>>>,
    begin: RefCell<Vec<Box<dyn Fn()>>>,
}

/// The commands of one queue. For drivers.
#[derive(Clone)]
pub struct Commands(Rc<Table>);

/// The same, for whoever does not keep it.
pub(crate) struct WeakCommands(Weak<Table>);

/// Whom to wake, and what to drop, when nothing is borrowed any more. For drivers.
#[derive(Default)]
pub struct Told {
    wakers: Vec<Waker>,
    buffers: Vec<IoBuf>,
}

impl Told {
    /// Room for the ends of so many commands at a time; for more it grows.
    pub fn with_capacity(ends: usize) -> Told {
        Told { wakers: Vec::with_capacity(ends), buffers: Vec::with_capacity(ends) }
    }

    /// Wakes those who wait, in the order of the ends.
    pub fn tell(&mut self) {
        self.wakers.drain(..).for_each(Waker::wake);
        self.buffers.clear();
    }
}

impl Table {
    #[inline(always)]
    fn vacancy(&self) -> Option<Vacancy<'_>> {
        let free = self.free.get()?;
        // SAFETY: as in `each`.
        self.free.set(unsafe { free.as_ref() }.next.get());
        Some(Vacancy { table: self, slot: free })
    }

    #[cold]
    fn grow(&self) -> NonNull<Slot> {
        let slot = Slot {
            table: Cell::new(Some(NonNull::from(self))),
            next: Cell::new(None),
            number: Cell::new(0),
            waker: Cell::new(None),
            buf: Cell::new(None),
            error: Cell::new(None),
            phase: Cell::new(Phase::Free),
        };
        let slot = NonNull::from(Box::leak(Box::new(slot)));
        self.slots.borrow_mut().push(slot);
        slot
    }

    /// Looks at all slots, in which nobody changes anything that is borrowed meanwhile.
    fn each(&self, mut look: impl FnMut(&Slot)) {
        for slot in self.slots.borrow().iter() {
            // SAFETY: the slots of a table are there as long as it is. They hold cells alone, and this
            // thread is the only one that knows them.
            look(unsafe { slot.as_ref() });
        }
    }
}

impl Drop for Table {
    /// What somebody still has stays for as long as that.
    fn drop(&mut self) {
        for slot in self.slots.get_mut().drain(..) {
            // SAFETY: as in `each`.
            let held = unsafe { slot.as_ref() };
            if held.phase.get() == Phase::Free {
                // SAFETY: it was leaked from a box when it was made. Nobody but the table has a slot that is
                // free, and the table, which goes, does not have it any more.
                drop(unsafe { Box::from_raw(slot.as_ptr()) });
            } else {
                held.table.set(None);
            }
        }
    }
}

impl SlotRef {
    #[inline(always)]
    fn slot(&self) -> &Slot {
        // SAFETY: a slot is there while its table is, and else while it is not free. Driver and caller
        // have their references from when it was taken until one of them has freed it, who is the last
        // of both and uses up its own by that; neither is sent to another thread.
        unsafe { self.0.as_ref() }
    }

    /// Nobody has it any more.
    #[inline(always)]
    fn free(&self) {
        let slot = self.slot();
        slot.phase.set(Phase::Free);
        let Some(table) = slot.table.get() else {
            // SAFETY: it was leaked from a box when it was made; its table has gone without it, and who had
            // its command is done with it.
            return drop(unsafe { Box::from_raw(self.0.as_ptr()) });
        };
        // SAFETY: a table that goes takes itself out of its slots.
        let table = unsafe { table.as_ref() };
        slot.next.set(table.free.replace(Some(self.0)));
    }

    /// Whether the driver still has it; then who asks is woken when it is done.
    #[inline(always)]
    pub fn is_pending(&self, cx: &mut Context<'_>) -> bool {
        let slot = self.slot();
        if slot.phase.get() != Phase::Pending {
            return false;
        }
        // SAFETY: nothing is borrowed but to compare two pointers, by which nobody comes here.
        match unsafe { &*slot.waker.as_ptr() } {
            Some(waker) if waker.will_wake(cx.waker()) => {}
            Some(_) => slot.waker.set(Some(cx.waker().clone())),
            None => {
                let waker = Some(cx.waker().clone());
                // SAFETY: in place of `None`, or of what a waker left that came here to be cloned: that
                // is not dropped then.
                unsafe { slot.waker.as_ptr().write(waker) };
            }
        }
        true
    }

    /// What was done; it is told once.
    pub fn take(self) -> Done {
        let slot = self.slot();
        if slot.phase.get() != Phase::Done {
            return slot.told_of_abandoning();
        }
        let buf = slot.buf.take();
        let result = slot.error.take().map_or(Ok(()), Err);
        self.free();
        Done { result, buf }
    }

    /// The caller is not interested any more.
    #[cold]
    pub fn forsake(self) {
        let slot = self.slot();
        let waker = slot.waker.take();
        let error = slot.error.take();
        let mut buf = None;
        match slot.phase.get() {
            Phase::Pending | Phase::Abandoned => slot.phase.set(Phase::Orphan),
            Phase::Done => {
                buf = slot.buf.take();
                self.free();
            }
            phase => panic!("a command that is {phase:?} has no caller"),
        }
        // The buffer goes back to its pool here, which may wake others: nothing is used any more.
        drop((waker, buf, error));
    }
}

impl Vacancy<'_> {
    /// The command, whose buffer, if there is one, is taken: for the driver, and its end for the caller.
    #[inline(always)]
    pub fn give(self, buf: &mut Option<IoBuf>) -> (Given, Completion) {
        let Vacancy { table, slot: at } = self;
        std::mem::forget(self);
        // SAFETY: as in `Table::each`.
        let slot = unsafe { at.as_ref() };
        let number = table.given.get();
        table.given.set(number + 1);
        slot.number.set(number);
        slot.phase.set(Phase::Pending);
        // As an assignment it would be moved by way of the stack, and what is overwritten be looked at.
        // SAFETY: two places of which the one is not in the other. The slot was free: it holds `None`, which
        // is not dropped by being overwritten, and each place has its own value afterwards.
        unsafe {
            std::ptr::copy_nonoverlapping(buf, slot.buf.as_ptr(), 1);
            std::ptr::write(buf, None);
        }
        (Given(SlotRef(at)), Completion::of_slot(SlotRef(at)))
    }
}

impl Drop for Vacancy<'_> {
    fn drop(&mut self) {
        SlotRef(self.slot).free();
    }
}

impl Slot {
    #[cold]
    fn told_of_abandoning(&self) -> Done {
        let phase = self.phase.get();
        assert!(phase == Phase::Abandoned, "a command that is {phase:?} has no caller");
        self.phase.set(Phase::Orphan);
        let error = self.error.take().expect("why it was abandoned");
        Done { result: Err(error), buf: None }
    }
}

impl Given {
    /// The command was done.
    pub fn end(self, told: &mut Told) {
        let slot = self.0.slot();
        if slot.phase.get() != Phase::Pending {
            return self.end_unwanted(told);
        }
        slot.phase.set(Phase::Done);
        told.wakers.extend(slot.waker.take());
    }

    /// The command was done, and the driver holds nothing by which a caller could come to it.
    #[inline(always)]
    pub fn end_now(self) {
        let slot = self.0.slot();
        if slot.phase.get() != Phase::Pending {
            return self.end_unwanted_now();
        }
        slot.phase.set(Phase::Done);
        if let Some(waker) = slot.waker.take() {
            waker.wake();
        }
    }

    #[cold]
    fn end_unwanted_now(self) {
        let mut told = Told::default();
        self.end_unwanted(&mut told);
        told.tell();
    }

    /// The driver ends what nobody waits for.
    #[cold]
    fn end_unwanted(self, told: &mut Told) {
        let slot = self.0.slot();
        told.buffers.extend(slot.buf.take());
        match slot.phase.get() {
            Phase::Abandoned => slot.phase.set(Phase::Done),
            Phase::Orphan => self.0.free(),
            phase => panic!("a command that is {phase:?} cannot end"),
        }
    }

    /// The command was not done.
    #[cold]
    pub fn fail(self, error: IoError, told: &mut Told) {
        let slot = self.0.slot();
        if slot.phase.get() == Phase::Pending {
            slot.error.set(Some(error));
        }
        self.end(told);
    }

    /// The same, and nobody knows whether the device still uses its buffer, which is leaked.
    #[cold]
    pub fn leak(self, error: IoError, told: &mut Told) {
        std::mem::forget(self.0.slot().buf.take());
        self.fail(error, told);
    }
}

impl Commands {
    /// A table with room for so many commands at once; for more it grows.
    pub fn with_capacity(commands: usize) -> Commands {
        let table = Rc::new(Table {
            free: Cell::new(None),
            given: Cell::new(0),
            resting: Cell::new(true),
            ended: OnceCell::new(),
            gate: Cell::new(NonNull::from(&SHUT)),
            slots: RefCell::new(Vec::with_capacity(commands)),
            begin: RefCell::default(),
        });
        (0..commands).for_each(|_| drop(Vacancy { table: &table, slot: table.grow() }));
        Commands(table)
    }

    pub(crate) fn downgrade(&self) -> WeakCommands {
        WeakCommands(Rc::downgrade(&self.0))
    }

    /// Calls `begin` with the first command after each [rest](Self::rest), on the way of whoever gives it,
    /// while the driver may be borrowed: it starts a task and does nothing else.
    pub fn on_begin(&self, begin: impl Fn() + 'static) {
        self.0.begin.borrow_mut().push(Box::new(begin));
    }

    /// The driver has no command, or whoever looks after them found none: nobody looks until there is one.
    pub fn rest(&self) {
        self.0.resting.set(true);
        self.set_gate();
    }

    #[cold]
    fn begin(&self) {
        self.0.resting.set(false);
        self.set_gate();
        self.0.begin.borrow().iter().for_each(|begin| begin());
    }

    /// The drive behind this is watched; `ended` tells when it is not asked any more.
    pub(crate) fn watch(&self, ended: Arc<Ended>) {
        assert!(self.0.ended.set(ended).is_ok(), "a queue is watched once");
        self.set_gate();
    }

    fn set_gate(&self) {
        let ended = self.0.ended.get().map_or(&OPEN, |ended| ended.flag());
        self.0.gate.set(NonNull::from(if self.0.resting.get() { &SHUT } else { ended }));
    }

    /// A place for the next command, if that may simply be given: somebody looks after those that there
    /// are, nothing is [refused](Commands::refusal), and no memory has to be asked for.
    #[inline(always)]
    pub fn vacancy(&self) -> Option<Vacancy<'_>> {
        let table = &*self.0;
        // SAFETY: a static, or in what is kept in `ended` for as long as the table is there.
        if unsafe { table.gate.get().as_ref() }.load(Ordering::Acquire) != 0 {
            return None;
        }
        table.vacancy()
    }

    /// Why nothing is to reach the drive any more, if so: what is submitted now ends like that.
    pub fn refusal(&self) -> Option<IoError> {
        match self.0.ended.get() {
            Some(ended) if ended.is_so() => Some(ended.error()),
            _ => None,
        }
    }

    /// Whether the driver has none.
    pub(crate) fn is_empty(&self) -> bool {
        let mut empty = true;
        self.0.each(|slot| empty &= matches!(slot.phase.get(), Phase::Free | Phase::Done));
        empty
    }

    /// How many commands there have been.
    pub(crate) fn given(&self) -> u64 {
        self.0.given.get()
    }

    /// A new command, whose buffer, if there is one, is taken: for the driver, and its end for the caller.
    pub fn give(&self, buf: &mut Option<IoBuf>) -> (Given, Completion) {
        if self.0.resting.get() {
            self.begin();
        }
        let table = &*self.0;
        let vacancy = table.vacancy();
        vacancy.unwrap_or_else(|| Vacancy { table, slot: table.grow() }).give(buf)
    }

    /// Ends every command for which somebody still waits, while the driver has it: its buffer is dropped
    /// when the driver is done with it.
    pub(crate) fn abandon_all(&self, error: impl Fn() -> IoError) {
        let mut told = Told::default();
        self.0.each(|slot| {
            if slot.phase.get() == Phase::Pending {
                slot.phase.set(Phase::Abandoned);
                slot.error.set(Some(error()));
                told.wakers.extend(slot.waker.take());
            }
        });
        told.tell();
    }

    /// The command given first of those that the driver has and somebody waits for, by its number.
    pub(crate) fn oldest(&self) -> Option<u64> {
        let mut oldest = None;
        self.0.each(|slot| {
            if slot.phase.get() == Phase::Pending {
                let number = slot.number.get();
                oldest = Some(oldest.map_or(number, |oldest: u64| oldest.min(number)));
            }
        });
        oldest
    }
}

impl WeakCommands {
    pub fn upgrade(&self) -> Option<Commands> {
        self.0.upgrade().map(Commands)
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::task::{Poll, Wake};

    use memkv_dma::{Class, Hugepages, Pool, PoolConfig};

    use super::*;

    #[derive(Default)]
    struct Wakes(AtomicU32);

    impl Wake for Wakes {
        fn wake(self: Arc<Wakes>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    struct Bench {
        commands: Commands,
        pool: Pool,
        told: Told,
        wakes: Arc<Wakes>,
    }

    impl Bench {
        fn new() -> Bench {
            let config = PoolConfig { size: 8 << 20, chunk: 2 << 20, hugepages: Hugepages::Never };
            let pool = Pool::new(config).unwrap();
            let commands = Commands::with_capacity(1);
            Bench { commands, pool, told: Told::default(), wakes: Arc::default() }
        }

        fn give(&self) -> (Given, Completion) {
            let buffer = self.pool.allocate(Class::Receive, 4096).unwrap();
            self.commands.give(&mut Some(buffer.into()))
        }

        fn poll(&self, completion: &mut Completion) -> Option<Done> {
            let waker = Waker::from(Arc::clone(&self.wakes));
            match Pin::new(completion).poll(&mut Context::from_waker(&waker)) {
                Poll::Ready(done) => Some(done),
                Poll::Pending => None,
            }
        }

        fn wakes(&self) -> u32 {
            self.wakes.0.load(Ordering::Relaxed)
        }

        fn used(&self) -> u64 {
            self.pool.stats().used.iter().sum()
        }

        fn slots(&self) -> (usize, usize) {
            let (mut slots, mut free) = (0, 0);
            self.commands.0.each(|slot| {
                slots += 1;
                free += usize::from(slot.phase.get() == Phase::Free);
            });
            (slots, free)
        }
    }

    #[test]
    fn what_is_done_is_told_once_and_its_slot_is_used_again() {
        let mut bench = Bench::new();
        for round in 1..=3 {
            let (id, mut completion) = bench.give();
            assert!(bench.poll(&mut completion).is_none());
            assert!(bench.poll(&mut completion).is_none());
            id.end(&mut bench.told);
            assert_eq!(bench.wakes(), round - 1, "not while something is borrowed");
            bench.told.tell();
            assert_eq!(bench.wakes(), round);
            let done = bench.poll(&mut completion).expect("it was done");
            assert!(done.result.is_ok() && done.buf.is_some());
            assert_eq!(bench.slots(), (1, 1));
        }
        assert_eq!(bench.used(), 0);
    }

    #[test]
    #[should_panic(expected = "after its end")]
    fn what_was_told_is_not_told_again() {
        let mut bench = Bench::new();
        let (id, mut completion) = bench.give();
        id.end(&mut bench.told);
        assert!(bench.poll(&mut completion).is_some());
        bench.poll(&mut completion);
    }

    #[test]
    fn a_failure_comes_with_the_buffer_or_leaks_it() {
        let mut bench = Bench::new();
        let ((one, mut first), (two, mut second)) = (bench.give(), bench.give());
        one.fail(IoError::Offline, &mut bench.told);
        two.leak(IoError::Offline, &mut bench.told);
        let done = bench.poll(&mut first).unwrap();
        assert!(matches!(done.result, Err(IoError::Offline)) && done.buf.is_some());
        drop(done);
        let done = bench.poll(&mut second).unwrap();
        assert!(matches!(done.result, Err(IoError::Offline)) && done.buf.is_none());
        assert_eq!(bench.used(), 16384, "what was leaked is never used again");
    }

    #[test]
    fn a_buffer_whose_caller_went_is_dropped_when_the_driver_is_done_with_it() {
        let mut bench = Bench::new();
        let (id, mut completion) = bench.give();
        assert!(bench.poll(&mut completion).is_none());
        drop(completion);
        assert_eq!((bench.commands.oldest(), bench.used()), (None, 16384));
        id.end(&mut bench.told);
        assert_eq!(bench.used(), 16384, "not while something is borrowed");
        bench.told.tell();
        assert_eq!((bench.used(), bench.wakes(), bench.slots()), (0, 0, (1, 1)));
        // And one that goes when it is done already.
        let (id, completion) = bench.give();
        id.end(&mut bench.told);
        drop(completion);
        assert_eq!((bench.used(), bench.slots()), (0, (1, 1)));
    }

    #[test]
    fn abandoned_commands_keep_their_buffers_until_the_driver_is_done() {
        let mut bench = Bench::new();
        let ((one, mut first), (two, mut second)) = (bench.give(), bench.give());
        assert_eq!(bench.commands.oldest(), Some(0));
        assert!(bench.poll(&mut first).is_none());
        bench.commands.abandon_all(|| IoError::Offline);
        assert_eq!((bench.wakes(), bench.commands.oldest()), (1, None));
        // One is told before the driver is done, one after.
        let done = bench.poll(&mut first).unwrap();
        assert!(matches!(done.result, Err(IoError::Offline)) && done.buf.is_none());
        one.end(&mut bench.told);
        two.end(&mut bench.told);
        assert_eq!(bench.used(), 2 * 16384);
        bench.told.tell();
        assert_eq!(bench.used(), 0);
        let done = bench.poll(&mut second).unwrap();
        assert!(matches!(done.result, Err(IoError::Offline)) && done.buf.is_none());
        assert_eq!(bench.slots(), (2, 2));
    }

    #[test]
    fn a_command_outlives_its_table() {
        let mut bench = Bench::new();
        let ((one, mut first), (two, second)) = (bench.give(), bench.give());
        let (three, third) = bench.give();
        assert!(bench.poll(&mut first).is_none());
        three.end(&mut bench.told);
        bench.commands = Commands::with_capacity(0);
        one.end(&mut bench.told);
        bench.told.tell();
        assert_eq!(bench.wakes(), 1);
        let done = bench.poll(&mut first).expect("it was done");
        assert!(done.result.is_ok() && done.buf.is_some());
        drop((done, second, third));
        assert_eq!(bench.used(), 16384, "the driver has one of them");
        two.end(&mut bench.told);
        bench.told.tell();
        assert_eq!(bench.used(), 0);
    }

    #[test]
    fn a_place_that_is_not_used_stays_free() {
        let bench = Bench::new();
        assert!(bench.commands.vacancy().is_none(), "nobody looks after what there would be");
        let (given, completion) = bench.give();
        assert!(bench.commands.vacancy().is_none(), "there was room for one");
        given.end(&mut Told::default());
        drop(completion);
        drop(bench.commands.vacancy().expect("it is free again"));
        let (_given, completion) = bench.commands.vacancy().expect("still").give(&mut None);
        assert_eq!(bench.slots(), (1, 0));
        drop(completion);
        bench.commands.watch(Arc::new(Ended::new(std::time::Duration::ZERO)));
        bench.commands.rest();
        assert!(bench.commands.vacancy().is_none(), "nobody looks after them any more");
    }

    #[test]
    #[should_panic(expected = "cannot end")]
    fn a_command_ends_once() {
        let mut bench = Bench::new();
        let (given, _completion) = bench.give();
        // What the compiler keeps drivers from.
        let again = Given(SlotRef(given.0.0));
        given.end(&mut bench.told);
        again.end(&mut bench.told);
    }
}
