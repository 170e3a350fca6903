//! The real server: started from a configuration, killed or stopped, and its output kept.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use memkv_client::{Client, ClientError, Config, Transport};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use thiserror::Error;

/// The key of server and clients: this is a test, it is no secret.
const AUTH_KEY: &str = "c4a511c4a511c4a511c4a511c4a511c4a511c4a511c4a511c4a511c4a511c4a5";

/// Bytes of each of the two drives: twice what the load ever keeps in both.
const DRIVE_BYTES: u64 = 768 << 20;

/// How long a server may take from its start until it answers, or from a signal to its end.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why the server is not what it should be.
#[derive(Debug, Error)]
pub enum ServerError {
    /// A file, or the process itself.
    #[error("{what}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// It ended when it should not have.
    #[error("the server ended by itself: {status}; its log is {}", log.display())]
    Ended {
        /// How.
        status: ExitStatus,
        /// Where to read on.
        log: PathBuf,
    },
    /// It does not answer.
    #[error("the server does not answer after {PATIENCE:?}")]
    Silent(#[source] Box<ClientError>),
    /// It does not end.
    #[error("the server does not end within {PATIENCE:?} of SIGTERM")]
    Lingers,
    /// The client's configuration is refused.
    #[error("the client refuses its configuration")]
    Client(#[source] ClientError),
}

fn io_error(what: &'static str) -> impl FnOnce(io::Error) -> ServerError {
    move |source| ServerError::Io { what, source }
}

/// What is needed to start a server, again and again, on the same drives.
pub struct Recipe {
    binary: PathBuf,
    folder: PathBuf,
    address: SocketAddr,
    /// The rest of its configuration.
    rest: String,
}

/// A running server; killed when dropped.
pub struct Server {
    child: Child,
    log: PathBuf,
}

impl Recipe {
    /// A server of `binary` that keeps everything in `folder`, on two files that it makes.
    ///
    /// # Errors
    /// When no port is free, or the configuration cannot be written.
    pub fn new(binary: &Path, folder: &Path) -> Result<Recipe, ServerError> {
        let drives = folder.display();
        let rest = format!(
            "memory:\n  max_size: 256 MiB\n\
             storage:\n  mode: file\n  drives:\n\
             \x20   - media: {drives}/drive0\n      max_size: {DRIVE_BYTES}\n\
             \x20   - media: {drives}/drive1\n      max_size: {DRIVE_BYTES}\n\
             \x20 eviction:\n    enabled: false\n"
        );
        Recipe::configured(binary, folder, rest)
    }

    /// A server of `binary` whose configuration and log are in `folder`; `rest` is all of its
    /// configuration but `network`.
    ///
    /// # Errors
    /// When no port is free, or the configuration cannot be written.
    pub fn configured(binary: &Path, folder: &Path, rest: String) -> Result<Recipe, ServerError> {
        let address = free_address().map_err(io_error("no free pair of ports"))?;
        let recipe = Recipe { binary: binary.to_owned(), folder: folder.to_owned(), address, rest };
        recipe.write_config("config.yaml", address)?;
        Ok(recipe)
    }

    fn write_config(&self, name: &str, address: SocketAddr) -> Result<(), ServerError> {
        let rest = &self.rest;
        let config = format!("network:\n  address: {address}\n  auth_key: {AUTH_KEY}\n{rest}");
        fs::write(self.folder.join(name), config).map_err(io_error("the configuration"))
    }

    /// Where the server listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Starts it; it need not answer yet.
    ///
    /// # Errors
    /// When the process cannot be started.
    pub fn start(&self) -> Result<Server, ServerError> {
        self.start_with("config.yaml")
    }

    fn start_with(&self, config: &str) -> Result<Server, ServerError> {
        let log = self.folder.join("server.log");
        let open = || OpenOptions::new().create(true).append(true).open(&log);
        let output: File = open().map_err(io_error("the server's log"))?;
        let errors = output.try_clone().map_err(io_error("the server's log"))?;
        let child = Command::new(&self.binary)
            .args(["start", "--config"])
            .arg(self.folder.join(config))
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .map_err(io_error("the server cannot be started"))?;
        Ok(Server { child, log })
    }

    /// Starts a second server on the same drives, at another address, and waits for its end.
    ///
    /// # Errors
    /// When it does not end, or cannot be started.
    pub fn start_second(&self) -> Result<ExitStatus, ServerError> {
        let other = free_address().map_err(io_error("no free pair of ports"))?;
        self.write_config("second.yaml", other)?;
        self.start_with("second.yaml")?.wait()
    }
}

impl Server {
    /// Waits until it answers a client; how long that took from now on.
    ///
    /// # Errors
    /// When it ends, or stays silent.
    pub fn wait_until_ready(&mut self, address: SocketAddr) -> Result<Duration, ServerError> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().map_err(io_error("the server"))? {
                return Err(ServerError::Ended { status, log: self.log.clone() });
            }
            // A new client each time: one that met a dead server rests before it tries again.
            let answers = client(address, 1)?.server_stats();
            match answers.into_iter().find_map(|(_, answer)| answer.err()) {
                None => return Ok(begun.elapsed()),
                Some(error) if begun.elapsed() > PATIENCE => {
                    return Err(ServerError::Silent(Box::new(error)));
                }
                Some(_) => thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// SIGKILL.
    ///
    /// # Errors
    /// When it is not there to be killed.
    pub fn kill(mut self) -> Result<(), ServerError> {
        if let Some(status) = self.child.try_wait().map_err(io_error("the server"))? {
            return Err(ServerError::Ended { status, log: self.log.clone() });
        }
        self.child.kill().map_err(io_error("the server cannot be killed"))?;
        self.child.wait().map_err(io_error("the server cannot be waited for"))?;
        Ok(())
    }

    /// SIGTERM, and how it ended.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop(self) -> Result<ExitStatus, ServerError> {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        kill(pid, Signal::SIGTERM)
            .map_err(|errno| io_error("the server cannot be stopped")(errno.into()))?;
        self.wait()
    }

    fn wait(mut self) -> Result<ExitStatus, ServerError> {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            if let Some(status) = self.child.try_wait().map_err(io_error("the server"))? {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(5));
        }
        Err(ServerError::Lingers)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Nothing more can be done when this fails, and it is fine when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A client of the server at `address`.
///
/// # Errors
/// When its configuration is refused.
pub fn client(address: SocketAddr, connections: usize) -> Result<Client, ServerError> {
    let auth_key = memkv_client::SharedKey::from_hex(AUTH_KEY).ok();
    let config = Config {
        servers: vec![address.to_string()],
        namespace: "crash".to_owned(),
        transport: Transport::Tcp,
        auth_key,
        num_connections: connections,
        // A server that is not there refuses at once; one that is late is no finding.
        connect_timeout_ms: 60_000,
        ..Config::default()
    };
    Client::new(config).map_err(ServerError::Client)
}

/// Ports below those that the system gives to outgoing connections: a server is started again and again on
/// the one it got, and somebody's connection could have it by then.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// A loopback address whose port and the next one are free now.
fn free_address() -> io::Result<SocketAddr> {
    let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..100 {
        let port = fastrand::u16(PORTS);
        let free = TcpListener::bind(local(port))
            .and_then(|_data| TcpListener::bind(local(port + 1)).map(drop));
        match free {
            Ok(()) => return Ok(local(port)),
            Err(error) => last = error,
        }
    }
    Err(last)
}
