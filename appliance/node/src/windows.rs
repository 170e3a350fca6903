//! Windows: clients on this machine read drives in memory for themselves.
//!
//! A window shows all that a drive holds, so there are some only while all keys are of one tenant. What was
//! handed out cannot be taken back: another tenant then has to wait for a restart.

use std::sync::Arc;

use memkv_block::BlockDevice;
use memkv_dma::{Arena, Memory};
use memkv_net::shm::Door;
use memkv_wire::handshake;

use crate::config::{Config, KeyEntry};
use crate::drives;
use crate::status::Shared;

impl Config {
    /// Whether drives in memory are made so that clients can be given windows on them.
    pub(crate) fn shares_memory(&self) -> bool {
        self.network.shm && other_tenant(&self.network.keys, &self.network.keys).is_none()
    }
}

/// Numbers the windows that the drives have, and opens a door for them. `None` when they have none, or when
/// it cannot be: then all payload is sent.
pub(crate) fn open_door(config: &Config, devices: &[Arc<dyn BlockDevice>]) -> Option<Arc<Door>> {
    if !config.shares_memory() {
        return None;
    }
    let arenas: Vec<Arena> = devices
        .iter()
        .filter_map(|device| match device.memory() {
            Some(Memory::Arena(arena)) => Some(arena),
            _ => None,
        })
        .collect();
    let windows: Vec<_> = arenas.iter().filter_map(Arena::window).collect();
    if windows.is_empty() {
        return None;
    }
    let (mut name, mut ticket) = ([0; 16], [0; 32]);
    drives::random(&mut name);
    drives::random(&mut ticket);
    let door = match Door::open(name, ticket, &windows) {
        Ok(door) => door,
        Err(error) => {
            tracing::warn!(%error, "clients on this machine cannot read drives for themselves");
            return None;
        }
    };
    let shown = arenas.iter().filter(|arena| arena.window().is_some());
    for (number, arena) in (0..).zip(shown) {
        assert!(arena.publish(number), "a drive is of one node");
    }
    let drives = windows.len();
    tracing::info!(drives, "clients on this machine read drives for themselves (network.shm)");
    Some(Arc::new(door))
}

/// What clients are told of it.
pub(crate) fn told(door: &Door) -> handshake::Door {
    handshake::Door { name: door.name(), ticket: door.ticket(), windows: door.windows() }
}

impl Shared {
    /// Makes sure that nobody has a window, nor gets one, before there are keys of another tenant; and that
    /// whose key is retired gets none any more. What is to be said of those who have one.
    ///
    /// # Errors
    /// Somebody has: why the keys cannot be taken.
    pub(crate) fn admit_keys(&self, now: &Config, next: &Config) -> Result<Option<String>, String> {
        let Some(door) = &self.door else { return Ok(None) };
        let (old, new) = (&now.network.keys, &next.network.keys);
        if let Some(tenant) = other_tenant(old, new) {
            if !door.shut_unless_used() {
                return Err(format!(
                    "network.keys: tenant `{tenant}` cannot be added while clients on this machine \
                     read drives in memory for themselves; restart the node, which hands no memory \
                     out when it has several tenants"
                ));
            }
            tracing::info!("no client reads drives for itself any more: there are several tenants");
            return Ok(None);
        }
        let is_there = |key: &KeyEntry| new.iter().any(|n| (n.id, &n.key) == (key.id, &key.key));
        if old.iter().all(is_there) {
            return Ok(None);
        }
        let mut ticket = [0; 32];
        drives::random(&mut ticket);
        Ok(door.renew(ticket).then(|| {
            "network.keys: a client on this machine that reads drives in memory for itself goes on \
             seeing them until the node is restarted, also if its key was retired"
                .to_owned()
        }))
    }
}

/// A tenant among these keys that is not the one of all of those.
fn other_tenant<'a>(those: &[KeyEntry], these: &'a [KeyEntry]) -> Option<&'a str> {
    let first = those.first().map(|key| &key.tenant);
    these.iter().map(|key| &key.tenant).find(|tenant| Some(*tenant) != first).map(String::as_str)
}
