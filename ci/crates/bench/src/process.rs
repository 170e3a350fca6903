//! Servers as child processes: started, timed, ended.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use crate::cpu::CpuClock;
use crate::error::{BenchError, doing};

/// How long a server may take from its start until it answers, or from a signal to its end.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A child that is killed when nobody needs it any more.
pub struct Process {
    /// The child.
    pub child: Child,
    /// What it is called.
    pub name: &'static str,
    /// What it says on standard error.
    pub log: PathBuf,
}

impl Process {
    /// Starts it, with a log in `folder`. Standard input and output are the command's.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(
        mut command: Command,
        name: &'static str,
        folder: &Path,
    ) -> Result<Process, BenchError> {
        let log = folder.join(format!("{name}.log"));
        let errors = File::create(&log).map_err(doing("a server's log"))?;
        let child = command.stderr(errors).spawn().map_err(doing("a server cannot be started"))?;
        Ok(Process { child, name, log })
    }

    /// Its CPU time.
    ///
    /// # Errors
    /// When it is gone.
    pub fn clock(&self) -> Result<CpuClock, BenchError> {
        CpuClock::of(self.child.id()).map_err(doing("the CPU clock of a server"))
    }

    /// An error when it has ended.
    ///
    /// # Errors
    /// [`BenchError::Ended`].
    pub fn check(&mut self) -> Result<(), BenchError> {
        match self.child.try_wait().map_err(doing("a server"))? {
            Some(_) => Err(BenchError::Ended { name: self.name, log: self.log.clone() }),
            None => Ok(()),
        }
    }

    /// Waits until it takes connections.
    ///
    /// # Errors
    /// When it ends, or takes none for a minute.
    pub fn wait_for(&mut self, address: SocketAddr) -> Result<(), BenchError> {
        let begun = Instant::now();
        while TcpStream::connect(address).is_err() {
            self.check()?;
            if begun.elapsed() > PATIENCE {
                return Err(self.silent());
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// It does not do what it should.
    pub fn silent(&self) -> BenchError {
        BenchError::Silent { name: self.name, log: self.log.clone() }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Nothing more can be done when this fails, and it is fine when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The path of an installed program, if there is one.
pub fn installed(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|path| path.is_file())
}

/// A loopback address whose port and the next one are free now.
///
/// # Errors
/// When none is found.
pub fn free_address() -> Result<SocketAddr, BenchError> {
    let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut last = None;
    for _ in 0..100 {
        let data = TcpListener::bind(local(0)).map_err(doing("a free port"))?;
        let address = data.local_addr().map_err(doing("a free port"))?;
        match address.port().checked_add(1).map(|port| TcpListener::bind(local(port))) {
            Some(Ok(_)) => return Ok(address),
            Some(Err(error)) => last = Some(error),
            None => {}
        }
    }
    Err(doing("a free pair of ports")(last.expect("a hundred attempts have failed")))
}
