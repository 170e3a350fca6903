//! The floor of a store that vouches for every byte: the plain server once more, but that who sends a value
//! sums it, who receives it sums it again, and large values are lent as pages instead of copied.
//!
//! ```text
//! put   header │ value │ trailer: CRC-32C of the value ──►      ◄── header
//! get   header ──►      ◄── header │ value │ trailer
//! ```
//!
//! One question and one answer; still no index, no MAC and no journal. A value that is got has the sum that
//! it was put with: the server does not sum it again. Lent pages stay as they are until the other end has
//! answered, or asks for the next.
//!
//! Ends that are awake look for the next question, or for the answer, for a while before they sleep: what it
//! takes to put a thread to sleep and to wake it is more than all else of a small value.

use std::collections::HashMap;
use std::io::{self, IoSlice, Write};
use std::net::TcpStream;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use memkv_dma::Arena;
use memkv_wire::{Crc32c, crc32c};
use socket2::SockRef;

use super::{Frame, HEADER};
use crate::stream::{look, receive, send};

const PUT: u32 = 4;
const GET: u32 = 5;
/// Added to both where ends are awake.
const IS_AWAKE: u32 = 2;

/// How long an end that is awake looks before it sleeps, as memkv's does.
pub(super) const AWAKE: Duration = Duration::from_micros(100);

/// Whether the ends of such an operation are awake; `None` when it is not one with a sum.
pub(super) fn awake(operation: u32) -> Option<bool> {
    match operation {
        PUT | GET => Some(false),
        operation => matches!(operation.checked_sub(IS_AWAKE), Some(PUT | GET)).then_some(true),
    }
}

/// Less than this is copied sooner than its pages are looked up.
const LEND_MIN: usize = 256 << 10;
/// What is lent at a time, and summed while the other end receives it.
const LENT: usize = 1 << 20;
/// What is received at a time, and summed while it is in the processor's cache.
const RECEIVED: usize = 256 << 10;

/// The sums of what was put, by place and length.
pub(super) type Sums = Mutex<HashMap<(u32, u64), u32>>;

/// A pipe through which pages go to a socket.
#[cfg(target_os = "linux")]
#[derive(Debug)]
struct Pipe {
    reader: std::os::fd::OwnedFd,
    writer: std::os::fd::OwnedFd,
}

#[cfg(target_os = "linux")]
impl Pipe {
    fn new() -> io::Result<Pipe> {
        use nix::fcntl::{FcntlArg, OFlag, fcntl};

        let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        fcntl(&writer, FcntlArg::F_SETPIPE_SZ(LENT as i32))?;
        Ok(Pipe { reader, writer })
    }

    /// Hands all of `bytes` to the socket; more is to follow.
    fn lend(&self, stream: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
        use nix::fcntl::{SpliceFFlags, splice, vmsplice};

        while !bytes.is_empty() {
            let taken = vmsplice(&self.writer, &[IoSlice::new(bytes)], SpliceFFlags::empty())?;
            let mut left = taken;
            while left > 0 {
                let flags = SpliceFFlags::SPLICE_F_MORE;
                left -= splice(&self.reader, None, stream, None, left, flags)?;
            }
            bytes = &bytes[taken..];
        }
        Ok(())
    }
}

/// Where nothing can be lent, all is copied.
#[cfg(not(target_os = "linux"))]
#[derive(Debug)]
struct Pipe;

#[cfg(not(target_os = "linux"))]
impl Pipe {
    fn new() -> io::Result<Pipe> {
        Ok(Pipe)
    }

    fn lend(&self, mut stream: &TcpStream, bytes: &[u8]) -> io::Result<()> {
        stream.write_all(bytes)
    }
}

/// One end of a connection.
#[derive(Debug)]
pub(super) struct End {
    stream: TcpStream,
    pipe: Pipe,
    awake: bool,
}

impl End {
    pub(super) fn new(stream: TcpStream, awake: bool) -> io::Result<End> {
        Ok(End { stream, pipe: Pipe::new()?, awake })
    }

    /// Whether it looks for what comes before it sleeps.
    pub(super) fn is_awake(&self) -> bool {
        self.awake
    }

    /// The number of an operation, by which the other end is awake, too.
    fn number(&self, operation: u32) -> u32 {
        operation + if self.awake { IS_AWAKE } else { 0 }
    }

    /// Waits for the header of an answer.
    fn reply(&self, slot: u32, length: u64) -> io::Result<()> {
        if self.awake {
            look(&self.stream, AWAKE);
        }
        super::reply(&self.stream, slot, length)
    }

    /// Sends header, value and its sum, which is computed on the way if it is not known. The sum.
    fn send_value(&mut self, frame: &Frame, value: &[u8], known: Option<u32>) -> io::Result<u32> {
        let header = frame.encode();
        if value.len() < LEND_MIN {
            let sum = known.unwrap_or_else(|| crc32c(value));
            let trailer = trailer(sum);
            let parts = [&header[..], value, &trailer[..]];
            send(&mut self.stream, &mut parts.map(IoSlice::new))?;
            return Ok(sum);
        }
        self.send_more(&header)?;
        let mut sum = Crc32c::new();
        for slice in value.chunks(LENT) {
            self.pipe.lend(&self.stream, slice)?;
            if known.is_none() {
                sum.update(slice);
            }
        }
        let sum = known.unwrap_or_else(|| sum.value());
        self.stream.write_all(&trailer(sum))?;
        Ok(sum)
    }

    /// Sends what is followed by more.
    fn send_more(&mut self, bytes: &[u8]) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        let flags = nix::libc::MSG_MORE;
        #[cfg(not(target_os = "linux"))]
        let flags = 0;
        let sent = SockRef::from(&self.stream).send_with_flags(bytes, flags)?;
        // A header fits, or nothing does.
        self.stream.write_all(&bytes[sent..])
    }

    /// Receives a value and its sum, which it must have. The sum.
    fn receive_value(&mut self, into: &mut [u8]) -> io::Result<u32> {
        let mut sum = Crc32c::new();
        for slice in into.chunks_mut(RECEIVED) {
            receive(&self.stream, slice)?;
            sum.update(slice);
        }
        let mut raw = [0; HEADER];
        receive(&self.stream, &mut raw)?;
        match raw == trailer(sum.value()) {
            true => Ok(sum.value()),
            false => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Answers one question of the other end.
    pub(super) fn answer(&mut self, frame: &Frame, arena: &Arena, sums: &Sums) -> io::Result<()> {
        let (at, length) = frame.place(arena.size()).ok_or(io::ErrorKind::InvalidInput)?;
        let name = (frame.slot, frame.length);
        if frame.operation == self.number(PUT) {
            let sum = self.receive_value(arena.lend_mut(at, length).as_mut_slice())?;
            sums.lock().unwrap_or_else(PoisonError::into_inner).insert(name, sum);
            return self.stream.write_all(&Frame { length: 0, ..*frame }.encode());
        }
        let known = sums.lock().unwrap_or_else(PoisonError::into_inner).get(&name).copied();
        let known = known.ok_or(io::ErrorKind::NotFound)?;
        self.send_value(frame, arena.lend(at, length).as_slice(), Some(known)).map(drop)
    }
}

fn trailer(sum: u32) -> [u8; HEADER] {
    let mut raw = [0; HEADER];
    raw[..4].copy_from_slice(&sum.to_le_bytes());
    raw
}

/// One connection of a client that sums.
pub struct Client(End);

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// As the system says.
    pub fn connect(port: u16, awake: bool) -> io::Result<Client> {
        Ok(Client(End::new(super::connect(port)?, awake)?))
    }

    /// Stores a value and waits for the reply.
    ///
    /// # Errors
    /// As the system says.
    pub fn put(&mut self, slot: u32, value: &[u8]) -> io::Result<()> {
        let frame = Frame { operation: self.0.number(PUT), slot, length: value.len() as u64 };
        self.0.send_value(&frame, value, None)?;
        self.0.reply(slot, 0)
    }

    /// Fetches a value into the whole of `into`.
    ///
    /// # Errors
    /// As the system says; [`io::ErrorKind::InvalidData`] when it has another sum.
    pub fn get(&mut self, slot: u32, into: &mut [u8]) -> io::Result<()> {
        let (operation, length) = (self.0.number(GET), into.len() as u64);
        self.0.stream.write_all(&Frame { operation, slot, length }.encode())?;
        self.0.reply(slot, length)?;
        self.0.receive_value(into).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};
    use std::thread;

    use memkv_dma::Hugepages;

    use super::*;

    #[test]
    fn values_come_back_with_their_sums() {
        [false, true].into_iter().for_each(come_back);
    }

    fn come_back(awake: bool) {
        let (arena, sums) = (Arena::new(8 << 20, Hugepages::Never).unwrap(), Sums::default());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let held = arena.clone();
        let server = thread::spawn(move || {
            super::super::serve_one(listener.accept().unwrap().0, &held, &sums)
        });
        let mut client = Client::connect(port, awake).unwrap();
        for length in [1000, LEND_MIN, 2 * LENT + 5000] {
            let values = [vec![7; length], vec![9; length]];
            for (slot, value) in (0..).zip(&values) {
                client.put(slot, value).unwrap();
            }
            for (slot, value) in (0..).zip(&values) {
                let mut back = vec![0; length];
                client.get(slot, &mut back).unwrap();
                assert_eq!(&back, value);
            }
        }
        // A byte that was changed behind the server's back is found.
        arena.lend_mut(5000, 1).as_mut_slice()[0] ^= 1;
        let changed = client.get(0, &mut vec![0; 2 * LENT + 5000]).unwrap_err();
        assert_eq!(changed.kind(), io::ErrorKind::InvalidData);
        assert!(client.get(3, &mut [0; 77]).is_err(), "never put");
        assert_eq!(server.join().unwrap().unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
