//! What a configuration that is read again changes, and what of it can hold at once.
//!
//! Every key that there is stands in one table, with how it differs and when a change of it holds.

use super::{Config, Drive};

/// A key of the configuration.
struct Key {
    /// Its path.
    name: &'static str,
    /// A change of it holds without a restart.
    live: bool,
    /// Whether it differs between two configurations. The second was read while a node served.
    differs: fn(&Config, &Config) -> bool,
}

macro_rules! keys {
    ($($live:ident $name:literal $of:expr;)+) => {
        [$(Key { name: $name, live: keys!(@ $live), differs: differs!($of) }),+]
    };
    (@ live) => { true };
    (@ restart) => { false };
}

macro_rules! differs {
    ($of:expr) => {
        |one, other| {
            let of: fn(&Config) -> _ = $of;
            of(one) != of(other)
        }
    };
}

impl Config {
    /// All keys that a change is looked for in.
    #[cfg(test)]
    pub(super) fn keys_compared() -> Vec<&'static str> {
        table().into_iter().map(|key| key.name).collect()
    }
}

/// Every key but those that no configuration may hold yet, and those of lists.
fn table() -> Vec<Key> {
    let plain = keys! {
        restart "network.address" |c| c.network.address;
        live "network.auth_key" |c| c.network.keys.iter().find(|k| k.id == 0).map(|k| k.key.clone());
        restart "network.shm" |c| c.network.shm;
        restart "memory.block_size" |c| c.memory.block_size;
        restart "memory.max_size" |c| c.memory.max_size;
        restart "memory.hugepages" |c| c.memory.hugepages;
        restart "storage.mode" |c| c.storage.mode;
        restart "storage.block_size" |c| c.storage.block_size;
        restart "storage.bypass" |c| c.storage.bypass;
        restart "storage.drive_timeout_ms" |c| c.storage.drive_timeout;
        restart "storage.durability" |c| c.storage.durability;
        restart "storage.trim.enabled" |c| c.storage.trim.enabled;
        restart "storage.trim.interval_ms" |c| c.storage.trim.interval_ms;
        restart "storage.trim.extents" |c| c.storage.trim.extents;
        restart "storage.scrub.bytes_per_second" |c| c.storage.scrub_bytes_per_second;
        live "storage.eviction.enabled" |c| c.storage.eviction.enabled;
        live "storage.eviction.high" |c| c.storage.eviction.high;
        live "storage.eviction.low" |c| c.storage.eviction.low;
        live "storage.eviction.policy" |c| c.storage.eviction.policy;
        live "storage.eviction.retain_seconds" |c| c.storage.eviction.retain;
        live "storage.eviction.pin_max_seconds" |c| c.storage.eviction.pin_max;
        restart "node.reactors" |c| c.reactors;
        restart "node.idle" |c| c.idle;
        live "limits.max_connections" |c| c.limits.max_connections;
        live "limits.max_requests" |c| c.limits.max_requests;
        live "limits.credits" |c| c.limits.credits;
        live "limits.max_value" |c| c.limits.max_value;
        live "limits.lease_ms" |c| c.limits.lease_ms;
        live "limits.request_timeout_ms" |c| c.limits.request_timeout_ms;
        restart "log.format" |c| c.log.format;
        live "log.level" |c| c.log.filter.clone();
    };
    let mut table = Vec::from(plain);
    table.push(Key { name: "network.keys", live: true, differs: keys_differ });
    table.push(Key {
        name: "namespaces",
        live: true,
        differs: |c, d| c.namespaces != d.namespaces,
    });
    table.push(Key { name: "storage.drives", live: false, differs: drives_differ });
    table
}

/// What reading a configuration again comes to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Keys whose new values hold from now on.
    pub applied: Vec<&'static str>,
    /// Keys whose new values wait for the next start.
    pub needs_restart: Vec<&'static str>,
}

impl Config {
    /// This configuration, which holds, with all of `next` that can hold without a restart.
    pub fn adopt(&self, next: Config) -> (Config, Changes) {
        let mut changes = Changes::default();
        for key in table() {
            if (key.differs)(self, &next) {
                let keys = if key.live { &mut changes.applied } else { &mut changes.needs_restart };
                keys.push(key.name);
            }
        }
        let mut adopted = self.clone();
        adopted.network.keys = next.network.keys;
        adopted.storage.eviction = next.storage.eviction;
        adopted.namespaces = next.namespaces;
        adopted.limits = next.limits;
        // The largest value may have been settled by an extent size that waits for a restart.
        let most = self.storage.block_size * memkv_wire::MAX_EXTENTS as u64;
        adopted.limits.max_value = adopted.limits.max_value.min(most);
        adopted.log.filter = next.log.filter;
        adopted.warnings = next.warnings;
        (adopted, changes)
    }
}

fn keys_differ(one: &Config, other: &Config) -> bool {
    let keys = |config: &Config| -> Vec<_> {
        let keys = config.network.keys.iter().filter(|key| key.id != 0);
        let mut keys: Vec<_> = keys.map(|k| (k.id, k.tenant.clone(), k.key.clone())).collect();
        keys.sort_by_key(|(id, ..)| *id);
        keys
    };
    keys(one) != keys(other)
}

/// A drive that is listed no more, or otherwise; those that are new join. A file that was made at the
/// start is there now, and takes no size by default any more: a size that is not set is no difference.
fn drives_differ(one: &Config, other: &Config) -> bool {
    let same = |one: &Drive, other: &Drive| match (one, other) {
        (Drive::File { media, .. }, Drive::File { media: again, size: None }) => media == again,
        (one, other) => one == other,
    };
    let (one, other) = (&one.storage.drives, &other.storage.drives);
    let stays = |drive: &Drive| other.iter().any(|other| same(drive, other));
    let in_memory = |drives: &[Drive]| drives.iter().any(|d| matches!(d, Drive::Memory { .. }));
    match in_memory(one) || in_memory(other) {
        true => one != other,
        false => !one.iter().all(stays),
    }
}
