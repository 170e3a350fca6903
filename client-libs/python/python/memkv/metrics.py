"""What plug-ins have done, for whoever watches an engine.

Two kinds of things are counted. A client counts its calls by itself (``Client.stats``). A plug-in adds what only
it knows: how long its own calls took as its engine sees them, and the stages of those (``lookup``, ``wait``,
``transfer``, ``copy``), in a ``Stages``.

    stages = memkv.metrics.Stages("lmcache")
    memkv.metrics.watch(client, "lmcache")
    with stages.time("lookup"):
        matched = client.match_prefix(keys)

Nothing is shown unless it is asked for:

* ``MEMKV_PROMETHEUS_BIND=127.0.0.1:9464`` serves all of it to Prometheus from this process. Of several processes
  with the same variable each takes the next port that is free, up to sixteen, and logs which.
* ``OTEL_EXPORTER_OTLP_ENDPOINT`` (or ``OTEL_EXPORTER_OTLP_METRICS_ENDPOINT``) sends the counters there.

The first needs the package prometheus-client, the second opentelemetry's SDK and OTLP exporter
(``pip install memkv[metrics]``, ``memkv[otlp]``).
"""

import bisect
import contextlib
import logging
import os
import threading
import time
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

__all__ = ["Stages", "start_if_asked", "text", "watch"]

_log = logging.getLogger("memkv")

# Seconds; the same steps as those of a client's own histograms.
_BOUNDS = [16e-6 * 2**step for step in range(21)]
_PORTS = 16

_lock = threading.Lock()
_clients: list[tuple[str, "weakref.ref[Any]"]] = []
_stages: "weakref.WeakSet[Stages]" = weakref.WeakSet()
_started_in: int | None = None


class Stages:
    """How long the calls of a plug-in and their stages took, and what came of them."""

    def __init__(self, plugin: str) -> None:
        self.plugin = plugin
        self._lock = threading.Lock()
        self._times: dict[str, tuple[list[int], list[float]]] = {}
        self._counts: dict[str, int] = {}
        with _lock:
            _stages.add(self)
        start_if_asked()

    @contextlib.contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Notes how long the block takes, however it ends."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.note(stage, time.perf_counter() - began)

    def note(self, stage: str, seconds: float) -> None:
        """Notes that a stage took so long."""
        bucket = bisect.bisect_right(_BOUNDS, seconds)
        with self._lock:
            times = self._times.get(stage)
            if times is None:
                times = self._times[stage] = ([0] * (len(_BOUNDS) + 1), [0.0])
            times[0][bucket] += 1
            times[1][0] += seconds

    def count(self, what: str, by: int = 1) -> None:
        """Counts ``hits``, ``misses``, ``bytes`` or ``errors`` as the engine sees them."""
        if by:
            with self._lock:
                self._counts[what] = self._counts.get(what, 0) + by

    def completed(self, completion: Any) -> None:
        """Notes the two stages of a batch: that it waited for a worker, and that it moved."""
        self.note("wait", completion.wait_seconds)
        self.note("transfer", completion.transfer_seconds)
        if not completion.ok:
            self.count("errors")

    def read(self) -> dict[str, Any]:
        """``{"stages": {name: {"count", "seconds", "buckets"}}, "counts": {name: number}}``."""
        with self._lock:
            stages = {
                name: {"count": sum(buckets), "seconds": total[0], "buckets": list(buckets)}
                for name, (buckets, total) in self._times.items()
            }
            return {"stages": stages, "counts": dict(self._counts)}


def _after_fork() -> None:
    # A thread that the child does not have may have held them.
    global _lock
    _lock = threading.Lock()
    for one in _stages:
        one._lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


def watch(source: Any, plugin: str) -> None:
    """Shows the counters of ``source``, which has ``stats()`` as a Client does, for as long as it lives."""
    with _lock:
        _clients[:] = [entry for entry in _clients if entry[1]() is not None]
        _clients.append((plugin, weakref.ref(source)))
    start_if_asked()


def start_if_asked() -> None:
    """Serves or sends metrics if the environment says so, once in a process; after a fork once in the child."""
    global _started_in
    bind = os.environ.get("MEMKV_PROMETHEUS_BIND")
    otlp = os.environ.get("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    with _lock:
        if _started_in == os.getpid() or not (bind or otlp):
            return
        _started_in = os.getpid()
    if bind:
        _serve(bind)
    if otlp:
        _send()


def text() -> str:
    """Everything, as Prometheus reads it."""
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry()
    registry.register(_Collector())
    return generate_latest(registry).decode()


def _sums() -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Per plug-in the sums of its clients' counters, and of its stages'."""
    with _lock:
        clients = [(plugin, source()) for plugin, source in _clients]
        stages = list(_stages)
    calls: dict[str, dict[str, Any]] = {}
    for plugin, source in clients:
        if source is not None:
            _add(calls.setdefault(plugin, {}), {k: v for k, v in source.stats().items() if k != "bounds"})
    seen: dict[str, dict[str, Any]] = {}
    for one in stages:
        _add(seen.setdefault(one.plugin, {}), one.read())
    return calls, seen


def _add(total: dict[str, Any], more: dict[str, Any]) -> None:
    for name, value in more.items():
        if isinstance(value, dict):
            _add(total.setdefault(name, {}), value)
        elif isinstance(value, list):
            before = total.get(name) or [0] * len(value)
            total[name] = [a + b for a, b in zip(before, value, strict=True)]
        else:
            total[name] = total.get(name, 0) + value


def _cumulative(buckets: list[int]) -> list[tuple[str, float]]:
    steps: list[tuple[str, float]] = []
    so_far = 0
    for bound, count in zip([*map(repr, _BOUNDS), "+Inf"], buckets, strict=True):
        so_far += count
        steps.append((bound, so_far))
    return steps


class _Collector:
    """Reads the counters when Prometheus asks."""

    def collect(self) -> Iterable[Any]:
        from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

        calls, stages = _sums()
        by_op = ["plugin", "op"]
        totals = {
            "calls": CounterMetricFamily("memkv_client_calls", "Calls and batches.", labels=by_op),
            "bytes": CounterMetricFamily("memkv_client_bytes", "Bytes of values moved.", labels=by_op),
        }
        keys = CounterMetricFamily(
            "memkv_client_keys", "Keys by what came of them.", labels=[*by_op, "result"]
        )
        seconds = HistogramMetricFamily("memkv_client_call_seconds", "How long calls took.", labels=by_op)
        wait = HistogramMetricFamily(
            "memkv_client_wait_seconds", "How long batches waited for a worker.", labels=["plugin"]
        )
        for plugin, operations in calls.items():
            for op, counted in operations.items():
                if op == "wait":
                    wait.add_metric([plugin], _cumulative(counted["buckets"]), counted["seconds"])
                    continue
                for name, family in totals.items():
                    family.add_metric([plugin, op], counted[name])
                for result in ("found", "missing", "errors"):
                    keys.add_metric([plugin, op, result], counted[result])
                seconds.add_metric([plugin, op], _cumulative(counted["buckets"]), counted["seconds"])
        stage = HistogramMetricFamily(
            "memkv_plugin_stage_seconds", "How long stages of a plug-in's calls took.", labels=["plugin", "stage"]
        )
        counts = CounterMetricFamily(
            "memkv_plugin_events", "Hits, misses, bytes and errors as the engine sees them.", labels=["plugin", "event"]
        )
        for plugin, read in stages.items():
            for name, times in read.get("stages", {}).items():
                stage.add_metric([plugin, name], _cumulative(times["buckets"]), times["seconds"])
            for name, number in read.get("counts", {}).items():
                counts.add_metric([plugin, name], number)
        return [*totals.values(), keys, seconds, wait, stage, counts]


def _serve(bind: str) -> None:
    try:
        from prometheus_client import CollectorRegistry, start_http_server
    except ImportError:
        _log.error("MEMKV_PROMETHEUS_BIND is set, but prometheus-client is not installed: pip install memkv[metrics]")
        return
    host, _, number = bind.rpartition(":")
    if not number.isdigit():
        _log.error("MEMKV_PROMETHEUS_BIND is host:port, not %r", bind)
        return
    registry = CollectorRegistry()
    registry.register(_Collector())
    last = None
    for port in range(int(number), int(number) + _PORTS):
        try:
            start_http_server(port, addr=host.strip("[]") or "0.0.0.0", registry=registry)
        except OSError as error:
            last = error
            continue
        _log.info("memkv's metrics are at http://%s:%d/metrics", host or "0.0.0.0", port)
        return
    _log.error("MEMKV_PROMETHEUS_BIND: no port of %s to %d can be bound: %s", bind, int(number) + _PORTS - 1, last)


def _send() -> None:
    try:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.metrics import Observation
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
        from opentelemetry.sdk.resources import Resource
    except ImportError:
        _log.error("an OTLP endpoint is set, but opentelemetry is not installed: pip install memkv[otlp]")
        return

    # A provider of our own: the engine's, if it has one, is the engine's.
    reader = PeriodicExportingMetricReader(OTLPMetricExporter())
    name = os.environ.get("OTEL_SERVICE_NAME", "memkv-client")
    provider = MeterProvider(metric_readers=[reader], resource=Resource.create({"service.name": name}))
    meter = provider.get_meter("memkv")

    def clients(field: str) -> Any:
        def observe(_options: Any) -> Iterable[Observation]:
            for plugin, operations in _sums()[0].items():
                for op, counted in operations.items():
                    if field in counted:
                        yield Observation(counted[field], {"plugin": plugin, "op": op})

        return observe

    def stage_seconds(_options: Any) -> Iterable[Observation]:
        for plugin, read in _sums()[1].items():
            for stage, times in read.get("stages", {}).items():
                yield Observation(times["seconds"], {"plugin": plugin, "stage": stage})

    def events(_options: Any) -> Iterable[Observation]:
        for plugin, read in _sums()[1].items():
            for event, number in read.get("counts", {}).items():
                yield Observation(number, {"plugin": plugin, "event": event})

    for field, unit in (("calls", "1"), ("found", "1"), ("missing", "1"), ("errors", "1"), ("bytes", "By"), ("seconds", "s")):
        meter.create_observable_counter(f"memkv.client.{field}", callbacks=[clients(field)], unit=unit)
    meter.create_observable_counter("memkv.plugin.stage.seconds", callbacks=[stage_seconds], unit="s")
    meter.create_observable_counter("memkv.plugin.events", callbacks=[events], unit="1")
