//! `memkv setup` and `memkv drive` with the real binary, on files.

mod binary;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use binary::{Server, configuration, free_address, memkv, memkv_with, value};
use memkv_client::PutOptions;
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// Files for drives, in a folder of their own.
struct Site {
    folder: tempfile::TempDir,
    address: String,
}

impl Site {
    fn new() -> Site {
        let folder = tempfile::tempdir().expect("a temporary directory");
        Site { folder, address: free_address().to_string() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Makes a file of zeros; its name for a command line.
    fn drive(&self, name: &str, bytes: u64) -> String {
        let path = self.path(name);
        File::create(&path).and_then(|file| file.set_len(bytes)).expect("room for a file");
        path.to_str().expect("a plain path").to_owned()
    }

    fn setup(&self, drives: &[&str]) -> PathBuf {
        let line = [&["setup", "--address", &self.address, "--drives"][..], drives].concat();
        configuration(self.folder.path(), &memkv(&line).expect(0))
    }
}

fn overwrite(path: &Path, offset: u64, bytes: &[u8]) {
    let file = OpenOptions::new().write(true).open(path).expect("the drive");
    file.write_all_at(bytes, offset).expect("it is large enough");
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

#[test]
fn what_setup_prints_can_be_started() {
    let site = Site::new();
    let (a, b) = (site.drive("a", 128 * MIB), site.drive("b", 96 * MIB));
    let config = site.setup(&[&a, &b]);
    let server = Server::start(&config);
    let client = server.client();
    let (small, large) = (value(1, 70_000), value(2, 9_000_000));
    client.put(b"small", &small, &PutOptions::default()).expect("it is stored");
    client.put(b"large", &large, &PutOptions::default()).expect("it is stored");

    // A server has the drives: they can be looked at, and nothing else.
    let list = memkv(&["drive", "list", "--config", text(&config), "--json"]).json(0);
    assert_eq!((&list[0]["in_use"], &list[1]["holds"]), (&true.into(), &"memkv".into()), "{list}");
    for line in [
        vec!["drive", "check", &a],
        vec!["drive", "wipe", &a, "--yes"],
        vec!["setup", "--force", "--drives", &a],
    ] {
        let complaint = memkv(&line).complaint(3);
        assert!(complaint.contains("a server has it"), "{complaint}");
    }

    drop(client);
    server.kill();
    let check = memkv(&["drive", "check", "--config", text(&config), "--json"]).json(0);
    assert_eq!(check["ok"], true, "{check}");
    assert_eq!(check["bytes"], 9_070_000, "{check}");
    let server = Server::start(&config);
    let mut back = Vec::new();
    server.client().get(b"large", &mut back).expect("it is there");
    assert!(back == large);
    server.stop();
    let check = memkv(&["drive", "check", &a, &b]).expect(0);
    assert!(check.contains("4 extents"), "{check}");
}

#[test]
fn check_names_what_is_damaged() {
    let site = Site::new();
    let a = site.drive("a", 128 * MIB);
    let config = site.setup(&[&a]);
    let server = Server::start(&config);
    let client = server.client();
    client.put(b"good", &value(1, 100_000), &PutOptions::default()).expect("it is stored");
    client.put(b"bad one", &value(2, 200_000), &PutOptions::default()).expect("it is stored");
    client.put(b"large", &value(3, 6_000_000), &PutOptions::default()).expect("it is stored");
    drop(client);
    server.stop();

    let path = PathBuf::from(&a);
    let image = std::fs::read(&path).expect("the drive");
    let place = |bytes: &[u8]| {
        let at = image.windows(bytes.len()).position(|window| window == bytes);
        at.expect("it is on the drive") as u64
    };
    overwrite(&path, place(&value(2, 200_000)[..512]) + 150_000, b"rot");
    overwrite(&path, place(&value(3, 6_000_000)[4 << 20..][..512]), b"rot");
    let report = memkv(&["drive", "check", &a, "--json"]).json(4);
    let damaged = report["drives"][0]["damaged"].as_array().expect("a list");
    let mut named: Vec<(String, Value)> = damaged
        .iter()
        .map(|d| (d["key"].as_str().expect("a key").to_owned(), d["part"].clone()))
        .collect();
    named.sort_by_key(|(key, _)| key.clone());
    assert_eq!(named, [("bad one".into(), Value::Null), ("large".into(), 1.into())], "{report}");
    assert_eq!(damaged[0]["namespace"], "models");
    assert_eq!(report["drives"][0]["extents"], 4);

    // A superblock copy, and the log, or what replaces it.
    overwrite(&path, 16 << 10, &[0xff; 64]);
    let report = memkv(&["drive", "check", &a]).expect(4);
    assert!(report.contains("copy 1 of the superblock is blank"), "{report}");
    assert!(report.contains("default/models/bad one generation"), "{report}");
    let inspected = memkv(&["drive", "inspect", &a, "--json"]).json(0);
    let copies = &inspected[0]["superblock"]["copies"];
    assert_eq!(*copies, serde_json::json!(["current", "blank", "current", "current"]));

    // Checking mends nothing; starting does, and drops what it meets.
    let server = Server::start(&config);
    let client = server.client();
    assert!(client.exists(&[b"good".as_slice()]).expect("an answer")[0]);
    drop(client);
    server.stop();
    let report = memkv(&["drive", "check", &a]).expect(4);
    assert!(!report.contains("copy 1"), "{report}");
}

#[test]
fn a_damaged_checkpoint_is_found() {
    let site = Site::new();
    let a = site.drive("a", 128 * MIB);
    let config = site.setup(&[&a]);
    let server = Server::start(&config);
    let client = server.client();
    client.put(b"k", &value(1, 100_000), &PutOptions::default()).expect("it is stored");
    drop(client);
    server.stop();
    let seen = memkv(&["drive", "inspect", &a, "--json"]).json(0);
    let superblock = &seen[0]["superblock"];
    let area = usize::from(superblock["checkpoint_in_force"] == "B");
    let offset = superblock["checkpoint_offsets"][area].as_u64().expect("an offset");
    overwrite(Path::new(&a), offset + 4096 + 100, &[0xff; 8]);
    let report = memkv(&["drive", "check", &a]).expect(4);
    assert!(report.contains("checkpoint in force is damaged"), "{report}");
}

#[test]
fn what_is_on_a_drive_is_not_formatted_over() {
    let site = Site::new();
    let (a, b) = (site.drive("a", 96 * MIB), site.drive("b", 96 * MIB));
    let signs: [(u64, &[u8], &str); 5] = [
        (0, b"XFSB", "an XFS file system"),
        (1080, &[0x53, 0xef], "an ext2 file system"),
        (96 * MIB - 512, b"EFI PART", "the backup of a GUID partition table"),
        (4086, b"SWAPSPACE2", "swap space"),
        (20_000, b"somebody's", "data of an owner unknown to memkv"),
    ];
    for (offset, bytes, what) in signs {
        let foreign = site.drive("foreign", 96 * MIB);
        overwrite(Path::new(&foreign), offset, bytes);
        let before = std::fs::read(&foreign).expect("the drive");
        let complaint = memkv(&["setup", "--drives", &a, &foreign]).complaint(3);
        assert!(complaint.contains(what), "{complaint}");
        assert!(complaint.contains("--force"), "{complaint}");
        assert!(before == std::fs::read(&foreign).expect("the drive"), "it was changed: {what}");
        let listed = memkv(&["drive", "list", &a, &foreign, "--json"]).json(0);
        assert_eq!(listed[0]["holds"], "blank", "nothing was changed: {listed}");
        assert_eq!(listed[1]["holds"], "foreign", "{listed}");
        let wiped = memkv(&["drive", "wipe", "--yes", &foreign]).complaint(3);
        assert!(wiped.contains(what), "{wiped}");

        // With --force, and then nothing of the old owner is left to be found.
        memkv(&["setup", "--force", "--drives", &foreign]).expect(0);
        memkv(&["drive", "wipe", "--yes", &foreign]).expect(0);
        let listed = memkv(&["drive", "list", &foreign, "--json"]).json(0);
        assert_eq!(listed[0]["holds"], "blank", "{listed}");
    }
    let complaint = memkv(&["setup", "--drives", &b, "/no/such/drive", "/dev/null"]).complaint(3);
    assert!(complaint.contains("/no/such/drive: does not exist"), "{complaint}");
    assert!(complaint.contains("/dev/null: neither a file nor a block device"), "{complaint}");
    let small = site.drive("small", 40_960);
    let complaint = memkv(&["setup", "--drives", &small]).complaint(3);
    assert!(complaint.contains("its journal alone needs"), "{complaint}");
    let twice = memkv(&["setup", "--drives", &b, &format!("{b}/../b")]).code;
    assert_eq!(twice, Some(3), "a file is no folder");
    let twice = memkv(&["setup", "--drives", &b, &b]).complaint(2);
    assert!(twice.contains("named twice"), "{twice}");
    let key = memkv_with(("MEMKV_AUTH_KEY", "short"), &["setup", "--drives", &b]).complaint(2);
    assert!(key.contains("MEMKV_AUTH_KEY"), "{key}");
    assert_eq!(memkv(&["drive", "list", &b, "--json"]).json(0)[0]["holds"], "blank");
}

#[test]
fn setting_up_again_is_refused_or_changes_nothing() {
    let site = Site::new();
    let (a, b) = (site.drive("a", 96 * MIB), site.drive("b", 96 * MIB));
    let first = memkv(&["setup", "--drives", &a, &b]).expect(0);
    let image = std::fs::read(&a).expect("the drive");
    let complaint = memkv(&["setup", "--drives", &a, &b]).complaint(3);
    assert!(complaint.contains("formatted already"), "{complaint}");
    assert!(complaint.contains("--idempotent"), "{complaint}");
    let again = memkv(&["setup", "--idempotent", "--drives", &a, &b]).expect(0);
    assert_eq!(again, first, "the same node, the same key");
    assert!(image == std::fs::read(&a).expect("the drive"), "it was changed");

    let complaint = memkv(&["setup", "--idempotent", "--drives", &a]).complaint(1);
    assert!(complaint.contains("2 drives"), "{complaint}");
    let new = site.drive("new", 96 * MIB);
    let complaint = memkv(&["setup", "--idempotent", "--drives", &a, &b, &new]).complaint(3);
    assert!(complaint.contains("set up together"), "{complaint}");

    let hex = "a5".repeat(32);
    let shared = memkv_with(
        ("MEMKV_AUTH_KEY", &hex),
        &["setup", "--force", "--shard-size", "1024", "--rdma", "mlx5_0", "--drives", &a, &b],
    )
    .expect(0);
    assert!(shared.contains(&hex), "{shared}");
    assert!(shared.contains("block_size: 1 MiB"), "{shared}");
    assert!(shared.contains("# rdma: {device: mlx5_0}"), "{shared}");
    let node = |yaml: &str| yaml.lines().next().map(str::to_owned);
    assert_ne!(node(&shared), node(&first), "a new node");
}

#[test]
fn another_extent_size_is_refused() {
    let site = Site::new();
    let a = site.drive("a", 96 * MIB);
    let config = site.setup(&[&a]);
    let yaml = std::fs::read_to_string(&config).expect("the configuration");
    std::fs::write(&config, yaml.replace("block_size: 4 MiB", "block_size: 2 MiB"))
        .expect("room for a file");
    let complaint = memkv(&["start", "--config", text(&config)]).complaint(1);
    for part in ["storage.block_size 4 MiB", "says 2 MiB", "set it back"] {
        assert!(complaint.contains(part), "{complaint}");
    }
    std::fs::write(&config, yaml).expect("room for a file");
    Server::start(&config).stop();
}

#[test]
fn a_drive_that_nobody_set_up_is_not_formatted_in_direct_mode() {
    let site = Site::new();
    let a = site.drive("a", 96 * MIB);
    let yaml = format!(
        "network: {{address: \"{}\"}}\nmemory: {{max_size: 64 MiB, hugepages: never}}\n\
         storage: {{mode: direct, drives: [{{media: {a}}}]}}\n",
        site.address
    );
    let config = site.path("direct.yaml");
    std::fs::write(&config, yaml).expect("room for a file");
    let complaint = memkv(&["start", "--config", text(&config)]).complaint(1);
    assert!(complaint.contains(&format!("memkv setup --drives {a}")), "{complaint}");
    assert_eq!(memkv(&["drive", "list", &a, "--json"]).json(0)[0]["holds"], "blank");
    memkv(&["setup", "--drives", &a]).expect(0);
    Server::start(&config).stop();
}

#[test]
fn direct_mode_wants_its_hugepages() {
    let site = Site::new();
    let a = site.drive("a", 96 * MIB);
    // A little more than there are: how many are free changes with every test beside this one.
    let there = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
    let there = std::fs::read_to_string(there).unwrap_or_default();
    let there: u64 = there.trim().parse().unwrap_or(0);
    let config = site.path("direct.yaml");
    let yaml = format!(
        "memory: {{max_size: {} MiB}}\nstorage: {{mode: direct, drives: [{{media: {a}}}]}}\n",
        2 * there + 64
    );
    std::fs::write(&config, yaml).expect("room for a file");
    let complaint = memkv(&["start", "--config", text(&config)]).complaint(1);
    for part in ["memory.max_size", "hugepages of 2 MiB", "sysctl -w vm.nr_hugepages="] {
        assert!(complaint.contains(part), "{complaint}");
    }
}

#[test]
fn wiping_names_what_is_lost_and_asks_first() {
    let site = Site::new();
    let (a, b) = (site.drive("a", 96 * MIB), site.drive("b", 96 * MIB));
    let config = site.setup(&[&a, &b]);
    let server = Server::start(&config);
    let client = server.client();
    for key in 0..20u8 {
        client
            .put(&[b'k', key], &value(key.into(), 50_000), &PutOptions::default())
            .expect("stored");
    }
    drop(client);
    server.stop();
    let uuid = |path: &str| {
        let seen = memkv(&["drive", "inspect", path, "--json"]).json(0);
        seen[0]["superblock"]["drive"].as_str().expect("a uuid").to_owned()
    };
    let id = uuid(&a);
    let asked = memkv(&["drive", "wipe", "--config", text(&config)]);
    let told = asked.out.clone();
    assert!(asked.complaint(3).contains("--yes"), "it asks");
    assert!(told.contains(&id) && told.contains("the node has 1 more"), "{told}");
    assert_eq!(uuid(&a), id, "nothing was changed");

    let losses = memkv(&["drive", "wipe", &a, "--yes", "--json"]).json(0);
    assert_eq!((&losses[0]["wiped"], &losses[0]["drive"]), (&true.into(), &id.into()), "{losses}");
    let counted = losses[0]["blocks"].as_u64().expect("a count");
    let rest = memkv(&["drive", "wipe", &b, "--json"]).out;
    let rest: Value = serde_json::from_str(&rest).expect("JSON");
    assert_eq!(counted + rest[0]["blocks"].as_u64().expect("a count"), 20, "{losses} {rest}");
    assert_eq!(memkv(&["drive", "list", &a, "--json"]).json(0)[0]["holds"], "blank");

    // Three of four copies gone: no longer a drive that can be counted, and still not foreign.
    overwrite(Path::new(&b), 0, &[0xff; 40 << 10]);
    assert_eq!(memkv(&["drive", "list", &b, "--json"]).json(0)[0]["holds"], "damaged");
    memkv(&["drive", "check", &b]).expect(4);
    assert!(memkv(&["drive", "wipe", &b, "--yes"]).complaint(3).contains("--force"));
    memkv(&["drive", "wipe", &b, "--force"]).expect(0);
    assert_eq!(memkv(&["drive", "list", &b, "--json"]).json(0)[0]["holds"], "blank");
}

#[test]
fn wrong_command_lines_change_nothing() {
    let site = Site::new();
    let config = site.path("memory.yaml");
    std::fs::write(&config, "storage: {mode: memory}\n").expect("room for a file");
    let lines: [(&[&str], &str); 4] = [
        (&["drive", "check"], "name drives"),
        (&["drive", "wipe", "--yes"], "name drives"),
        (&["drive", "check", "--config", text(&config)], "keeps blocks in memory"),
        (&["drive", "inspect", "--config", "/no/such.yaml"], "/no/such.yaml"),
    ];
    for (line, says) in lines {
        let complaint = memkv(line).complaint(2);
        assert!(complaint.contains(says), "{line:?}: {complaint}");
    }
    assert!(memkv(&["drive", "list"]).code == Some(0), "the drives of the machine");
}
