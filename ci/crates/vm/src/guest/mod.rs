//! The guest's side: runs the checks of a plan and tells the host what became of each.

pub mod conformance;
pub mod count;
pub mod driver;
pub mod gets;
pub mod node;
mod pci;
mod rig;
mod samples;
mod server;
pub mod speed;
mod symbols;
mod syscalls;
mod talk;
pub mod whole;

use std::fs;
use std::io;
use std::panic;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use thiserror::Error;

use crate::plan::{Check, Word, plan};

/// Why the guest can do nothing.
#[derive(Debug, Error)]
pub enum GuestError {
    /// There is no way to the host.
    #[error("there is no line to the host")]
    Talk(#[from] io::Error),
    /// The host wants what is not known.
    #[error("there is no plan {0}")]
    Plan(String),
}

/// What a check complained of last.
static COMPLAINT: Mutex<String> = Mutex::new(String::new());

/// Asks the host for a plan and runs it.
///
/// # Errors
/// When there is nobody to tell anything.
pub fn run() -> Result<(), GuestError> {
    let filter = tracing_subscriber::EnvFilter::new("warn");
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).init();
    talk::open()?;
    panic::set_hook(Box::new(|info| {
        let mut complaint = COMPLAINT.lock().unwrap_or_else(PoisonError::into_inner);
        complaint.push_str(&info.to_string());
        complaint.push('\n');
    }));
    let up = fs::read_to_string("/proc/uptime")?;
    let seconds: f64 = up.split(' ').next().and_then(|text| text.parse().ok()).unwrap_or_default();
    let clock =
        fs::read_to_string("/sys/devices/system/clocksource/clocksource0/current_clocksource")?;
    talk::say(format!("  clock: {}", clock.trim()));
    let name = talk::ask(&Word::Hello { up_ms: (seconds * 1000.0) as u64 });
    let plan = plan(&name).ok_or(GuestError::Plan(name))?;
    plan.checks().for_each(one);
    talk::tell(&Word::Done);
    Ok(())
}

fn one(check: &Check) {
    let begun = Instant::now();
    let held = panic::catch_unwind(check.run).is_ok();
    let said = std::mem::take(&mut *COMPLAINT.lock().unwrap_or_else(PoisonError::into_inner));
    let took_ms = begun.elapsed().as_millis() as u64;
    let complaint = (!held).then_some(said);
    talk::tell(&Word::Check { name: check.name.to_owned(), complaint, took_ms });
}
