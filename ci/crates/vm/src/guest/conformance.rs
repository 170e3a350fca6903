//! What every driver promises, asked of this one on QEMU's controllers: the tests that all drivers pass.

use std::sync::Mutex;

use memkv_block::Io;

use super::rig::{self, Bench, PATIENT};
use crate::plan::Check;

#[macro_use]
#[path = "../../../../../drivers/block/tests/suite/mod.rs"]
mod suite;

use suite::{CAPACITY, Rig};

/// The drive that is asked, and its sector: a maker of drives is told nothing.
static ASKED: Mutex<(&str, u32)> = Mutex::new(("", 0));

fn maker() -> Rig {
    let (drive, sector) = *ASKED.lock().expect("nobody panics with it");
    let pool = suite::pool();
    let device = rig::open(drive, &pool, PATIENT);
    Rig { device, sector, pool, below: Box::new(()) }
}

/// The test that begins with a drive that holds nothing.
const BEGINS_EMPTY: &str = "histories_agree_with_an_array";

/// Asks one thing of a drive.
fn asked(drive: &'static str, sector: u32, name: &str, test: fn(suite::Maker)) {
    if name.ends_with(BEGINS_EMPTY) {
        let pool = rig::pool();
        let device = rig::open(drive, &pool, PATIENT);
        let forgotten = Bench::new(&*device, &pool).run(Io::deallocate(0, CAPACITY));
        forgotten.result.expect("QEMU's drives can forget");
    }
    *ASKED.lock().expect("nobody panics with it") = (drive, sector);
    test(maker);
}

macro_rules! checks {
    ($drive:literal, $sector:literal, [$($test:ident),* $(,)?]) => {
        &[$(Check {
            name: concat!($drive, "::", stringify!($test)),
            run: || asked($drive, $sector, stringify!($test), suite::$test),
        }),*]
    };
}

/// On blocks of 512 bytes, with queues and commands as short as can be.
pub const BLOCKS_OF_512: &[Check] = promises! { checks! { "blocks512", 512, } };

/// On blocks of 4096 bytes.
pub const BLOCKS_OF_4096: &[Check] = promises! { checks! { "blocks4096", 4096, } };
