//! Redis, or Valkey where that is installed: RESP2 over TCP.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use super::lines::Lines;
use super::{Absent, Server};
use crate::error::BenchError;
use crate::measure::{Asker, NEVER, Worker, key};
use crate::process::{Process, free_address, installed};

const NAME: &str = "Redis";
/// Values in memory alone, and long ones.
const OPTIONS: [&str; 6] = ["--save", "", "--appendonly", "no", "--proto-max-bulk-len", "64mb"];

/// Starts it, where it is installed.
///
/// # Errors
/// When it is installed and does not get ready.
pub fn start(folder: &Path) -> Result<Result<Server, Absent>, BenchError> {
    let binary = installed("redis-server").or_else(|| installed("valkey-server"));
    let Some(binary) = binary else {
        return Ok(Err(Absent::not_installed("redis-server or valkey-server")));
    };
    let address = free_address()?;
    let mut command = Command::new(&binary);
    command.args(["--bind", &address.ip().to_string(), "--port", &address.port().to_string()]);
    command.args(OPTIONS).arg("--dir").arg(folder);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let mut process = Process::start(command, NAME, folder)?;
    process.wait_for(address)?;
    let told = super::version(&binary, "--version");
    Ok(Ok(Server { process, address, told: format!("{told}, {}", OPTIONS.join(" ")) }))
}

/// One connection.
pub struct Client(Lines);

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// As the system says.
    pub fn connect(address: SocketAddr) -> Result<Client, BenchError> {
        Ok(Client(Lines::connect(address, NAME)?))
    }
}

/// An array of bulk strings, the last one of which may be a value that follows.
fn request(words: &[&str], value: Option<usize>) -> String {
    let mut text = format!("*{}\r\n", words.len() + usize::from(value.is_some()));
    for word in words {
        text += &format!("${}\r\n{word}\r\n", word.len());
    }
    value.map_or(text.clone(), |length| text + &format!("${length}\r\n"))
}

impl Worker for Client {
    fn put(&mut self, slot: u32, value: &[u8]) -> Result<(), BenchError> {
        let request = request(&["SET", &key(slot, value.len())], Some(value.len()));
        self.0.send_value(&request, value)?;
        self.0.expect("+OK\r\n")
    }

    fn get(&mut self, slot: u32, into: &mut [u8]) -> Result<(), BenchError> {
        self.0.send(&request(&["GET", &key(slot, into.len())], None))?;
        self.0.expect_value(&format!("${}\r\n", into.len()), into)
    }
}

impl Asker for Client {
    fn ask(&mut self) -> Result<(), BenchError> {
        self.0.send(&request(&["EXISTS", NEVER], None))?;
        self.0.expect(":0\r\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_arrays_of_strings() {
        assert_eq!(request(&["GET", "a/12"], None), "*2\r\n$3\r\nGET\r\n$4\r\na/12\r\n");
        let set = "*3\r\n$3\r\nSET\r\n$4\r\na/12\r\n$7\r\n";
        assert_eq!(request(&["SET", "a/12"], Some(7)), set);
    }
}
