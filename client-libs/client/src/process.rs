//! What belongs to one process: the links and the name under which servers know it.
//!
//! A child made by fork(2) inherits the sockets and the locks of its parent, but may use neither: two
//! processes on one link would answer for each other's sequence numbers, and a lock may have been held by
//! a thread that the child does not have. So a child gets a [`Process`] of its own, found by its pid. The
//! list only grows at its end, by `OnceLock`, so that looking for one's own takes no lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use crate::config::{Config, ConfigError, Transport};
use crate::doors::Doors;
use crate::link::Settings;
use crate::server::Server;

/// The part of a client that may not be shared across fork(2).
pub(crate) struct Process {
    pid: u32,
    /// In the order of the configuration.
    pub servers: Vec<Server>,
    next_request: AtomicU64,
    child: OnceLock<Box<Process>>,
}

impl Process {
    /// For the process that calls.
    pub fn new(config: &Config) -> Result<Process, ConfigError> {
        let mut client_id = [0; 16];
        getrandom::fill(&mut client_id).expect("the kernel gives random bytes");
        let settings = Arc::new(Settings {
            namespace: config.namespace.clone(),
            key: config.key()?,
            key_id: config.key_id,
            client_id,
            connect_timeout: config.connect_timeout(),
            connections: config.num_connections,
            windows: (config.transport == Transport::Auto).then(Doors::default),
        });
        let server =
            |address: &crate::config::Address| Server::new(&address.name, settings.clone());
        Ok(Process {
            pid: std::process::id(),
            servers: config.addresses()?.iter().map(server).collect(),
            next_request: AtomicU64::new(1),
            child: OnceLock::new(),
        })
    }

    /// The one of the process that calls, made when it is the first call after a fork.
    pub fn current(&self, config: &Config) -> &Process {
        let pid = std::process::id();
        let mut process = self;
        while process.pid != pid {
            process = process.child.get_or_init(|| {
                // Our copies of the parent's idle links are of no use; closing them does not touch its own.
                self.servers.iter().for_each(Server::abandon);
                Box::new(Process::new(config).expect("the configuration was good in the parent"))
            });
        }
        process
    }

    /// A request id that this process has not used before.
    pub fn next_request(&self) -> u64 {
        self.next_request.fetch_add(1, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_gets_links_and_a_name_of_its_own_and_its_parent_keeps_its() {
        let config = Config::default();
        let mut parent = Process::new(&config).expect("the defaults are good");
        assert!(std::ptr::eq(parent.current(&config), &parent));
        // As a child sees what it inherited: made by somebody else.
        parent.pid = 0;
        let child = parent.current(&config);
        assert_eq!(child.pid, std::process::id());
        assert!(!std::ptr::eq(child, &parent));
        let name = |process: &Process| process.servers[0].settings().client_id;
        assert_ne!(name(child), name(&parent));
        assert!(std::ptr::eq(parent.current(&config), child), "made once");
        assert_eq!(child.servers.len(), parent.servers.len());
    }

    #[test]
    fn request_ids_are_never_used_twice() {
        let process = Process::new(&Config::default()).expect("the defaults are good");
        let ids: Vec<u64> = (0..100).map(|_| process.next_request()).collect();
        assert!(ids.is_sorted_by(|a, b| a < b));
        assert!(ids[0] > 0, "0 is Connect's");
    }
}
