//! `memkv drive retire` and `memkv drive readmit` with the real binary, on files.

mod binary;

use std::fs::File;
use std::path::{Path, PathBuf};

use binary::{Server, configuration, free_address, memkv, value};
use memkv_client::PutOptions;
use serde_json::Value;

const MIB: u64 = 1 << 20;

struct Site {
    folder: tempfile::TempDir,
    yaml: String,
}

impl Site {
    /// A node set up on drives of these names.
    fn new(names: &[&str]) -> Site {
        let mut site = Site { folder: tempfile::tempdir().expect("a folder"), yaml: String::new() };
        let address = free_address().to_string();
        let drives: Vec<String> = names.iter().map(|name| site.file(name)).collect();
        let drives: Vec<&str> = drives.iter().map(String::as_str).collect();
        let line = [&["setup", "--address", &address, "--drives"][..], &drives].concat();
        site.yaml = memkv(&line).expect(0);
        site
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().expect("a plain path").to_owned()
    }

    /// A file of zeros.
    fn file(&self, name: &str) -> String {
        let path = self.path(name);
        File::create(&path).and_then(|file| file.set_len(128 * MIB)).expect("room for a file");
        path
    }

    /// The node's configuration, with other drives.
    fn config(&self, names: &[&str]) -> PathBuf {
        let mut yaml: serde_yaml::Value = serde_yaml::from_str(&self.yaml).expect("YAML");
        let drive = |name: &&str| {
            let media = ("media".into(), serde_yaml::Value::from(self.path(name)));
            serde_yaml::Value::Mapping([media].into_iter().collect())
        };
        yaml["storage"]["drives"] = names.iter().map(drive).collect::<Vec<_>>().into();
        let text = serde_yaml::to_string(&yaml).expect("YAML");
        configuration(self.folder.path(), &text)
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

/// Puts blocks under keys from `first` on; those of an earlier put are replaced.
fn put(server: &Server, keys: std::ops::Range<u64>) {
    let client = server.client();
    for key in keys {
        let bytes = value(key, 100_000);
        client.put(&key.to_le_bytes(), &bytes, &PutOptions::default()).expect("it is stored");
    }
}

/// How many blocks lie on each drive.
fn blocks(config: &Path) -> Vec<u64> {
    let report = memkv(&["drive", "check", "--config", text(config), "--json"]).json(0);
    let drives = report["drives"].as_array().expect("a list");
    drives.iter().map(|drive| drive["extents"].as_u64().expect("a number")).collect()
}

fn uuid(drive: &str) -> String {
    let seen = memkv(&["drive", "inspect", drive, "--json"]).json(0);
    seen[0]["superblock"]["drive"].as_str().expect("a uuid").to_owned()
}

fn members(of: &Value) -> usize {
    of["members"].as_array().expect("a list").len()
}

#[test]
fn a_lost_drive_comes_back_emptied_and_takes_blocks_again() {
    let site = Site::new(&["a", "b"]);
    let (a, b) = (site.path("a"), site.path("b"));
    let server = Server::start(&site.config(&["a", "b"]));
    put(&server, 0..30);
    server.stop();
    // b is lost, and the node goes on; then b is there again, with what it held.
    let server = Server::start_with(&site.config(&["a"]), &["--degraded"]);
    server.stop();
    let both = site.config(&["a", "b"]);
    let server = Server::start(&both);
    let complaint = memkv(&["drive", "readmit", &b, "--config", text(&both), "--yes"]).complaint(3);
    assert!(complaint.contains("a server has it"), "{complaint}");
    server.stop();
    let before = uuid(&b);

    let line = ["drive", "readmit", &b, "--config", text(&both)];
    let asked = memkv(&line);
    assert!(asked.out.contains("would be emptied") && asked.out.contains("blocks are lost"));
    assert!(asked.complaint(3).contains("--yes"));
    assert_eq!(uuid(&b), before, "nothing was changed");
    let done = memkv(&[&line[..], &["--yes", "--json"]].concat()).json(0);
    assert_eq!((&done["done"], members(&done)), (&true.into(), 2), "{done}");
    assert!(done["blocks"].as_u64().expect("a number") > 0, "{done}");
    assert_ne!(uuid(&b), before);
    assert_eq!(done["drive"], uuid(&b).as_str());
    let kept = blocks(&both);
    assert_eq!(kept[1], 0, "{kept:?}");

    let server = Server::start(&both);
    put(&server, 100..140);
    server.stop();
    let now = blocks(&both);
    assert!(now[0] > kept[0] && now[1] > 0, "both take blocks: {now:?}");
    let complaint = memkv(&[&line[..], &["--yes"]].concat()).complaint(3);
    assert!(complaint.contains("need not be readmitted"), "{complaint}");
    assert!(a != b && blocks(&both) == now);
}

#[test]
fn a_drive_is_retired_with_what_is_on_it_and_the_others_keep_theirs() {
    let site = Site::new(&["a", "b"]);
    let (a, b) = (site.path("a"), site.path("b"));
    let both = site.config(&["a", "b"]);
    let server = Server::start(&both);
    put(&server, 0..30);
    server.stop();
    let before = blocks(&both);
    let line = ["drive", "retire", &b, "--config", text(&both)];
    assert!(memkv(&line).complaint(3).contains("--yes"));
    let done = memkv(&[&line[..], &["--yes", "--json"]].concat()).json(0);
    assert_eq!(done["blocks"], before[1], "{done}");
    assert_eq!((members(&done), done["epoch"].as_u64()), (1, Some(2)), "{done}");
    let complaint = memkv(&[&line[..], &["--yes"]].concat()).complaint(3);
    assert!(complaint.contains("is no member"), "{complaint}");
    let alone = site.config(&["a"]);
    let last = memkv(&["drive", "retire", &a, "--config", text(&alone), "--yes"]).complaint(3);
    assert!(last.contains("only drive"), "{last}");
    // Nobody misses it, and what lies on a is there.
    let server = Server::start(&alone);
    let client = server.client();
    let found = (0..30u64).filter(|key| client.exists(&[&key.to_le_bytes()[..]]).unwrap()[0]);
    assert_eq!(found.count() as u64, before[0]);
    drop(client);
    server.stop();
}

#[test]
fn a_drive_that_is_gone_is_retired_by_its_uuid_and_replaced_by_a_new_one() {
    let site = Site::new(&["a", "b"]);
    let (gone, alone) = (uuid(&site.path("b")), site.config(&["a"]));
    std::fs::remove_file(site.path("b")).expect("it was there");
    let c = site.file("c");
    let complaint = memkv(&["drive", "readmit", &c, "--config", text(&alone)]).complaint(3);
    assert!(complaint.contains(&format!("memkv drive retire {gone}")), "{complaint}");
    let retired = ["drive", "retire", &gone, "--config", text(&alone)];
    assert!(memkv(&retired).complaint(3).contains("--yes"), "nobody can count what is lost");
    memkv(&[&retired[..], &["--yes"]].concat()).expect(0);
    // The newcomer need not be in the configuration yet, and is blank: nothing to confirm.
    let added = memkv(&["drive", "readmit", &c, "--config", text(&alone), "--json"]).json(0);
    assert_eq!((members(&added), &added["blocks"]), (2, &0.into()), "{added}");
    let both = site.config(&["a", "c"]);
    let server = Server::start(&both);
    put(&server, 0..30);
    server.stop();
    assert!(blocks(&both).iter().all(|blocks| *blocks > 0));
}

#[test]
fn what_belongs_to_others_is_not_readmitted() {
    let site = Site::new(&["a"]);
    let config = site.config(&["a"]);
    let other = Site::new(&["x"]);
    let line =
        |drive: &str| memkv(&["drive", "readmit", drive, "--config", text(&config), "--yes"]);
    let complaint = line(&other.path("x")).complaint(3);
    assert!(complaint.contains("belongs to node"), "{complaint}");
    let foreign = site.file("foreign");
    std::fs::write(&foreign, b"XFSB")
        .and_then(|()| {
            File::options().write(true).open(&foreign).and_then(|file| file.set_len(128 * MIB))
        })
        .expect("room");
    let complaint = line(&foreign).complaint(3);
    assert!(complaint.contains("an XFS file system"), "{complaint}");
    let complaint = line("/no/such/drive").complaint(3);
    assert!(complaint.contains("does not exist"), "{complaint}");
    let complaint = line("00000000-0000-4000-8000-000000000000").complaint(3);
    assert!(complaint.contains("name it by its path"), "{complaint}");
}
