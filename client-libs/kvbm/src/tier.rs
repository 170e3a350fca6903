//! One deployment's share of memkv: what its [`Blocks`] and [`Locks`] have in common.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kvbm_common::SequenceHash;
use kvbm_physical::layout::Layout;
use memkv_client::{Client, ClientError, Config, ConfigError};
use tokio::sync::Semaphore;

use crate::binding::{self, BindError, FINGERPRINT_KEY};
use crate::blocks::Blocks;
use crate::identity::{self, Identity};
use crate::locks::Locks;

/// The namespace of a client that was told none.
const UNNAMED: &str = "default";
/// Digits of the name of a layout.
const LAYOUT_DIGITS: usize = 16;
/// How long a refusal holds before it is looked at again: the other deployment may have been deleted.
const REFUSAL: Duration = Duration::from_secs(10);

/// Why a tier cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// `MEMKV_CONFIG` or a `MEMKV_*` variable is wrong.
    #[error("the configuration cannot be used")]
    Config(#[from] ConfigError),
    /// No client can be made of it.
    #[error("no client can be made of the configuration")]
    Client(#[from] ClientError),
}

/// One deployment's share of memkv. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Tier {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub client: Client,
    identity: Identity,
    prefix: String,
    /// Calls with payload that run at a time.
    pub bulk: Arc<Semaphore>,
    /// How many that are.
    pub lanes: usize,
    /// What is known to be bound, by rank.
    bound: Mutex<HashMap<String, Bound>>,
}

/// A layout that may be used, or may not.
#[derive(Debug)]
struct Bound {
    layout: serde_json::Value,
    outcome: Result<LayoutName, (Arc<BindError>, Instant)>,
}

/// What the keys of blocks say of their layout.
#[derive(Clone, Debug)]
pub(crate) struct LayoutName(Arc<str>);

impl LayoutName {
    /// By what is written down of it.
    fn of(note: &[u8]) -> LayoutName {
        LayoutName(identity::digest(note, LAYOUT_DIGITS).into())
    }
}

impl Tier {
    /// With the configuration of `MEMKV_CONFIG` and `MEMKV_*`; where that names no namespace, the identity
    /// has one of its own. Nobody is talked to yet.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(identity: Identity) -> Result<Tier, OpenError> {
        let mut config = Config::load()?;
        if config.namespace == UNNAMED {
            config.namespace = identity.default_namespace();
        }
        Ok(Tier::new(Client::new(config)?, identity))
    }

    /// With a client that is there already, in the namespace that it has.
    pub fn new(client: Client, identity: Identity) -> Tier {
        // One connection stays free for lookups and locks.
        let lanes = client.config().num_connections.saturating_sub(1).max(1);
        let prefix = identity.prefix();
        let (bulk, bound) = (Arc::new(Semaphore::new(lanes)), Mutex::default());
        Tier { inner: Arc::new(Inner { client, identity, prefix, bulk, lanes, bound }) }
    }

    /// The blocks of one rank, or of an engine that has but one.
    pub fn blocks(&self, rank: Option<usize>) -> Blocks {
        Blocks::new(self.clone(), rank)
    }

    /// The locks of one owner, whose name no other has.
    pub fn locks(&self, owner: impl Into<String>) -> Locks {
        Locks::new(self.clone(), owner.into())
    }

    /// The client that moves the bytes, for its counters.
    pub fn client(&self) -> &Client {
        &self.inner.client
    }

    /// The client for one call that begins now, all of whose parts end by one deadline.
    pub(crate) fn client_in_time(&self) -> Client {
        let client = &self.inner.client;
        client.until(Instant::now() + Duration::from_millis(client.config().request_timeout_ms))
    }

    /// The key of a block.
    pub(crate) fn block_key(
        &self,
        rank: &str,
        layout: &LayoutName,
        hash: &SequenceHash,
    ) -> Vec<u8> {
        let Inner { prefix, .. } = &*self.inner;
        format!("{prefix}/{rank}/{}/{:032x}", layout.0, hash.as_u128()).into_bytes()
    }

    /// The key of what else there is about a block.
    pub(crate) fn key(&self, what: &str, hash: &SequenceHash) -> Vec<u8> {
        format!("{}/{what}/{:032x}", self.inner.prefix, hash.as_u128()).into_bytes()
    }

    fn note_key(&self, rank: &str) -> String {
        format!("{}/{rank}/layout", self.inner.prefix)
    }

    /// How the blocks of a rank are named, if there are any: as they are here, or as the servers say, of whom
    /// the layout is asked for where no block has moved yet.
    pub(crate) fn layout_of(
        &self,
        client: &Client,
        rank: &str,
    ) -> Result<Option<LayoutName>, ClientError> {
        let bound = self.inner.bound.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Bound { outcome: Ok(name), .. }) = bound.get(rank) {
            return Ok(Some(name.clone()));
        }
        drop(bound);
        let note = binding::written(client, &self.note_key(rank))?;
        Ok(note.map(|note| LayoutName::of(&note)))
    }

    /// How blocks of this layout are named, if they may be moved for this rank. The first call asks the
    /// servers.
    pub(crate) fn bind(
        &self,
        client: &Client,
        rank: &str,
        layout: &dyn Layout,
    ) -> Result<LayoutName, Arc<BindError>> {
        let layout = binding::of_layout(layout);
        let lock = || self.inner.bound.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bound) = lock().get(rank).filter(|bound| bound.layout == layout) {
            match &bound.outcome {
                Ok(name) => return Ok(name.clone()),
                Err((error, since)) if since.elapsed() < REFUSAL => return Err(error.clone()),
                Err(_) => (),
            }
        }
        let result = binding::bind(client, FINGERPRINT_KEY, &self.inner.identity.document())
            .and_then(|_| binding::bind(client, &self.note_key(rank), &layout))
            .map(|note| LayoutName::of(&note))
            .map_err(Arc::new);
        let outcome = match &result {
            Ok(name) => Ok(name.clone()),
            Err(error) if matches!(**error, BindError::Mismatch { .. }) => {
                tracing::error!(%error, "memkv is not used");
                Err((error.clone(), Instant::now()))
            }
            // Nobody could say: the next call asks again.
            Err(_) => return result,
        };
        lock().insert(rank.to_owned(), Bound { layout, outcome });
        result
    }
}

/// How keys name a rank.
pub(crate) fn rank_name(rank: Option<usize>) -> String {
    rank.map_or_else(|| "-".to_owned(), |rank| rank.to_string())
}
