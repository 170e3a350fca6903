"""llama.cpp's library: a session through kv_store_v1, restored by another process from another server."""

import itertools
import json

from harness import crates, environments, llama
from harness.processes import RESULT

TITLE = "libllama -> libkv_store_memkv.so: a session saved, restored after a restart"
ENVIRONMENT = llama.ENVIRONMENT
SECONDS = 1800
FULL_ONLY = True

PROMPT = 1000
# Tokens that are read off before the next is known: all of the prompt.
RESTORED = PROMPT


def run(row):
    """Save, save again, kill, restore; then damage, and a server that is away."""
    if not llama.has_compiler():
        row.skip("there is no C++ compiler: install g++")
    library = crates.library(row, "memkv-kv-store", "libkv_store_memkv.so")
    program = compiled(row)
    model = llama.model(row)
    server = row.server()
    uri, calls = f"memkv://{server.address}/llama", itertools.count()

    def session(what, name="session"):
        argv = [program, what, model, library, uri, name]
        return result(row.call(f"{next(calls)}-{what}-{name}", argv, 120, settings(row)))

    saved = session("save")
    row.note(f"{saved['bytes']} bytes in {saved['chunks']:.0f} chunks: {milliseconds(saved)}")
    # The chunks of the state, those of the state that has grown, and a manifest of each.
    expected = saved["chunks"] + saved["grown_chunks"] + 2
    row.check("chunks and manifests are stored", inserted(server) == expected, inserted(server))
    before, received = inserted(server), written(server)
    again = session("save", "session-2")
    row.check("a second save of the same states stores two manifests", inserted(server) - before == 2)
    row.check("and sends no chunk", written(server) - received < 8192, written(server) - received)
    row.check("greedy tokens are the same in every process", again["tokens"] == saved["tokens"])
    server.kill()
    server.start()
    before, received = inserted(server), written(server)
    restored = session("restore")
    row.must("the session is restored after a restart", restored["restored"] == 1)
    row.cached(RESTORED, PROMPT)
    row.bytes(server.counters()["memkv_read_bytes_total"])
    row.note(f"restored in {milliseconds(restored)}, evaluated in {milliseconds(saved, 'prompt_seconds')}")
    row.check("40 tokens are those of the session that went on", restored["tokens"] == saved["tokens"])
    row.check("the state that was restored is saved without a chunk", inserted(server) - before == 1)
    row.check("and without its bytes", written(server) - received < 4096, written(server) - received)
    forgot = session("forget")
    row.check("without it they are others", forgot["tokens"] != saved["tokens"])
    figures(row, program, model, saved, restored)
    troubles(row, server, session, saved)


def troubles(row, server, session, saved):
    """A server that is away, and bytes that changed under it: a prompt to evaluate, never another state."""
    server.kill()
    away = session("restore", "session")
    row.check("a server that is away is no session", away["restored"] == 0 and away["seconds"] < 10)
    row.check("and the tokens are the same", away["tokens"] == saved["tokens"])
    server.start()
    row.must("it serves again", session("restore")["restored"] == 1)
    row.check("bytes are changed on its drive", server.flip_payload() > 0)
    damaged = session("restore")
    row.check("damaged bytes are no session", damaged["restored"] == 0)
    row.check("and the tokens are the same as ever", damaged["tokens"] == saved["tokens"])


def figures(row, program, model, saved, restored):
    """The engine's own file on the local disk, for comparison."""
    argv = [program, "file", model, row.folder / "slot.bin"]
    own = result(row.call("file", argv, 120, settings(row)))
    row.check("the engine's own file gives the same tokens", own["tokens"] == saved["tokens"])
    row.note(
        f"the engine's own file: {own['bytes']:.0f} bytes, saved in "
        f"{milliseconds(own, 'save_seconds')}, loaded in {milliseconds(own)}; "
        f"memkv: {milliseconds(saved)}, {milliseconds(restored)}"
    )


def compiled(row):
    """The consumer."""
    options, _ = llama.library(row)
    program = row.folder / "llama_session"
    source = environments.ROOT / "ci" / "engines" / "programs" / "llama_session.cpp"
    header = environments.ROOT / "client-libs" / "kv-store" / "include"
    argv = ["c++", "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", source, f"-I{header}"]
    row.call("compile", [*argv, *options, "-ldl", "-o", program], 120)
    return program


def settings(row):
    """No call to a server waits long."""
    return row.env(MEMKV_REQUEST_TIMEOUT_MS="5000", MEMKV_CONNECT_TIMEOUT_MS="2000")


def result(output):
    """What stands behind RESULT."""
    line = next(line for line in output.splitlines() if line.startswith(RESULT))
    return json.loads(line[len(RESULT) :])


def inserted(server):
    """Values that were stored since the server started."""
    return server.counters()["memkv_inserts_total"]


def written(server):
    """Bytes of values that were stored since the server started."""
    return server.counters()["memkv_write_bytes_total"]


def milliseconds(told, name="seconds"):
    """A time for a reader."""
    return f"{1000 * told[name]:.1f} ms"
