"""The object tier of Dynamo's KV block manager: its crate's tests, and the patch for Dynamo."""

import json
import os
import re
import shutil
import time

from harness import environments, nixl
from harness.processes import Failed

TITLE = "Dynamo's KVBM (kvbm-engine as it is released) -> memkv: blocks, locks, killed servers"
ENVIRONMENT = "nixl"
# Some 350 crates are compiled when the machine is cold.
SECONDS = 900
# Tests of the crate: fewer is a failure.
AT_LEAST = 15
CRATE = environments.ROOT / "client-libs" / "kvbm"
PATCHED = ("kvbm-config", "kvbm-engine")


def run(row):
    """What it takes, the patch, the tests; with --full clippy and the patched crates, too."""
    install(row)
    # Nobody reads the line numbers of 350 crates, and nothing here is built twice.
    env = row.env(**cargo(), CARGO_PROFILE_DEV_DEBUG="0", CARGO_INCREMENTAL="0")
    patched = sources(row, env)
    build = ["cargo", "test", "--manifest-path", CRATE / "Cargo.toml", "--no-run"]
    took("build", row, lambda: row.call("build", build, 780, env))
    plugins = took("plug-in", row, lambda: nixl.build(row))
    found = {"MEMKV_NIXL_LIBS": str(nixl.libraries(row.python)), "MEMKV_NIXL_REQUIRED": "yes"}
    found |= {"MEMKV_NIXL_PLUGINS": str(plugins)}
    test = ["cargo", "test", "--manifest-path", CRATE / "Cargo.toml"]
    output = took("tests", row, lambda: row.call("tests", test, 300, env | found))
    passed = sum(int(count) for count in re.findall(r"(\d+) passed", output))
    row.check("tests of memkv-kvbm pass", passed >= AT_LEAST, passed)
    through = "blocks_travel_through_nixl_and_the_plug_in ... ok" in output
    row.check("blocks travel through the real NIXL and our plug-in", through)
    if row.full:
        lint = ["cargo", "clippy", "--manifest-path", CRATE / "Cargo.toml", "--all-targets"]
        took("clippy", row, lambda: row.call("clippy", [*lint, "--", "-D", "warnings"], 600, env))
        row.check("clippy has nothing to say", True)
        took("patched", row, lambda: registered(row, env, patched))


def took(what, row, call):
    """Makes a call and says how long it took."""
    begun = time.monotonic()
    result = call()
    row.note(f"{what}: {time.monotonic() - begun:.0f} s")
    return result


def cargo():
    """The variables that cargo is found and steered by."""
    names = ("CARGO_HOME", "RUSTUP_HOME", "CARGO_NET_OFFLINE")
    kept = {name: os.environ[name] for name in names if name in os.environ}
    return kept | {"CARGO_TARGET_DIR": str(environments.target())}


def install(row):
    """What upstream's build scripts want, from apt where that may be."""
    nixl.prepare(row)
    if shutil.which("protoc"):
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise Failed("upstream's crates are built with protoc: install protobuf-compiler")
    env = row.env(DEBIAN_FRONTEND="noninteractive")
    row.call("apt-update", ["apt-get", "update"], 120, env, status=None)
    apt = ["apt-get", "install", "--yes", "--no-install-recommends", "protobuf-compiler"]
    row.call("apt-install", apt, 300, env)


def sources(row, env):
    """Copies of upstream's crates with our patch applied."""
    ask = ["cargo", "metadata", "--format-version", "1", "--locked"]
    found = row.call("metadata", [*ask, "--manifest-path", CRATE / "Cargo.toml"], 300, env)
    # Its first line is what cargo says to people, when it says something.
    packages = json.loads(found[found.index('{"packages"') :])["packages"]
    folder = row.folder / "dynamo"
    shutil.rmtree(folder, ignore_errors=True)
    versions = set()
    for package in packages:
        if package["name"] in PATCHED:
            source = os.path.dirname(package["manifest_path"])
            shutil.copytree(source, folder / "lib" / package["name"])
            versions.add(package["version"])
    row.must("upstream's crates are there", len(versions) == 1, versions)
    patch = CRATE / "dynamo" / "memkv.patch"
    apply = ["patch", "--directory", folder, "--strip", "1", "--fuzz", "0", "--input", patch]
    said = row.call("patch", apply, 30)
    row.check("the patch for Dynamo applies", said.count("patching file") == 3, said)
    return folder / "lib"


def registered(row, env, patched):
    """The program of the documentation, compiled with the patched crates, asks the factories."""
    text = (environments.ROOT / "docs" / "integrations" / "dynamo.md").read_text()
    code = re.search(r"```rust\n(.*?)```", text, re.DOTALL)[1]
    folder = row.folder / "program"
    (folder / "src").mkdir(parents=True, exist_ok=True)
    (folder / "Cargo.toml").write_text(MANIFEST.format(crate=CRATE, patched=patched))
    shutil.copyfile(environments.ROOT / "Cargo.lock", folder / "Cargo.lock")
    (folder / "src" / "main.rs").write_text(PROGRAM.format(code=code))
    memkv = row.server()
    env = env | {"MEMKV_SERVERS": memkv.address}
    argv = ["cargo", "run", "--manifest-path", folder / "Cargo.toml"]
    said = row.call("registered", argv, 600, env)
    taken = "lock taken" in said
    row.check("patched factories make clients and locks of memkv", taken, said[-300:])


MANIFEST = """[package]
name = "registered"
version = "0.0.0"
edition = "2024"

[workspace]

[dependencies]
memkv-kvbm = {{ path = "{crate}" }}
kvbm-config = "=1.6.1"
kvbm-engine = {{ version = "=1.6.1", default-features = false }}
kvbm-common = "=1.6.1"
serde_json = "1"
tokio = {{ version = "1", features = ["full"] }}

[patch.crates-io]
kvbm-config = {{ path = "{patched}/kvbm-config" }}
kvbm-engine = {{ path = "{patched}/kvbm-engine" }}
"""

PROGRAM = """{code}
#[tokio::main]
async fn main() {{
    let config = r#"{{"type": "memkv", "model": "m", "identity": {{"dtype": "bf16"}}}}"#;
    let config = format!(r#"{{{{"client": {{config}}}}}}"#);
    let config: kvbm_config::ObjectConfig = serde_json::from_str(&config).expect("a configuration");
    let early = kvbm_engine::object::create_object_client(&config, Some(0)).await;
    assert!(early.is_err(), "nothing is registered yet");
    register();
    let client = kvbm_engine::object::create_object_client(&config, Some(0)).await;
    let client = client.expect("a client");
    let locks = kvbm_engine::object::create_lock_manager(&config, "one".to_owned()).await;
    let hash = kvbm_common::SequenceHash::root(1);
    assert_eq!(client.has_blocks(vec![hash]).await, [(hash, None)]);
    if locks.expect("locks").try_acquire_lock(hash).await.expect("an answer") {{
        println!("lock taken");
    }}
}}
"""
