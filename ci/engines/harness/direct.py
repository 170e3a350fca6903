"""An engine with memkv right behind it, and what it must do: the same story for all of them.

Engines are programs that answer orders: `generate` the one prompt, `forget` what is in memory,
`settle`.
"""

from __future__ import annotations

import dataclasses
import signal
import time

from .environments import target
from .processes import Failed, Process, wait_until
from .row import Row
from .server import MIB, Server

# Of the tiny model: 2 layers, keys and values, 2 heads of 64, 2 bytes.
TOKEN_BYTES = 2 * 2 * 2 * 64 * 2
# What one call of an engine may take, as it is told here.
DEADLINE_SECONDS = 3.0
# Longest that an engine may be busy with a prompt whose cache it does not get in time.
RECOMPUTE_SECONDS = 30.0
# Longest that a client may take to come back to a server that is there again.
RETURN_SECONDS = 60.0
START_SECONDS = 400
# Longest that an engine may hold on to what it could not store.
FORGET_SECONDS = 30.0


@dataclasses.dataclass
class Story:
    """One row: its server, and the first answer, which all others are held against."""

    row: Row
    memkv: Server
    # Tokens that are stored or not together. The last token is always computed.
    grain: int
    first: dict = dataclasses.field(default_factory=dict)

    @property
    def whole(self) -> int:
        """Tokens of the prompt that can come from the cache."""
        return (self.first["prompt"] - 1) // self.grain * self.grain

    def ready(self, engine: Process) -> Process:
        """The engine, once it is."""
        engine.next_result(START_SECONDS)
        return engine

    def read_bytes(self) -> int:
        """What the server has served so far."""
        return self.memkv.counters()["memkv_read_bytes_total"]

    def begin(self, engine: Process) -> None:
        """The first answer, all of whose whole grains are stored then."""
        self.first = engine.ask({"do": "generate"}, 120)
        self.row.must("nothing is cached at first", self.first["cached"] == 0, self.first)
        self.store(engine)

    def store(self, engine: Process) -> None:
        """Waits until all that there is to store is stored."""
        engine.ask({"do": "settle"}, 120)
        needed = self.whole * TOKEN_BYTES
        written = lambda: self.memkv.counters()["memkv_write_bytes_total"] >= needed
        wait_until("all of the prompt is stored", 30, written)

    def restarted(self, engine: Process) -> None:
        """The same prompt, of an engine that has nothing in memory."""
        before = self.read_bytes()
        told = engine.ask({"do": "generate"}, 120)
        served, needed = self.read_bytes() - before, self.whole * TOKEN_BYTES
        row = self.row
        row.cached(told["cached"], told["prompt"])
        row.bytes(served)
        back = told["cached"] == self.whole
        row.check("the prefix comes back after a restart", back, told["cached"])
        row.check("tokens are the same", told["tokens"] == self.first["tokens"], told["tokens"])
        ratio = served / needed
        row.check("bytes served are bytes needed", 0.98 <= ratio <= 1.02, f"{served} / {needed}")
        row.note(f"first token: {first_token(self.first)} computed, {first_token(told)} from memkv")

    def forget(self, engine: Process) -> None:
        """Empties the engine's caches, in the accelerator's and in host memory.

        An engine may refuse while something of them is still on its way to a server.
        """
        forgotten = lambda: engine.ask({"do": "forget"}, 60)["forgotten"]
        wait_until(f"{engine.name} clears its caches", FORGET_SECONDS, forgotten)

    def again(self, engine: Process, what: str, cached: int) -> dict:
        """One more answer, from nothing in memory: the same tokens, in time, so many cached."""
        self.forget(engine)
        begun = time.monotonic()
        told = self.same(engine)
        took = time.monotonic() - begun
        row = self.row
        row.check(f"{what}: the same tokens in time", took < RECOMPUTE_SECONDS, f"{took:.1f} s")
        row.check(f"{what}: {'a hit' if cached else 'a miss'}", told["cached"] == cached, told)
        return told

    def same(self, engine: Process) -> dict:
        """One more answer. Other tokens than at first end the row."""
        told = engine.ask({"do": "generate"}, 120)
        if told["tokens"] != self.first["tokens"]:
            raise Failed(f"other tokens: {told} after {self.first}")
        return told

    def flipped(self, engine: Process) -> None:
        """The control: bytes from anywhere but the drive, or unchecked, would show here."""
        self.memkv.stop()
        self.memkv.flip_payload()
        self.memkv.start()
        self.again(engine, "flipped bytes", 0)
        corrupt = self.memkv.metrics()['memkv_misses_total{reason="corrupt"}']
        self.row.check("flipped bytes: found by the server", corrupt > 0, corrupt)
        self.store(engine)

    def silent(self, engine: Process) -> None:
        """A server that has every connection and answers none; then one that is gone."""
        self.memkv.process.freeze()
        self.again(engine, "a stalled server", 0)
        self.memkv.kill()
        self.again(engine, "a killed server", 0)

    def returned(self, engine: Process) -> None:
        """A server that is back is used without a restart of the engine."""
        self.memkv.start()

        def came_back() -> bool:
            self.forget(engine)
            return self.same(engine)["cached"] == self.whole

        wait_until("the prefix comes from a server that is back", RETURN_SECONDS, came_back)
        self.row.check("a server that is back is used", True)

    def troubles(self, engine: Process) -> None:
        """All that may happen to a server under a running engine."""
        self.flipped(engine)
        self.silent(engine)
        self.returned(engine)


def small_server(row: Row) -> Server:
    """A server that answers Full once its 64 MiB are taken."""
    server = Server(row.folder, row.env(), "small", 64 * MIB, "")
    told = server.config.read_text().replace(
        "  mode: file\n", "  mode: file\n  eviction: {enabled: false}\n"
    )
    server.config.write_text(told)
    server.start()
    return server


def fill(row: Row, memkv: Server) -> None:
    """Takes all the room there is."""
    argv = [target() / "release" / "memkvctl", "bench", "--server", memkv.address]
    argv += ["--namespace", "fill", "--sizes", "16KiB", "--ops", "put", "--seconds", "3"]
    row.call("fill", argv, 60, status=None)
    full = memkv.counters()["memkv_full_total"]
    row.must("the drive is full", full > 0, full)


def full_drive(row: Row, memkv: Server, engine: Process, grain: int) -> None:
    """A drive that is full is a miss, and nothing else."""
    fill(row, memkv)
    before = memkv.counters()["memkv_full_total"]
    story = Story(row, memkv, grain, engine.ask({"do": "generate"}, 120))
    engine.ask({"do": "settle"}, 120)
    refusals = lambda: memkv.counters()["memkv_full_total"] > before
    wait_until("the server has said that it is full", 30, refusals)
    story.again(engine, "a full drive", 0)
    said = engine.output().count("are computed instead") + engine.output().count("is computed:")
    row.check("a full drive: said, and not for every block", 0 < said < 5, said)


def first_token(told: dict) -> str:
    """When the first token was there."""
    seconds = told["first_token_seconds"] or told["seconds"]
    return f"{1000 * seconds:.0f} ms"
