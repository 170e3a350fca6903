//! Looks after the drives that are driven from here, also when nobody asks anything of them: a thread of
//! its own, for a drive that is asked about its health, or let go, keeps whoever asks waiting.
//!
//! * Ten times a second: whether each is still there and well, and whether the system wants it back. One that
//!   has failed is cut off from memory here, which keeps whoever does it waiting, and only then end the
//!   commands that it had. It is told to the store, which may have nothing to do with it at the time.
//! * Every minute: what it says of its health.

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

/// The thread, until it is stopped.
pub(crate) struct Attendant {
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: JoinHandle<()>,
}

impl Attendant {
    /// Begins to look after the drives of a node, those that join later too.
    pub fn start(shared: Arc<Shared>) -> std::io::Result<Attendant> {
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("drives".to_owned()).spawn(move || {
            while !stops_within(&stopped, LOOK) {
                shared.bypass.attended().iter().for_each(|drive| look(&shared, drive));
            }
        })?;
        Ok(Attendant { stop, thread })
    }

    /// Ends it.
    pub fn stop(self) {
        *self.stop.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.stop.1.notify_all();
        // It does not panic; if it did, there is nothing to be had from that now.
        let _ = self.thread.join();
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
