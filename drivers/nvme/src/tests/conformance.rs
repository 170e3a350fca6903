//! The tests that every driver passes, with a model that has a thread of its own.

use std::any::Any;
use std::sync::Arc;

use memkv_dma::Hugepages;
use memkv_poller::SystemClock;

use crate::model::{ModelConfig, ModelLink};
use crate::{Options, open};

#[macro_use]
#[path = "../../../block/tests/suite/mod.rs"]
mod suite;

use suite::{CAPACITY, Rig, pool};

/// At the end the driver must have asked the model for nothing that a drive would not do.
struct Unoffended(crate::model::SharedModel);

impl Drop for Unoffended {
    fn drop(&mut self) {
        let offences = self.0.lock().stats().offences;
        assert!(std::thread::panicking() || offences == 0, "{offences} offences");
    }
}

fn rig(config: ModelConfig) -> Rig {
    let (link, model) = ModelLink::with_thread(config);
    let pool = pool();
    // Longer than any machine is too busy for.
    let limit = std::time::Duration::from_secs(300);
    let options = Options {
        hugepages: Hugepages::Never,
        command_limit: limit,
        admin_limit: limit,
        ..Options::new(4)
    };
    let device = open(link, &pool, Arc::new(SystemClock), options).unwrap();
    let below: Box<dyn Any> = Box::new(Unoffended(model));
    Rig { device, sector: 4096, pool, below }
}

/// A drive whose deadlines nobody's machine is too slow for.
fn config() -> ModelConfig {
    ModelConfig { timeout: 255, ..ModelConfig::new(CAPACITY) }
}

conformance!(nvme, || super::rig(super::config()));
conformance!(nvme_in_any_order, || super::rig(crate::model::ModelConfig {
    scramble: Some(7),
    transfer_bits: 5,
    entries: 16,
    stride: 3,
    ..super::config()
}));
conformance!(nvme_with_large_pages, || super::rig(crate::model::ModelConfig {
    page_bits: 16,
    transfer_bits: 0,
    deallocates: false,
    ..super::config()
}));
