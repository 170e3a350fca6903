//! Memory that a test server shows to its clients.

use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use memkv_dma::{Arena, Hugepages};
use memkv_net::shm;
use memkv_wire::handshake::Door;
use memkv_wire::{Span, Spans};

/// Bytes of it, which have to do for all that a test gets.
const SIZE: u64 = 64 << 20;

pub struct Shown {
    arenas: [Arena; 2],
    door: Mutex<Option<shm::Door>>,
    told: Door,
    used: AtomicU64,
    /// Bytes that were named.
    pub named: AtomicU64,
}

impl Shown {
    pub fn new() -> Shown {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let arenas =
            [(), ()].map(|()| Arena::shared(SIZE, Hugepages::Never).expect("memory to share"));
        let windows: Vec<_> = arenas.iter().filter_map(Arena::window).collect();
        let mut name = [0; 16];
        name[..8].copy_from_slice(&NEXT.fetch_add(1, Ordering::Relaxed).to_le_bytes());
        name[8..12].copy_from_slice(&std::process::id().to_le_bytes());
        let door = shm::Door::open(name, [6; 32], &windows).expect("a door");
        let told = Door { name, ticket: door.ticket(), windows: door.windows() };
        let door = Mutex::new(Some(door));
        Shown { arenas, door, told, used: AtomicU64::new(0), named: AtomicU64::new(0) }
    }

    /// What clients are told.
    pub fn told(&self) -> Door {
        self.told
    }

    /// Whether this process has it mapped as clients do.
    pub fn is_read(&self) -> bool {
        let maps = std::fs::read_to_string("/proc/self/maps").expect("there is a list");
        let inode = |arena: &Arena| {
            let window = arena.window().expect("memory to share");
            let file = window.as_fd().try_clone_to_owned().expect("a copy");
            std::fs::File::from(file).metadata().expect("it is a file").ino().to_string()
        };
        let inodes = [inode(&self.arenas[0]), inode(&self.arenas[1])];
        maps.lines().any(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            fields[1] == "r--s" && inodes.iter().any(|inode| *inode == fields[4])
        })
    }

    /// Memory of this number that a client has brought.
    pub fn claim(&self, number: u64) -> Option<Arc<shm::Staged>> {
        self.door.lock().expect("no panic").as_ref()?.stagings().claim(number)
    }

    /// Nobody is given windows any more, though clients are told of them.
    pub fn close(&self) {
        drop(self.door.lock().expect("no panic").take());
    }

    /// Lays bytes out, in pieces of at most `extent`, every other one elsewhere.
    pub fn lay(&self, bytes: &[u8], extent: usize) -> Spans {
        let mut spans = Spans::EMPTY;
        for (nth, piece) in bytes.chunks(extent).enumerate() {
            let offset = self.used.fetch_add(piece.len() as u64, Ordering::Relaxed);
            let window = nth % 2;
            let mut place = self.arenas[window].lend_mut(offset, piece.len());
            place.as_mut_slice().copy_from_slice(piece);
            let (window, length) = (window as u32, piece.len() as u32);
            assert!(spans.push(Span { window, length, offset }), "at most 16 extents");
        }
        self.named.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        spans
    }
}
