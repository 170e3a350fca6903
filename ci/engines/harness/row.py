"""What a row has at hand, and what it finds out.

A row is a module `rows/NAME.py`:

    TITLE = "what runs, in one line"
    ENVIRONMENT = "vcpu"        # a list in environments/, or None: the harness' own interpreter
    SECONDS = 300               # it is ended and has failed after so long
    FULL_ONLY = True            # optional: only with --full, or when it is named

    def run(row): ...

It runs in a process of its own, and everything that it started is ended when it is done.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from . import environments
from .processes import Failed, Process
from .server import MIB, Server

PROGRAMS = environments.ROOT / "ci" / "engines" / "programs"


class Skipped(Exception):
    """The row cannot run here, and says why."""


@dataclasses.dataclass
class Outcome:
    """What a row found out."""

    name: str
    title: str = ""
    verdict: str = "ok"
    cached: str = "-"
    bytes: int = 0
    seconds: float = 0.0
    checks: list[dict] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    def fail(self, why: str) -> None:
        """Makes it a failure."""
        self.verdict = "FAILED"
        self.notes.append(why)


class Row:
    """The hands of one row."""

    def __init__(self, name: str, module: object, folder: Path, full: bool):
        self.name = name
        self.folder = folder
        self.full = full
        self.environment = getattr(module, "ENVIRONMENT", None)
        self.outcome = Outcome(name, getattr(module, "TITLE", name))
        self._count = 0

    # ---- what it found out -----------------------------------------------------------------

    def check(self, what: str, holds: object, detail: object = "") -> bool:
        """One check. Its name must not change from run to run; numbers belong into the detail."""
        self.outcome.checks.append({"name": what, "ok": bool(holds), "detail": str(detail)})
        print(f"check {what}: {'ok' if holds else 'FAILED'} {detail}", flush=True)
        if not holds:
            self.outcome.fail(f"{what}: {detail}")
        return bool(holds)

    def must(self, what: str, holds: object, detail: object = "") -> None:
        """A check without which the rest makes no sense."""
        if not self.check(what, holds, detail):
            raise Failed(what)

    def note(self, text: str) -> None:
        """Something that a reader of the table wants to know."""
        self.outcome.notes.append(text)

    def cached(self, tokens: int, of: int) -> None:
        """How many tokens of a prompt came from memkv."""
        self.outcome.cached = f"{tokens:,} of {of:,}"

    def bytes(self, count: int) -> None:
        """How many bytes memkv served to this client."""
        self.outcome.bytes += int(count)

    def skip(self, why: str) -> None:
        """Ends the row: it cannot run here."""
        raise Skipped(why)

    # ---- what it works with ----------------------------------------------------------------

    @property
    def python(self) -> Path:
        """The interpreter of its environment."""
        name = self.environment
        return environments.python(name) if name else Path(sys.executable)

    def env(self, **more: str) -> dict[str, str]:
        """The variables of every program: our wheels to import, nothing looked up elsewhere."""
        variables = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        variables["PATH"] = f"{self.python.parent}:{variables.get('PATH', '')}"
        variables["PYTHONPATH"] = f"{environments.site()}:{PROGRAMS}"
        variables["PYTHONUNBUFFERED"] = "1"
        variables["PYTHONDONTWRITEBYTECODE"] = "1"
        variables["PYTHONHASHSEED"] = "0"
        variables["TMPDIR"] = str(self.folder)
        variables["HF_HUB_OFFLINE"] = "1"
        variables["DO_NOT_TRACK"] = "1"
        variables["LC_ALL"] = "C.UTF-8"
        return variables | more

    def server(
        self,
        name: str = "memkv",
        size: int = 256 * MIB,
        config: str = "",
        mode: str = "file",
    ) -> Server:
        """A memkv server with an empty drive, a file or (`mode`) memory, started."""
        server = Server(self.folder, self.env(), name, size, config, mode)
        server.start()
        return server

    def start(
        self,
        name: str,
        argv: list[object],
        env: Mapping[str, str] | None = None,
        answers: bool = False,
    ) -> Process:
        """Starts a program beside the row; its output is `NAME.log` in the row's folder.

        With `answers` it reads orders from its standard input: see `Process.ask`.
        """
        log = self.folder / f"{name}.log"
        return Process(argv, log, env or self.env(), self.folder, answers)

    def call(
        self,
        name: str,
        argv: list[object],
        seconds: float,
        env: Mapping[str, str] | None = None,
        status: int | None = 0,
    ) -> str:
        """Runs a program to its end; answers with its output. `status` None allows any."""
        process = self.start(name, argv, env)
        found = process.wait(seconds)
        output = process.output()
        if status is not None and found != status:
            end = "\n".join(output.splitlines()[-30:])
            raise Failed(f"{name} answered {found}, not {status}:\n{end}")
        return output

    def program(self, script: str, *words: object, seconds: float, **options) -> dict:
        """Runs `programs/SCRIPT`; answers with what it printed after RESULT, which is JSON."""
        self._count += 1
        name = options.get("name", f"{self._count}-{Path(script).stem}")
        process = self.start(name, [self.python, PROGRAMS / script, *words], options.get("env"))
        status = process.wait(seconds)
        if status != 0 or not process.results():
            end = "\n".join(process.output().splitlines()[-30:])
            raise Failed(f"{name} answered {status}:\n{end}")
        return process.results()[-1]

    def tiny_llama(self) -> Path:
        """A Llama of 1.4 M random parameters with its tokenizer, made once per environment."""
        folder = environments.place() / f"tiny-llama-{self.environment}"
        if not (folder / "complete").exists():
            argv = [self.python, PROGRAMS / "tiny_llama.py", folder]
            self.call("tiny-llama", argv, 120)
        return folder

