//! Settings that change while the store runs.

use std::rc::Rc;
use std::time::Duration;

use crate::policy::EvictionPolicy;
use crate::{EvictionConfig, Policy, Store, StoreConfig};

/// What a store is told at its start and may be told anew at any time.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    /// See [`StoreConfig::eviction`].
    pub eviction: Option<EvictionConfig>,
    /// See [`StoreConfig::lease_max`]; leases that were given out stay as they are.
    pub lease_max: Duration,
    /// See [`StoreConfig::default_deadline`].
    pub default_deadline: Duration,
}

impl Tuning {
    /// What a configuration says of it.
    pub fn of(config: &StoreConfig) -> Self {
        let StoreConfig { eviction, lease_max, default_deadline, .. } = *config;
        Self { eviction, lease_max, default_deadline }
    }
}

impl Store {
    /// Goes on with other settings from now on.
    pub fn tune(&self, tuning: Tuning) {
        self.tuning.set(tuning);
        // A lower mark, or eviction at all, may be due at once.
        self.watch_space();
    }

    /// The eviction policy by its name, and whether blocks are still moving to it.
    pub fn policy(&self) -> (&'static str, bool) {
        let policy = self.policy.borrow();
        (policy.name(), policy.changing() || self.next_policy.get().is_some())
    }

    /// Changes the eviction policy, unless it is this one. The blocks move to it a few at a time, in
    /// a task; a change that is under way is finished before.
    pub fn change_policy(self: &Rc<Self>, next: Policy) {
        let (now, changing) = self.policy();
        if now == next.build().name() && !changing {
            return;
        }
        self.next_policy.set(Some(next));
        if !changing {
            self.local.spawn(self.clone().change_policies());
        }
    }

    async fn change_policies(self: Rc<Self>) {
        while let Some(next) = self.next_policy.take() {
            let next = next.build();
            if next.name() == self.policy.borrow().name() {
                continue;
            }
            let name = next.name();
            self.policy.borrow_mut().change(next);
            while self.move_blocks() {
                self.local.yield_now().await;
            }
            tracing::info!(policy = name, "eviction policy changed");
        }
    }

    fn move_blocks(&self) -> bool {
        let blocks = self.blocks.borrow();
        self.policy.borrow_mut().step(self.second(), |slot| blocks.get(slot).hash())
    }
}
