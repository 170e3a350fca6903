//! The node on drives past the kernel: formatted, served, killed, cut off from power, and then driven by
//! the kernel again. What puts, kills and reads is the tier of crashes, given these drives.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use super::pci::{self, Driver};
use super::server::run;
use super::{rig, talk};
use crate::plan::{Check, Word};

/// Where the tier of crashes keeps configurations and logs.
const FOLDER: &str = "/tmp/crash";

/// What the load was answered, on the host's disk: it outlives the guest.
const LEDGER: &str = "/share/ledger";

/// Bytes of the ledger after which the power is cut.
const LEDGER_BYTES: u64 = 6_000;

/// The check that ends with the power.
const LOAD: &str = "a server on drives past the kernel is loaded until the power is cut";

/// What comes first.
pub const CHECKS: &[Check] = &[
    Check { name: "drives are bound and formatted by their PCI addresses", run: bind_and_format },
    Check { name: "a server on drives past the kernel keeps its promise when killed", run: kills },
];

/// Until the power is cut.
pub const LAST_CHECKS: &[Check] = &[Check { name: LOAD, run: load }];

/// After it.
pub const AFTER_CHECKS: &[Check] = &[
    Check { name: "drives pass the check after a power cut", run: the_drives_pass },
    Check { name: "what was acknowledged outlives a power cut", run: by_vfio },
    Check { name: "the kernel's driver finds the same on the same drives", run: by_the_kernel },
];

/// Addresses of both drives; the kernel may have them or not.
fn drives() -> [String; 2] {
    ["one", "two"].map(rig::known_address)
}

fn memkv(arguments: &[&str]) -> String {
    let [one, two] = drives();
    run("/bin/memkv", &[arguments, &[&one, &two]].concat())
}

/// Has the tier of crashes do something with both drives.
fn crash(task: &str, more: &[&str]) -> String {
    fs::create_dir_all(FOLDER).expect("a folder");
    let [one, two] = drives();
    let place =
        [task, "--binary", "/bin/memkv", "--folder", FOLDER, "--media", &one, "--media", &two];
    let run = || run("/bin/memkv-crash", &[&place, more].concat());
    std::panic::catch_unwind(run).unwrap_or_else(|panic| {
        show(&server_log(), 6);
        std::panic::resume_unwind(panic)
    })
}

/// What the servers of the tier of crashes said last.
fn server_log() -> String {
    let folders = fs::read_dir(FOLDER).into_iter().flatten().flatten().map(|entry| entry.path());
    let logs = folders.chain([FOLDER.into()]).map(|folder| folder.join("server.log"));
    logs.filter_map(|log| fs::read_to_string(log).ok()).collect()
}

/// The last lines of what was said, indented: they are no checks of ours.
fn show(said: &str, lines: usize) {
    let all: Vec<&str> = said.lines().filter(|line| !line.starts_with("test ")).collect();
    all.iter().rev().take(lines).rev().for_each(|line| talk::say(format!("  {line}")));
}

fn format() {
    memkv(&["setup", "--force", "--address", "127.0.0.1:9900", "--drives"]);
}

fn bind_and_format() {
    // The tier knows nothing of binding but what this says.
    memkv(&["drive", "bind"]);
    for drive in drives() {
        assert!(pci::is_bound(&drive, Driver::Vfio), "{drive}");
    }
    format();
    let list = memkv(&["drive", "list"]);
    assert_eq!(list.matches("vfio").count(), 2, "{list}");
    memkv(&["drive", "unbind"]);
    for drive in drives() {
        assert!(pci::is_bound(&drive, Driver::Nvme), "{drive}");
        pci::block_device(&drive);
    }
    memkv(&["drive", "bind"]);
}

fn kills() {
    let said =
        crash("rounds", &["--rounds", "5", "--stretch", "3", "--seed", "7", "--keys", "120"]);
    show(&said, 9);
}

fn load() {
    format();
    let _ = fs::remove_file(LEDGER);
    let [one, two] = drives();
    let log = fs::File::create(Path::new(FOLDER).join("load.log")).expect("a log");
    let mut child = Command::new("/bin/memkv-crash")
        .args(["until-cut", "--binary", "/bin/memkv", "--folder", FOLDER, "--ledger", LEDGER])
        .args(["--media", &one, "--media", &two])
        .stdin(Stdio::piped())
        .stdout(log.try_clone().expect("a log"))
        .stderr(log)
        .spawn()
        .expect("it is there");
    pci::wait_for("the load is acknowledged", || {
        let ended = child.try_wait().expect("it can be waited for");
        assert!(
            ended.is_none(),
            "{ended:?}: {}",
            fs::read_to_string("/tmp/crash/load.log").unwrap_or_default()
        );
        fs::metadata(LEDGER).ok().filter(|ledger| ledger.len() >= LEDGER_BYTES).map(drop)
    });
    // Nothing comes after this.
    talk::ask(&Word::CutPower(LOAD.to_owned()));
    panic!("there is still power");
}

fn the_drives_pass() {
    memkv(&["drive", "bind"]);
    let said = memkv(&["drive", "check", "--json"]);
    assert!(said.trim_start().starts_with(['{', '[']), "{said}");
}

fn audited(bypass: &str) {
    let said = crash("after-cut", &["--bypass", bypass, "--ledger", LEDGER]);
    show(&said, 2);
    let puts = said.split_once(" keys audited, ").and_then(|(_, rest)| rest.split(' ').next());
    let puts: u64 = puts.and_then(|puts| puts.parse().ok()).unwrap_or_default();
    assert!(puts >= 20, "{puts} acknowledged puts prove little");
}

fn by_vfio() {
    audited("require");
}

fn by_the_kernel() {
    memkv(&["drive", "unbind"]);
    drives().iter().for_each(|drive| drop(pci::block_device(drive)));
    audited("never");
}
