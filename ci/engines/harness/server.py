"""A real memkv server on a port of its own, with a drive in a file."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from .environments import target
from .processes import Failed, Process

MIB = 1 << 20
# The grain of allocation on a drive, and how much of each is changed by `flip_payload`.
UNIT = 16 << 10
FLIPPED = 64


def free_ports(count: int) -> int:
    """The first of some neighbouring ports that nobody has, below those given to connections."""
    for _ in range(200):
        first = random.randrange(20000, 32000)
        taken = []
        try:
            for port in range(first, first + count):
                listener = socket.socket()
                taken.append(listener)
                listener.bind(("127.0.0.1", port))
            return first
        except OSError:
            continue
        finally:
            for listener in taken:
                listener.close()
    raise Failed(f"{count} free ports are not to be had")


def fetch(url: str, seconds: float = 5, post: dict | None = None) -> str | None:
    """What a URL answers, None where there is no answer, or not a good one."""
    body = None if post is None else json.dumps(post).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=seconds) as answer:
            return answer.read().decode()
    except (OSError, urllib.error.URLError):
        return None


class Server:
    """`memkv start`. Stopped by the row; may be stopped, killed and started again before."""

    def __init__(
        self,
        folder: Path,
        env: Mapping[str, str],
        name: str,
        size: int,
        config: str = "",
        mode: str = "file",
    ):
        self.folder = folder
        self.name = name
        self.env = env
        self.port = free_ports(2)
        self.drive = folder / f"{name}.drive"
        self.config = folder / f"{name}.yaml"
        media = f"media: {self.drive}, " if mode == "file" else ""
        self.config.write_text(
            f'network: {{address: "127.0.0.1:{self.port}"}}\n'
            f"storage:\n  mode: {mode}\n  drives: [{{{media}max_size: {size}}}]\n"
            f"memory: {{max_size: {128 * MIB}}}\n{config}"
        )
        self.process: Process | None = None

    @property
    def address(self) -> str:
        """Where clients connect."""
        return f"127.0.0.1:{self.port}"

    def start(self, seconds: float = 60) -> None:
        """Starts it and waits until it serves."""
        binary = target() / "release" / "memkv"
        argv = [binary, "start", "--config", self.config, "--log-format", "json"]
        log = self.folder / f"{self.name}.log"
        self.process = Process(argv, log, self.env, self.folder)
        url = f"http://127.0.0.1:{self.port + 1}/v1/ready"
        self.process.wait_for("memkv serves", seconds, lambda: fetch(url))

    def stop(self) -> None:
        """SIGTERM: it stops in order."""
        if self.process:
            self.process.stop()

    def kill(self) -> None:
        """SIGKILL."""
        if self.process:
            self.process.kill()

    def status(self) -> dict:
        """What /v1/status answers."""
        text = fetch(f"http://127.0.0.1:{self.port + 1}/v1/status")
        if text is None:
            raise Failed(f"{self.name} does not answer")
        return json.loads(text)

    def counters(self) -> dict[str, int]:
        """Its counters without labels: `memkv_read_bytes_total` and the like."""
        return self.status()["counters"]

    def metrics(self) -> dict[str, float]:
        """All metrics, by name with labels: `memkv_misses_total{reason="corrupt"}`."""
        text = fetch(f"http://127.0.0.1:{self.port + 1}/v1/metrics")
        if text is None:
            raise Failed(f"{self.name} does not answer")
        lines = (line.rpartition(" ") for line in text.splitlines() if line[:1] not in ("", "#"))
        return {name: float(value) for name, _, value in lines}

    def namespaces(self) -> dict:
        """What /v1/namespaces answers."""
        text = fetch(f"http://127.0.0.1:{self.port + 1}/v1/namespaces")
        if text is None:
            raise Failed(f"{self.name} does not answer")
        return json.loads(text)

    def flip_payload(self) -> int:
        """Changes the first bytes of every unit of data that was written; answers how many those are.

        Also under a server that runs. Superblock, journal and checkpoints, which lie in front, stay
        whole: all its blocks are known, and each of them has become another.
        """
        binary = target() / "release" / "memkv"
        argv = [binary, "drive", "inspect", "--json", self.drive]
        told = subprocess.run(argv, capture_output=True, timeout=60, check=True).stdout
        superblock = json.loads(told)[0]["superblock"]
        units = superblock["usable_bytes"] // UNIT
        with self.drive.open("r+b", buffering=0) as drive:
            flipped = 0
            for unit in range(units):
                at = superblock["data_offset"] + unit * UNIT
                old = os.pread(drive.fileno(), FLIPPED, at)
                if any(old):
                    os.pwrite(drive.fileno(), bytes(byte ^ 0xFF for byte in old), at)
                    flipped += 1
            os.fsync(drive.fileno())
        return flipped
