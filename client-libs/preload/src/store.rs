//! Files and directories as values of memkv.
//!
//! | key | value |
//! | --- | --- |
//! | `f/NAME` | the head of a file, and its bytes where they are few |
//! | `p/ID/NUMBER` | a part of a larger file |
//! | `d/NAME` | the names in a directory |
//!
//! A file is stored in this order: parts, head, name in its directory. A reader finds the file that was there
//! before, whole, or this one, whole. Parts of what was replaced are deleted last; whoever still reads them
//! finds that they are gone, and looks again.
//!
//! There is no request that lists keys, so directories are lists of names, changed by compare-and-swap on the
//! generation of their value; several processes may add to one at a time. A list may name files that are gone
//! (evicted, or lost with their process): what is not there is left out when it is read. When the list itself
//! was evicted its names are forgotten, although the files can still be opened.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use memkv_client::{
    Client, ClientError, Config, GatherItem, GetItem, GetOutcome, PutItem, PutMode, PutOptions,
    PutOutcome, StatId, one_line,
};

use crate::format::{Entry, HEAD_BYTES, Head, decode_directory, encode_directory};
use crate::prefix::split;

/// A file of this size or less follows its head.
const INLINE: u64 = 1 << 20;
/// Bytes of a part.
const PART: u64 = 16 << 20;
/// Bytes of a name, at most: it is part of a key.
const NAME_MAX: usize = 510;
/// How often a directory is changed anew when others change it at the same time.
const CHANGES_MAX: usize = 1000;
/// How often a file that is replaced while it is read is looked for anew.
const LOOKS_MAX: usize = 10;

/// Why something could not be done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// There is no such file.
    #[error("no such file")]
    Absent,
    /// There is one.
    #[error("it exists")]
    Exists,
    /// A directory where a file was meant.
    #[error("it is a directory")]
    Directory,
    /// Something is in the directory.
    #[error("the directory is not empty")]
    NotEmpty,
    /// The name does not fit into a key.
    #[error("the name has more than {NAME_MAX} bytes")]
    Name,
    /// A value under one of our keys is none of ours.
    #[error("what is stored under its key is no file")]
    Strange,
    /// The directory was changed by others all the time.
    #[error("its directory is changed by too many at one time")]
    Contended,
    /// memkv said no, or nothing.
    #[error("{}", one_line(.0))]
    Client(#[from] ClientError),
}

/// What a name leads to.
pub(crate) enum Found {
    /// A file.
    File(Head),
    /// A directory.
    Directory,
}

/// A file as it was found.
pub(crate) struct Stored {
    /// What is known of it.
    pub head: Head,
    /// Its bytes, where they follow the head.
    pub inline: Vec<u8>,
    /// Of the head.
    generation: u64,
}

/// Files and directories of one namespace.
pub(crate) struct Store {
    client: OnceLock<Result<Client, ClientError>>,
    /// Bytes of a part; less than [`PART`] where a server takes no more.
    part: AtomicU64,
}

impl Store {
    /// Nobody is talked to, and no configuration read, before the first call.
    pub const fn new() -> Store {
        Store { client: OnceLock::new(), part: AtomicU64::new(PART) }
    }

    fn client(&self) -> Result<&Client, StoreError> {
        let made = self.client.get_or_init(|| Client::new(Config::load()?));
        made.as_ref().map_err(|error| StoreError::Client(error.clone()))
    }

    /// The file of this name, with its bytes where they follow the head.
    pub fn open(&self, name: &[u8]) -> Result<Stored, StoreError> {
        if name.is_empty() {
            return Err(StoreError::Directory);
        }
        let client = self.client()?;
        let mut value = Vec::new();
        match client.get(&key(b"f/", name)?, &mut value)? {
            GetOutcome::Miss(_) if self.is_directory(name)? => Err(StoreError::Directory),
            GetOutcome::Miss(_) => Err(StoreError::Absent),
            GetOutcome::Hit { generation, .. } => {
                let head = Head::decode(&value).ok_or(StoreError::Strange)?;
                let mut inline = value;
                inline.drain(..HEAD_BYTES);
                if head.parts == 0 && inline.len() as u64 != head.size {
                    return Err(StoreError::Strange);
                }
                if head.parts > 0 {
                    let parts = part_keys(&head);
                    let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
                    if client.match_prefix(&parts)? < parts.len() {
                        return Err(StoreError::Absent);
                    }
                }
                Ok(Stored { head, inline, generation })
            }
        }
    }

    /// Reads the parts of a file into memory of its size. `Absent` when one of them is gone.
    pub fn read(&self, head: &Head, bytes: &mut [u8]) -> Result<(), StoreError> {
        assert_eq!(bytes.len() as u64, head.size, "memory of the file's size");
        let keys = part_keys(head);
        let chunks = bytes.chunks_mut(head.part_bytes as usize);
        let sizes: Vec<u64> = chunks.map(|chunk| chunk.len() as u64).collect();
        let chunks = bytes.chunks_mut(head.part_bytes as usize);
        let items = keys.iter().zip(chunks);
        let mut items: Vec<GetItem<'_>> =
            items.map(|(key, buf)| GetItem { key, offset: 0, buf }).collect();
        for (outcome, size) in self.client()?.get_batch(&mut items).into_iter().zip(sizes) {
            match outcome? {
                GetOutcome::Hit { length, .. } if length == size => {}
                GetOutcome::Hit { .. } => return Err(StoreError::Strange),
                GetOutcome::Miss(_) => return Err(StoreError::Absent),
            }
        }
        Ok(())
    }

    /// Finds a file and reads it, also when others replace it meanwhile. `place` gives memory of its size.
    pub fn fetch<P: AsMut<[u8]>>(
        &self,
        name: &[u8],
        mut place: impl FnMut(u64) -> std::io::Result<P>,
    ) -> Result<std::io::Result<Head>, StoreError> {
        for look in 1.. {
            let stored = self.open(name)?;
            let mut memory = match place(stored.head.size) {
                Ok(memory) => memory,
                Err(error) => return Ok(Err(error)),
            };
            if stored.head.parts == 0 {
                memory.as_mut().copy_from_slice(&stored.inline);
                return Ok(Ok(stored.head));
            }
            match self.read(&stored.head, memory.as_mut()) {
                Ok(()) => return Ok(Ok(stored.head)),
                Err(StoreError::Absent) if look < LOOKS_MAX => {}
                Err(error) => return Err(error),
            }
        }
        unreachable!("the last look has an answer")
    }

    /// Stores a file.
    pub fn write(&self, name: &[u8], bytes: &[u8]) -> Result<Head, StoreError> {
        let head_key = key(b"f/", name)?;
        let old = match self.find(name) {
            Ok(Found::File(old)) => Some(old),
            Ok(Found::Directory) => return Err(StoreError::Directory),
            Err(StoreError::Absent | StoreError::Strange) => None,
            Err(error) => return Err(error),
        };
        let head = match self.put_file(&head_key, bytes) {
            Err(StoreError::Client(ClientError::TooLarge { limit, .. })) if limit > 4096 => {
                self.part.fetch_min(limit - HEAD_BYTES as u64, Ordering::Relaxed);
                self.put_file(&head_key, bytes)?
            }
            done => done?,
        };
        if let Some(old) = old {
            self.drop_parts(&old);
        }
        // Also when it was there before: the list may have been evicted meanwhile.
        self.list(name, false)?;
        Ok(head)
    }

    fn put_file(&self, head_key: &[u8], bytes: &[u8]) -> Result<Head, StoreError> {
        let client = self.client()?;
        let part_bytes = self.part.load(Ordering::Relaxed);
        let size = bytes.len() as u64;
        let parts = if size <= INLINE.min(part_bytes) { 0 } else { size.div_ceil(part_bytes) };
        let mut id = [0; 16];
        getrandom::fill(&mut id).expect("the kernel gives random bytes");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let head = Head {
            size,
            seconds: now.as_secs() as i64,
            nanos: now.subsec_nanos(),
            parts: parts as u32,
            part_bytes,
            id,
        };
        let mut stored = Ok(());
        if parts > 0 {
            let keys = part_keys(&head);
            let items = keys.iter().zip(bytes.chunks(part_bytes as usize));
            let items: Vec<PutItem<'_>> = items
                .map(|(key, value)| PutItem {
                    key,
                    value,
                    options: PutOptions::default(),
                    parent: None,
                })
                .collect();
            stored = client.put_batch(&items).into_iter().try_for_each(|answer| answer.map(drop));
        }
        let inline = if parts == 0 { bytes } else { &[] };
        let pieces = [&head.encode()[..], inline];
        let value = GatherItem { key: head_key, pieces: &pieces, options: REPLACE, parent: None };
        let put = || client.put_gathered(&[value]).pop().expect("one item has one answer");
        let stored = stored.and_then(|()| put());
        match stored {
            Ok(_) => Ok(head),
            Err(error) => {
                // Whether the head is there may be unknown; then its parts must stay.
                if !error.is_unknown_outcome() {
                    self.drop_parts(&head);
                }
                Err(error.into())
            }
        }
    }

    /// Deletes the parts of a file that nothing leads to any more. What is not deleted will be evicted.
    fn drop_parts(&self, head: &Head) {
        let keys = part_keys(head);
        let keys: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
        if let (false, Ok(client)) = (keys.is_empty(), self.client()) {
            drop(client.delete_batch(&keys));
        }
    }

    /// What this name leads to.
    pub fn find(&self, name: &[u8]) -> Result<Found, StoreError> {
        if name.is_empty() {
            return Ok(Found::Directory);
        }
        let mut head = [0; HEAD_BYTES];
        match self.client()?.get_into(&key(b"f/", name)?, 0, &mut head)? {
            GetOutcome::Hit { .. } => {
                Ok(Found::File(Head::decode(&head).ok_or(StoreError::Strange)?))
            }
            GetOutcome::Miss(_) if self.is_directory(name)? => Ok(Found::Directory),
            GetOutcome::Miss(_) => Err(StoreError::Absent),
        }
    }

    fn is_directory(&self, name: &[u8]) -> Result<bool, StoreError> {
        Ok(name.is_empty() || self.client()?.exists(&[&key(b"d/", name)?])? == [true])
    }

    /// Removes a file.
    pub fn remove(&self, name: &[u8]) -> Result<(), StoreError> {
        let Found::File(head) = self.find(name)? else { return Err(StoreError::Directory) };
        if !self.client()?.delete(&key(b"f/", name)?, None)? {
            return Err(StoreError::Absent);
        }
        self.drop_parts(&head);
        self.unlist(name)
    }

    /// Gives a file another name; one of that name is replaced. Its parts stay where they are.
    pub fn rename(&self, from: &[u8], to: &[u8]) -> Result<(), StoreError> {
        let client = self.client()?;
        let stored = self.open(from)?;
        let replaced = match self.find(to) {
            Ok(Found::Directory) => return Err(StoreError::Directory),
            Ok(Found::File(head)) => Some(head),
            Err(StoreError::Absent) => None,
            Err(error) => return Err(error),
        };
        if from == to {
            return Ok(());
        }
        let value = [&stored.head.encode()[..], &stored.inline].concat();
        client.put(&key(b"f/", to)?, &value, &REPLACE)?;
        match client.delete(&key(b"f/", from)?, Some(stored.generation)) {
            Ok(_) => {}
            // Another version of it came meanwhile, and keeps its name.
            Err(ClientError::GenerationMismatch { .. }) => return self.list(to, false),
            Err(error) => return Err(error.into()),
        }
        match replaced {
            Some(head) => self.drop_parts(&head),
            None => self.list(to, false)?,
        }
        self.unlist(from)
    }

    /// Makes a directory.
    pub fn make_directory(&self, name: &[u8]) -> Result<(), StoreError> {
        match self.find(name) {
            Ok(_) => Err(StoreError::Exists),
            Err(StoreError::Absent) => {
                let put = PutOptions { mode: PutMode::Absent, ..REPLACE };
                self.client()?.put(&key(b"d/", name)?, &encode_directory(&[]), &put)?;
                self.list(name, true)
            }
            Err(error) => Err(error),
        }
    }

    /// Removes an empty directory.
    pub fn remove_directory(&self, name: &[u8]) -> Result<(), StoreError> {
        if name.is_empty() || !self.entries(name)?.is_empty() {
            return Err(StoreError::NotEmpty);
        }
        self.client()?.delete(&key(b"d/", name)?, None)?;
        self.unlist(name)
    }

    /// What is in a directory and still there.
    pub fn entries(&self, name: &[u8]) -> Result<Vec<Entry>, StoreError> {
        let Some((entries, _)) = self.directory(name)? else {
            return if name.is_empty() { Ok(Vec::new()) } else { Err(StoreError::Absent) };
        };
        let key = |entry: &Entry| {
            let whole = if name.is_empty() { vec![] } else { [name, b"/"].concat() };
            let kind: &[u8] = if entry.directory { b"d/" } else { b"f/" };
            key(kind, &[&whole[..], &entry.name].concat())
        };
        let keys = entries.iter().map(key).collect::<Result<Vec<_>, _>>()?;
        let keys: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
        let there = self.client()?.exists(&keys)?;
        Ok(entries
            .into_iter()
            .zip(there)
            .filter_map(|(entry, there)| there.then_some(entry))
            .collect())
    }

    /// Bytes that the servers have in all, and those that are in use.
    pub fn space(&self) -> Result<(u64, u64), StoreError> {
        let (mut total, mut used) = (0, 0);
        for (_, stats) in self.client()?.server_stats() {
            let stats = stats?;
            total += stats.get(StatId::BytesTotal).unwrap_or(0);
            used += stats.get(StatId::BytesUsed).unwrap_or(0);
        }
        Ok((total, used))
    }

    /// The names in a directory, and the generation of the list.
    fn directory(&self, name: &[u8]) -> Result<Option<(Vec<Entry>, u64)>, StoreError> {
        let mut value = Vec::new();
        match self.client()?.get(&key(b"d/", name)?, &mut value)? {
            GetOutcome::Hit { generation, .. } => {
                let entries = decode_directory(&value).ok_or(StoreError::Strange)?;
                Ok(Some((entries, generation)))
            }
            GetOutcome::Miss(_) => Ok(None),
        }
    }

    /// Adds a name to its directory, which is made when there is none, with those above it.
    fn list(&self, name: &[u8], directory: bool) -> Result<(), StoreError> {
        let (parent, last) = split(name);
        let entry = Entry { name: last.to_vec(), directory };
        let made = self.change(parent, |entries| {
            let known = entries.iter().any(|known| known.name == entry.name);
            if !known {
                entries.push(entry.clone());
            }
            !known
        })?;
        if made && !parent.is_empty() { self.list(parent, true) } else { Ok(()) }
    }

    fn unlist(&self, name: &[u8]) -> Result<(), StoreError> {
        let (parent, last) = split(name);
        let change = |entries: &mut Vec<Entry>| {
            let before = entries.len();
            entries.retain(|entry| entry.name != last);
            entries.len() != before
        };
        self.change(parent, change).map(drop)
    }

    /// Changes the names of a directory, until nobody else does so at the same time; whether there was none
    /// before. `change` says whether anything is to be changed.
    fn change(
        &self,
        name: &[u8],
        change: impl Fn(&mut Vec<Entry>) -> bool,
    ) -> Result<bool, StoreError> {
        let client = self.client()?;
        let key = key(b"d/", name)?;
        for _ in 0..CHANGES_MAX {
            let known = self.directory(name)?;
            let made = known.is_none();
            let (mut entries, generation) = known.unwrap_or_default();
            if !change(&mut entries) {
                return Ok(false);
            }
            let mode = if made { PutMode::Absent } else { PutMode::Generation(generation) };
            let options = PutOptions { mode, ..REPLACE };
            match client.put(&key, &encode_directory(&entries), &options) {
                Ok(PutOutcome::Stored { .. }) => return Ok(made),
                // Somebody was faster.
                Ok(PutOutcome::Present { .. })
                | Err(ClientError::Conflict { .. } | ClientError::GenerationMismatch { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(StoreError::Contended)
    }
}

const REPLACE: PutOptions = PutOptions {
    mode: PutMode::Replace,
    ttl_seconds: 0,
    durable: false,
    pin_seconds: 0,
    deadline: None,
};

fn key(kind: &[u8], name: &[u8]) -> Result<Vec<u8>, StoreError> {
    if name.len() > NAME_MAX {
        return Err(StoreError::Name);
    }
    Ok([kind, name].concat())
}

fn part_keys(head: &Head) -> Vec<Vec<u8>> {
    let id: String = head.id.iter().map(|byte| format!("{byte:02x}")).collect();
    (0..head.parts).map(|number| format!("p/{id}/{number}").into_bytes()).collect()
}
