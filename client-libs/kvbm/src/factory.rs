//! What KVBM's factories call: a tier for each call, made of what stands in KVBM's configuration, and
//! of `MEMKV_CONFIG` and `MEMKV_*`.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Result;
use kvbm_engine::object::{ObjectBlockOps, ObjectLockManager};

use crate::identity::Identity;
use crate::tier::Tier;

/// The object client of one rank, or of an engine that has but one.
///
/// # Errors
/// [`OpenError`](crate::OpenError).
pub fn object_client(
    model: &str,
    identity: &BTreeMap<String, String>,
    rank: Option<usize>,
) -> Result<Arc<dyn ObjectBlockOps>> {
    Ok(Arc::new(tier(model, identity)?.blocks(rank)))
}

/// The locks of one instance; of a block that `ranks` ranks store, where that is known (else 0).
///
/// # Errors
/// [`OpenError`](crate::OpenError).
pub fn lock_manager(
    model: &str,
    identity: &BTreeMap<String, String>,
    ranks: usize,
    instance: String,
) -> Result<Arc<dyn ObjectLockManager>> {
    Ok(Arc::new(tier(model, identity)?.locks(instance).with_ranks(ranks)))
}

fn tier(model: &str, facts: &BTreeMap<String, String>) -> Result<Tier> {
    let identity = facts.iter().fold(Identity::new(model), |identity, (name, value)| {
        identity.with(name.as_str(), value.as_str())
    });
    Ok(Tier::open(identity)?)
}
