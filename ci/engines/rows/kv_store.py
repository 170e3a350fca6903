"""libkv_store_memkv.so against a server that is killed: what is under a name is always one whole session."""

import random
import re

from harness import crates, environments

TITLE = "libkv_store_memkv.so: conformance, and saves while the server is killed"
ENVIRONMENT = None
SECONDS = 240

KILLS = 4


def run(row):
    """The conformance program, then saves one after the other through a server that dies at any moment."""
    library = crates.library(row, "memkv-kv-store", "libkv_store_memkv.so")
    crate = environments.ROOT / "client-libs" / "kv-store"
    program = row.folder / "conformance"
    argv = ["cc", "-std=gnu99", "-O1", "-pthread", f"-I{crate / 'include'}"]
    row.call("compile", [*argv, crate / "tests" / "conformance.c", "-ldl", "-o", program], 60)
    server = row.server()
    env = row.env(MEMKV_REQUEST_TIMEOUT_MS="5000", MEMKV_CONNECT_TIMEOUT_MS="2000")
    argv = [program, library, f"memkv://{server.address}/conformance"]
    said = row.call("conformance", argv, 60, env)
    row.check("it keeps what the header promises", "all is as the header says" in said)
    argv = [program, library, f"memkv://{server.address}/sessions"]
    chosen = random.Random(row.full)
    saver, first, lost = None, 1, []
    for turn in range(KILLS * (10 if row.full else 1)):
        if saver is None:
            saver = row.start(f"churn-{turn}", [*argv, "churn", first], env)
        saver.wait_for("sessions are saved", 60, lambda: last(saver) >= first + 3)
        # A moment of any save: of its chunks, or of its manifest.
        moment = last(saver) + chosen.randrange(1, 8)
        saver.wait_for("more sessions are saved", 60, lambda: last(saver) >= moment)
        server.kill()
        if turn % 2:
            # Not only the server: whoever saved is gone too.
            saver.kill()
        known = last(saver)
        server.start()
        found = re.findall(r"session (\d+)", row.call(f"load-{turn}", [*argv, "load"], 60, env))
        if not found or int(found[0]) < known:
            lost.append((known, found))
        if turn % 2:
            saver = None
            first = known + 100
        else:
            first = known
    row.check("every session that was acknowledged, or a later one, is there whole", not lost, lost)
    row.note(f"{last(saver) if saver else known} sessions")


def last(saver):
    """The last session that it was told is stored."""
    sessions = re.findall(r"manifest (\d+)", saver.output())
    return int(sessions[-1]) if sessions else 0
