//! The doors of servers on this machine, and the windows got there; memory for puts is brought there.
//!
//! All links to a server share its windows: they are got when a value is first asked for, and again only from
//! a door of another name, which a server has after each of its starts. A door that does not open costs a moment
//! and no more: payload is sent then, and the door is tried again after a while.
//!
//! Windows keep the memory of their server, also of one that is gone, for as long as a link has them.

use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use memkv_net::NetError;
use memkv_net::shm::{Staging, Windows};
use memkv_wire::handshake::Door;

use crate::staging::Brought;

/// How long a door may take: it answers one visitor after the other, and none of them needs long.
const PATIENCE: Duration = Duration::from_millis(100);
/// How long one that did not open is left alone.
pub(crate) const REST: Duration = Duration::from_secs(30);

/// What is known of doors, by their names.
#[derive(Debug, Default)]
pub(crate) struct Doors(Mutex<Vec<([u8; 16], Known)>>);

#[derive(Debug)]
enum Known {
    /// Its windows, for as long as a link has them.
    Open(Weak<Windows>),
    /// It did not open, and is not tried before then.
    Shut(Instant),
}

impl Known {
    fn is_current(&self) -> bool {
        match self {
            Known::Open(windows) => windows.strong_count() > 0,
            Known::Shut(until) => Instant::now() < *until,
        }
    }
}

impl Doors {
    /// The windows of a door: all that the server may name. `None` when they are not to be had, or while
    /// another call is getting them.
    pub fn enter(&self, door: &Door, deadline: Instant) -> Option<Arc<Windows>> {
        let mut known = self.0.try_lock().ok()?;
        known.retain(|(_, known)| known.is_current());
        match known.iter().find(|(name, _)| *name == door.name) {
            Some((_, Known::Open(windows))) => return windows.upgrade(),
            Some((_, Known::Shut(_))) => return None,
            None => {}
        }
        let deadline = deadline.min(Instant::now() + PATIENCE);
        match Windows::open(&door.name, &door.ticket, deadline) {
            Ok(windows) if windows.count() >= door.windows => {
                let windows = Arc::new(windows);
                known.push((door.name, Known::Open(Arc::downgrade(&windows))));
                return Some(windows);
            }
            Ok(_) => tracing::debug!("a server shows less of its memory than it says"),
            Err(error) => tracing::debug!(%error, "a server's memory cannot be read from here"),
        }
        known.push((door.name, Known::Shut(Instant::now() + REST)));
        None
    }

    /// Brings memory of so many bytes to a door.
    pub fn bring(&self, door: &Door, length: usize, deadline: Instant) -> Brought {
        let Ok(mut known) = self.0.try_lock() else { return Brought::NotNow };
        known.retain(|(_, known)| known.is_current());
        if known.iter().any(|(name, known)| *name == door.name && matches!(known, Known::Shut(_))) {
            return Brought::Refused;
        }
        let mut number = [0; 8];
        getrandom::fill(&mut number).expect("the kernel gives random bytes");
        let number = u64::from_le_bytes(number);
        let patience = deadline.min(Instant::now() + PATIENCE);
        match Staging::open(&door.name, &door.ticket, number, length, patience) {
            Ok(memory) => Brought::Taken(memory),
            Err(NetError::TimedOut) if Instant::now() >= deadline => Brought::NotNow,
            Err(error) => {
                tracing::debug!(%error, "a server takes no memory from here");
                if let NetError::TimedOut = error {
                    known.push((door.name, Known::Shut(Instant::now() + REST)));
                }
                Brought::Refused
            }
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_door_that_does_not_open_is_left_alone_for_a_while() {
        let doors = Doors::default();
        let door = Door { name: [0xd0; 16], ticket: [1; 32], windows: 1 };
        let soon = || Instant::now() + Duration::from_secs(5);
        assert!(doors.enter(&door, soon()).is_none());
        let known = doors.0.lock().expect("no panic");
        assert!(matches!(&known[..], [(name, Known::Shut(_))] if *name == door.name));
        // Another call is at it: nobody waits for that.
        assert!(doors.enter(&door, soon()).is_none());
        drop(known);
        let arena = memkv_dma::Arena::shared(1 << 20, memkv_dma::Hugepages::Never);
        let arena = arena.expect("memory to share");
        let window = arena.window().expect("memory to share");
        let real = memkv_net::shm::Door::open(door.name, door.ticket, &[window]).expect("a door");
        assert!(doors.enter(&door, soon()).is_none(), "it was tried a moment ago");
        doors.0.lock().expect("no panic")[0].1 = Known::Shut(Instant::now());
        let windows = doors.enter(&door, soon()).expect("it opens");
        drop(real);
        let again = doors.enter(&door, soon()).expect("it is known");
        assert!(Arc::ptr_eq(&windows, &again));
        drop((windows, again));
        assert!(doors.enter(&door, soon()).is_none(), "it is gone, and nobody has its windows");
        // One that shows less than it is said to.
        let two = Door { windows: 2, name: [0xd1; 16], ..door };
        let _real = memkv_net::shm::Door::open(two.name, two.ticket, &[window]).expect("a door");
        assert!(doors.enter(&two, soon()).is_none());
    }
}
