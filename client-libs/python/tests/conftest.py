"""A real server for the tests: the binary that MEMKV_BIN names, or the release build beside this tree."""

import json
import os
import pathlib
import random
import shutil
import socket
import subprocess
import tempfile
import threading

import pytest

HERE = pathlib.Path(__file__).resolve()


def binary() -> str:
    """The server's binary; the tests cannot pass without one."""
    named = os.environ.get("MEMKV_BIN")
    target = os.environ.get("CARGO_TARGET_DIR", str(HERE.parents[3] / "target"))
    path = named or f"{target}/release/memkv"
    if not shutil.which(path):
        pytest.exit(f"there is no {path}: build it (cargo build --release), or name one by MEMKV_BIN", 2)
    return path


def free_ports() -> int:
    """A port that is free, as is the next, for HTTP; below those that connections are given."""
    for port in random.sample(range(20_000, 32_000), 1000):
        try:
            with socket.socket() as one, socket.socket() as other:
                one.bind(("127.0.0.1", port))
                other.bind(("127.0.0.1", port + 1))
                return port
        except OSError:
            continue
    raise RuntimeError("two free ports are not to be had")


class Server:
    """A node with a drive of its own; it can be stopped, killed and started again on the same port."""

    def __init__(
        self, folder: pathlib.Path, size: str = "1 GiB", port: int = 0, level: str = "info"
    ) -> None:
        self.folder = folder
        self.size = size
        self.level = level
        #: What it has said, line by line.
        self.said: list[str] = []
        self.port = port or free_ports()
        self.process: subprocess.Popen | None = None
        self.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def config(self) -> str:
        return (
            f"network:\n  address: 127.0.0.1:{self.port}\n"
            "memory:\n  max_size: 128 MiB\n  hugepages: prefer\n"
            "storage:\n  mode: file\n  drives:\n"
            f"    - media: {self.folder / 'drive'}\n      max_size: {self.size}\n"
            f"log:\n  level: {self.level}\n"
        )

    def start(self) -> None:
        file = self.folder / "memkv.yaml"
        file.write_text(self.config())
        command = [binary(), "start", "--config", str(file), "--log-format", "json"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for line in self.process.stdout:
            self.said.append(line)
            event = json.loads(line) if line.startswith("{") else {}
            if event.get("message") == "memkv serves":
                self.port = int(event["address"].rsplit(":", 1)[1])
                break
        else:
            raise RuntimeError("the server did not start:\n" + "".join(self.said))
        # What it says from now on must not fill the pipe.
        self.reader = threading.Thread(target=self.said.extend, args=(self.process.stdout,), daemon=True)
        self.reader.start()

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait()
            self.process = None


@pytest.fixture
def new_server():
    """Makes servers; they are gone when the test is."""
    servers = []
    folders = []

    def make(**settings) -> Server:
        folder = pathlib.Path(tempfile.mkdtemp(prefix="memkv-python-"))
        folders.append(folder)
        server = Server(folder, **settings)
        servers.append(server)
        return server

    yield make
    for server in servers:
        server.kill()
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def server():
    """One server for all tests that only use it."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="memkv-python-"))
    server = Server(folder)
    yield server
    server.kill()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def namespace(request) -> str:
    """A namespace of the test's own."""
    return request.node.name[:200]
