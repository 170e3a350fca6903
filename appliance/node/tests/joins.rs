//! Drives that join a node that serves: listed in its configuration, which is read again.

mod binary;

use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use binary::{Server, free_address, memkv, value};
use memkv_admin_api::{DriveState, Reloaded};
use memkv_client::PutOptions;
use serde_json::Value;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

struct Site {
    folder: TempDir,
    address: String,
}

impl Site {
    fn new() -> Site {
        let folder = tempfile::tempdir().expect("a folder");
        Site { folder, address: free_address().to_string() }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().expect("a plain path").to_owned()
    }

    /// The configuration with these drives.
    fn config(&self, drives: &[&str]) -> PathBuf {
        let row =
            |name: &&str| format!("    - {{media: '{}', max_size: 128 MiB}}\n", self.path(name));
        let rows: String = drives.iter().map(row).collect();
        let text = format!(
            "network: {{address: '{}'}}\nmemory: {{max_size: 64 MiB, hugepages: never}}\n\
             node: {{reactors: 2}}\nstorage:\n  mode: file\n  drives:\n{rows}",
            self.address
        );
        let path = self.folder.path().join("config.yaml");
        fs::write(&path, text).expect("room for a file");
        path
    }
}

fn reload(server: &Server) -> Reloaded {
    let (code, body) = server.ask("POST", "/v1/reload");
    assert_eq!(code, 200, "{body}");
    serde_json::from_str(&body).expect("what became of it")
}

fn refused(server: &Server) -> String {
    let (code, body) = server.ask("POST", "/v1/reload");
    assert_eq!(code, 422, "{body}");
    let told: Value = serde_json::from_str(&body).expect("JSON");
    told["reason"].as_str().expect("a reason").to_owned()
}

/// Blocks on each drive, and that all of them are whole.
fn blocks(config: &std::path::Path) -> Vec<u64> {
    let path = config.to_str().expect("a plain path");
    let report = memkv(&["drive", "check", "--config", path, "--json"]).json(0);
    let drives = report["drives"].as_array().expect("a list");
    drives.iter().map(|drive| drive["extents"].as_u64().expect("a number")).collect()
}

#[test]
fn a_drive_joins_under_load_and_nothing_is_lost_when_the_server_is_killed_then() {
    let site = Site::new();
    let server = Server::start(&site.config(&["a"]));
    let (stop, joined) = (AtomicBool::new(false), AtomicU64::new(0));
    let stored: Vec<Vec<u64>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..3u64)
            .map(|worker| {
                let (client, stop, joined) = (server.client(), &stop, &joined);
                scope.spawn(move || {
                    let mut stored = Vec::new();
                    for n in 0.. {
                        let key = worker << 32 | n;
                        let bytes = value(key, 20_000 + 100 * (n as usize % 50));
                        let put = client.put(&key.to_le_bytes(), &bytes, &PutOptions::default());
                        put.expect("it is stored, whatever joins");
                        stored.push(key);
                        if stop.load(Ordering::SeqCst) {
                            return stored;
                        }
                        if joined.load(Ordering::SeqCst) > 0 {
                            joined.fetch_add(1, Ordering::SeqCst);
                        }
                    }
                    stored
                })
            })
            .collect();
        site.config(&["a", "b"]);
        let told = reload(&server);
        assert_eq!((told.drives_joined.len(), told.drives_failed.len()), (1, 0), "{told:?}");
        assert_eq!(told.needs_restart, Vec::<String>::new());
        joined.store(1, Ordering::SeqCst);
        while joined.load(Ordering::SeqCst) < 300 {
            std::thread::yield_now();
        }
        stop.store(true, Ordering::SeqCst);
        workers.into_iter().map(|worker| worker.join().expect("it ends")).collect()
    });
    let status = server.wait_for_status(|status| status.drives.len() == 2);
    assert!(status.drives.iter().all(|drive| drive.state == DriveState::Online), "{status:?}");
    assert!(status.drives[1].used_bytes > 0 && status.drives[1].path.ends_with("/b"), "{status:?}");
    assert_eq!(reload(&server).drives_joined, Vec::<String>::new(), "once");
    server.kill();

    let both = site.config(&["a", "b"]);
    let server = Server::start(&both);
    let client = server.client();
    for &key in stored.iter().flatten() {
        let length = 20_000 + 100 * (key as u32 as usize % 50);
        let mut got = Vec::new();
        let outcome = client.get(&key.to_le_bytes(), &mut got).expect("it answers");
        assert!(outcome.is_hit() && got == value(key, length), "{key} of {stored:?}");
    }
    drop(client);
    server.stop();
    assert!(blocks(&both).iter().all(|blocks| *blocks > 100), "{:?}", blocks(&both));
    // Without it the node misses it.
    let path = site.config(&["a"]);
    let complaint =
        memkv(&["start", "--config", path.to_str().expect("a plain path")]).complaint(1);
    assert!(complaint.contains("1 of the node's 2 drives are missing"), "{complaint}");
}

#[test]
fn a_drive_that_is_not_blank_does_not_join_and_nothing_is_changed() {
    let site = Site::new();
    let other = Site::new();
    Server::start(&other.config(&["x"])).stop();
    fs::rename(other.path("x"), site.path("ours")).expect("one file system");
    fs::write(site.path("text"), vec![b'x'; 1 << 20]).expect("room for a file");
    File::options()
        .write(true)
        .open(site.path("text"))
        .and_then(|file| file.set_len(128 * MIB))
        .expect("room for a file");
    let server = Server::start(&site.config(&["a"]));
    site.config(&["a", "ours"]);
    let why = refused(&server);
    assert!(why.contains("belongs to node") && why.contains("memkv drive wipe"), "{why}");
    site.config(&["a", "text", "new"]);
    let why = refused(&server);
    assert!(why.contains("text") && why.contains("empty it first"), "{why}");
    let status = server.wait_for_status(|status| !status.drives.is_empty());
    assert_eq!((status.drives.len(), status.config.generation), (1, 1));
    site.config(&["a", "new"]);
    assert_eq!(reload(&server).drives_joined.len(), 1);
    server.stop();
}

#[test]
fn a_blank_drive_beside_all_members_is_left_out_until_it_is_told_to_join() {
    let site = Site::new();
    Server::start(&site.config(&["a"])).stop();
    // What a crash leaves before the newcomer is a member.
    File::create(site.path("b")).and_then(|file| file.set_len(128 * MIB)).expect("room");
    let server = Server::start(&site.config(&["a", "b"]));
    let status = server.wait_for_status(|status| status.drives.len() == 2);
    assert_eq!(status.drives[1].state, DriveState::Offline);
    let why = status.drives[1].offline_reason.clone().expect("a reason");
    assert!(why.contains("memkvctl reload"), "{why}");
    let (code, health) = server.ask("GET", "/v1/health");
    assert!(code == 200 && health.contains("degraded"), "{code} {health}");
    let told = reload(&server);
    assert_eq!(told.drives_joined.len(), 1, "{told:?}");
    let (_, health) = server.ask("GET", "/v1/health");
    assert!(health.contains("healthy"), "{health}");
    server.kill();
    let server = Server::start(&site.config(&["a", "b"]));
    let status = server.wait_for_status(|status| status.drives.len() == 2);
    assert!(status.drives.iter().all(|drive| drive.state == DriveState::Online), "{status:?}");
    server.stop();
}

#[test]
fn half_a_superblock_of_a_newcomer_does_not_keep_the_node_from_starting() {
    let site = Site::new();
    Server::start(&site.config(&["a"])).stop();
    // The first copy was written, the second was not.
    let copy = fs::read(site.path("a")).expect("a drive")[..4096].to_vec();
    let mut bytes = vec![0; (128 * MIB) as usize];
    bytes[..4096].copy_from_slice(&copy);
    fs::write(site.path("b"), bytes).expect("room for a file");
    let server = Server::start(&site.config(&["a", "b"]));
    let status = server.wait_for_status(|status| status.drives.len() == 2);
    assert_eq!(status.drives[0].state, DriveState::Online);
    let why = status.drives[1].offline_reason.clone().expect("a reason");
    assert!(why.contains("memkv drive wipe --force") && why.contains("no member"), "{why}");
    server.stop();
}

/// A node on `a` and `b` with blocks on both, of which `b` was cut off: it fails when it is read.
fn with_a_drive_that_fails(site: &Site) -> Server {
    let server = Server::start(&site.config(&["a", "b"]));
    let client = server.client();
    let keys = 0..60u64;
    for key in keys.clone() {
        let bytes = value(key, 50_000);
        client.put(&key.to_le_bytes(), &bytes, &PutOptions::default()).expect("there is room");
    }
    cut(&site.path("b"));
    let (mut here, mut lost) = (0, 0);
    for key in keys {
        let mut got = Vec::new();
        let outcome = client.get(&key.to_le_bytes(), &mut got).expect("it answers");
        match outcome.is_hit() {
            true => assert_eq!(got, value(key, 50_000)),
            false => lost += 1,
        }
        here += u32::from(outcome.is_hit());
    }
    assert!(here > 0 && lost > 0, "{here} here, {lost} lost");
    let (code, health) = server.ask("GET", "/v1/health");
    assert!(code == 200 && health.contains("degraded"), "{code} {health}");
    server
}

fn cut(path: &str) {
    File::options().write(true).open(path).and_then(|file| file.set_len(4096)).expect("the drive");
}

fn stretch(path: &str) {
    let file = File::options().write(true).create(true).truncate(false).open(path);
    file.and_then(|file| file.set_len(128 * MIB)).expect("the drive");
}

/// Asks for a drive to be readmitted; the code and the answer.
fn readmit(server: &Server, path: &str) -> (u16, Value) {
    let (code, body) =
        server.ask("POST", &format!("/v1/drives/readmit?path={}", path.replace('/', "%2F")));
    (code, serde_json::from_str(&body).expect("JSON"))
}

/// Stores blocks from `from` on, and sees that the node is well and that some lie on its last drive.
fn all_is_well_again(server: &Server, from: u64) {
    let client = server.client();
    for key in from..from + 60 {
        let bytes = value(key, 50_000);
        client.put(&key.to_le_bytes(), &bytes, &PutOptions::default()).expect("there is room");
    }
    let (_, health) = server.ask("GET", "/v1/health");
    assert!(health.contains("healthy"), "{health}");
    let status = server.wait_for_status(|status| status.drives.len() == 2);
    for drive in &status.drives {
        assert!(drive.state == DriveState::Online && drive.used_bytes > 500_000, "{status:?}");
    }
    assert_eq!(status.storage.raw_bytes_total, 256 * MIB);
}

fn all_are_there(server: &Server, from: u64) {
    let client = server.client();
    for key in from..from + 60 {
        let mut got = Vec::new();
        let outcome = client.get(&key.to_le_bytes(), &mut got).expect("it answers");
        assert!(outcome.is_hit() && got == value(key, 50_000), "{key}");
    }
}

#[test]
fn a_drive_that_failed_is_readmitted_emptied_and_a_crash_then_loses_nothing() {
    let site = Site::new();
    let server = with_a_drive_that_fails(&site);
    let told = reload(&server);
    assert!(told.drives_joined.is_empty() && told.drives_failed.is_empty(), "{told:?}");
    let (code, told) = readmit(&server, &site.path("a"));
    assert_eq!(code, 422, "{told}");
    assert!(told["reason"].as_str().is_some_and(|why| why.contains("it serves")), "{told}");
    let (code, told) = readmit(&server, &site.path("c"));
    assert_eq!(code, 422, "{told}");
    assert!(told["reason"].as_str().is_some_and(|why| why.contains("list it")), "{told}");

    stretch(&site.path("b"));
    let (code, told) = readmit(&server, &site.path("b"));
    assert_eq!(code, 200, "{told}");
    all_is_well_again(&server, 1000);
    // It can fail and come back again.
    cut(&site.path("b"));
    let client = server.client();
    for key in 1000..1060u64 {
        client.get(&key.to_le_bytes(), &mut Vec::new()).expect("it answers");
    }
    drop(client);
    assert!(server.ask("GET", "/v1/health").1.contains("degraded"));
    stretch(&site.path("b"));
    assert_eq!(readmit(&server, &site.path("b")).0, 200);
    all_is_well_again(&server, 2000);
    server.kill();
    let config = site.config(&["a", "b"]);
    let server = Server::start(&config);
    all_are_there(&server, 2000);
    server.stop();
    assert!(blocks(&config).iter().all(|blocks| *blocks > 10), "{:?}", blocks(&config));
}

#[test]
fn a_drive_that_failed_is_replaced_by_another_that_is_listed_instead() {
    let site = Site::new();
    let server = with_a_drive_that_fails(&site);
    let config = site.config(&["a", "c"]);
    let told = reload(&server);
    assert_eq!((told.drives_joined.len(), told.drives_failed.len()), (1, 0), "{told:?}");
    assert_eq!(told.drives_dropped, [site.path("b")]);
    assert_eq!(told.needs_restart, Vec::<String>::new());
    all_is_well_again(&server, 1000);
    server.kill();
    let server = Server::start(&config);
    all_are_there(&server, 1000);
    server.stop();
}

#[test]
fn a_blank_drive_in_the_place_of_one_that_failed_is_readmitted() {
    let site = Site::new();
    let server = with_a_drive_that_fails(&site);
    fs::rename(site.path("b"), site.path("pulled")).expect("one file system");
    fs::write(site.path("b"), vec![b'x'; 128 << 20]).expect("room for a file");
    let (code, told) = readmit(&server, &site.path("b"));
    assert_eq!(code, 422, "it holds something: {told}");
    fs::remove_file(site.path("b")).expect("it is there");
    stretch(&site.path("b"));
    let (code, told) = readmit(&server, &site.path("b"));
    assert_eq!(code, 200, "{told}");
    all_is_well_again(&server, 1000);
    server.stop();
}

#[test]
fn a_drive_that_the_node_has_lost_is_readmitted_whole_or_not() {
    let site = Site::new();
    Server::start(&site.config(&["a", "b"])).stop();
    fs::copy(site.path("b"), site.path("was b")).expect("room for a file");
    let server = with_a_drive_that_fails(&site);
    server.kill();
    fs::rename(site.path("was b"), site.path("b")).expect("one file system");
    let server = Server::start(&site.config(&["a", "b"]));
    let status = server.wait_for_status(|status| status.drives.len() == 2);
    let why = status.drives[1].offline_reason.clone().expect("a reason");
    assert!(why.contains("readmit it emptied"), "{why}");
    let (code, told) = readmit(&server, &site.path("b"));
    assert_eq!(code, 200, "{told}");
    all_is_well_again(&server, 1000);
    server.kill();
    let server = Server::start(&site.config(&["a", "b"]));
    all_are_there(&server, 1000);
    server.stop();
}
