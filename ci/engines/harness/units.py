"""A plug-in's own tests, run beside its engine."""

from __future__ import annotations

import re
from pathlib import Path

from .environments import ROOT
from .row import Row

# Longest that tests of one package may take.
SECONDS = 250
PACKAGES = ROOT / "client-libs" / "python"


def run(row: Row, name: str, tests: Path, at_least: int, env: dict[str, str] | None = None) -> None:
    """Runs tests; one that does not pass is a failure of the row, and so are too few."""
    where = tests if tests.is_dir() else tests.parent
    argv = ["env", "--chdir", where, row.python, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    # Importing an engine is most of the time.
    argv += ["--timeout", SECONDS, "--rootdir", where, tests]
    output = row.call(f"pytest-{name}", argv, SECONDS, env or row.env())
    told = re.findall(r"(\d+) passed.* in ", output)
    passed = int(told[-1]) if told else 0
    row.note(f"{name}: {passed} tests passed")
    row.check(f"tests of {name} pass", passed >= at_least, passed)
