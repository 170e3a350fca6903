//! What a whole GET of 64 KiB costs a server, in instructions, on a processor on which one instruction is one
//! nanosecond: by the driver for VFIO, and the same server, the same drive and the same blocks by the
//! kernel's driver and io_uring.
//!
//! *All* is the time for which the server's threads have run, by the kernel's account
//! (`/proc/PID/task/*/schedstat`), over the number of GETs: nothing of it while they sleep. With it goes what
//! the kernel does in their place: interrupts, and in a send over loopback all the way to the client's
//! socket.
//!
//! The stages are shares of that, by [samples](super::samples) of a second run. Each sample belongs to
//! the first of these that it is a part of:
//!
//! * *receive, parse*: the kernel receives from a socket; functions of the carrier that receive; frames are
//!   taken apart, the session reads the next one;
//! * *send*: the kernel sends on a socket, loopback included; functions of the carrier that send; the session's
//!   outbox;
//! * *device*: block layer, NVMe driver and VFIO of the kernel, with their interrupts; `memkv-nvme` and
//!   `memkv-block`;
//! * *lookup, lease*: `memkv-store`, `memkv-journal`, and the session's GET, in which the store is called;
//! * *MACs*: SHA-256, of both directions;
//! * *other*: the reactor, sleeping and waking, all that is left.

use std::collections::BTreeMap;
use std::fs;

use memkv_client::Client;

use super::pci::{self, Driver};
use super::samples::{Sample, Sampler};
use super::server::{self, Server, get, put, run, storage};
use super::symbols::Symbols;
use super::{rig, talk};
use crate::plan::Check;

const LEN: usize = 64 << 10;

/// Blocks that are read one after the other, and how often all of them are.
const BLOCKS: u64 = 64;
const ROUNDS: u64 = 6;

/// Instructions between two samples: no divisor of anything.
const PERIOD: u64 = 10_007;

const STAGES: [&str; 6] =
    ["receive, parse", "lookup, lease", "device", "send", "MACs (SHA-256)", "other"];
const RECEIVE: usize = 0;
const LOOKUP: usize = 1;
const DEVICE: usize = 2;
const SEND: usize = 3;
const MACS: usize = 4;
const OTHER: usize = 5;

/// That a GET costs less past the kernel.
pub const CHECKS: &[Check] = &[Check {
    name: "a GET of 64 KiB costs fewer instructions past the kernel than through it",
    run: both,
}];

/// Instructions of a GET: all, and the share of each stage in samples.
struct Cost {
    all: u64,
    stages: [u64; STAGES.len()],
    /// Where most samples of each stage are.
    most: [String; STAGES.len()],
}

fn both() {
    let drive = [rig::address("ours", Driver::Vfio)];
    run("/bin/memkv", &["setup", "--force", "--address", server::ADDRESS, "--drives", &drive[0]]);
    let by_vfio = cost(&storage(&drive, "require", ""), true);
    // On a busy host both together take longer than a guest may be silent.
    talk::say(format!("  a GET past the kernel: {} instructions", by_vfio.all));
    run("/bin/memkv", &["drive", "unbind", &drive[0]]);
    pci::block_device(&drive[0]);
    let by_kernel = cost(&storage(&drive, "never", ""), false);
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::ASCII_MARKDOWN);
    table.set_header(["GET of 64 KiB", "nvme (VFIO)", "uring (kernel)"]);
    for (stage, name) in STAGES.iter().enumerate() {
        let of = |cost: &Cost| cost.stages[stage].to_string();
        table.add_row([(*name).to_owned(), of(&by_vfio), of(&by_kernel)]);
    }
    table.add_row(["all".to_owned(), by_vfio.all.to_string(), by_kernel.all.to_string()]);
    talk::say("  instructions of the server");
    table.lines().for_each(|line| talk::say(format!("  {line}")));
    for (way, cost) in [("nvme", &by_vfio), ("uring", &by_kernel)] {
        for stage in [LOOKUP, DEVICE, OTHER] {
            talk::say(format!("  {way}: {}: {}", STAGES[stage], cost.most[stage]));
        }
    }
    assert!(by_vfio.all < by_kernel.all, "{} and {}", by_vfio.all, by_kernel.all);
}

/// Nanoseconds for which the threads of a process have run.
fn ran(process: u32) -> u64 {
    let threads = fs::read_dir(format!("/proc/{process}/task")).expect("it runs").flatten();
    let own = |thread: fs::DirEntry| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    };
    threads.filter_map(own).sum()
}

fn get_all(client: &Client) {
    for _ in 0..ROUNDS {
        (0..BLOCKS).for_each(|n| assert!(get(client, n, LEN).is_hit(), "block {n}"));
    }
}

fn cost(rest: &str, first: bool) -> Cost {
    let server = Server::start(rest);
    let client = server.client();
    if first {
        (0..BLOCKS).for_each(|n| put(&client, n, LEN));
    }
    // Everybody has the memory that they need, and all blocks were checked once.
    get_all(&client);
    let before = ran(server.process());
    get_all(&client);
    let all = (ran(server.process()) - before) / (ROUNDS * BLOCKS);
    let sampler = Sampler::start(server.process(), PERIOD).expect("the kernel lets us look");
    get_all(&client);
    let samples = sampler.end();
    let (kernel, program) =
        (Symbols::of_kernel(), Symbols::of_program(server.process(), "/bin/memkv"));
    server.stop();
    assert!(samples.len() > 500, "{} samples tell little", samples.len());
    let mut places: [BTreeMap<&str, u64>; STAGES.len()] = Default::default();
    for sample in &samples {
        let name = sample.kernel.first().map_or(program.name(sample.at), |at| kernel.name(*at));
        *places[stage(sample, &kernel, &program)].entry(name).or_default() += 1;
    }
    let instructions = |count: u64| all * count / samples.len() as u64;
    let stages = places.each_ref().map(|names| instructions(names.values().sum()));
    let most = places.map(|names| {
        let mut names: Vec<(&str, u64)> = names.into_iter().collect();
        names.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let told = names.iter().take(6);
        let told = told.map(|(name, count)| format!("{name} {}", instructions(*count)));
        told.collect::<Vec<_>>().join(", ")
    });
    Cost { all, stages, most }
}

/// Whether a name has one of these parts.
fn has(name: &str, parts: &[&str]) -> bool {
    parts.iter().any(|part| name.contains(part))
}

fn stage(sample: &Sample, kernel: &Symbols, program: &Symbols) -> usize {
    if sample.kernel.is_empty() {
        return stage_of_program(program.name(sample.at));
    }
    // From where it is to the system call or the interrupt: the widest that says what for.
    let calls = || sample.kernel.iter().rev().map(|at| kernel.name(*at));
    for name in calls() {
        if has(name, &["_recvmsg", "io_recv", "sock_read"]) {
            return RECEIVE;
        }
        if has(name, &["_sendmsg", "io_send", "sock_write"]) {
            return SEND;
        }
        if has(name, &["blk", "nvme", "io_read", "bio_", "vfio", "eventfd"]) {
            return DEVICE;
        }
    }
    OTHER
}

fn stage_of_program(name: &str) -> usize {
    if has(name, &["sha2", "hmac"]) {
        return MACS;
    }
    if has(name, &["memkv_nvme", "memkv_block"]) {
        return DEVICE;
    }
    if has(name, &["memkv_net"]) {
        let (sends, receives) = (["send", "write", "flush"], ["recv", "receive", "read"]);
        return match (has(name, &sends), has(name, &receives)) {
            (true, false) => SEND,
            (false, true) => RECEIVE,
            _ => OTHER,
        };
    }
    if has(name, &["outbox"]) {
        return SEND;
    }
    if has(name, &["memkv_wire", "read_frame"]) {
        return RECEIVE;
    }
    if has(name, &["memkv_store", "memkv_journal", "memkv_session"]) {
        return LOOKUP;
    }
    OTHER
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_belong_to_stages() {
        let stages = [
            ("memkv_store::index::Index::find", LOOKUP),
            ("memkv_session::session::Session::read_frame", RECEIVE),
            ("memkv_session::outbox::Outbox::run", SEND),
            ("memkv_net::tcp::uring::Ring::recv", RECEIVE),
            ("memkv_nvme::queue::engine::Engine::work", DEVICE),
            ("sha2::sha256::compress_generic", MACS),
            ("memkv_poller::reactor::Reactor::step", OTHER),
            ("", OTHER),
        ];
        for (name, expected) in stages {
            assert_eq!(STAGES[stage_of_program(name)], STAGES[expected], "{name}");
        }
    }
}
