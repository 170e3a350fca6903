"""Processes that end: each in a group of its own, with a log, and every wait bounded."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
# What programs put before what they have to tell.
RESULT = "RESULT "


class Failed(Exception):
    """A step of a row did not do what it must; the row has failed."""


def adopt_orphans() -> None:
    """Makes grandchildren whose parent is gone ours, so that `end_descendants` finds them."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants(root: int) -> list[int]:
    """All processes below one, nearest first."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text()
        except OSError:
            continue
        # The name of the program, in parentheses, may hold anything.
        parent = int(stat.rpartition(")")[2].split()[1])
        children.setdefault(parent, []).append(int(entry.name))
    found, ahead = [], [root]
    while ahead:
        below = children.get(ahead.pop(0), [])
        found += below
        ahead += below
    return found


def end_descendants() -> int:
    """Kills whatever is left of what we started; answers how many that were."""
    ended = 0
    for _ in range(100):
        left = descendants(os.getpid())
        alive = 0
        for pid in left:
            try:
                if os.waitpid(pid, os.WNOHANG)[0] == pid:
                    continue
            except ChildProcessError:
                pass
            try:
                os.kill(pid, signal.SIGKILL)
                alive += 1
            except ProcessLookupError:
                continue
        ended = max(ended, alive)
        if alive == 0:
            break
        time.sleep(0.05)
    return ended


def wait_until(what: str, seconds: float, happened: Callable[[], object]) -> object:
    """Waits for something to be true, asking again every tenth of a second."""
    end = time.monotonic() + seconds
    while True:
        answer = happened()
        if answer:
            return answer
        if time.monotonic() > end:
            raise Failed(f"{what}: not within {seconds:g} s")
        time.sleep(0.1)


class Process:
    """A program that runs beside the row, its output in a file."""

    def __init__(
        self,
        argv: Sequence[object],
        log: Path,
        env: Mapping[str, str],
        cwd: Path,
        answers: bool = False,
    ):
        self.log = log
        self.name = log.stem
        self._told = 0
        with log.open("ab") as out:
            self.child = subprocess.Popen(
                [str(word) for word in argv],
                env=dict(env),
                cwd=cwd,
                stdin=subprocess.PIPE if answers else subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.child.pid

    def output(self) -> str:
        """What it has said so far."""
        return self.log.read_text(errors="replace")

    def results(self) -> list[dict]:
        """What it has printed after RESULT so far."""
        lines = self.output().splitlines()
        found = [line[len(RESULT) :] for line in lines if line.startswith(RESULT)]
        return [json.loads(line) for line in found]

    def next_result(self, seconds: float) -> dict:
        """Waits for one more result."""
        wanted = self._told + 1
        what = f"result {wanted} of {self.name}"
        self.wait_for(what, seconds, lambda: len(self.results()) >= wanted)
        self._told = wanted
        return self.results()[wanted - 1]

    def ask(self, order: dict, seconds: float) -> dict:
        """Gives it a line of JSON; its result. It must have been started with `answers`."""
        self.child.stdin.write(json.dumps(order).encode() + b"\n")
        self.child.stdin.flush()
        return self.next_result(seconds)

    def is_running(self) -> bool:
        """Whether it has not ended yet."""
        return self.child.poll() is None

    def wait(self, seconds: float) -> int:
        """Its exit status; a failure, and its end, when it takes longer."""
        try:
            return self.child.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Failed(f"{self.name} did not end within {seconds:g} s") from None

    def wait_for(self, what: str, seconds: float, happened: Callable[[], object]) -> object:
        """Waits for something that it brings about; ends early when it ends."""

        def asked() -> object:
            ended = not self.is_running()
            answer = happened()
            if not answer and ended:
                raise Failed(f"{self.name} ended with {self.child.returncode}, before: {what}")
            return answer

        return wait_until(what, seconds, asked)

    def stop(self, seconds: float = 20) -> None:
        """Asks it to end, and ends it."""
        if self.is_running():
            self.child.terminate()
            try:
                self.child.wait(seconds)
            except subprocess.TimeoutExpired:
                pass
        self.kill()

    def freeze(self) -> None:
        """SIGSTOP, and waits until every thread of it stands still."""
        self.child.send_signal(signal.SIGSTOP)
        tasks = Path(f"/proc/{self.pid}/task")

        def stands_still() -> bool:
            told = [(task / "stat").read_text() for task in tasks.iterdir()]
            return all(stat.rpartition(")")[2].split()[0] == "T" for stat in told)

        wait_until(f"{self.name} stands still", 30, stands_still)

    def kill(self) -> None:
        """SIGKILL for it and for what it started in its group."""
        try:
            os.killpg(self.child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.child.wait(10)
