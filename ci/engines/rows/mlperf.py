"""The KV-cache benchmark of MLPerf Storage, once on a disk and once under the library that keeps its files in memkv.

The benchmark is no package: whoever runs this row has cloned it, and names the folder. As it stands its users draw
from one generator in several threads, so that two runs with one seed differ. With a trace, all requests of one class
and no shared prompts, which files it writes and how often it reads them follow from the trace alone.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

from harness import environments
from harness.server import MIB

TITLE = "MLPerf Storage's KV-cache benchmark under libmemkv_preload.so: counts as on a disk"
ENVIRONMENT = "mlperf"
SECONDS = 600
FULL_ONLY = True

HOME = "MEMKV_MLPERF_HOME"
REQUESTS = 16
WORKERS = 4
# What must be the same with and without the library, of the benchmark's own result.
COUNTS = [
    "total_requests",
    "total_tokens",
    "cache_stats.cache_hits",
    "cache_stats.cache_misses",
    "cache_stats.prefill_writes",
    "cache_stats.decode_reads",
    "cache_stats.storage_entries",
    "cache_stats.read_iops",
    "cache_stats.write_iops",
    "cache_stats.total_read_bytes",
    "cache_stats.total_write_bytes",
    "cache_stats.storage_tokens_processed",
]
# The header of a file of numpy's, and what else a file may have that the benchmark does not count.
HEADER = 256


def run(row):
    """On a disk, then in memkv; what each counts, and what the server served."""
    source = os.environ.get(HOME)
    if not source:
        row.skip(
            f"{HOME} names no folder: clone mlcommons/storage and name its kv_cache_benchmark"
        )
    source = Path(source)
    row.must("the benchmark is where it is said to be", (source / "kv-cache.py").is_file(), source)
    trace, config = workload(row.folder)
    disk = row.folder / "disk"
    disk.mkdir()
    expected = benchmark(row, "disk", source, disk, trace, config, row.env())

    server = row.server(size=2048 * MIB)
    # Of a program that is not built for memkv the directory is all that it knows.
    there = row.folder / "memkv-files"
    there.mkdir()
    before = server.counters()
    env = row.env(
        LD_PRELOAD=str(environments.target() / "release" / "libmemkv_preload.so"),
        MEMKV_PRELOAD_PREFIX=str(there),
        MEMKV_SERVERS=server.address,
    )
    found = benchmark(row, "memkv", source, there, trace, config, env)
    for name in COUNTS:
        same = value(found, name) == value(expected, name)
        row.check(f"{name} as on a disk", same, f"{value(found, name)} {value(expected, name)}")
    row.check("every request was served", value(found, "total_requests") == REQUESTS)
    row.check("nothing was missed", value(found, "cache_stats.cache_misses") == 0)
    row.check("its directory is empty", not any(there.iterdir()), list(there.iterdir()))
    left = sum(path.stat().st_size for path in disk.rglob("*.npy"))
    row.check("on a disk it is not", left > 0, left)
    served(row, server, before, found)
    figures(row, expected, found)


def workload(folder: Path) -> tuple[Path, Path]:
    """A trace of requests, and the settings under which it alone says what is done."""
    draw = random.Random(42)
    lines = ["Timestamp,Request tokens,Response tokens,Total tokens"]
    for number in range(REQUESTS):
        request, response = draw.randrange(200, 3000), draw.randrange(32, 160)
        lines.append(f"{number / 100},{request},{response},{request + response}")
    # It is waited for until the requests before it are done, which ends the run.
    lines.append("1000000,1,1,2")
    trace, config = folder / "trace.csv", folder / "config.yaml"
    trace.write_text("\n".join(lines) + "\n")
    config.write_text("qos_distribution: {interactive_probability: 1.0}\n")
    return trace, config


def benchmark(row, name, source, directory, trace, config, env) -> dict:
    """One run; the summary that it writes."""
    output = row.folder / f"{name}.json"
    argv = [row.python, source / "kv-cache.py", "--config", config, "--model", "tiny-1b"]
    argv += ["--num-users", WORKERS, "--max-requests", REQUESTS, "--duration", 200]
    argv += ["--gpu-mem-gb", 0, "--cpu-mem-gb", 0, "--storage-capacity-gb", 8]
    argv += ["--generation-mode", "none", "--max-concurrent-allocs", 2, "--seed", 42]
    argv += ["--disable-prefix-caching", "--disable-multi-turn", "--use-burst-trace"]
    argv += ["--burst-trace-path", trace, "--cache-dir", directory, "--output", output]
    said = row.call(name, argv, 250, env)
    lost = [line for line in said.splitlines() if line.startswith("memkv:")]
    row.check(f"{name}: the library had nothing to complain about", not lost, lost[:3])
    return json.loads(output.read_text())["summary"]


def value(summary: dict, name: str):
    """A figure of a summary, by its path."""
    for word in name.split("."):
        summary = summary[word]
    return summary


def served(row, server, before, found) -> None:
    """The server's bytes beside those that the benchmark believes to have read and written."""
    after = server.counters()
    for what, counter, counted in [
        ("read", "memkv_read_bytes_total", "cache_stats.total_read_bytes"),
        ("written", "memkv_write_bytes_total", "cache_stats.total_write_bytes"),
    ]:
        moved = after[counter] - before[counter]
        wanted = value(found, counted)
        row.check(
            f"bytes {what} are the server's",
            wanted <= moved <= wanted * 1.01 + HEADER * REQUESTS,
            f"{moved} for {wanted}",
        )
    row.bytes(after["memkv_read_bytes_total"] - before["memkv_read_bytes_total"])


def figures(row, expected, found) -> None:
    """Seconds at the median, for orientation: files are read from the page cache."""
    words = []
    for name in ("storage_read_p50_ms", "storage_write_p50_ms"):
        disk, memkv = (value(side, f"cache_stats.{name}") for side in (expected, found))
        words.append(f"{name} {memkv:.0f} in memkv, {disk:.0f} on a disk")
    row.note("; ".join(words))
