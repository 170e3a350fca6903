"""What the tier did, for vLLM's own metrics and for `MemkvTier.stats`.

vLLM exports what a tier gives it, under the names that the tier defined, so nothing is served from
here.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

_PREFIX = "vllm:kv_offload_memkv"
#: Times that are kept at most until vLLM takes them.
_RECENT = 4096
#: Bounds of buckets of times, in seconds.
_SECONDS = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)
_COUNTERS = {
    "lookup_hits": "Chunks that were looked up and are stored.",
    "lookup_misses": "Chunks that were looked up and are not stored, or nobody could say.",
    "lookup_expired": "Chunks whose look-up was not answered in time.",
    "lookup_questions": "Look-ups sent, one a scheduler step at most.",
    "load_chunks": "Chunks loaded.",
    "load_bytes": "Bytes loaded.",
    "load_failed": "Chunks that could not be loaded.",
    "store_chunks": "Chunks that are stored, by this engine or another.",
    "store_bytes": "Bytes stored by this engine.",
    "store_failed": "Chunks that could not be stored.",
}
_TIMES = {
    "lookup_seconds": "Time of a look-up from its submission to its answer.",
    "load_wait_seconds": "Time that a load waited for a thread.",
    "load_transfer_seconds": "Time that a load took from there.",
    "store_wait_seconds": "Time that a store waited for a thread.",
    "store_transfer_seconds": "Time that a store took from there.",
}


def definitions() -> dict[str, Any]:
    """The metrics as vLLM wants them declared; nothing where it does not."""
    try:
        from vllm.v1.kv_offload.base import OffloadingCounterMetadata, OffloadingHistogramMetadata
    except ImportError:
        return {}
    counters = {
        f"{_PREFIX}_{name}": OffloadingCounterMetadata(documentation=text)
        for name, text in _COUNTERS.items()
    }
    times = {
        f"{_PREFIX}_{name}": OffloadingHistogramMetadata(documentation=text, buckets=_SECONDS)
        for name, text in _TIMES.items()
    }
    return {**counters, **times}


@dataclass
class Stage:
    """One direction, since the start."""

    jobs: int = 0
    chunks: int = 0
    failed: int = 0
    bytes: int = 0
    wait_seconds: float = 0.0
    transfer_seconds: float = 0.0


@dataclass
class Meter:
    load: Stage = field(default_factory=Stage)
    store: Stage = field(default_factory=Stage)
    #: What vLLM has not taken yet.
    _counters: dict[str, float] = field(default_factory=dict)
    _times: list[tuple[str, float]] = field(default_factory=list)
    _taken: dict[str, int] = field(default_factory=dict)

    def lookup(self, done: Any) -> None:
        self._observe("lookup_seconds", done.wait_seconds + done.transfer_seconds)

    def transfer(self, name: str, done: Any, chunks: int, good: int) -> None:
        stage = self.load if name == "load" else self.store
        stage.jobs += 1
        stage.chunks += good
        stage.failed += chunks - good
        stage.bytes += done.bytes
        stage.wait_seconds += done.wait_seconds
        stage.transfer_seconds += done.transfer_seconds
        for counter, value in (("chunks", good), ("failed", chunks - good), ("bytes", done.bytes)):
            self._count(f"{name}_{counter}", value)
        self._observe(f"{name}_wait_seconds", done.wait_seconds)
        self._observe(f"{name}_transfer_seconds", done.transfer_seconds)

    def _count(self, name: str, value: float) -> None:
        if value:
            self._counters[name] = self._counters.get(name, 0) + value

    def _observe(self, name: str, seconds: float) -> None:
        if len(self._times) < _RECENT:
            self._times.append((name, seconds))

    def take(self, lookups: Any) -> Any:
        """What happened since the last time, as vLLM's statistics; None if nothing did."""
        try:
            from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import (
                OffloadingConnectorStats,
            )
        except ImportError:
            return None
        for name in ("hits", "misses", "expired", "questions"):
            count = getattr(lookups, name)
            self._count(f"lookup_{name}", count - self._taken.get(name, 0))
            self._taken[name] = count
        if not self._counters and not self._times:
            return None
        stats = OffloadingConnectorStats()
        for name, value in self._counters.items():
            stats.increase_counter(f"{_PREFIX}_{name}", value)
        for name, seconds in self._times:
            stats.observe_histogram(f"{_PREFIX}_{name}", seconds)
        self._counters, self._times = {}, []
        return stats

    def as_dict(self) -> dict[str, Any]:
        return {"load": dataclasses.asdict(self.load), "store": dataclasses.asdict(self.store)}
