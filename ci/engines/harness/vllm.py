"""vLLM with memkv as a tier of its own offloading."""

from __future__ import annotations

import json
from pathlib import Path

from .direct import DEADLINE_SECONDS
from .processes import Process
from .row import PROGRAMS, Row
from .server import Server

CHUNK_TOKENS = 256
SHARED_MEMORY = "/dev/shm/vllm_offload_"


def launch(
    row: Row,
    memkv: Server,
    name: str,
    folder: Path | None = None,
    extra: dict | None = None,
    env: dict | None = None,
    **more: object,
) -> Process:
    """An engine with nothing in memory, not waited for.

    `folder` is its model's, `more` is told to the tier, `extra` to vLLM's offloading.
    """
    tier = {"type": "MemkvTier", "module_path": "memkv_vllm", "servers": memkv.address}
    tier |= {f"{what}_seconds": DEADLINE_SECONDS for what in ("lookup", "load", "store")}
    argv = [row.python, PROGRAMS / "vllm_tier.py", folder or row.tiny_llama()]
    argv += [json.dumps(tier | more), json.dumps(extra or {})]
    return row.start(name, argv, row.env(**(env or {})), answers=True)


def kill(engine: Process) -> None:
    """Ends an engine, and takes away the host memory that it leaves in a file."""
    maps = Path(f"/proc/{engine.pid}/maps")
    lines = maps.read_text().splitlines() if maps.exists() else []
    left = {line.split(maxsplit=5)[5] for line in lines if SHARED_MEMORY in line}
    engine.kill()
    for path in left:
        Path(path).unlink(missing_ok=True)
