//! A whole server on drives past the kernel: its commands, what it gives back to the drives, a drive that
//! is pulled and comes back.

use std::fs;

use memkv_block::Io;
use memkv_client::{GetOutcome, MissReason};
use serde_json::Value;

use super::pci::{self, Driver, wait_for};
use super::rig::{self, Bench, MIB, PATIENT};
use super::server::{self, Server, delete, get, put, run, storage};
use super::talk;
use crate::plan::{Check, LARGE, Word};

/// What is asked of a node that was formatted.
pub const CHECKS: &[Check] = &[
    Check { name: "the tool's commands are served on drives past the kernel", run: commands },
    Check { name: "a client in C finds all as its header says, past the kernel", run: conformance },
    Check { name: "what is deleted from a server leaves the images", run: deleted_blocks },
    Check { name: "a drive of a running server is pulled, comes back and serves", run: pulled },
    Check { name: "a server killed gives its hugepages to the next one", run: hugepages },
];

const DRIVES: [&str; 2] = ["one", "two"];

/// Lines of `storage`: what is freed is given up soon.
const SOON: &str = "  durability: power\n  trim:\n    interval_ms: 50\n";

/// Formats both drives, whatever is on them, and starts a server on them.
fn fresh(more: &str) -> Server {
    let drives = DRIVES.map(rig::known_address);
    let line = ["setup", "--force", "--address", server::ADDRESS, "--drives"];
    let line: Vec<&str> = line.into_iter().chain(drives.iter().map(String::as_str)).collect();
    run("/bin/memkv", &line);
    Server::start(&storage(&drives, "require", more))
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no number"))
}

fn drives(status: &Value) -> &[Value] {
    status["drives"].as_array().expect("a list of drives")
}

/// The sum of what all drives say under a name.
fn sum(status: &Value, of: impl Fn(&Value) -> &Value) -> u64 {
    drives(status).iter().map(|drive| number(of(drive))).sum()
}

fn commands() {
    let server = fresh("");
    let value: Vec<u8> = (0..5_000_000_u32).map(|i| (i.wrapping_mul(i) >> 7) as u8).collect();
    fs::write("/tmp/value", &value).expect("room for it");
    server.ctl(&["put", "large", "/tmp/value"]);
    server.ctl(&["put", "small", "/share/bin/memkvctl", "--ttl", "1h", "--namespace", "other"]);
    server.ctl(&["get", "large", "-o", "/tmp/back"]);
    assert!(fs::read("/tmp/back").expect("it was written") == value, "the bytes differ");
    assert_eq!(server.ctl_for(1, &["exists", "large", "none"]), "present large\nmissing none\n");
    let all = server.ctl_json(&["ls"]);
    let names = all[0]["namespaces"].as_array().expect("a list").iter();
    let names: Vec<&Value> = names.map(|of| &of["namespace"]).collect();
    assert_eq!(names, ["default", "other"], "{all}");
    server.ctl(&["hint", "release", "large"]);
    let bench = "bench --sizes 64KiB,1MiB --seconds 300ms --stored 16MiB --memory 16MiB --verify";
    let report = server.ctl_json(&bench.split(' ').collect::<Vec<&str>>());
    for result in report["results"].as_array().expect("a list") {
        assert!(number(&result["operations"]) > 0, "{result}");
        assert_eq!(result["faults"]["wrong_blocks"], 0, "{result}");
    }
    let request = |ms: u64, blocks: &str| {
        format!(
            "{{\"timestamp\":{ms},\"input_length\":1,\"output_length\":1,\"hash_ids\":[{blocks}]}}\n"
        )
    };
    let trace = [request(0, "1,2,3"), request(10, "1,2,3,4"), request(20, "1,2,3,4,5")].concat();
    fs::write("/tmp/trace.jsonl", trace).expect("room for it");
    let replay = ["replay", "/tmp/trace.jsonl", "--verify", "--connections", "1"];
    let report = &server.ctl_json(&replay)["report"];
    assert_eq!((&report["prefix_hits"], &report["stored_blocks"]), (&7.into(), &5.into()));
    assert_eq!(report["faults"]["wrong_blocks"], 0, "{report}");

    let status = &server.ctl_json(&["status"])[0];
    assert_eq!(status["health"]["status"], "healthy");
    for drive in drives(&status["status"]) {
        assert_eq!((&drive["driver"], &drive["state"]), (&"nvme".into(), &"online".into()));
        assert_eq!(drive["nvme"]["model"], "QEMU NVMe Ctrl", "{drive}");
    }
    let top = server.ctl_json(&["top", "--count", "1", "--interval", "50ms"]);
    assert_eq!(
        (&top[0]["health"], &top[0]["server"]),
        (&"healthy".into(), &server::ADDRESS.into())
    );
    reload(&server);
    server.ctl(&["delete", "large"]);
    let miss = server.ctl_for(1, &["get", "large", "--json"]);
    assert!(miss.contains("\"deleted\""), "{miss}");
    server.stop();
}

/// Every call of the C library, and with it of the client, by the program that its tests run.
fn conformance() {
    let server = fresh("");
    // The discard port: nobody listens there.
    let words = [server::ADDRESS, "127.0.0.1:9", "conformance"];
    let said = run("/bin/conformance", &words);
    assert_eq!(said, "all is as the header says\n");
    let counters = &server.status()["counters"];
    assert!(number(&counters["memkv_read_bytes_total"]) > MIB, "{counters}");
    server.stop();
}

/// What holds without a restart is taken over, and what needs one is said.
fn reload(server: &Server) {
    let before = fs::read_to_string(server.config()).expect("it was written");
    let line = "  eviction:\n    high: 80\n    low: 70\n";
    fs::write(server.config(), before.replace("  drives:\n", &format!("{line}  drives:\n")))
        .expect("room for it");
    server.ctl(&["reload"]);
    let status = server.status();
    assert_eq!(status["eviction"]["high_percent"], 80, "{}", status["eviction"]);
    fs::write(server.config(), before.replace("192 MiB", "160 MiB")).expect("room for it");
    server.ctl_for(4, &["reload"]);
    fs::write(server.config(), before).expect("room for it");
    server.ctl(&["reload"]);
}

/// Bytes of the host's disk that both drives take.
fn allocated() -> u64 {
    let of = |drive: &str| talk::ask(&Word::Allocated(drive.to_owned()));
    DRIVES.iter().map(|drive| of(drive).parse::<u64>().expect("a number")).sum()
}

/// Has a drive forget all that is on it.
fn forget(drive: &'static str) {
    let pool = rig::pool();
    let device = rig::open(drive, &pool, PATIENT);
    let forgotten = Bench::new(&*device, &pool).run(Io::deallocate(0, LARGE));
    forgotten.result.expect("QEMU's drives can forget");
}

fn deleted_blocks() {
    const BLOCKS: u64 = 96;
    const LEN: usize = 1 << 20;
    DRIVES.iter().for_each(|drive| forget(drive));
    let empty = allocated();
    let server = fresh(SOON);
    let client = server.client();
    (0..BLOCKS).for_each(|n| put(&client, n, LEN));
    let full = allocated();
    assert!(full >= empty + BLOCKS * MIB, "{empty} bytes, {full} with {BLOCKS} MiB more");
    let trimmed = |status: &Value| sum(status, |drive| &drive["trim"]["bytes_total"]);
    let before = trimmed(&server.status());
    // What is left lies between what goes.
    let stays = |n: &u64| n % 8 == 3;
    (0..BLOCKS).filter(|n| !stays(n)).for_each(|n| delete(&client, n));
    let gone = BLOCKS / 8 * 7 * MIB;
    // Each delete was answered when its removal was durable: from then on its units wait to be trimmed.
    let status = server.wait("what was freed is trimmed", |status| {
        trimmed(status) - before >= gone
            && sum(status, |drive| &drive["trim"]["pending_bytes"]) == 0
    });
    assert_eq!(sum(&status, |drive| &drive["trim"]["failed_total"]), 0);
    let left = allocated();
    let most = full - gone + rig::PIECE_LISTS;
    assert!(left <= most, "{full} bytes, and {left} with {gone} trimmed");
    let (extents, ranges) = (
        sum(&status, |drive| &drive["trim"]["extents_total"]),
        sum(&status, |drive| &drive["trim"]["ranges_total"]),
    );
    talk::say(format!(
        "  images: {} MiB, {} full, {} after {} MiB were deleted; {extents} extents in {ranges} ranges",
        empty / MIB,
        full / MIB,
        left / MIB,
        gone / MIB
    ));
    for n in 0..BLOCKS {
        let expected = stays(&n);
        assert_eq!(get(&client, n, LEN).is_hit(), expected, "block {n}");
    }
    server.stop();
}

/// Whether every drive serves.
fn are_online(status: &Value) -> bool {
    drives(status).iter().all(|drive| drive["state"] == "online")
}

fn epochs(status: &Value) -> u64 {
    number(&status["counters"]["memkv_epochs_raised_total"])
}

fn pulled() {
    const BLOCKS: u64 = 64;
    const LEN: usize = 64 << 10;
    let server = fresh(SOON);
    let client = server.client();
    (0..BLOCKS).for_each(|n| put(&client, n, LEN));
    let address = rig::known_address("two");
    talk::ask(&Word::Pull("two".to_owned()));
    let status = server.wait("the drive is offline", |status| !are_online(status));
    let [one, two] = drives(&status) else { panic!("{status}") };
    assert_eq!((&one["state"], &two["state"]), (&"online".into(), &"offline".into()));
    let why = two["offline_reason"].as_str().expect("a reason").to_owned();
    let raised = epochs(&server.wait("the other one is told", |status| epochs(status) > 0));
    let (code, health) = server.http("/v1/health");
    assert_eq!((code, &health["status"]), (200, &"degraded".into()), "{health}");
    pci::wait_for("the device goes", || (!pci::is_there(&address)).then_some(()));
    let (mut found, mut lost) = (0, 0);
    for n in 0..BLOCKS {
        match get(&client, n, LEN) {
            GetOutcome::Hit { .. } => found += 1,
            GetOutcome::Miss(MissReason::DriveLost) => lost += 1,
            GetOutcome::Miss(reason) => panic!("block {n} is missing: {reason:?}"),
        }
    }
    assert!(found > 0 && lost > 0, "{found} found, {lost} lost");
    put(&client, BLOCKS, LEN);
    assert!(get(&client, BLOCKS, LEN).is_hit());

    talk::ask(&Word::Plug("two".to_owned()));
    let back = pci::address("two");
    assert_eq!(back, address, "the same port");
    let early =
        server::output("/bin/memkvctl", &["--server", server::ADDRESS, "drive", "readmit", &back]);
    assert!(!early.status.success(), "the kernel has it");
    run("/bin/memkv", &["drive", "bind", &back]);
    assert!(pci::is_bound(&back, Driver::Vfio));
    let told = server.ctl(&["drive", "readmit", &back]);
    assert!(told.contains("readmitted"), "{told}");
    let status = server.wait("all drives serve", are_online);
    assert_eq!(epochs(&status), raised, "nobody was lost since");
    let (code, health) = server.http("/v1/health");
    assert_eq!((code, &health["status"]), (200, &"healthy".into()), "{health}");
    // It takes blocks again, and what was lost does not come back by itself.
    let used = |status: &Value| number(&drives(status)[1]["used_bytes"]);
    let empty = used(&status);
    (0..2 * BLOCKS).for_each(|n| put(&client, n, LEN));
    assert!(used(&server.status()) > empty, "nothing is placed on it");
    assert!((0..2 * BLOCKS).all(|n| get(&client, n, LEN).is_hit()));
    server.stop();
    talk::say(format!("  pulled: {found} blocks found and {lost} lost ({why}); then readmitted"));
    // The next start finds a node of two members, in an epoch for each time that they were others.
    let drives = DRIVES.map(rig::known_address);
    for drive in &drives {
        let told = run("/bin/memkv", &["drive", "inspect", drive, "--json"]);
        let told: Value = serde_json::from_str(&told).expect("JSON");
        let superblock = &told[0]["superblock"];
        let members = superblock["members"].as_array().map(Vec::len);
        assert_eq!((number(&superblock["epoch"]), members), (3, Some(2)), "{superblock}");
    }
    let server = Server::start(&storage(&drives, "require", SOON));
    let client = server.client();
    assert!((0..2 * BLOCKS).all(|n| get(&client, n, LEN).is_hit()));
    server.stop();
}

/// Hugepages of 2 MiB that nobody has, and all of them.
fn hugepages_free() -> (u64, u64) {
    let read = |name: &str| {
        let path = format!("/sys/kernel/mm/hugepages/hugepages-2048kB/{name}");
        fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok())
    };
    (read("free_hugepages").expect("told"), read("nr_hugepages").expect("told"))
}

/// Servers that are killed under load, and the next ones, which need the same pages: while drives reach
/// them, and while io_uring has them registered, which the kernel takes apart after the process has gone.
fn hugepages() {
    const ROUNDS: u64 = 4;
    let drives = DRIVES.map(rig::known_address);
    for bypass in ["require", "never"] {
        if bypass == "never" {
            run("/bin/memkv", &["drive", "unbind", &drives[0], &drives[1]]);
            drives.iter().for_each(|drive| drop(pci::block_device(drive)));
        }
        let rest = storage(&drives, bypass, "").replace("prefer", "require");
        let mut server = Server::start(&rest);
        let mut late = Vec::new();
        for n in 0..ROUNDS {
            put(&server.client(), n, 1 << 20);
            assert_eq!(server.status()["memory"]["backing"], "hugepages_2m");
            server.kill();
            let (free, all) = hugepages_free();
            server = Server::start(&rest);
            late.push(format!("{} of {all} pages", all - free));
            assert!(get(&server.client(), n, 1 << 20).is_hit());
        }
        server.stop();
        wait_for("the hugepages are free", || {
            let (free, all) = hugepages_free();
            (free == all).then_some(())
        });
        talk::say(format!("  bypass {bypass}: still taken after kills: {}", late.join(", ")));
    }
    run("/bin/memkv", &["drive", "bind", &drives[0], &drives[1]]);
}
