//! A drive whose content is cheap to copy, and the tape on which all drives write what they are
//! asked.
//!
//! An [`Image`] shares its pages with the images it was copied from until they are written, so a
//! crash state costs the pages in which it differs. While a [`Tape`] is in a drive, writes and
//! flushes wait until they are let go one by one, and the tape knows the order of it all.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use memkv_block::{
    BlockQueue, Completer, Completion, Done, Geometry, Io, IoBuf, IoError, Op, completion,
};

/// Bytes of a page of an image.
pub const PAGE: usize = 4096;
/// Bytes that a drive writes whole or not at all.
pub const SECTOR: usize = 512;

struct Page {
    bytes: [u8; PAGE],
    /// Of the bytes; 0 is not known yet.
    digest: Cell<u64>,
}

/// What a drive holds. Copies share what they have in common.
#[derive(Clone)]
pub struct Image {
    /// `None` is zeros.
    pages: Vec<Option<Rc<Page>>>,
}

/// A number that two different inputs hardly share.
pub fn mix(state: u64, value: u64) -> u64 {
    let product =
        u128::from(state ^ 0x9E37_79B9_7F4A_7C15) * u128::from(value ^ 0xD6E8_FEB8_6659_FD93);
    (product as u64) ^ (product >> 64) as u64 ^ value.rotate_left(31)
}

impl Page {
    fn digest(&self) -> u64 {
        if self.digest.get() == 0 {
            let words = self.bytes.chunks_exact(8);
            let word = |w: &[u8]| u64::from_le_bytes(w.try_into().expect("eight bytes"));
            self.digest.set(words.fold(1, |sum, w| mix(sum, word(w))).max(1));
        }
        self.digest.get()
    }
}

impl Image {
    /// Zeros; `bytes` is a multiple of [`PAGE`].
    pub fn new(bytes: u64) -> Image {
        Image { pages: vec![None; bytes as usize / PAGE] }
    }

    /// Fills `into` from an offset on.
    pub fn read(&self, offset: u64, into: &mut [u8]) {
        let mut at = offset as usize;
        let mut rest = into;
        while !rest.is_empty() {
            let from = at % PAGE;
            let (part, after) = rest.split_at_mut(rest.len().min(PAGE - from));
            match &self.pages[at / PAGE] {
                Some(page) => part.copy_from_slice(&page.bytes[from..from + part.len()]),
                None => part.fill(0),
            }
            at += part.len();
            rest = after;
        }
    }

    /// Writes at an offset.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        let (mut at, mut rest) = (offset as usize, bytes);
        while !rest.is_empty() {
            let from = at % PAGE;
            let (part, after) = rest.split_at(rest.len().min(PAGE - from));
            let place = &mut self.pages[at / PAGE];
            let mut fresh = match place.take() {
                Some(page) => Rc::try_unwrap(page)
                    .unwrap_or_else(|page| Page { bytes: page.bytes, digest: Cell::new(0) }),
                None => Page { bytes: [0; PAGE], digest: Cell::new(0) },
            };
            fresh.digest.set(0);
            fresh.bytes[from..from + part.len()].copy_from_slice(part);
            *place = Some(Rc::new(fresh));
            at += part.len();
            rest = after;
        }
    }

    /// A digest of the content.
    pub fn digest(&self) -> u64 {
        let of = |(index, page): (usize, &Option<Rc<Page>>)| {
            page.as_ref().map_or(0, |page| mix(index as u64 + 1, page.digest()))
        };
        self.pages.iter().enumerate().map(of).fold(0, u64::wrapping_add)
    }
}

/// A write as it was asked for.
pub struct Write {
    /// Which drive.
    pub drive: usize,
    /// First byte on it.
    pub offset: u64,
    /// What.
    pub data: Rc<[u8]>,
    /// Place on the tape where it was asked for.
    pub submitted: usize,
}

/// What happens to drives, in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// A write, by its number, is asked for.
    Submit(usize),
    /// It is done.
    Complete(usize),
    /// A flush of a drive is asked for; its number.
    FlushBegin { drive: usize, flush: usize },
    /// It is done: what was complete when it was asked for is stable.
    FlushEnd { drive: usize, flush: usize },
}

enum Waiting {
    Write(usize),
    Flush(usize),
}

/// What was asked of all drives of a machine.
#[derive(Default)]
pub struct Tape {
    /// In order.
    pub events: Vec<Event>,
    /// By number.
    pub writes: Vec<Write>,
    flushes: usize,
    waiting: Vec<(usize, Waiting, Io, Completer)>,
}

struct Medium {
    image: Image,
    capacity: u64,
    number: usize,
    tape: Option<Rc<RefCell<Tape>>>,
}

/// A drive; clones are the same one.
#[derive(Clone)]
pub struct Disk(Rc<RefCell<Medium>>);

impl Disk {
    /// A drive that holds this.
    pub fn new(number: usize, image: Image) -> Disk {
        let capacity = (image.pages.len() * PAGE) as u64;
        Disk(Rc::new(RefCell::new(Medium { image, capacity, number, tape: None })))
    }

    /// Its shape.
    pub fn geometry(&self) -> Geometry {
        geometry(self.0.borrow().capacity)
    }

    /// From now on writes wait, and are on the tape.
    pub fn record(&self, tape: &Rc<RefCell<Tape>>) {
        self.0.borrow_mut().tape = Some(Rc::clone(tape));
    }

    /// A copy of what it holds.
    pub fn image(&self) -> Image {
        self.0.borrow().image.clone()
    }

    /// The bytes at an offset.
    pub fn peek(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.0.borrow().image.read(offset, &mut bytes);
        bytes
    }

    fn carry_out(&self, mut io: Io, completer: Completer) {
        self.transfer(&mut io);
        completer.complete(Done::of(io, Ok(())));
    }

    fn transfer(&self, io: &mut Io) {
        let (len, at) = (io.len as usize, io.buf_at);
        let medium = &mut *self.0.borrow_mut();
        match (io.op, &mut io.buf) {
            (Op::Read, Some(IoBuf::Exclusive(buf))) => {
                medium.image.read(io.offset, &mut buf.as_mut_slice()[at..at + len]);
            }
            (Op::Write | Op::WriteFlush, Some(buf)) => {
                medium.image.write(io.offset, &buf.as_slice()[at..at + len]);
            }
            // A drive may forget what is deallocated, and need not.
            _ => {}
        }
    }
}

/// The shape of a drive of so many bytes.
pub fn geometry(capacity: u64) -> Geometry {
    Geometry { capacity, sector: SECTOR as u32, max_transfer: 4 << 20 }
}

impl BlockQueue for Disk {
    fn submit(&self, io: Io) -> Completion {
        let (completer, completion) = completion();
        let checked = self.geometry().check(&io);
        if let Err(error) = checked {
            completer.complete(Done::of(io, Err::<(), IoError>(error)));
            return completion;
        }
        let (tape, drive) = (self.0.borrow().tape.clone(), self.0.borrow().number);
        match tape {
            Some(tape) if io.op.writes() || io.op == Op::Flush => {
                tape.borrow_mut().hold(drive, io, completer);
            }
            _ => self.carry_out(io, completer),
        }
        completion
    }

    fn outstanding(&self) -> usize {
        let medium = self.0.borrow();
        let waits = |tape: &Rc<RefCell<Tape>>| {
            tape.borrow().waiting.iter().filter(|wait| wait.0 == medium.number).count()
        };
        medium.tape.as_ref().map_or(0, waits)
    }
}

impl Tape {
    fn hold(&mut self, drive: usize, io: Io, completer: Completer) {
        let submitted = self.events.len();
        let wait = if io.op == Op::Flush {
            self.begin_flush(drive)
        } else {
            let range = io.buf_at..io.buf_at + io.len as usize;
            let data: Rc<[u8]> = io.buf.as_ref().map_or(&[][..], |b| &b.as_slice()[range]).into();
            self.events.push(Event::Submit(self.writes.len()));
            self.writes.push(Write { drive, offset: io.offset, data, submitted });
            Waiting::Write(self.writes.len() - 1)
        };
        self.waiting.push((drive, wait, io, completer));
    }

    fn begin_flush(&mut self, drive: usize) -> Waiting {
        self.flushes += 1;
        self.events.push(Event::FlushBegin { drive, flush: self.flushes });
        Waiting::Flush(self.flushes)
    }

    /// How many commands wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }
}

/// Lets the command at this place among those that wait go. A write with a flush is written, and waits
/// again, behind all others, for its flush.
pub fn let_go(tape: &Rc<RefCell<Tape>>, disks: &[Disk], place: usize) {
    let (drive, wait, mut io, completer) = tape.borrow_mut().waiting.remove(place);
    let event = match wait {
        Waiting::Write(number) => Event::Complete(number),
        Waiting::Flush(flush) => Event::FlushEnd { drive, flush },
    };
    let tape = &mut *tape.borrow_mut();
    tape.events.push(event);
    if io.op == Op::WriteFlush && matches!(wait, Waiting::Write(_)) {
        disks[drive].transfer(&mut io);
        let flush = tape.begin_flush(drive);
        tape.waiting.push((drive, flush, io, completer));
        return;
    }
    disks[drive].carry_out(io, completer);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_of_an_image_share_until_one_is_written_and_the_digest_tells_them_apart() {
        let mut image = Image::new(4 * PAGE as u64);
        image.write(PAGE as u64 - 2, &[1, 2, 3, 4]);
        let mut copy = image.clone();
        assert_eq!(copy.digest(), image.digest());
        copy.write(PAGE as u64, &[9]);
        assert_ne!(copy.digest(), image.digest());
        let mut bytes = [0; 5];
        image.read(PAGE as u64 - 2, &mut bytes);
        assert_eq!(bytes, [1, 2, 3, 4, 0]);
        copy.write(PAGE as u64, &[3]);
        assert_eq!(copy.digest(), image.digest(), "the same bytes again");
        let mut moved = Image::new(4 * PAGE as u64);
        moved.write(0, &[1]);
        let mut other = Image::new(4 * PAGE as u64);
        other.write(PAGE as u64, &[1]);
        assert_ne!(moved.digest(), other.digest(), "the place counts");
    }

    #[test]
    fn a_write_with_a_flush_is_on_the_tape_as_one_after_the_other() {
        let config = memkv_dma::PoolConfig {
            size: 8 << 20,
            chunk: 2 << 20,
            hugepages: memkv_dma::Hugepages::Never,
        };
        let pool = memkv_dma::Pool::new(config).expect("a pool of ordinary pages");
        let disk = Disk::new(0, Image::new(4 * PAGE as u64));
        let tape: Rc<RefCell<Tape>> = Rc::default();
        disk.record(&tape);
        let mut buffer = pool.allocate(memkv_dma::Class::Receive, SECTOR).expect("there is room");
        buffer.as_mut_slice().fill(7);
        let _both = disk.submit(Io::write_flush(PAGE as u64, SECTOR, buffer));
        let disks = [disk.clone()];
        assert_eq!((disk.peek(PAGE as u64, 1), disk.outstanding()), (vec![0], 1));
        let_go(&tape, &disks, 0);
        assert_eq!((disk.peek(PAGE as u64, 1), disk.outstanding()), (vec![7], 1));
        let_go(&tape, &disks, 0);
        assert_eq!(disk.outstanding(), 0);
        let flush = Event::FlushEnd { drive: 0, flush: 1 };
        let begin = Event::FlushBegin { drive: 0, flush: 1 };
        let expected = [Event::Submit(0), Event::Complete(0), begin, flush];
        assert_eq!(tape.borrow().events, expected);
    }
}
