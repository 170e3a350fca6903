//! memcached: its meta protocol over TCP.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::unistd::Uid;

use super::lines::Lines;
use super::{Absent, Server};
use crate::error::BenchError;
use crate::measure::{Asker, NEVER, Worker, key};
use crate::process::{Process, free_address, installed};

const NAME: &str = "memcached";
/// Limits that nothing here reaches, and as many threads as a small machine has cores: with more
/// it is no faster, as each connection has one of them.
const OPTIONS: [&str; 8] = ["-m", "4096", "-I", "64m", "-t", "2", "-U", "0"];

/// Starts it, where it is installed.
///
/// # Errors
/// When it is installed and does not get ready.
pub fn start(folder: &Path) -> Result<Result<Server, Absent>, BenchError> {
    let Some(binary) = installed(NAME) else { return Ok(Err(Absent::not_installed(NAME))) };
    let address = free_address()?;
    let mut command = Command::new(&binary);
    command.args(["-l", &address.ip().to_string(), "-p", &address.port().to_string()]);
    command.args(OPTIONS).stdin(Stdio::null()).stdout(Stdio::null());
    if Uid::effective().is_root() {
        // It refuses to be root unless it is told to.
        command.args(["-u", "root"]);
    }
    let mut process = Process::start(command, NAME, folder)?;
    process.wait_for(address)?;
    let told = super::version(&binary, "-V");
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

impl Worker for Client {
    fn put(&mut self, slot: u32, value: &[u8]) -> Result<(), BenchError> {
        let request = format!("ms {} {}\r\n", key(slot, value.len()), value.len());
        self.0.send_value(&request, value)?;
        self.0.expect("HD\r\n")
    }

    fn get(&mut self, slot: u32, into: &mut [u8]) -> Result<(), BenchError> {
        self.0.send(&format!("mg {} v\r\n", key(slot, into.len())))?;
        self.0.expect_value(&format!("VA {}\r\n", into.len()), into)
    }
}

impl Asker for Client {
    fn ask(&mut self) -> Result<(), BenchError> {
        self.0.send(&format!("mg {NEVER}\r\n"))?;
        self.0.expect("EN\r\n")
    }
}
