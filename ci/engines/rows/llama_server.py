"""llama-server under the preload shim: its slot files are in memkv, and come back in another process."""

import json
import shutil
import statistics
import time
import urllib.error
import urllib.request

from harness import crates, llama
from harness.processes import wait_until
from harness.server import fetch, free_ports

TITLE = "llama-server under libmemkv_preload.so: slot saved, restarted, restored"
ENVIRONMENT = llama.ENVIRONMENT
SECONDS = 3000
FULL_ONLY = True

# 883 tokens: one for each byte as the model spells it, in which a space has three, and one for the beginning.
PROMPT = "The quick brown fox jumps over the lazy dog. " * 14
PROMPT_TOKENS = 883
GENERATED = 24
# Saves and restores that are timed.
TURNS = 9


class Engine:
    """llama-server, with what it keeps of its slots under one path."""

    def __init__(self, row, binary, model, name, slots, env):
        self.port = free_ports(1)
        argv = [binary, "-m", model, "--host", "127.0.0.1", "--port", self.port, "-c", 2048, "-np", 1]
        argv += ["-t", 1, "--no-warmup", "--slot-save-path", f"{slots}/"]
        self.process = row.start(name, argv, env)
        url = f"http://127.0.0.1:{self.port}/health"
        self.process.wait_for("llama-server serves", 120, lambda: fetch(url))

    def complete(self):
        """The text that follows the prompt, and how many of its tokens were evaluated."""
        body = {"prompt": PROMPT, "n_predict": GENERATED, "temperature": 0, "cache_prompt": True}
        status, told = self.post("/completion", {**body, "id_slot": 0})
        assert status == 200, told
        return told["content"], told["timings"]["prompt_n"]

    def slot(self, action, file):
        """Saves or restores the slot; HTTP status, answer and seconds."""
        began = time.monotonic()
        status, told = self.post(f"/slots/0?action={action}", {"filename": file})
        return status, told, time.monotonic() - began

    def post(self, path, body):
        """Status and answer of a request."""
        url = f"http://127.0.0.1:{self.port}{path}"
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"{}")


def run(row):
    """Under the shim, and once more on the local disk."""
    if not llama.has_compiler():
        row.skip("there is no C++ compiler: install g++")
    shim = crates.library(row, "memkv-preload", "libmemkv_preload.so")
    binary, model = llama.server(row), llama.model(row)
    server = row.server()
    slots = row.folder / "slots"
    slots.mkdir()
    timeouts = {"MEMKV_REQUEST_TIMEOUT_MS": "5000", "MEMKV_CONNECT_TIMEOUT_MS": "2000"}
    under = row.env(
        LD_PRELOAD=str(shim),
        MEMKV_PRELOAD_PREFIX=str(slots),
        MEMKV_SERVERS=server.address,
        MEMKV_NAMESPACE="slots",
        **timeouts,
    )

    def start(name, slots=slots, env=under):
        return Engine(row, binary, model, name, slots, env)

    ours = there_and_back(row, start, "memkv")
    row.check("the directory on the local disk stays empty", not list(slots.iterdir()))
    row.cached(ours["prompt"] - ours["evaluated"], ours["prompt"])
    row.bytes(server.counters()["memkv_read_bytes_total"])
    local = row.folder / "local"
    local.mkdir()
    own = there_and_back(row, lambda name: start(name, local, row.env()), "disk")
    row.check("text and sizes are those of its own files", ours["same"] == own["same"])
    shutil.rmtree(local)
    for name, told in (("memkv", ours), ("its own file", own)):
        row.note(
            f"{name}: {told['same'][1]} bytes, saved in {1000 * told['save']:.1f} ms, "
            f"restored in {1000 * told['restore']:.1f} ms (medians of {TURNS})"
        )
    troubles(row, server, start, ours)


def there_and_back(row, start, where):
    """Prompt, save, stop, start, restore, the same prompt."""
    first = start(f"{where}-first")
    text, evaluated = first.complete()
    row.must(f"{where}: the whole prompt is evaluated", evaluated == PROMPT_TOKENS, evaluated)
    status, saved, _ = first.slot("save", "tiny-1.bin")
    row.must(f"{where}: the slot is saved", status == 200 and saved["n_written"] > 0, saved)
    first.process.stop()
    second = start(f"{where}-second")
    status, restored, _ = second.slot("restore", "tiny-1.bin")
    sizes = [status, restored.get("n_restored"), restored.get("n_read")]
    wanted = [200, saved["n_saved"], saved["n_written"]]
    row.must(f"{where}: another process restores all of it", sizes == wanted, restored)
    again, few = second.complete()
    row.check(f"{where}: one token of the prompt is evaluated", few == 1, few)
    row.check(f"{where}: the text is the same", again == text, again)
    save_seconds, seconds = figures(second, saved["n_written"])
    # This one leaves the slot empty.
    status, told, _ = second.slot("restore", "unknown.bin")
    row.check(f"{where}: an unknown file is an error 400", status == 400, told)
    second.process.stop()
    same = [text, saved["n_written"], saved["n_saved"]]
    return {"same": same, "save": save_seconds, "restore": seconds, "prompt": evaluated, "evaluated": few}


def figures(engine, size):
    """Seconds of a save and of a restore, as llama-server is asked for them: medians."""
    times = {}
    for action in ("save", "restore"):
        for turn in range(TURNS):
            _, told, seconds = engine.slot(action, f"figure-{turn}.bin")
            assert told.get("n_written", told.get("n_read")) == size, told
            times.setdefault(action, []).append(seconds)
    return statistics.median(times["save"]), statistics.median(times["restore"])


def troubles(row, server, start, before):
    """A server that is away is an error of the request, and loud; llama-server goes on."""
    engine = start("troubles")
    server.kill()
    status, told, seconds = engine.slot("restore", "tiny-1.bin")
    row.check("restore fails while the server is away", status == 400 and seconds < 20, told)
    text, _ = engine.complete()
    row.check("the prompt is evaluated all the same", text == before["same"][0])
    status, told, _ = engine.slot("save", "lost.bin")
    row.check("a save fails, too", status == 500, told)
    row.check("and is loud", "memkv: lost.bin: " in engine.process.output())
    server.start()
    # It is tried again after a pause.
    wait_until("it saves again", 30, lambda: engine.slot("save", "tiny-2.bin")[0] == 200)
    status, told, _ = engine.slot("restore", "tiny-2.bin")
    row.check("it saves and restores again when the server is back", status == 200, told)
    engine.process.stop()
