//! A connection of a protocol of lines, with values of known length between them.
//!
//! The client knows what a good answer looks like up to its length, so it never reads further than
//! the answer goes, and a value comes straight into its place.

use std::io::{IoSlice, Read};
use std::net::{SocketAddr, TcpStream};

use crate::error::{BenchError, doing};
use crate::process::PATIENCE;
use crate::stream::{self, receive, send};

/// What ends a line.
const END: &[u8] = b"\r\n";

/// One connection.
pub struct Lines {
    stream: TcpStream,
    name: &'static str,
}

impl Lines {
    /// Connects to the peer of this name.
    ///
    /// # Errors
    /// As the system says.
    pub fn connect(address: SocketAddr, name: &'static str) -> Result<Lines, BenchError> {
        let stream = stream::connect(address).map_err(doing("a peer"))?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(doing("a peer"))?;
        Ok(Lines { stream, name })
    }

    /// Sends a request.
    ///
    /// # Errors
    /// As the system says.
    pub fn send(&mut self, request: &str) -> Result<(), BenchError> {
        send(&mut self.stream, &mut [IoSlice::new(request.as_bytes())]).map_err(doing("a peer"))
    }

    /// Sends a request that ends with a value.
    ///
    /// # Errors
    /// As the system says.
    pub fn send_value(&mut self, request: &str, value: &[u8]) -> Result<(), BenchError> {
        let mut parts = [request.as_bytes(), value, END].map(IoSlice::new);
        send(&mut self.stream, &mut parts).map_err(doing("a peer"))
    }

    /// Receives exactly this answer.
    ///
    /// # Errors
    /// When another one comes.
    pub fn expect(&mut self, answer: &str) -> Result<(), BenchError> {
        let mut buffer = [0; 64];
        let (buffer, mut got) = (&mut buffer[..answer.len()], 0);
        while got < buffer.len() {
            match self.stream.read(&mut buffer[got..]).map_err(doing("a peer"))? {
                0 => break,
                count => got += count,
            }
            if !answer.as_bytes().starts_with(&buffer[..got]) {
                break;
            }
        }
        match &buffer[..got] == answer.as_bytes() {
            true => Ok(()),
            false => Err(BenchError::Said {
                name: self.name,
                said: String::from_utf8_lossy(&buffer[..got]).trim().to_owned(),
            }),
        }
    }

    /// Receives this line and a value into the whole of `into`.
    ///
    /// # Errors
    /// When something else comes.
    pub fn expect_value(&mut self, line: &str, into: &mut [u8]) -> Result<(), BenchError> {
        self.expect(line)?;
        receive(&self.stream, into).map_err(doing("a peer"))?;
        let mut end = [0; END.len()];
        receive(&self.stream, &mut end).map_err(doing("a peer"))?;
        match end == END {
            true => Ok(()),
            false => Err(BenchError::Said { name: self.name, said: "a longer value".to_owned() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{Ipv4Addr, TcpListener};
    use std::thread;

    use super::*;

    /// A peer that waits for `request` and sends `answer`.
    fn peer(request: &'static [u8], answer: &'static [u8]) -> (Lines, thread::JoinHandle<()>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let lines = Lines::connect(listener.local_addr().unwrap(), "a peer").unwrap();
        let thread = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut got = vec![0; request.len()];
            stream.read_exact(&mut got).unwrap();
            assert_eq!(got, request);
            stream.write_all(answer).unwrap();
        });
        (lines, thread)
    }

    #[test]
    fn values_go_out_and_come_back_between_lines() {
        let (mut lines, thread) = peer(b"put 3\r\nabc\r\n", b"+3\r\nabc\r\n:0\r\n");
        lines.send_value("put 3\r\n", b"abc").unwrap();
        let mut back = [0; 3];
        lines.expect_value("+3\r\n", &mut back).unwrap();
        assert_eq!(&back, b"abc");
        lines.expect(":0\r\n").unwrap();
        thread.join().unwrap();
    }

    #[test]
    fn another_answer_is_told_and_not_waited_for() {
        let (mut lines, thread) = peer(b"get\r\n", b"EN\r\n");
        lines.send("get\r\n").unwrap();
        let error = lines.expect_value("VA 4194304\r\n", &mut [0; 3]).unwrap_err();
        assert_eq!(error.to_string(), "a peer failed and said: EN");
        thread.join().unwrap();
    }

    #[test]
    fn a_longer_value_is_no_value() {
        let (mut lines, thread) = peer(b"get\r\n", b"+3\r\nabcd\r\n");
        lines.send("get\r\n").unwrap();
        assert!(lines.expect_value("+3\r\n", &mut [0; 3]).is_err());
        thread.join().unwrap();
    }
}
