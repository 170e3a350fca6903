"""NIXL as it is released, with memkv as its object store."""

import os
import signal

from harness import nixl
from harness.processes import wait_until

TITLE = "NIXL agent -> libplugin_MEMKV.so -> memkv; absent, kill, release in flight, threads"
ENVIRONMENT = "nixl"
SECONDS = 1200
MIB = 1 << 20
# Milliseconds that the transfers of this row may take, and the seconds in which one has failed.
PATIENCE_MS, PATIENCE = 10000, 30
COUNT = 8


def run(row):
    """All that can happen to a transfer, by NIXL's Python; then its own tests, by NIXL's Rust."""
    plugins = nixl.build(row)
    library = nixl.libraries(row.python) / "plugins" / "libplugin_POSIX.so"
    found = nixl.slots(library, "nixlPosixEngine")
    row.must("the newest NIXL has the slots that the plug-in is made for", found == nixl.SLOTS, found)
    row.check("a slot that moves is seen", nixl.SLOTS[::-1] != found)

    memkv = row.server(size=512 * MIB)
    settings = {"request_timeout_ms": str(PATIENCE_MS), "connect_timeout_ms": str(PATIENCE_MS)}
    client = nixl.Client(row, memkv, plugins, settings=settings)
    before = memkv.counters()["memkv_read_bytes_total"]
    transfers(row, client)
    pieces(row, client)
    refusals(row, client)
    told = client("threads", rounds=20 if row.full else 6)["threads"]
    row.check("8 threads of one agent keep their own", told == ["ok"] * 8, told)
    forked(row, client)
    row.bytes(memkv.counters()["memkv_read_bytes_total"] - before)
    given_up(row, memkv, client)
    dead(row, memkv, client)
    client.process.stop()
    costs(row, plugins)
    speeds(row, memkv, plugins)
    rust(row)


def transfers(row, client):
    """There and back."""
    known = client("start")
    row.must("NIXL lists the plug-in", "MEMKV" in known["plugins"], known)
    kinds = {"DRAM_SEG", "OBJ_SEG"}
    row.check("memory and objects are served", kinds <= set(known["kinds"]), known)
    settings = {"servers", "num_connections", "staging_size_mb", "staging_slot_mb"}
    row.check("its settings are told", settings <= set(known["settings"]), known)
    roundtrip(row, client)


def roundtrip(row, client, name=""):
    """The checks of one round, which every version has to pass."""
    told = client("roundtrip", count=COUNT)
    row.must(f"{name}nothing is there at first", told["before"] == [False] * COUNT, told)
    row.must(f"{name}objects are written", told["write"] == "DONE", told)
    row.check(f"{name}they are found", told["after"] == [True] * COUNT + [False], told)
    row.check(f"{name}they are read", told["read"] == "DONE" and told["equal"], told)
    again = told["write_again"] == told["read_again"] == "DONE" and told["equal_again"]
    row.check(f"{name}transfers are posted again", again, told)
    ranges = told["ranges"] == "DONE" and told["ranges_equal"]
    row.check(f"{name}ranges of an object are read", ranges, told)
    error = told["too_long"] not in ("DONE", "late")
    row.check(f"{name}what an object does not have is an error", error, told)


def pieces(row, client):
    """Objects of many descriptors."""
    told = client("pieces")
    whole = told["write"] == told["read"] == "DONE" and told["equal"]
    row.check("descriptors in any order make one object", whole, told)
    refused = told["gap"] == told["overlap"] == told["shared"] == "nixlInvalidParamError"
    row.check("holes, overlaps and shared memory are refused", refused, told)
    row.check("nothing of what was refused is stored", not told["hole_is_there"], told)


def refusals(row, client, name=""):
    """What must not be."""
    told = client("refusals")
    guarded = told["second_key"] and told["write"] == "DONE" and told["there"] == [True, False]
    row.check(f"{name}a second key under a device id in use is refused", guarded, told)
    freed = told["id_is_free"] == told["own_bytes"] == "DONE" and told["equal"]
    row.check(f"{name}a device id is free again after its registration", freed, told)
    by_id = told["by_id"] == "DONE" and told["by_id_there"]
    row.check(f"{name}a device id is a key where there is no name", by_id, told)
    row.check(f"{name}an absent object is not found", told["absent"] == "nixlNotFoundError", told)
    row.check(f"{name}a key that is too long is refused", told["long_key"], told)
    wrong = [told[what] for what in ("unknown_setting", "bad_server", "bad_slot")]
    row.check(f"{name}wrong settings make no backend", all(wrong), told)
    log = client.process.output()
    sentences = ["there is no parameter `servres`", "device id 7 is registered", "`a b` is not"]
    row.check(f"{name}it is said why", all(sentence in log for sentence in sentences))


def forked(row, client):
    """Both sides of a fork."""
    told = client("fork")
    child = told["child"] or {}
    moved = child.get("read") == "DONE" and child.get("equal")
    row.check("a child of a fork has connections of its own", moved, told)
    kept = told["write"] == told["read"] == "DONE" and told["equal"]
    row.check("its parent goes on", kept, told)
    # It may have been done before the fork.
    parents = child.get("parents") in ("DONE", "nixlCancelledError")
    row.check("a child's transfers do not wait for its parent", parents, told)


def given_up(row, memkv, client):
    """Transfers are released while the server stands still: their memory is their owner's at once."""
    for operation in ("READ", "WRITE"):
        memkv.process.freeze()
        order = {"operation": operation, "key": "roundtrip", "count": COUNT, "size": MIB}
        told = client("leave", **order, seconds=0.3)
        memkv.process.child.send_signal(signal.SIGCONT)
        what = operation.lower()
        row.check(f"a {what} is under way", told["state"] == "PROC", told)
        row.check(f"a {what} under way is not posted again", told["reposted"], told)
        row.check(f"a {what} under way is released", told["released"] is None, told)
        row.check(f"releasing a {what} does not wait", told["seconds"] < 3, told["seconds"])
        again = client("move", operation="WRITE", key="given-up/next", size=MIB, seed=9)
        row.check(f"after a {what} was released there is service", again["state"] == "DONE", again)
        told = client("left", key=order["key"])
        row.check(f"memory of a released {what} is left alone", told["clean"], told)
        apart = told["state"] == "DONE" and not told["stored"]
        row.check(f"what stood in it after a {what} was released is stored nowhere", apart, told)


def dead(row, memkv, client):
    """The server is killed, and comes back."""
    order = {"key": "dead/object", "size": MIB}
    told = client("move", operation="WRITE", seed=11, **order)
    row.must("an object is there before the kill", told["state"] == "DONE", told)
    memkv.kill()
    for operation in ("READ", "WRITE"):
        told = client("move", operation=operation, **order)
        what = f"a {operation.lower()} without a server"
        row.check(f"{what} is an error", told["state"] == "nixlBackendError", told)
        row.check(f"{what} ends in time", told["seconds"] < PATIENCE, told["seconds"])
    memkv.start()
    back = lambda: client("move", operation="READ", expected=11, **order)["equal"]
    row.check("the object is back with the server", wait_until("service again", 30, back))


def costs(row, plugins):
    """What a transfer costs its caller; told, for a machine at work elsewhere measures that. The server, which
    otherwise is on another machine, has one core here."""
    server = row.server("cost", 512 * MIB, "node: {reactors: 1}\n", "memory")
    client = nixl.Client(row, server, plugins, "cost-client")
    told = client("cost", rounds=1000 if row.full else 200)
    client.process.stop()
    server.stop()
    row.note(
        f"64 descriptors: prepared in {told['prepare_us']:.0f} us (Python included), posted in "
        f"{told['post_us']:.0f} us by NIXL's telemetry; medians of {told['rounds']}"
    )
    row.check("NIXL's telemetry has measured them all", told["moved"] == [told["bytes"]], told)


def speeds(row, memkv, plugins):
    """64 objects of 1 MiB, beside what else moves as much; told, as above."""
    libraries = nixl.libraries(row.python)
    posix = plugins / "libplugin_POSIX.so"
    posix.symlink_to(libraries / "plugins" / posix.name)
    env = row.env(NIXL_PLUGIN_DIR=str(plugins))
    # Where it does not stand among its own it does not find them.
    env["LD_LIBRARY_PATH"] = f"{libraries}:{libraries.parent / 'nixl_cu12.libs'}"
    files = row.folder / "files"
    files.mkdir()
    rounds = 40 if row.full else 10
    told = row.program("nixl_bench.py", memkv.address, files, rounds, seconds=200, env=env)
    for file in files.iterdir():
        file.unlink()
    ours = told.pop("nixl_memkv")
    row.check("64 MiB are written and read in time", min(ours.values()) > 0, ours)
    row.note(f"64 x 1 MiB by NIXL: written {ours['write']} GB/s, read {ours['read']} GB/s")
    for name, other in told.items():
        ratios = [f"{ours[what] / other[what]:.2f}" for what in ("write", "read")]
        row.note(f"  of {name}'s {other['write']} and {other['read']}: {' and '.join(ratios)}")


def rust(row):
    """clippy and the crate's own tests, which load the same NIXL."""
    nixl.cargo(
        row, "clippy", "clippy", "--package", nixl.CRATE, "--all-targets", "--", "-D", "warnings"
    )
    row.check("clippy has nothing to say", True)
    libraries = nixl.libraries(row.python)
    env = {"LD_LIBRARY_PATH": str(libraries), "MEMKV_NIXL_REQUIRED": "yes"}
    env |= {name: os.environ[name] for name in ("TMPDIR",) if name in os.environ}
    output = nixl.cargo(row, "tests", "test", "--package", nixl.CRATE, env=env)
    failed = [line for line in output.splitlines() if line.startswith("test result: FAILED")]
    row.check("the crate's tests pass, with the real NIXL", not failed and "real_agent" in output)
