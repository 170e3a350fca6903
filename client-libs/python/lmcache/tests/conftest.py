"""A real memkv server (the binary that MEMKV_BIN names), and values as LMCache hands them over."""

import json
import os
import random
import socket
import subprocess
import threading
from pathlib import Path

import pytest

os.environ.setdefault("LMCACHE_TRACK_USAGE", "false")

import torch
from lmcache.v1.distributed.api import MemoryLayoutDesc, ObjectKey
from lmcache.v1.memory_management import MemoryFormat, MemoryObjMetadata, TensorMemoryObj

MODEL = "tiny"
SHAPE = (2, 4, 32, 64)


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
    """A node that can be killed and started again on the same port."""

    def __init__(self, folder: Path, config: str = ""):
        self.folder, self.more = folder, config
        self.port = free_ports()
        self.process = None
        self.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        file = self.folder / "memkv.yaml"
        drive = f"{{media: {self.folder / 'drive'}, max_size: 128 MiB}}"
        file.write_text(
            f'network: {{address: "127.0.0.1:{self.port}"}}\n'
            f"memory: {{max_size: 64 MiB}}\n"
            f"storage: {{mode: file, drives: [{drive}]{self.more}}}\n"
        )
        argv = [os.environ["MEMKV_BIN"], "start", "--config", str(file), "--log-format", "json"]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for line in self.process.stdout:
            told = json.loads(line)
            if told["message"] == "memkv serves":
                self.port = int(told["address"].rpartition(":")[2])
                # What it says from now on must not fill the pipe.
                threading.Thread(target=self.process.stdout.read, daemon=True).start()
                return
        raise RuntimeError("the server did not start")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """One server for all tests that do not harm it; each takes a namespace of its own."""
    if "MEMKV_BIN" not in os.environ:
        pytest.exit("MEMKV_BIN must name a memkv binary", 2)
    one = Server(tmp_path_factory.mktemp("memkv"))
    yield one
    one.kill()


@pytest.fixture
def new_server(tmp_path):
    """Makes servers that a test may kill."""
    made = []

    def make(config: str = "") -> Server:
        folder = tmp_path / f"server-{len(made)}"
        folder.mkdir()
        made.append(Server(folder, config))
        return made[-1]

    yield make
    for one in made:
        one.kill()


def key(number: int, model: str = MODEL, rank: int = 0, salt: str = "") -> ObjectKey:
    """The key of chunk `number`."""
    kv_rank = ObjectKey.ComputeKVRank(2, rank, 2, rank)
    return ObjectKey(number.to_bytes(32, "big"), model, kv_rank, 0, salt)


def value(fill: int, dtype: torch.dtype = torch.bfloat16, shape: tuple = SHAPE) -> TensorMemoryObj:
    """A value whose bytes follow from `fill`."""
    size = torch.Size(shape)
    count = size.numel() * dtype.itemsize
    raw = ((torch.arange(count) * 31 + fill) % 251).to(torch.uint8)
    meta = MemoryObjMetadata(
        shape=size,
        dtype=dtype,
        address=raw.data_ptr(),
        phy_size=count,
        ref_count=1,
        fmt=MemoryFormat.KV_2LTD,
        shapes=[size],
        dtypes=[dtype],
    )
    return TensorMemoryObj(raw, meta, None)


def blank(dtype: torch.dtype = torch.bfloat16, shape: tuple = SHAPE) -> TensorMemoryObj:
    """Memory for a value, with nothing in it."""
    made = value(0, dtype, shape)
    made.raw_data.zero_()
    return made


def layouts(dtype: torch.dtype = torch.bfloat16, shape: tuple = SHAPE) -> dict:
    """What a lookup says of the values that it asks for."""
    return {0: MemoryLayoutDesc([torch.Size(shape)], [dtype])}
