//! The floor: the least that a framed server of blocks over TCP can do.
//!
//! One thread per connection, blocking calls, a header of 64 bytes, the value straight into and out
//! of its place in memory that was faulted in at start. No index, no MAC, no CRC, no journal, no
//! limit. It runs in a process of its own, like the server it is compared with. A ping is a header
//! each way and nothing else.
//!
//! ```text
//!   0  operation u32   1 put, 2 get, 3 ping; 4 put and 5 get with a sum, 6 and 7 the same with both
//!                      ends awake, see `summed`
//!   4  slot      u32   the value's place is slot * length
//!   8  length    u64   in a ping and in a reply to a put 0
//!  16  zeroes          as many bytes as a question about a key takes
//! ```

pub mod summed;

use std::io::{self, IoSlice, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::thread;

use crate::stream::{self, congestion_control, listen, look, receive, send};
use memkv_dma::{Arena, Hugepages};

use self::summed::{End, Sums};

const HEADER: usize = 64;
const PUT: u32 = 1;
const GET: u32 = 2;
const PING: u32 = 3;

struct Frame {
    operation: u32,
    slot: u32,
    length: u64,
}

impl Frame {
    fn encode(&self) -> [u8; HEADER] {
        let mut raw = [0; HEADER];
        raw[..4].copy_from_slice(&self.operation.to_le_bytes());
        raw[4..8].copy_from_slice(&self.slot.to_le_bytes());
        raw[8..16].copy_from_slice(&self.length.to_le_bytes());
        raw
    }

    fn parse(raw: &[u8; HEADER]) -> Frame {
        let word = |at: usize| u32::from_le_bytes([raw[at], raw[at + 1], raw[at + 2], raw[at + 3]]);
        let length = u64::from(word(8)) | u64::from(word(12)) << 32;
        Frame { operation: word(0), slot: word(4), length }
    }

    /// The value's place, when it is in an arena of `size` bytes.
    fn place(&self, size: u64) -> Option<(u64, usize)> {
        let at = u64::from(self.slot).checked_mul(self.length)?;
        let end = at.checked_add(self.length)?;
        (self.length > 0 && end <= size).then_some((at, usize::try_from(self.length).ok()?))
    }
}

/// Serves until the process is killed; tells by one line on standard output that it is ready, its
/// port, and what its memory is made of.
///
/// # Errors
/// When there is no memory or no port.
pub fn serve(arena_bytes: u64) -> io::Result<()> {
    let arena = Arena::new(arena_bytes, Hugepages::Prefer).map_err(io::Error::other)?;
    let listener = listen()?;
    println!("ready {} {}", listener.local_addr()?.port(), arena.backing());
    io::stdout().flush()?;
    let sums = Arc::new(Sums::default());
    loop {
        let (stream, _) = listener.accept()?;
        let (arena, sums) = (arena.clone(), sums.clone());
        thread::spawn(move || {
            if let Err(error) = serve_one(stream, &arena, &sums)
                && error.kind() != io::ErrorKind::UnexpectedEof
            {
                eprintln!("plain: {error}");
            }
        });
    }
}

fn serve_one(mut stream: TcpStream, arena: &Arena, sums: &Sums) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut end: Option<End> = None;
    loop {
        let mut raw = [0; HEADER];
        if end.as_ref().is_some_and(End::is_awake) {
            look(&stream, summed::AWAKE);
        }
        receive(&stream, &mut raw)?;
        let frame = Frame::parse(&raw);
        if frame.operation == PING {
            stream.write_all(&raw)?;
            continue;
        }
        if let Some(awake) = summed::awake(frame.operation) {
            if end.is_none() {
                end = Some(End::new(stream.try_clone()?, awake)?);
            }
            end.iter_mut().try_for_each(|end| end.answer(&frame, arena, sums))?;
            continue;
        }
        let place = frame.place(arena.size());
        let (at, length) = place.ok_or(io::ErrorKind::InvalidInput)?;
        match frame.operation {
            PUT => {
                receive(&stream, arena.lend_mut(at, length).as_mut_slice())?;
                stream.write_all(&Frame { length: 0, ..frame }.encode())?;
            }
            GET => {
                let value = arena.lend(at, length);
                send(&mut stream, &mut [IoSlice::new(&raw), IoSlice::new(value.as_slice())])?;
            }
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        }
    }
}

/// One connection of the plain client.
pub struct Client {
    stream: TcpStream,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// As the system says.
    pub fn connect(port: u16) -> io::Result<Client> {
        Ok(Client { stream: connect(port)? })
    }

    /// The congestion control of the connection.
    pub fn congestion_control(&self) -> Option<String> {
        congestion_control(&self.stream)
    }

    /// Stores a value and waits for the reply.
    ///
    /// # Errors
    /// As the system says.
    pub fn put(&mut self, slot: u32, value: &[u8]) -> io::Result<()> {
        let frame = Frame { operation: PUT, slot, length: value.len() as u64 };
        let header = frame.encode();
        send(&mut self.stream, &mut [IoSlice::new(&header), IoSlice::new(value)])?;
        reply(&self.stream, slot, 0)
    }

    /// Fetches a value into the whole of `into`.
    ///
    /// # Errors
    /// As the system says.
    pub fn get(&mut self, slot: u32, into: &mut [u8]) -> io::Result<()> {
        let length = into.len() as u64;
        self.stream.write_all(&Frame { operation: GET, slot, length }.encode())?;
        reply(&self.stream, slot, length)?;
        receive(&self.stream, into)
    }

    /// Sends a header and waits for it to come back.
    ///
    /// # Errors
    /// As the system says.
    pub fn ping(&mut self) -> io::Result<()> {
        self.stream.write_all(&Frame { operation: PING, slot: 0, length: 0 }.encode())?;
        reply(&self.stream, 0, 0)
    }
}

fn connect(port: u16) -> io::Result<TcpStream> {
    stream::connect((Ipv4Addr::LOCALHOST, port).into())
}

/// Waits for the header of an answer.
fn reply(stream: &TcpStream, slot: u32, length: u64) -> io::Result<()> {
    let mut raw = [0; HEADER];
    receive(stream, &mut raw)?;
    let reply = Frame::parse(&raw);
    match (reply.slot, reply.length) == (slot, length) {
        true => Ok(()),
        false => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_from_their_slots() {
        let arena = Arena::new(1 << 20, Hugepages::Never).unwrap();
        let listener = listen().unwrap();
        let port = listener.local_addr().unwrap().port();
        let sums = Sums::default();
        let server = thread::spawn(move || serve_one(listener.accept().unwrap().0, &arena, &sums));
        let mut client = Client::connect(port).unwrap();
        let values = [vec![7; 300_000], vec![9; 300_000]];
        for (slot, value) in (0..).zip(&values) {
            client.put(slot, value).unwrap();
        }
        for (slot, value) in (0..).zip(&values) {
            let mut back = vec![0; 300_000];
            client.get(slot, &mut back).unwrap();
            assert_eq!(&back, value);
        }
        client.ping().unwrap();
        let outside = client.get(4, &mut [0; 300_000]);
        assert!(outside.is_err(), "the server hangs up on a place outside of its memory");
        assert_eq!(server.join().unwrap().unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn frames_are_read_as_they_are_written() {
        let frame = Frame { operation: GET, slot: 0x0102_0304, length: 0x0506_0708_090a_0b0c };
        let back = Frame::parse(&frame.encode());
        assert_eq!((back.operation, back.slot, back.length), (GET, 0x0102_0304, frame.length));
        assert_eq!(frame.place(u64::MAX), None, "the end of the place is beyond all numbers");
    }
}
