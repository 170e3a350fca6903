"""LMCache inside an engine's process, with memkv as its storage plug-in."""

import time

from harness.row import PROGRAMS

CHUNK, WHOLE, REST = 256, 8, 100
# Of a token of that engine: 4 layers, keys and values, 2 heads of 64, 2 bytes.
TOKEN_BYTES = 4 * 2 * 2 * 64 * 2

TITLE = "LMCacheEngine in process -> memkv; restart, partial chunk, hole, fingerprint, kill"
ENVIRONMENT = "vcpu"
SECONDS = 420




def run(row):
    """An engine stores and is killed; another one, in another process, gets it back."""
    memkv = row.server()
    tokens = CHUNK * WHOLE + REST
    engine = Engine(row, memkv, "engine-1")
    stored = engine(do="store")
    row.must("the backend is there", "memkv" in stored["backends"], stored)
    row.must("nothing is found at first", stored["before"] == 0, stored)
    row.check("all of it is found, a partial chunk too", stored["found"] == tokens, stored)
    engine.process.kill()

    engine = Engine(row, memkv, "engine-2")
    before = memkv.counters()["memkv_read_bytes_total"]
    loaded = engine(do="load")
    served = memkv.counters()["memkv_read_bytes_total"] - before
    row.cached(loaded["loaded"], tokens)
    row.bytes(served)
    whole = loaded["loaded"] == loaded["found"] == tokens
    row.check("another process loads all of it", whole, loaded)
    row.check("every byte is the same", loaded["exact"], loaded)
    row.check("LMCache's memory is whole", loaded["memory_is_sound"], loaded)
    ratio = served / (tokens * TOKEN_BYTES)
    row.check("bytes served are bytes needed", 0.98 <= ratio <= 1.02, f"{ratio:.4f}")

    other_fingerprints(row, engine)
    hole(row, engine)
    flipped_and_gone(row, memkv, engine)


class Engine:
    """programs/lmcache_engine.py against a server."""

    def __init__(self, row, memkv, name):
        argv = [row.python, PROGRAMS / "lmcache_engine.py", memkv.address, row.tiny_llama()]
        self.process = row.start(name, argv, answers=True)
        self.process.next_result(120)

    def __call__(self, **order):
        return self.process.ask(order, 60)


def other_fingerprints(row, engine):
    """One thing is different: nothing is found. And it is that thing: with all the same, all is found."""
    changes = {
        "dtype": {"dtype": "float16"},
        "chunk size": {"chunk": 128},
        "world size": {"world": 2},
        "rank": {"world": 2, "worker": 1},
        "model": {"name": "other"},
        "hash": {"hash": "sha256_cbor"},
    }
    for name, change in changes.items():
        found = engine(do="load", **change)["found"]
        row.check(f"another {name} finds nothing", found == 0, found)
    row.check("the same engine finds it", engine(do="load")["found"] > 0)


def hole(row, engine):
    """A chunk that is gone from the middle."""
    drill = engine(do="drill")
    row.check("a prompt shares its prefix", drill["common_prefix"] == 4 * CHUNK, drill)
    gap = [True] * 3 + [False] + [True] * 5
    row.check("only the hole is missing of a batch", drill["gap"] == gap, drill["gap"])
    told = drill["hole"]
    ends = told["loaded"] == told["found"] == 3 * CHUNK
    row.check("a hole ends the prefix", ends, told)
    row.check("what is before the hole is the same", told["exact"], told)
    row.check("memory is given back around a hole", told["memory_is_sound"], told)


def flipped_and_gone(row, memkv, engine):
    """Bytes that are not what was stored are not loaded; a server that is away is a miss."""
    row.must("there are bytes on the drive", memkv.flip_payload() > 0)
    flipped = engine(do="load")
    row.check("blocks are known whose bytes were flipped", flipped["found"] > 0, flipped)
    row.check("flipped bytes are a miss", flipped["loaded"] == 0 and flipped["exact"], flipped)
    again = engine(do="store")
    row.check("what was lost is stored again", again["found"] == CHUNK * WHOLE + REST, again)
    memkv.kill()
    begun = time.monotonic()
    gone = engine(do="load")
    took = time.monotonic() - begun
    row.check("a killed server is a miss", gone["found"] == gone["loaded"] == 0, gone)
    row.check("a killed server is given up in time", took < 20, f"{took:.1f} s")
