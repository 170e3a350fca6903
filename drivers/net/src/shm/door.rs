//! The server's end: who shows the ticket is given the windows, or gives memory of his own.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use memkv_dma::Window;
use nix::sys::socket::{ControlMessage, MsgFlags, Shutdown, recv, send, sendmsg, shutdown};

use super::visit::receive_some;
use super::{BROUGHT, NAME, ROW, Stagings, TAKEN, TICKET, WINDOWS_MAX, address};

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
    stagings: Arc<Stagings>,
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
        let stagings = Arc::default();
        let shared = Arc::new(Shared { listener, files, table, stagings, state });
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

    /// Memory that came in at it.
    pub fn stagings(&self) -> &Arc<Stagings> {
        &self.shared.stagings
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

    fn answer(&self, visitor: UnixStream) -> io::Result<()> {
        visitor.set_read_timeout(Some(PATIENCE))?;
        visitor.set_write_timeout(Some(PATIENCE))?;
        let mut shown = [0; BROUGHT];
        // In one piece, as it was sent: who lets it drip keeps others waiting. And looked at before anything that
        // came with it is ours: to close what strangers send can take them as long as they like.
        let count = recv(visitor.as_raw_fd(), &mut shown, MsgFlags::MSG_PEEK)?;
        let Some(ticket) = shown.first_chunk().filter(|_| matches!(count, TICKET | BROUGHT)) else {
            return Ok(());
        };
        let mut state = self.state();
        if state.shut || !equal(ticket, &state.ticket) {
            tracing::info!(shut = state.shut, "somebody on this machine was not let in");
            return Ok(());
        }
        if count == BROUGHT {
            drop(state);
            return self.take(&visitor);
        }
        state.used = true;
        let files: Vec<RawFd> = self.files.iter().map(AsRawFd::as_raw_fd).collect();
        let files = [ControlMessage::ScmRights(&files)];
        let rows = [IoSlice::new(&self.table)];
        sendmsg::<()>(visitor.as_raw_fd(), &rows, &files, MsgFlags::MSG_NOSIGNAL, None)?;
        Ok(())
    }

    /// Takes the memory that a visitor brings.
    fn take(&self, visitor: &UnixStream) -> io::Result<()> {
        let mut shown = [0; BROUGHT];
        // One descriptor, and its header.
        let (_, given, whole) = receive_some(visitor, &mut shown, &mut [0; 3])?;
        let (_, number) =
            shown.split_last_chunk().expect("a number is shorter than what was shown");
        let number = u64::from_le_bytes(*number);
        let Some(file) = given.into_iter().next().filter(|_| whole) else { return Ok(()) };
        if let Err(error) = self.stagings.take(file, number) {
            tracing::info!(%error, "memory of a client on this machine was not taken");
            return Ok(());
        }
        let told = send(visitor.as_raw_fd(), &[TAKEN], MsgFlags::MSG_NOSIGNAL);
        if told.is_err() {
            // Nobody will name it.
            drop(self.stagings.claim(number));
        }
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
