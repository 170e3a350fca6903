//! Every mistake a file can have, beside what is said about it.

/// A text, and its problems as they are shown, one to the line.
pub const MISTAKES: &[(&str, &str)] = &[
    ("netwrok:\n  address: x\n", "line 1 column 1: netwrok: unknown key; did you mean `network`?"),
    (
        "network:\n  adress: 127.0.0.1:1\n",
        "line 2 column 3: network.adress: unknown key; did you mean `address`?",
    ),
    ("auth_key: x\n", "line 1 column 1: auth_key: unknown key; did you mean `network.auth_key`?"),
    ("log:\n  zzz: 1\n", "line 2 column 3: log.zzz: unknown key; known here: format, level"),
    (
        "storage:\n  drives:\n    - media: /a\n      max_sise: 1 GiB\n",
        "line 4 column 7: storage.drives[0].max_sise: unknown key; did you mean `max_size`?",
    ),
    (
        "memory:\n  maxSize: 1 GiB\n",
        "line 2 column 3: memory.maxSize: unknown key; did you mean `max_size`?",
    ),
    ("\n\nmemory: 1 GiB\n", "line 3 column 1: memory: expected keys, found text"),
    (
        "node:\n  reactors: two\n",
        "line 2 column 3: node.reactors: expected a whole number, found text",
    ),
    (
        "node: {reactors: 1.5}\n",
        "line 1 column 8: node.reactors: expected a whole number, found a number with a fraction",
    ),
    (
        "node:\n  reactors: 0\n",
        "line 2 column 3: node.reactors: 0 is out of range; allowed: 1 to 256",
    ),
    (
        "node:\n  reactors: -3\n",
        "line 2 column 3: node.reactors: -3 is out of range; allowed: 1 to 256",
    ),
    (
        "memory:\n  block_size: 3 MiB\n",
        "line 2 column 3: memory.block_size: 3 MiB is not a power of two",
    ),
    (
        "memory:\n  block_size: 8 MiB\n",
        "line 2 column 3: memory.block_size: 8 MiB is out of range; allowed: 256 KiB to 4 MiB",
    ),
    (
        "memory:\n  max_size: 2 Gib/s\n",
        "line 2 column 3: memory.max_size: `Gib/s` is not a unit; use B, KiB, MiB, GiB, TiB or PiB",
    ),
    (
        "memory:\n  max_size: [1]\n",
        "line 2 column 3: memory.max_size: expected a size like `2 MiB`, found a list",
    ),
    (
        "memory:\n  max_size: 32 GiB\n",
        "line 2 column 3: memory.max_size: 32 GiB is out of range; allowed: 64 MiB to 16 GiB \
             (this machine's memory)",
    ),
    (
        "storage:\n  mode: flie\n",
        "line 2 column 3: storage.mode: `flie` is not one of direct, file, memory; did you mean \
             `file`?",
    ),
    (
        "storage:\n  mode: memory\n  durability: power\n",
        "line 3 column 3: storage.durability: what is in memory survives no power cut; remove the \
             key, or set storage.mode",
    ),
    (
        "storage:\n  drives: /dev/nvme0n1\n",
        "line 2 column 3: storage.drives: expected a list, found text",
    ),
    (
        "storage:\n  drives: []\n",
        "line 2 column 3: storage.drives: a list of 0 is out of range; allowed: 1 to 64",
    ),
    (
        "storage:\n  drives:\n    - /dev/nvme0n1\n",
        "line 3 column 7: storage.drives[0]: expected keys, found text",
    ),
    (
        "storage:\n  drives:\n    - {media: /a, max_size: 1 GiB}\n    - {media: /a, max_size: 1 GiB}\n",
        "line 4 column 8: storage.drives[1].media: /a is named twice",
    ),
    ("storage:\n  mode: direct\n", "storage.drives: not set, and there is no default"),
    (
        "storage:\n  mode: direct\n  drives:\n    - media: /dev/a\n      max_size: 1 GiB\n",
        "line 5 column 7: storage.drives[0].max_size: a device is used whole; max_size belongs \
             to file mode",
    ),
    (
        "storage:\n  drives:\n    - media: 0000:01:00.0\n",
        "line 3 column 7: storage.drives[0].media: a PCI address names a drive in direct mode; set \
             storage.mode, or write ./ before the name of a file",
    ),
    (
        "storage:\n  mode: direct\n  drives: [{media: '0000:0a:00.0'}, {media: '0A:00.0'}]\n",
        "line 3 column 38: storage.drives[1].media: 0000:0a:00.0 is named twice",
    ),
    (
        "storage:\n  mode: direct\n  bypass: always\n  drives: [{media: /dev/a}]\n",
        "line 3 column 3: storage.bypass: `always` is not one of prefer, require, never",
    ),
    (
        "storage:\n  mode: memory\n  drives:\n    - media: /a\n      max_size: 1 GiB\n",
        "line 4 column 7: storage.drives[0].media: memory mode has no media; remove the key, or \
             set storage.mode",
    ),
    (
        "storage:\n  eviction:\n    high: 80\n    low: 90\n",
        "line 4 column 5: storage.eviction.low: the low mark (90 %) must be below the high mark \
             (80 %)",
    ),
    (
        "storage:\n  drive_timeout_ms: 10\n",
        "line 2 column 3: storage.drive_timeout_ms: 10 is out of range; allowed: 1000 to 600000",
    ),
    (
        "storage:\n  eviction:\n    high: 120\n",
        "line 3 column 5: storage.eviction.high: 120 % is out of range; allowed: 2 % to 100 %",
    ),
    (
        "storage:\n  eviction:\n    enabled: maybe\n",
        "line 3 column 5: storage.eviction.enabled: expected true or false, found text",
    ),
    (
        "network:\n  address: 9900\n",
        "line 2 column 3: network.address: expected text (put it in quotes), found a number",
    ),
    (
        "network:\n  address: memkv.example:9900\n",
        "line 2 column 3: network.address: `memkv.example:9900` is not an address; write IP:PORT \
             like 127.0.0.1:9900 or [::1]:9900",
    ),
    (
        "network:\n  address: 127.0.0.1:65535\n",
        "line 2 column 3: network.address: the admin endpoint takes the next port, so 65534 is \
             the last one",
    ),
    (
        "network:\n  auth_key: abc\n",
        "line 2 column 3: network.auth_key: a key has 64 hexadecimal digits, this one has 3 characters; make one: openssl rand -hex 32",
    ),
    (
        "network:\n  tls_cert: /a.pem\n",
        "line 2 column 3: network.tls_cert: TLS for the admin endpoint comes with a later \
             release; remove the key and put a proxy in front if you need TLS now",
    ),
    (
        "rdma:\n  device: mlx5_0\n",
        "line 2 column 3: rdma.device: RDMA comes with a later release; remove the key, clients \
             reach this node by TCP",
    ),
    (
        "network:\n  keys:\n    - {id: 1, tenant: a b, key: x}\n",
        "line 3 column 28: network.keys[0].key: a key has 64 hexadecimal digits, this one has 1 characters; make one: openssl rand -hex 32\n\
             line 3 column 15: network.keys[0].tenant: `a b` is not a tenant: 1 to 64 of a-z \
             A-Z 0-9 . _ -",
    ),
    (
        "storage: {block_size: 1 MiB}\nlimits:\n  max_value: 32 MiB\n",
        "line 3 column 3: limits.max_value: 32 MiB is out of range; allowed: 1 B to 16 MiB (16 \
             of storage.block_size)",
    ),
    (
        "log:\n  level: loud\n",
        "line 2 column 3: log.level: `loud` is not one of error, warn, info, debug, trace",
    ),
    ("- 1\n", ": expected keys, found a list"),
    ("1: 2\n", ": expected names of keys, found a number"),
];
