"""Tests of our packages, run by pytest in an environment."""

from __future__ import annotations

import xml.etree.ElementTree as Xml
from pathlib import Path

from . import environments

PACKAGES = environments.ROOT / "client-libs" / "python"
#: Longest that one test may take.
TEST_SECONDS = 120


def run(row, tests: Path, least: int) -> None:
    """Runs the tests of a folder, which are `least` at least; each that does not pass is named."""
    name = tests.parent.name
    report = row.folder / f"{name}.xml"
    argv = [row.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout", TEST_SECONDS]
    argv += ["--rootdir", tests.parent, "--junit-xml", report, tests]
    env = row.env(MEMKV_BIN=str(environments.target() / "release" / "memkv"))
    words = ["env", "--chdir", tests.parent, *argv]
    # What failed is read from the report: 1 says that something did.
    row.call(f"pytest-{name}", words, 420, env, status=None)
    cases = Xml.parse(report).getroot().iter("testcase")
    failed, skipped, passed = [], [], 0
    for case in cases:
        full = f"{case.get('classname')}.{case.get('name')}"
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(full)
        elif case.find("skipped") is not None:
            skipped.append(full)
        else:
            passed += 1
    row.note(f"{name}: {passed} tests passed, {len(failed)} failed, {len(skipped)} skipped")
    row.check(f"every test of {name} passes", not failed, ", ".join(failed))
    row.check(f"no test of {name} is skipped", not skipped, ", ".join(skipped))
    row.check(f"the tests of {name} are there", passed + len(failed) >= least, passed)
