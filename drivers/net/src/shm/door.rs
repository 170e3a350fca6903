//! The server's end: who shows the ticket is given the windows.

use std::io::{self, IoSlice, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use memkv_dma::Window;
use nix::sys::socket::{ControlMessage, MsgFlags, Shutdown, sendmsg, shutdown};

use super::{NAME, ROW, TICKET, WINDOWS_MAX, address};

/// How long a visitor may take to send its ticket, and to take what it is given: clients do so at once.
const PATIENCE: Duration = Duration::from_millis(200);
/// How long the door rests when no visitor can be let in: too many descriptors are open, most likely.
const REST: Duration = Duration::from_millis(100);

/// Hands windows out, on a thread of its own that mostly sleeps; dropped, it is shut.
#[derive(Debug)]
pub struct Door {
    shared: Arc<Shared>,
    name: [u8; NAME],
    windows: u32,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    listener: UnixListener,
    files: Vec<OwnedFd>,
    /// What the answer tells of each.
    table: Vec<u8>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    ticket: [u8; TICKET],
    shut: bool,
    used: bool,
    leaving: bool,
}

impl Door {
    /// Opens a door of this name, at which who shows `ticket` is given `windows`, numbered in their order.
    /// Both should be nobody's to guess.
    ///
    /// # Errors
    /// The system's, when there can be no such socket or thread.
    pub fn open(name: [u8; NAME], ticket: [u8; TICKET], windows: &[&Window]) -> io::Result<Door> {
        assert!((1..=WINDOWS_MAX).contains(&windows.len()), "a door has 1 to 128 windows");
        let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(address(&name))?)?;
        let files = windows.iter().map(|window| window.as_fd().try_clone_to_owned());
        let files = files.collect::<io::Result<_>>()?;
        let rows = windows.iter().map(|window| [window.start(), window.length()]);
        let table = rows.flatten().flat_map(u64::to_le_bytes).collect();
        let state = State { ticket, shut: false, used: false, leaving: false };
        let state = Mutex::new(state);
        let shared = Arc::new(Shared { listener, files, table, state });
        let served = shared.clone();
        let thread = std::thread::Builder::new().name("door".into());
        let thread = Some(thread.spawn(move || served.serve())?);
        Ok(Door { shared, name, windows: windows.len() as u32, thread })
    }

    /// Names it to clients.
    pub fn name(&self) -> [u8; NAME] {
        self.name
    }

    /// What they have to show.
    pub fn ticket(&self) -> [u8; TICKET] {
        self.shared.state().ticket
    }

    /// Another ticket from now on: who has the one before and has not shown it is not let in. Whether somebody
    /// has shown one.
    pub fn renew(&self, ticket: [u8; TICKET]) -> bool {
        let mut state = self.shared.state();
        state.ticket = ticket;
        state.used
    }

    /// How many windows it hands out.
    pub fn windows(&self) -> u32 {
        self.windows
    }

    /// Shuts it, unless it was used: what was handed out cannot be taken back. Whether it is shut.
    pub fn shut_unless_used(&self) -> bool {
        let mut state = self.shared.state();
        state.shut |= !state.used;
        state.shut
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.shared.state().leaving = true;
        // Wakes the thread, whose accept fails from now on.
        let _ = shutdown(self.shared.listener.as_raw_fd(), Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn serve(&self) {
        loop {
            let visitor = self.listener.accept();
            if self.state().leaving {
                return;
            }
            match visitor {
                // Whoever it was has lost nothing but a shorter way.
                Ok((visitor, _)) => drop(self.answer(visitor)),
                Err(error) => {
                    tracing::warn!(%error, "nobody can be let in who asks for windows");
                    std::thread::sleep(REST);
                }
            }
        }
    }

    fn answer(&self, mut visitor: UnixStream) -> io::Result<()> {
        visitor.set_read_timeout(Some(PATIENCE))?;
        visitor.set_write_timeout(Some(PATIENCE))?;
        let mut shown = [0; TICKET];
        // In one piece, as it was sent: who lets it drip keeps others waiting.
        if visitor.read(&mut shown)? < TICKET {
            return Ok(());
        }
        let mut state = self.state();
        if state.shut || !equal(&shown, &state.ticket) {
            tracing::info!(shut = state.shut, "somebody on this machine was given no windows");
            return Ok(());
        }
        state.used = true;
        let files: Vec<RawFd> = self.files.iter().map(AsRawFd::as_raw_fd).collect();
        let files = [ControlMessage::ScmRights(&files)];
        let rows = [IoSlice::new(&self.table)];
        sendmsg::<()>(visitor.as_raw_fd(), &rows, &files, MsgFlags::MSG_NOSIGNAL, None)?;
        Ok(())
    }

    /// Nothing is left half done by a panic with the lock held.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether they are equal, in a time that does not tell where they differ.
fn equal(one: &[u8; TICKET], other: &[u8; TICKET]) -> bool {
    one.iter().zip(other).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

const _: () = assert!(ROW == 2 * size_of::<u64>());
