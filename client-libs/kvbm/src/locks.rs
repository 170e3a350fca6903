//! Who offloads a block, when several could: upstream's `ObjectLockManager`.
//!
//! A lock is a value `{identity}/lock/{hash}` with the name of its owner, stored only where none is, and gone
//! after its time: an owner that died holds up nobody for longer. It is renewed and given back by its
//! generation, so that nobody touches the lock of whoever came after. Losing one to an eviction costs a second
//! transfer of the same bytes, of which the store keeps the first.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::future::BoxFuture;
use kvbm_common::SequenceHash;
use kvbm_engine::object::ObjectLockManager;
use memkv_client::{Client, ClientError, GetOutcome, PutMode, PutOptions, PutOutcome};

use crate::tier::{Tier, rank_name};

/// How long a lock lives unless it is given back or renewed: as long as upstream's own.
const TIME: Duration = Duration::from_secs(300);
/// How often the state of a lock may change under a call before it is left to the others.
const ATTEMPTS: usize = 4;

/// The locks of one owner. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Locks {
    tier: Tier,
    owner: Arc<str>,
    seconds: u32,
    ranks: usize,
}

impl Locks {
    pub(crate) fn new(tier: Tier, owner: String) -> Locks {
        Locks { tier, owner: owner.into(), seconds: whole_seconds(TIME), ranks: 0 }
    }

    /// The same, whose locks live for `time`: whole seconds, one at least.
    #[must_use]
    pub fn with_time(mut self, time: Duration) -> Locks {
        self.seconds = whole_seconds(time);
        self
    }

    /// The same, which says of a block that it is offloaded only while all of its ranks 0 to `ranks` are still
    /// stored. Without, a note that it was offloaded may outlive the block, which is then not stored again
    /// until the note is gone, too.
    #[must_use]
    pub fn with_ranks(mut self, ranks: usize) -> Locks {
        self.ranks = ranks;
        self
    }

    /// Makes calls of the client on a thread that may block.
    fn run<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Locks, &Client) -> Result<T> + Send + 'static,
    ) -> BoxFuture<'static, Result<T>> {
        let locks = self.clone();
        Box::pin(async move {
            let client = locks.tier.client_in_time();
            tokio::task::spawn_blocking(move || call(&locks, &client)).await?
        })
    }

    fn options(&self, mode: PutMode) -> PutOptions {
        let (ttl_seconds, pin_seconds) = (self.seconds, self.seconds);
        PutOptions { mode, ttl_seconds, pin_seconds, ..PutOptions::default() }
    }

    fn acquire(&self, client: &Client, key: &[u8]) -> Result<bool> {
        let mut mode = PutMode::Absent;
        for _ in 0..ATTEMPTS {
            match client.put(key, self.owner.as_bytes(), &self.options(mode)) {
                Ok(PutOutcome::Stored { .. }) => return Ok(true),
                Ok(PutOutcome::Present { .. })
                | Err(ClientError::Conflict { .. } | ClientError::GenerationMismatch { .. }) => (),
                Err(error) => return Err(error).context("a lock cannot be taken"),
            }
            mode = match self.holder(client, key)? {
                // It ended meanwhile.
                None => PutMode::Absent,
                // It is one's own already, and begins anew.
                Some((owner, generation)) if *owner == *self.owner.as_bytes() => {
                    PutMode::Generation(generation)
                }
                Some(_) => return Ok(false),
            };
        }
        // Others take it and give it back all the time.
        Ok(false)
    }

    /// Who holds a lock, and its generation.
    fn holder(&self, client: &Client, key: &[u8]) -> Result<Option<(Vec<u8>, u64)>> {
        let mut owner = Vec::new();
        match client.get(key, &mut owner).context("a lock cannot be read")? {
            GetOutcome::Hit { generation, .. } => Ok(Some((owner, generation))),
            GetOutcome::Miss(_) => Ok(None),
        }
    }

    fn release(&self, client: &Client, key: &[u8]) -> Result<()> {
        let generation = match self.holder(client, key)? {
            Some((owner, generation)) if *owner == *self.owner.as_bytes() => generation,
            // It ran out, and perhaps somebody else has it now.
            _ => return Ok(()),
        };
        match client.delete(key, Some(generation)) {
            Ok(_) | Err(ClientError::GenerationMismatch { .. }) => Ok(()),
            Err(error) => Err(error).context("a lock cannot be given back"),
        }
    }
}

impl ObjectLockManager for Locks {
    fn has_meta(&self, hash: SequenceHash) -> BoxFuture<'static, Result<bool>> {
        self.run(move |locks, client| {
            let mut keys = vec![locks.tier.key("meta", &hash)];
            for rank in (0..locks.ranks).map(|rank| rank_name(Some(rank))) {
                let layout = locks.tier.layout_of(client, &rank);
                let Some(layout) = layout.context("a layout cannot be looked up")? else {
                    return Ok(false);
                };
                keys.push(locks.tier.block_key(&rank, &layout, &hash));
            }
            let keys: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
            for length in client.lengths(&keys) {
                if length.context("a block cannot be looked up")?.is_none() {
                    return Ok(false);
                }
            }
            Ok(true)
        })
    }

    fn try_acquire_lock(&self, hash: SequenceHash) -> BoxFuture<'static, Result<bool>> {
        self.run(move |locks, client| {
            if locks.owner.is_empty() {
                bail!("the owner of a lock has no name");
            }
            locks.acquire(client, &locks.tier.key("lock", &hash))
        })
    }

    fn create_meta(&self, hash: SequenceHash) -> BoxFuture<'static, Result<()>> {
        self.run(move |locks, client| {
            let options = PutOptions { mode: PutMode::Replace, ..PutOptions::default() };
            let key = locks.tier.key("meta", &hash);
            client
                .put(&key, locks.owner.as_bytes(), &options)
                .context("a note cannot be stored")?;
            Ok(())
        })
    }

    fn release_lock(&self, hash: SequenceHash) -> BoxFuture<'static, Result<()>> {
        self.run(move |locks, client| locks.release(client, &locks.tier.key("lock", &hash)))
    }
}

/// What the wire counts.
fn whole_seconds(time: Duration) -> u32 {
    u32::try_from(time.as_millis().div_ceil(1000)).unwrap_or(u32::MAX).max(1)
}
