"""SGLang with memkv as the storage of its hierarchical cache."""

from __future__ import annotations

import json
from pathlib import Path

from .direct import DEADLINE_SECONDS
from .processes import Process
from .row import PROGRAMS, Row
from .server import Server

PAGE_TOKENS = 64


def launch(
    row: Row,
    memkv: Server,
    name: str,
    folder: Path | None = None,
    layout: str = "page_first_direct",
    env: dict | None = None,
    **more: object,
) -> Process:
    """An engine with nothing in memory, not waited for. `more` is told to the storage backend."""
    deadlines = {f"{what}_seconds": DEADLINE_SECONDS for what in ("lookup", "load", "store")}
    extra = {"servers": memkv.address, **deadlines, **more}
    argv = [row.python, PROGRAMS / "sglang_engine.py", folder or row.tiny_llama()]
    argv += [json.dumps(extra), layout]
    return row.start(name, argv, environment(row, **(env or {})), answers=True)


def environment(row: Row, without_kernels: bool = True, **more: str) -> dict[str, str]:
    """Variables for SGLang without a GPU. An engine needs more: its kernels by name, at least."""
    variables = row.env(**more)
    if without_kernels:
        variables["PYTHONPATH"] = f"{PROGRAMS / 'processor_kernels'}:{variables['PYTHONPATH']}"
    # SGLang compiles its hash on first use; all rows share what came of it.
    variables.pop("TMPDIR", None)
    return variables
