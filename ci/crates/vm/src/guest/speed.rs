//! Random reads of 4 KiB, 32 at a time, from one core: through VFIO and through the kernel's driver by
//! io_uring, in turns. Reported, and not judged: under emulation time says little.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use memkv_block::{BlockDevice, read};
use memkv_dma::Pool;
use memkv_poller::Rng;

use super::rig::{self, Bench, PATIENT};
use super::talk;
use crate::plan::{Check, LARGE};

const DEPTH: u64 = 32;
const BYTES: usize = 4096;
const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_millis(700);

/// That there is anything to report.
pub const CHECKS: &[Check] =
    &[Check { name: "random reads are served by both drivers", run: random_reads }];

fn random_reads() {
    let pool = rig::pool();
    let ours = rig::open("ours", &pool, PATIENT);
    let kernels = rig::open_uring("kernels", &pool);
    let (mut by_vfio, mut by_uring) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        by_vfio.push(one_round(&*ours, &pool, round as u64));
        by_uring.push(one_round(&*kernels, &pool, round as u64));
    }
    let (ours, kernels) = (median(by_vfio), median(by_uring));
    talk::say(format!(
        "  random reads of {BYTES} bytes at depth {DEPTH}, one core, median of {ROUNDS}"
    ));
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::ASCII_MARKDOWN);
    table.set_header(["driver", "IOPS", "ratio"]);
    table.add_row([
        "nvme (VFIO)".to_owned(),
        format!("{ours:.0}"),
        format!("{:.2}", ours / kernels),
    ]);
    table.add_row(["uring (kernel)".to_owned(), format!("{kernels:.0}"), "1".to_owned()]);
    table.lines().for_each(|line| talk::say(format!("  {line}")));
    assert!(ours > 0.0 && kernels > 0.0);
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

/// Commands a second.
fn one_round(device: &dyn BlockDevice, pool: &Pool, seed: u64) -> f64 {
    let mut bench = Bench::new(device, pool);
    let (count, stop) = (Rc::new(Cell::new(0u64)), Rc::new(Cell::new(false)));
    for n in 0..DEPTH {
        let (queue, mut buffer) = (Rc::clone(&bench.queue), bench.buffer(BYTES));
        let (count, stop) = (Rc::clone(&count), Rc::clone(&stop));
        let mut rng = Rng::seeded(seed << 8 | n);
        bench.reactor.local().spawn(async move {
            while !stop.get() {
                let offset = rng.below(LARGE / BYTES as u64) * BYTES as u64;
                let (result, back) = read(&*queue, offset, BYTES, buffer).await;
                result.expect("read");
                buffer = back.expect("it comes back");
                count.set(count.get() + 1);
            }
        });
    }
    let begun = Instant::now();
    while begun.elapsed() < ROUND {
        for _ in 0..16 {
            bench.reactor.step();
        }
    }
    let rate = count.get() as f64 / begun.elapsed().as_secs_f64();
    stop.set(true);
    while bench.queue.outstanding() > 0 {
        bench.reactor.step();
    }
    rate
}
