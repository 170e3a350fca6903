//! Looks after the drives that are driven from here, also when nobody asks anything of them, by threads of
//! their own: each of these things keeps whoever does it waiting.
//!
//! * Ten times a second, by whoever has [drives](crate::bypass::Bypass), a node or a command: whether each is
//!   still there and well, and whether the system wants it back. One that has failed is cut off from memory
//!   here, and only then end the commands that it had. Nothing else is done by this thread: a drive that fails is
//!   not to wait for another one that does not answer.
//! * As often, by a node: the store is told of one that has failed, with which it may have nothing to do at the
//!   time.
//! * Every minute, by a node: what each says of its health.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use memkv_block::BlockDevice;
use memkv_store::DriveId;

use crate::bypass::Attended;
use crate::node::{Control, order};
use crate::serve::chain;
use crate::status::Shared;

/// How often drives are looked at.
const LOOK: Duration = Duration::from_millis(100);
/// How often they are asked for their health.
const ASK: Duration = Duration::from_secs(60);

/// A thread that looks at drives. Dropped, it is ended and waited for.
pub(crate) struct Rounds {
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Rounds {
    /// Makes a round now and then.
    pub fn start(name: &str, round: impl Fn() + Send + 'static) -> std::io::Result<Rounds> {
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            while !stops_within(&stopped, LOOK) {
                round();
            }
        })?;
        Ok(Rounds { stop, thread: Some(thread) })
    }

    /// Looks after the drives of a node, those that join later too.
    pub fn of_node(shared: Arc<Shared>) -> std::io::Result<Rounds> {
        Rounds::start("drives", move || {
            shared.bypass.attended().iter().for_each(|drive| look(&shared, drive));
        })
    }
}

impl Drop for Rounds {
    fn drop(&mut self) {
        *self.stop.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.stop.1.notify_all();
        // It does not panic; if it did, there is nothing to be had from that now.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Waits; whether it was to stop meanwhile.
fn stops_within((stop, told): &(Mutex<bool>, Condvar), time: Duration) -> bool {
    let stop = stop.lock().unwrap_or_else(PoisonError::into_inner);
    let waited = told.wait_timeout_while(stop, time, |stop| !*stop);
    *waited.unwrap_or_else(PoisonError::into_inner).0
}

/// What was seen is locked for moments only: whoever tells of drives wants it while he has their list.
fn look(shared: &Shared, attended: &Attended) {
    let Some(drive) = attended.drive() else { return };
    if attended.seen().lost {
        return;
    }
    if !drive.attend() {
        attended.seen().lost = true;
        let why = drive.failure().map_or_else(String::new, |failure| chain(&failure));
        // Another one may have been opened in its place: then the store knew before.
        if shared.bypass.find(drive.name()).is_some_and(|last| std::ptr::eq(&*last, attended)) {
            shared.drive_lost(drive.name(), why);
        }
        return;
    }
    let asked = attended.seen().asked;
    if asked.is_none_or(|asked| asked.elapsed() >= ASK) {
        let health = drive.health();
        if let Err(error) = &health {
            tracing::warn!(drive = drive.name(), %error, "the drive does not tell its health");
        }
        let mut seen = attended.seen();
        seen.asked = Some(Instant::now());
        seen.health = health.ok();
    }
}

impl Shared {
    /// Tells the store that a drive is out of service, if it has one of this name.
    fn drive_lost(&self, name: &str, why: String) {
        let Some(number) = self.at_start().number(name) else { return };
        let id = DriveId(number as u16);
        // A full inbox is no reason to wait: the next command tells it as well.
        let _ = order(self.store_reactor(), |done| Control::DriveLost(id, why, done));
    }
}
