//! The configuration as a person meets it: what works, and what each mistake is answered with.

mod changes;
mod mistakes;

use super::*;
use memkv_wire::handshake::connect_keys;
use memkv_wire::{Header, Opcode, Side};
use std::collections::BTreeMap;
use std::io;
use std::net::Ipv6Addr;

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;
const HEX: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

struct Fake {
    variables: BTreeMap<&'static str, String>,
    memory: u64,
    cores: usize,
    free: Option<u64>,
    existing: Vec<PathBuf>,
}

impl Default for Fake {
    fn default() -> Self {
        let variables = BTreeMap::from([("HOME", "/home/a".to_owned())]);
        Self { variables, memory: 16 * GIB, cores: 4, free: Some(100 * GIB), existing: vec![] }
    }
}

impl Machine for Fake {
    fn variable(&self, name: &str) -> Option<String> {
        self.variables.get(name).cloned()
    }
    fn memory_bytes(&self) -> u64 {
        self.memory
    }
    fn cores(&self) -> usize {
        self.cores
    }
    fn file_exists(&self, file: &Path) -> bool {
        self.existing.iter().any(|existing| existing == file)
    }
    fn free_bytes(&self, _: &Path) -> io::Result<u64> {
        self.free.ok_or_else(|| io::ErrorKind::PermissionDenied.into())
    }
}

fn overrides() -> Overrides {
    Overrides { file: Some(PathBuf::from("/etc/memkv/config.yaml")), ..Overrides::default() }
}

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, &overrides(), &Fake::default())
}

fn good(text: &str) -> Config {
    parse(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// The problems of a text, each as it is shown.
fn bad(text: &str, machine: &Fake) -> Vec<String> {
    match Config::parse(text, &overrides(), machine) {
        Err(ConfigError::Invalid { problems, .. }) => {
            problems.iter().map(Problem::to_string).collect()
        }
        other => panic!("expected problems, got {other:?}\n{text}"),
    }
}

#[test]
fn nothing_set_serves_a_laptop() {
    let config = Config::parse("", &Overrides::default(), &Fake::default()).expect("defaults work");
    assert_eq!(config.file, None);
    assert_eq!(config.network.address.to_string(), "127.0.0.1:9900");
    assert_eq!(config.network.keys.len(), 1);
    assert_eq!(config.network.keys[0].id, 0);
    assert_eq!(config.network.keys[0].tenant, DEFAULT_TENANT);
    assert!(config.network.shm);
    assert_eq!(config.warnings, [Warning::DevelopmentKey]);
    assert_eq!(config.memory.block_size, 2 * MIB);
    assert_eq!(config.memory.max_size, GIB);
    assert_eq!(config.memory.hugepages, HugepageUse::Prefer);
    assert_eq!(config.storage.mode, StorageMode::File);
    assert_eq!(config.storage.durability, Durability::Process);
    assert_eq!(config.storage.drive_timeout.as_secs(), 10);
    assert_eq!(config.storage.drives, [Drive::File { media: default_file(), size: Some(4 * GIB) }]);
    let (retain, pin_max) = (Duration::from_secs(600), Duration::from_secs(3600));
    let policy = EvictionPolicy::Chain;
    let eviction = Eviction { enabled: true, high: 95, low: 92, policy, retain, pin_max };
    assert_eq!(config.storage.eviction, eviction);
    // A file keeps the space that was reserved for it.
    let trim = Trim { enabled: false, interval_ms: 5_000, extents: 1_024 };
    assert_eq!(config.storage.trim, trim);
    assert_eq!(config.storage.scrub_bytes_per_second, 16 * MIB);
    assert_eq!(config.reactors, 4);
    assert_eq!(config.idle, IdlePolicy::Adaptive);
    assert_eq!(config.limits, Limits::default());
    assert_eq!(config.log, Log { format: None, filter: "info".to_owned() });
}

fn default_file() -> PathBuf {
    Fake::default().data_directory().expect("HOME is set").join("drive-0.memkv")
}

const WHOLE: &str = "
network:
  address: 0.0.0.0:9950
  shm: false
  auth_key: HEX
  keys:
    - {id: 7, key: HEX, tenant: blue}
    - {id: 8, key: HEX, tenant: blue}
memory:
  block_size: 1 MiB
  max_size: 2 GiB
  hugepages: require
storage:
  mode: file
  block_size: 1 MiB
  drives:
    - media: /data/a
      max_size: 1 GiB
    - media: /data/b
      max_size: 2147483648
  drive_timeout_ms: 2500
  eviction:
    enabled: false
    high: 70 %
    low: 60
    retain_seconds: 30
    pin_max_seconds: 7200
    policy: lru
  durability: process
  trim:
    enabled: true
    interval_ms: 250
    extents: 64
  scrub:
    bytes_per_second: 0
rdma:
node:
  reactors: 2
  idle: busy
limits:
  max_connections: 10
  max_value: 8 MiB
namespaces:
  - name: scratch
    ttl_seconds: 60
  - name: chat
    ttl_seconds: 3600
    ttl_max_seconds: 86400
log:
  format: json
  level: debug
";

#[test]
fn a_whole_file_is_read() {
    let text = WHOLE.replace("HEX", HEX);
    let config = good(&text);
    assert_eq!(config.file, overrides().file);
    assert_eq!(config.network.address.to_string(), "0.0.0.0:9950");
    let keys: Vec<_> = config.network.keys.iter().map(|k| (k.id, k.tenant.as_str())).collect();
    assert_eq!(keys, [(0, "default"), (7, "blue"), (8, "blue")]);
    assert!(!config.network.shm);
    assert_eq!((config.memory.block_size, config.memory.max_size), (MIB, 2 * GIB));
    assert_eq!(config.memory.hugepages, HugepageUse::Require);
    let file = |media: &str, size| Drive::File { media: media.into(), size: Some(size) };
    assert_eq!(config.storage.drives, [file("/data/a", GIB), file("/data/b", 2 * GIB)]);
    assert_eq!(config.storage.block_size, MIB);
    let (retain, pin_max) = (Duration::from_secs(30), Duration::from_secs(7200));
    let policy = EvictionPolicy::Lru;
    let eviction = Eviction { enabled: false, high: 70, low: 60, policy, retain, pin_max };
    assert_eq!(config.storage.eviction, eviction);
    let trim = Trim { enabled: true, interval_ms: 250, extents: 64 };
    assert_eq!((config.storage.trim, config.storage.scrub_bytes_per_second), (trim, 0));
    assert_eq!((config.reactors, config.idle), (2, IdlePolicy::Busy));
    assert_eq!((config.limits.max_connections, config.limits.max_value), (10, 8 * MIB));
    let limits = |name: &str, ttl_seconds, ttl_max_seconds| NamespaceLimits {
        name: name.to_owned(),
        ttl_seconds,
        ttl_max_seconds,
    };
    assert_eq!(config.namespaces, [limits("scratch", 60, 0), limits("chat", 3600, 86_400)]);
    assert_eq!(config.log.format, Some(LogFormat::Json));
    assert_eq!(config.log.filter, "debug");
    assert!(config.warnings.is_empty());
}

#[test]
fn every_mistake_is_named_with_its_place() {
    for (text, expected) in mistakes::MISTAKES {
        assert_eq!(bad(text, &Fake::default()).join("\n"), *expected, "{text}");
    }
}

#[test]
fn all_mistakes_of_a_file_are_told_at_once() {
    let error = parse("network:\n  adress: x\nmemory:\n  max_size: lots\nlgo: 1\n")
        .expect_err("three mistakes");
    assert_eq!(
        error.to_string(),
        "/etc/memkv/config.yaml: 3 errors\n  line 5 column 1: lgo: unknown key; did you mean \
         `log`?\n  line 2 column 3: network.adress: unknown key; did you mean `address`?\n  line 4 \
         column 3: memory.max_size: not a size; write one like `2 MiB` or `4194304`"
    );
}

#[test]
fn a_file_that_is_not_yaml_is_named_with_its_line() {
    for (text, line) in
        [("network:\n\taddress: x\n", "line 2"), ("log: {}\nlog: {}\n", "duplicate")]
    {
        let error = parse(text).expect_err("not YAML").to_string();
        assert!(error.starts_with("/etc/memkv/config.yaml: not valid YAML: "), "{error}");
        assert!(error.contains(line), "{error}");
    }
}

#[test]
fn a_missing_file_and_a_huge_one_are_named() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("none.yaml");
    let load = |file: &Path| {
        let overrides = Overrides { file: Some(file.to_owned()), ..Overrides::default() };
        Config::load(&overrides, &Fake::default()).map(|config| config.file)
    };
    let error = load(&file).expect_err("there is no such file");
    assert!(matches!(error, ConfigError::Read { .. }), "{error}");
    assert!(error.to_string().contains("none.yaml"), "{error}");

    std::fs::write(&file, vec![b'#'; FILE_MAX as usize + 1]).expect("room for a megabyte");
    let error = load(&file).expect_err("too large");
    assert!(matches!(error, ConfigError::TooLarge { .. }), "{error}");

    std::fs::write(&file, "log: {level: warn}\n").expect("room for a line");
    assert_eq!(load(&file).expect("a good file"), Some(file));
}

#[test]
fn a_key_is_required_beyond_loopback() {
    let text = "network:\n  address: 0.0.0.0:9900\n";
    let problems = bad(text, &Fake::default());
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(
        problems[0].starts_with("network.auth_key: no key is set and 0.0.0.0:9900 can be reached")
    );
    assert!(problems[0].contains("openssl rand -hex 32"));

    for local in ["127.0.0.1", "127.8.8.8:1", "localhost", "localhost:77", "'[::1]:9900'", "'::1'"]
    {
        let config = good(&format!("network:\n  address: {local}\n"));
        assert_eq!(config.warnings, [Warning::DevelopmentKey], "{local}");
        assert!(config.network.address.ip().is_loopback(), "{local}");
    }
    let config = good("network: {address: '::1'}");
    assert_eq!(config.network.address, SocketAddr::from((Ipv6Addr::LOCALHOST, 9900)));

    let key = format!("network:\n  keys: [{{id: 3, key: {HEX}, tenant: a}}]\n");
    assert!(good(&key).warnings.is_empty(), "a key that is set needs no derived one");
}

#[test]
fn the_environment_overrides_the_key_of_the_file() {
    let other = "ff".repeat(32);
    let mut machine = Fake::default();
    machine.variables.insert("MEMKV_AUTH_KEY", other.clone());
    let text = format!("network:\n  address: 0.0.0.0:1\n  auth_key: {HEX}\n");
    let config = Config::parse(&text, &overrides(), &machine).expect("both keys are good");
    assert_eq!(config.network.keys.len(), 1);
    assert!(same_key(&config.network.keys[0].key, &other));

    machine.variables.insert("MEMKV_AUTH_KEY", "short".into());
    assert_eq!(
        bad(&text, &machine),
        [
            "environment variable MEMKV_AUTH_KEY: a key has 64 hexadecimal digits, this one has 5 characters; make one: openssl rand -hex 32"
        ]
    );
    machine.variables.insert("MEMKV_AUTH_KEY", String::new());
    let config = Config::parse(&text, &overrides(), &machine).expect("empty is unset");
    assert!(same_key(&config.network.keys[0].key, HEX));
}

#[test]
fn the_network_engine_is_a_matter_of_the_environment() {
    use memkv_net::tcp::Driver;
    let mut machine = Fake::default();
    for (text, driver) in [("", Driver::Auto), ("epoll", Driver::Epoll), (" uring", Driver::Uring)]
    {
        machine.variables.insert("MEMKV_NET", text.to_owned());
        let config = Config::parse("", &overrides(), &machine).expect("a name of an engine");
        assert_eq!(config.network.engine, driver);
    }
    machine.variables.insert("MEMKV_NET", "kqueue".to_owned());
    assert_eq!(
        bad("", &machine),
        ["environment variable MEMKV_NET: `kqueue` is not one of auto, epoll, uring"]
    );
}

/// Keys do not compare; what they seal does.
fn same_key(key: &SharedKey, hex: &str) -> bool {
    let seal = |key: &SharedKey| {
        let (mut sealer, _) = connect_keys(key, 0, Side::Client);
        let mut frame = Vec::new();
        sealer.seal(&mut Header::request(Opcode::Exists, 1), b"", &mut frame);
        frame
    };
    seal(key) == seal(&SharedKey::from_hex(hex).expect("hex"))
}

#[test]
fn two_keys_per_tenant_and_no_id_twice() {
    let keys = |list: &[(u32, &str)]| {
        let mut text = format!("network:\n  auth_key: {HEX}\n  keys:\n");
        for (id, tenant) in list {
            text += &format!("    - {{id: {id}, key: {HEX}, tenant: {tenant}}}\n");
        }
        text
    };
    good(&keys(&[(1, "default"), (2, "a"), (3, "a")]));
    let table = [
        (keys(&[(1, "a"), (1, "b")]), "network.keys[1].id: key id 1 is named twice"),
        (keys(&[(0, "a")]), "network.keys[0].id: 0 is out of range"),
        (keys(&[(1, "a"), (2, "a"), (3, "a")]), "network.keys[2].tenant: a third key"),
        (keys(&[(1, "default"), (2, "default")]), "network.keys[1].tenant: a third key"),
    ];
    for (text, expected) in table {
        let problems = bad(&text, &Fake::default());
        assert!(problems.len() == 1 && problems[0].contains(expected), "{problems:?}");
    }
}

#[test]
fn the_default_file_fits_the_disk() {
    let table =
        [(100 * GIB, 4 * GIB), (8 * GIB, 2 * GIB), (GIB, 256 * MIB), (1027 * MIB, 256 * MIB)];
    for (free, expected) in table {
        let machine = Fake { free: Some(free), ..Fake::default() };
        let config = Config::parse("", &overrides(), &machine).expect("enough space");
        let drive = Drive::File { media: default_file(), size: Some(expected) };
        assert_eq!(config.storage.drives, [drive], "{free} free");
    }
    let machine = Fake { free: Some(GIB - 1), ..Fake::default() };
    let problems = bad("", &machine);
    assert!(problems.len() == 1 && problems[0].contains("free some space"), "{problems:?}");
    let machine = Fake { free: None, ..Fake::default() };
    let problems = bad("", &machine);
    assert!(problems[0].contains("cannot ask for the free space"), "{problems:?}");
    let machine = Fake { variables: BTreeMap::new(), ..Fake::default() };
    let problems = bad("", &machine);
    assert!(problems[0].contains("--data-dir"), "{problems:?}");
}

#[test]
fn an_existing_file_is_taken_as_it_is() {
    let machine = Fake { existing: vec![default_file()], free: Some(0), ..Fake::default() };
    let config = Config::parse("", &overrides(), &machine).expect("no space is needed");
    assert_eq!(config.storage.drives, [Drive::File { media: default_file(), size: None }]);
}

#[test]
fn a_configured_file_must_fit_too() {
    let text = "storage:\n  drives:\n    - media: /data/a\n      max_size: 200 GiB\n";
    assert_eq!(
        bad(text, &Fake::default()),
        [
            "storage.drives[0].max_size: /data/a needs 200 GiB, and 100 GiB are free there; free some \
          space, or name a smaller max_size or another place"
        ]
    );
}

#[test]
fn options_override_the_file() {
    let text = "network: {address: '127.0.0.1:1'}\nlog: {format: json, level: error}\n";
    let options = Overrides {
        address: Some("127.0.0.1:2".into()),
        data_dir: Some("/scratch".into()),
        log_format: Some(LogFormat::Human),
        log_level: Some(LogLevel::Trace),
        ..overrides()
    };
    let config = Config::parse(text, &options, &Fake::default()).expect("all good");
    assert_eq!(config.network.address.port(), 2);
    assert_eq!(config.log, Log { format: Some(LogFormat::Human), filter: "trace".into() });
    let media = PathBuf::from("/scratch/drive-0.memkv");
    assert_eq!(config.storage.drives, [Drive::File { media, size: Some(4 * GIB) }]);

    let mut machine = Fake::default();
    machine.variables.insert("RUST_LOG", "memkv_store=debug".into());
    let config = Config::parse(text, &overrides(), &machine).expect("all good");
    assert_eq!(config.log.filter, "memkv_store=debug", "the environment overrides the file");

    let wrong = Overrides { address: Some("nowhere".into()), ..overrides() };
    let error = Config::parse("", &wrong, &Fake::default()).expect_err("no address");
    assert!(error.to_string().contains(": --address: `nowhere` is not an address"), "{error}");
    let drives = "storage: {drives: [{media: /a, max_size: 1 GiB}]}";
    let error = Config::parse(drives, &options, &Fake::default()).expect_err("nothing to place");
    assert!(error.to_string().contains("--data-dir: there is no default data file"), "{error}");
}

#[test]
fn memory_mode_has_a_default_size() {
    let config = good("storage: {mode: memory}");
    assert_eq!(config.storage.drives, [Drive::Memory { size: 4 * GIB }]);
    let config = good("storage: {mode: memory, drives: [{max_size: 1 GiB}, {max_size: 2 GiB}]}");
    let memory = |size| Drive::Memory { size };
    assert_eq!(config.storage.drives, [memory(GIB), memory(2 * GIB)]);
}

#[test]
fn small_machines_get_a_small_pool() {
    for (memory, expected) in [(16 * GIB, GIB), (4 * GIB, 512 * MIB), (256 * MIB, 64 * MIB)] {
        let machine = Fake { memory, ..Fake::default() };
        let config = Config::parse("", &overrides(), &machine).expect("defaults work");
        assert_eq!(config.memory.max_size, expected, "of {memory}");
    }
    let config = good("memory: {block_size: 4 MiB, max_size: 101 MiB}");
    assert_eq!(config.memory.max_size, 100 * MIB, "whole chunks");
}

#[test]
fn small_extents_make_small_values() {
    assert_eq!(good("storage: {block_size: 64 KiB}").limits.max_value, MIB);
    assert_eq!(good("storage: {block_size: 4 MiB}").limits.max_value, 64 * MIB);
}

#[test]
fn rdma_settings_without_a_device_only_warn() {
    let config = good("rdma: {num_dcis: 256, device: }");
    let warnings: Vec<String> = config.warnings.iter().map(Warning::to_string).collect();
    assert!(warnings.contains(&"rdma.num_dcis has no effect without a device".to_owned()));
}

#[test]
fn debug_output_hides_keys() {
    let config = good(&format!("network: {{auth_key: {HEX}}}"));
    assert!(!format!("{config:?}").contains("1e1f"), "a key would be in the log");
}

proptest::proptest! {
    /// Whatever stands in the file, there is an answer and not a panic.
    #[test]
    fn any_text_is_answered(text in "([a-z_]{1,8}|network|storage|drives|keys|memory|[-:{}\\[\\]&*!|>'\"%@ \n\t0-9]){0,40}") {
        let _ = parse(&text);
    }

    /// A document of known sections with odd values is answered, too.
    #[test]
    fn odd_values_are_answered(
        section in proptest::sample::select(schema::ROOT),
        index in 0usize..8,
        value in "(null|true|-1|1e9|\\[\\]|\\{\\}|\\[1, 2\\]|'%'|!t x|0x10|18446744073709551616|\\.nan|5 %|999 %)",
    ) {
        let found = |path: String| schema::SCHEMA.iter().find(|(known, _)| *known == path);
        // One of them is a list of sections.
        let (item, known) = match found(section.to_owned()) {
            Some(known) => ("", known),
            None => ("- ", found(format!("{section}[]")).expect("a section")),
        };
        let key = known.1[index % known.1.len()];
        let _ = parse(&format!("{section}:\n  {item}{key}: {value}\n"));
    }
}

#[test]
fn a_drive_may_be_named_by_its_pci_address() {
    let text = "storage:\n  mode: direct\n  drives:\n    - media: 0000:01:00.0\n    - media: af:1f.7\n    \
                - media: /dev/disk/by-path/pci-0000:02:00.0-nvme-1\n";
    let config = good(text);
    let pci = |address: &str| Drive::Pci { address: address.parse().expect("an address") };
    let device = PathBuf::from("/dev/disk/by-path/pci-0000:02:00.0-nvme-1");
    let drives =
        [pci("0000:01:00.0"), pci("0000:af:1f.7"), Drive::Device { media: device.clone() }];
    assert_eq!(config.storage.drives, drives);
    assert_eq!(config.storage.bypass, BypassUse::Require);
    let names: Vec<String> = config.storage.drives.iter().map(Drive::name).collect();
    assert_eq!(names, ["0000:01:00.0", "0000:af:1f.7", &*device.display().to_string()]);
    let prefer = text.replace("mode: direct", "mode: direct\n  bypass: prefer");
    assert_eq!(good(&prefer).storage.bypass, BypassUse::Prefer);
}
