"""LMCache's server beside a row, and what an engine on it must do."""

from __future__ import annotations

import json
import time

from .processes import Failed, Process, wait_until
from .row import PROGRAMS, Row
from .server import Server, fetch, free_ports

CHUNK_TOKENS = 256
# Of the tiny model: 2 layers, keys and values, 2 heads of 64, 2 bytes, a chunk of tokens.
CHUNK_BYTES = 2 * 2 * 2 * 64 * 2 * CHUNK_TOKENS
# What an operation on memkv may take, as LMCache is told here.
DEADLINE_SECONDS = 3.0
# Longest that an engine may be busy with a prompt whose cache it does not get in time.
RECOMPUTE_SECONDS = 30.0


class LMCacheServer:
    """`lmcache server`, with L2 adapters."""

    def __init__(self, row: Row, adapters: list[dict], name: str = "lmcache"):
        self.row, self.adapters, self.name = row, adapters, name
        self.port = free_ports(3)
        self.process: Process | None = None
        self._starts = 0

    def launch(self) -> None:
        """Starts it, with nothing in its memory."""
        self._starts += 1
        argv = [self.row.python.parent / "lmcache", "server", "--host", "127.0.0.1"]
        argv += ["--port", self.port, "--http-host", "127.0.0.1", "--http-port", self.port + 1]
        argv += ["--prometheus-port", self.port + 2, "--chunk-size", CHUNK_TOKENS]
        argv += ["--l1-size-gb", "0.5", "--no-l1-use-lazy", "--eviction-policy", "LRU"]
        argv += ["--supported-transfer-mode", "auto"]
        for adapter in self.adapters:
            argv += ["--l2-adapter", json.dumps(adapter)]
        env = self.row.env(LMCACHE_TRACK_USAGE="false", LMCACHE_DISABLE_BANNER="1")
        self.process = self.row.start(f"{self.name}-{self._starts}", argv, env)

    def wait_ready(self, seconds: float = 120) -> None:
        """Waits until it serves."""
        self.process.wait_for(f"{self.name} serves", seconds, lambda: self.get("healthcheck"))

    def get(self, path: str) -> str | None:
        """What its HTTP side answers."""
        return fetch(f"http://127.0.0.1:{self.port + 1}/{path}")

    def clear(self) -> str | None:
        """Empties its memory, and not what is behind it."""
        url = f"http://127.0.0.1:{self.port + 1}/cache/clear"
        return fetch(url, post={"force": True})

    def adapter_status(self) -> dict:
        """What its first L2 adapter says of itself."""
        told = json.loads(self.get("status") or "{}")
        found = _find(told, "l2_adapters")
        if not found:
            raise Failed(f"{self.name} tells no state of its L2 adapters")
        return found[0]

    def transfer_config(self) -> str:
        """What vLLM is told to use it."""
        return json.dumps(
            {
                "kv_connector": "LMCacheMPConnector",
                "kv_role": "kv_both",
                "kv_connector_module_path": "lmcache.integration.vllm.lmcache_mp_connector",
                "kv_connector_extra_config": {
                    "lmcache.mp.host": "tcp://127.0.0.1",
                    "lmcache.mp.port": self.port,
                },
            }
        )


def _find(tree: object, name: str) -> object:
    """The first value under a name, wherever it is."""
    if isinstance(tree, dict):
        if tree.get(name):
            return tree[name]
        tree = list(tree.values())
    if isinstance(tree, list):
        return next((found for found in (_find(part, name) for part in tree) if found), None)
    return None


def start_engine(row: Row, lmcache: LMCacheServer | None, name: str) -> Process:
    """vLLM on a model of its own, beside LMCache's server if there is one."""
    argv = [row.python, PROGRAMS / "vllm_engine.py", row.tiny_llama()]
    argv += [lmcache.transfer_config()] if lmcache else []
    return row.start(name, argv, row.env(LMCACHE_TRACK_USAGE="false"), answers=True)


def start_pair(row: Row, lmcache: LMCacheServer, name: str) -> Process:
    """LMCache's server and an engine, both with nothing in memory."""
    lmcache.launch()
    # The engine imports for so long that the server is there when it is asked for; if not, it waits.
    engine = start_engine(row, lmcache, name)
    lmcache.wait_ready()
    engine.next_result(240)
    return engine


def prefix_comes_back(row: Row, adapter: dict) -> None:
    """The whole story of an L2 adapter under vLLM; `adapter` lacks the address of the server."""
    memkv = row.server()
    adapter["adapter_params"]["servers"] = memkv.address
    adapter["adapter_params"]["request_timeout"] = DEADLINE_SECONDS
    lmcache = LMCacheServer(row, [adapter])

    engine = start_pair(row, lmcache, "vllm-1")
    first = engine.ask({"do": "generate"}, 120)
    row.must("nothing is cached at first", first["cached"] == 0, first)
    chunks = first["prompt"] // CHUNK_TOKENS
    needed = chunks * CHUNK_BYTES
    stored = lambda: memkv.counters()["memkv_write_bytes_total"] >= needed
    wait_until("all whole chunks are stored", 30, stored)
    lmcache.process.kill()
    engine.kill()

    before = memkv.counters()["memkv_read_bytes_total"]
    engine = start_pair(row, lmcache, "vllm-2")
    second = engine.ask({"do": "generate"}, 120)
    served = memkv.counters()["memkv_read_bytes_total"] - before
    row.cached(second["cached"], second["prompt"])
    row.bytes(served)
    whole = chunks * CHUNK_TOKENS
    row.check("the prefix comes back after a restart", second["cached"] == whole, second["cached"])
    row.check("tokens are the same", second["tokens"] == first["tokens"], second["tokens"])
    ratio = served / needed
    row.check("bytes served are bytes needed", 0.98 <= ratio <= 1.02, f"{served} / {needed}")
    row.note(f"first token: {_milliseconds(first)} computed, {_milliseconds(second)} from memkv")

    flipped_bytes_are_a_miss(row, memkv, lmcache, engine, first)
    stalled_server_is_a_miss(row, memkv, lmcache, engine, first)


def flipped_bytes_are_a_miss(
    row: Row, memkv: Server, lmcache: LMCacheServer, engine: Process, first: dict
) -> None:
    """The control: were bytes taken from anywhere but the drive, or unchecked, this would show it."""
    forget(lmcache, engine)
    row.must("there are bytes on the drive", memkv.flip_payload() > 0)
    third = engine.ask({"do": "generate"}, 120)
    dropped = memkv.counters()["memkv_corrupt_dropped_total"]
    row.check("flipped bytes are a miss", third["cached"] == 0 and dropped > 0, (third, dropped))
    row.check("flipped bytes are computed anew", third["tokens"] == first["tokens"], third)


def stalled_server_is_a_miss(
    row: Row, memkv: Server, lmcache: LMCacheServer, engine: Process, first: dict
) -> None:
    """A server that has every connection and answers none; then one that is gone."""
    ends = {"stalled": memkv.process.freeze, "killed": memkv.kill}
    for what, end in ends.items():
        forget(lmcache, engine)
        end()
        begun = time.monotonic()
        told = engine.ask({"do": "generate"}, 120)
        took = time.monotonic() - begun
        row.check(f"a {what} server is a miss", told["cached"] == 0, told)
        row.check(f"a {what} server is recomputed", told["tokens"] == first["tokens"], told)
        row.check(f"a {what} server is given up in time", took < RECOMPUTE_SECONDS, f"{took:.1f} s")


def forget(lmcache: LMCacheServer, engine: Process) -> None:
    """Empties the engine's own prefix cache and LMCache's memory."""
    engine.ask({"do": "forget"}, 60)
    if lmcache.clear() is None:
        raise Failed("LMCache does not clear its memory")


def _milliseconds(told: dict) -> str:
    seconds = told["first_token_seconds"] or told["seconds"]
    return f"{1000 * seconds:.0f} ms"
