"""What the back end did: calls, pages, bytes, failures and seconds of each kind of call."""

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from memkv.metrics import Stages

#: How many transfers are remembered for SGLang's own metrics, which are fetched now and then or
#: never.
_RECENT = 1024


@dataclass
class Stage:
    calls: int = 0
    pages: int = 0
    hits: int = 0
    bytes: int = 0
    errors: int = 0
    seconds: float = 0.0


@dataclass
class Meter:
    """Counters since the start, and pages and GB/s of transfers since they were last taken."""

    stages: dict[str, Stage] = field(default_factory=dict)
    #: For Prometheus and OTLP, where somebody asks for them.
    shown: Stages = field(default_factory=lambda: Stages("sglang"))
    recent: dict[str, deque] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def timed(self, name: str, pages: int) -> Iterator[Stage]:
        """Counts one call, whose hits, bytes and errors the body fills in."""
        call = Stage(calls=1, pages=pages)
        started = time.perf_counter()
        try:
            yield call
        finally:
            call.seconds = time.perf_counter() - started
            self._add(name, call)
            self._show(name, call)

    def _show(self, name: str, call: Stage) -> None:
        self.shown.note(name, call.seconds)
        self.shown.count("bytes", call.bytes)
        self.shown.count("errors", call.errors)
        if name == "lookup":
            self.shown.count("hits", call.hits)
            self.shown.count("misses", call.pages - call.hits)

    def _add(self, name: str, call: Stage) -> None:
        with self._lock:
            total = self.stages.setdefault(name, Stage())
            for counter, value in vars(call).items():
                setattr(total, counter, getattr(total, counter) + value)
            if call.bytes and call.seconds > 0:
                rate = call.bytes / call.seconds / 1e9
                self.recent.setdefault(name, deque(maxlen=_RECENT)).append((call.hits, rate))

    def take(self, name: str) -> tuple[list[int], list[float]]:
        """Pages and GB/s of each recent transfer, which are forgotten."""
        with self._lock:
            recent = self.recent.pop(name, ())
        return [pages for pages, _ in recent], [rate for _, rate in recent]

    def as_dict(self) -> dict[str, dict[str, float]]:
        with self._lock:
            return {name: dict(vars(stage)) for name, stage in self.stages.items()}
