"""What is counted is shown to whoever asks."""

import http.server
import logging
import socket
import subprocess
import sys
import threading
import urllib.request

import memkv
import pytest
from memkv import metrics

prometheus = pytest.importorskip("prometheus_client")
from prometheus_client.parser import text_string_to_metric_families  # noqa: E402


def samples(text: str) -> dict[tuple, float]:
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = tuple(sorted((k, v) for k, v in sample.labels.items()))
            found[(sample.name, *labels)] = sample.value
    return found


def test_calls_of_a_client_are_shown_by_plugin_and_operation(server, namespace):
    with memkv.Client(server.address, namespace=namespace) as client:
        metrics.watch(client, "calls")
        client.put_batch(["a", "b"], [bytes(1000), bytes(2000)])
        client.get_batch_into(["a", "none"], [bytearray(1000), bytearray(1)])
        shown = samples(metrics.text())
    of = lambda name, op, *more: shown[(name, *sorted([("op", op), ("plugin", "calls"), *more]))]  # noqa: E731
    assert of("memkv_client_calls_total", "put") == 1
    assert of("memkv_client_bytes_total", "put") == 3000
    assert of("memkv_client_keys_total", "get", ("result", "found")) == 1
    assert of("memkv_client_keys_total", "get", ("result", "missing")) == 1
    assert of("memkv_client_call_seconds_count", "get") == 1
    assert of("memkv_client_call_seconds_bucket", "get", ("le", "+Inf")) == 1
    assert of("memkv_client_call_seconds_sum", "get") > 0


def test_a_client_that_is_gone_is_shown_no_more(server, namespace):
    client = memkv.Client(server.address, namespace=namespace)
    metrics.watch(client, "gone")
    assert 'plugin="gone"' in metrics.text()
    del client
    assert 'plugin="gone"' not in metrics.text()


def test_stages_are_timed_however_they_end():
    stages = metrics.Stages("stages")
    with stages.time("copy"):
        pass
    with pytest.raises(KeyError), stages.time("copy"):
        raise KeyError
    stages.note("lookup", 0.5)
    stages.note("lookup", 100.0)
    stages.count("hits", 3)
    stages.count("hits")
    read = stages.read()
    assert read["stages"]["copy"]["count"] == 2
    assert read["stages"]["lookup"]["seconds"] == 100.5
    assert read["stages"]["lookup"]["buckets"][-1] == 1
    assert read["counts"] == {"hits": 4}
    shown = samples(metrics.text())
    assert shown[("memkv_plugin_stage_seconds_count", ("plugin", "stages"), ("stage", "lookup"))] == 2
    assert shown[("memkv_plugin_events_total", ("event", "hits"), ("plugin", "stages"))] == 4
    # 0.5 s lies below 2^15 * 16 µs = 0.524 s, and not below half of that.
    buckets = {
        dict(key[1:])["le"]: value
        for key, value in shown.items()
        if key[0] == "memkv_plugin_stage_seconds_bucket" and ("stage", "lookup") in key
    }
    assert [buckets[repr(16e-6 * 2**step)] for step in (14, 15)] == [0, 1]


SCRIPT = """
import memkv, sys, logging
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
from memkv import metrics
stages = metrics.Stages("script")
stages.count("hits", 7)
print("counted", flush=True)
sys.stdin.read()
"""


def run(**env):
    import os

    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT], env={**os.environ, **env}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_prometheus_is_served_where_it_is_asked_for_and_two_processes_do_not_clash():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [run(MEMKV_PROMETHEUS_BIND=f"127.0.0.1:{port}") for _ in range(2)]
    try:
        addresses = [process.stdout.readline().split()[-1] for process in processes]
        assert [process.stdout.readline() for process in processes] == ["counted\n"] * 2
        assert len(set(addresses)) == 2
        for address in addresses:
            with urllib.request.urlopen(address, timeout=10) as answer:
                shown = samples(answer.read().decode())
            assert shown[("memkv_plugin_events_total", ("event", "hits"), ("plugin", "script"))] == 7
    finally:
        for process in processes:
            process.communicate()


def test_counters_are_sent_where_an_otlp_endpoint_is_set():
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

    got = []
    came = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            import gzip

            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            request = ExportMetricsServiceRequest.FromString(body)
            got.extend(m for r in request.resource_metrics for s in r.scope_metrics for m in s.metrics)
            self.send_response(200)
            self.end_headers()
            came.set()

        def log_message(self, *_):
            pass

    collector = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{collector.server_port}"
    process = run(OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, OTEL_METRIC_EXPORT_INTERVAL="200")
    try:
        assert came.wait(60)
    finally:
        process.communicate()
        collector.shutdown()
    [events] = [metric for metric in got if metric.name == "memkv.plugin.events"][:1]
    [point] = events.sum.data_points
    assert (point.as_int, {a.key: a.value.string_value for a in point.attributes}) == (
        7,
        {"plugin": "script", "event": "hits"},
    )


@pytest.mark.parametrize("bind", ["nonsense", "127.0.0.1:"])
def test_an_address_that_is_none_is_told_and_nothing_fails(monkeypatch, caplog, bind):
    monkeypatch.setenv("MEMKV_PROMETHEUS_BIND", bind)
    monkeypatch.setattr(metrics, "_started_in", None)
    with caplog.at_level(logging.ERROR, logger="memkv"):
        metrics.Stages("wrong")
    assert "MEMKV_PROMETHEUS_BIND is host:port" in caplog.text
