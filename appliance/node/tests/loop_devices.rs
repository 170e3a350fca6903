//! `memkv setup` and `memkv start` on block devices: loop devices, where this process may make some.
//!
//! Each check says `ok`, `FAILED`, or `skipped` with the reason, as the standard harness would, but
//! that one has no word for the third.

mod binary;

use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use binary::{Server, configuration, free_address, memkv, value};
use memkv_client::PutOptions;

const CHECKS: [(&str, fn()); 5] = [
    ("devices_are_set_up_and_served", devices_are_set_up_and_served),
    ("what_is_deleted_is_freed_below_the_device", what_is_deleted_is_freed_below_the_device),
    (
        "a_device_that_failed_comes_back_and_another_joins",
        a_device_that_failed_comes_back_and_another_joins,
    ),
    ("a_mounted_device_is_refused", a_mounted_device_is_refused),
    ("a_partitioned_device_is_refused", a_partitioned_device_is_refused),
];

const PAGE: usize = 4096;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--list") {
        CHECKS.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let filter = arguments.iter().find(|argument| !argument.starts_with('-'));
    let chosen = |name: &str| filter.is_none_or(|filter| name.contains(filter.as_str()));
    println!("\nrunning {} tests", CHECKS.len());
    let mut failed = 0;
    for (name, check) in CHECKS.iter().filter(|(name, _)| chosen(name)) {
        let verdict = match Loop::new(1 << 20) {
            Err(reason) => format!("skipped: {reason}"),
            Ok(_) => match catch_unwind(AssertUnwindSafe(check)) {
                Ok(()) => "ok".to_owned(),
                Err(panic) => match panic.downcast_ref::<Skip>() {
                    Some(Skip(reason)) => format!("skipped: {reason}"),
                    None => {
                        failed += 1;
                        "FAILED".to_owned()
                    }
                },
            },
        };
        println!("test {name} ... {verdict}");
    }
    println!("\ntest result: {}.\n", if failed == 0 { "ok" } else { "FAILED" });
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Ends a check that cannot be made here.
struct Skip(String);

fn skip(reason: String) -> ! {
    std::panic::resume_unwind(Box::new(Skip(reason)))
}

/// A loop device over a file; detached when dropped.
struct Loop {
    device: String,
    file: tempfile::NamedTempFile,
}

impl Loop {
    fn new(bytes: u64) -> Result<Loop, String> {
        Loop::with(bytes, |_| (), &[])
    }

    /// Bytes that the file takes up.
    fn allocated(&self) -> u64 {
        self.file.as_file().metadata().expect("a file").blocks() * 512
    }

    /// Whether a page of the file begins with these bytes.
    fn holds(&self, bytes: &[u8]) -> bool {
        let image = std::fs::read(self.file.path()).expect("a file");
        image.chunks(PAGE).any(|page| page.starts_with(bytes))
    }

    /// With bytes in the file before the device is made of it.
    fn with(bytes: u64, fill: impl FnOnce(&Path), options: &[&str]) -> Result<Loop, String> {
        let file = tempfile::NamedTempFile::new().map_err(|error| error.to_string())?;
        file.as_file().set_len(bytes).map_err(|error| error.to_string())?;
        fill(file.path());
        let path = file.path().to_str().ok_or("an odd path")?;
        let line = [&["--show", "--find"][..], options, &[path]].concat();
        let device = run("losetup", &line)?;
        Ok(Loop { device: device.trim().to_owned(), file })
    }
}

impl Loop {
    /// Makes it another size while it is in use: what lies behind its end fails.
    fn resize(&self, bytes: u64) {
        self.file.as_file().set_len(bytes).expect("a file");
        if let Err(why) = run("losetup", &["--set-capacity", &self.device]) {
            skip(why);
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        if let Err(error) = run("losetup", &["--detach", &self.device]) {
            eprintln!("{} stays: {error}", self.device);
        }
    }
}

/// Runs a tool of the system; its output, or why there is none.
fn run(tool: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(tool).args(arguments).output();
    let output = output.map_err(|error| format!("{tool}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let told = String::from_utf8_lossy(&output.stderr);
    Err(format!("{tool}: {}", told.lines().next().unwrap_or("it failed without a word")))
}

fn devices_are_set_up_and_served() {
    let (a, b) = (Loop::new(96 << 20).expect("a device"), Loop::new(128 << 20).expect("a device"));
    let address = free_address().to_string();
    let line = ["setup", "--address", &address, "--drives", &a.device, &b.device];
    let yaml = memkv(&line).expect(0);
    assert!(yaml.contains("mode: direct"), "{yaml}");
    let folder = tempfile::tempdir().expect("a temporary directory");
    let config = configuration(folder.path(), &yaml);
    let server = Server::start(&config);
    let client = server.client();
    let large = value(3, 9_000_000);
    client.put(b"large", &large, &PutOptions::default()).expect("it is stored");
    let complaint = memkv(&["setup", "--force", "--drives", &a.device]).complaint(3);
    assert!(complaint.contains("a server has it"), "{complaint}");
    drop(client);
    server.kill();
    let path = config.to_str().expect("a plain path");
    let check = memkv(&["drive", "check", "--config", path, "--json"]).json(0);
    assert_eq!((&check["ok"], &check["bytes"]), (&true.into(), &9_000_000.into()), "{check}");
    let server = Server::start(&config);
    let mut back = Vec::new();
    server.client().get(b"large", &mut back).expect("it is there");
    assert!(back == large);
    server.stop();
    memkv(&["drive", "wipe", "--config", path, "--yes"]).expect(0);
    let complaint = memkv(&["start", "--config", path]).complaint(1);
    assert!(complaint.contains("memkv setup --drives"), "{complaint}");
}

/// A trim goes all the way: from a delete to holes in the file that the device is made of.
fn what_is_deleted_is_freed_below_the_device() {
    let device = Loop::new(160 << 20).expect("a device");
    let queue = Path::new("/sys/block").join(device.device.trim_start_matches("/dev/"));
    let most = std::fs::read_to_string(queue.join("queue/discard_max_bytes")).unwrap_or_default();
    if matches!(most.trim(), "" | "0") {
        skip(format!("{} cannot discard", device.device));
    }
    let address = free_address().to_string();
    let yaml = memkv(&["setup", "--address", &address, "--drives", &device.device]).expect(0);
    assert!(!yaml.contains("trim:"), "{yaml}");
    let yaml = yaml.replace("mode: direct", "mode: direct\n  trim:\n    interval_ms: 50");
    let folder = tempfile::tempdir().expect("a temporary directory");
    let config = configuration(folder.path(), &yaml);
    let server = Server::start(&config);
    let client = server.client();
    let (gone, kept) = (value(5, 24 << 20), value(6, 8 << 20));
    let empty = device.allocated();
    // Side by side, so that the discard of one has the other as its neighbour.
    client.put(b"gone", &gone, &PutOptions::default()).expect("it is stored");
    client.put(b"kept", &kept, &PutOptions::default()).expect("it is stored");
    let full = device.allocated();
    assert!(full >= empty + (32 << 20), "{empty} {full}");
    let pieces = [0, gone.len() / 2, gone.len() - PAGE].map(|from| &gone[from..][..256]);
    assert!(pieces.iter().all(|piece| device.holds(piece)), "it is stored as it is");
    assert!(client.delete(b"gone", None).expect("it is deleted"));
    let begun = Instant::now();
    while device.allocated() > full - (24 << 20) {
        assert!(begun.elapsed() < Duration::from_secs(60), "{full} {}", device.allocated());
        assert_eq!(client.exists(&[b"gone"]).expect("it answers"), [false]);
    }
    assert!(!pieces.iter().any(|piece| device.holds(piece)), "it was discarded");
    drop(client);
    server.kill();
    let server = Server::start(&config);
    let mut back = Vec::new();
    server.client().get(b"kept", &mut back).expect("it is there");
    assert!(back == kept);
    server.stop();
}

fn a_device_that_failed_comes_back_and_another_joins() {
    const BYTES: u64 = 128 << 20;
    let [a, b, c] = [(); 3].map(|()| Loop::new(BYTES).expect("a device"));
    let address = free_address().to_string();
    let line = ["setup", "--address", &address, "--drives", &a.device, &b.device];
    let folder = tempfile::tempdir().expect("a temporary directory");
    let config = configuration(folder.path(), &memkv(&line).expect(0));
    let server = Server::start(&config);
    let put = |from: u64| {
        let client = server.client();
        for key in from..from + 60 {
            let bytes = value(key, 50_000);
            client.put(&key.to_le_bytes(), &bytes, &PutOptions::default()).expect("there is room");
        }
    };
    put(0);
    b.resize(1 << 20);
    for key in 0..60u64 {
        let mut got = Vec::new();
        let outcome = server.client().get(&key.to_le_bytes(), &mut got).expect("it answers");
        assert!(!outcome.is_hit() || got == value(key, 50_000), "{key}");
    }
    let health = || server.ask("GET", "/v1/health").1;
    assert!(health().contains("degraded"), "{}", health());
    b.resize(BYTES);
    let path = format!("/v1/drives/readmit?path={}", b.device.replace('/', "%2F"));
    let (code, told) = server.ask("POST", &path);
    assert_eq!(code, 200, "{told}");
    assert!(health().contains("healthy"), "{}", health());

    let text = std::fs::read_to_string(&config).expect("a configuration");
    let row = text.lines().find(|line| line.contains(&b.device)).expect("it lists its drives");
    let both = format!("{row}\n{}", row.replace(&b.device, &c.device));
    std::fs::write(&config, text.replace(row, &both)).expect("room for a file");
    let (code, told) = server.ask("POST", "/v1/reload");
    let told: memkv_admin_api::Reloaded = serde_json::from_str(&told).expect("what became of it");
    assert_eq!((code, told.drives_joined.len()), (200, 1), "{told:?}");
    put(1000);
    let status = server.wait_for_status(|status| status.drives.len() == 3);
    assert!(status.drives.iter().all(|drive| drive.used_bytes > 500_000), "{status:?}");
    server.kill();
    let server = Server::start(&config);
    let client = server.client();
    for key in 1000..1060u64 {
        let mut got = Vec::new();
        let outcome = client.get(&key.to_le_bytes(), &mut got).expect("it answers");
        assert!(outcome.is_hit() && got == value(key, 50_000), "{key}");
    }
    drop(client);
    server.stop();
}

fn a_mounted_device_is_refused() {
    let device = Loop::new(64 << 20).expect("a device");
    if let Err(why) = run("mkfs.ext4", &["-q", &device.device]) {
        skip(why);
    }
    let complaint = memkv(&["setup", "--drives", &device.device]).complaint(3);
    assert!(complaint.contains("an ext4 file system"), "{complaint}");
    let folder = tempfile::tempdir().expect("a temporary directory");
    let place = folder.path().to_str().expect("a plain path");
    if let Err(why) = run("mount", &[&device.device, place]) {
        skip(why);
    }
    let told = memkv(&["setup", "--force", "--drives", &device.device]);
    run("umount", &[place]).expect("it was mounted");
    let complaint = told.complaint(3);
    assert!(complaint.contains(&format!("umount {place}")), "{complaint}");
}

fn a_partitioned_device_is_refused() {
    // One partition from 1 MiB on, of 32 MiB.
    let mut sector = [0u8; 512];
    sector[446 + 4] = 0x83;
    sector[446 + 8..446 + 12].copy_from_slice(&2048u32.to_le_bytes());
    sector[446 + 12..446 + 16].copy_from_slice(&65_536u32.to_le_bytes());
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    let fill = |path: &Path| {
        use std::os::unix::fs::FileExt;
        let file = std::fs::OpenOptions::new().write(true).open(path).expect("the file");
        file.write_all_at(&sector, 0).expect("it is large enough");
    };
    let device = Loop::with(64 << 20, fill, &["--partscan"]).expect("a device");
    let complaint = memkv(&["setup", "--drives", &device.device]).complaint(3);
    assert!(complaint.contains("an MBR partition table"), "{complaint}");
    let seen = Path::new("/sys/block").join(device.device.trim_start_matches("/dev/"));
    let name = format!("{}p1", device.device.trim_start_matches("/dev/"));
    if !seen.join(&name).exists() {
        skip("this kernel makes no partitions of loop devices".to_owned());
    }
    let complaint = memkv(&["setup", "--force", "--drives", &device.device]).complaint(3);
    assert!(complaint.contains(&format!("it has partitions ({name})")), "{complaint}");
}
