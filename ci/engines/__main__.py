"""The command of the tier of engines: see `ci/clients --help`."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

from harness import environments, processes
from harness.row import Outcome, Row, Skipped

ROWS = Path(__file__).resolve().parent / "rows"
USAGE = 2


def rows() -> list[str]:
    """Names of all rows."""
    return sorted(path.stem for path in ROWS.glob("*.py"))


def load(name: str) -> object:
    """The module of a row."""
    return importlib.import_module(f"rows.{name}")


def is_long(name: str) -> bool:
    """Whether a row runs only with --full, or when it is named."""
    return getattr(load(name), "FULL_ONLY", False)


def parse(words: list[str]) -> argparse.Namespace:
    """The command line; ends the program when it is wrong."""
    parser = argparse.ArgumentParser(
        prog="ci/clients",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Inference engines, run for real against a real memkv server, on this machine.",
        epilog=os.environ.get("MEMKV_CLIENTS_EPILOG", ""),
    )
    parser.add_argument("--only", metavar="ROW[,ROW]", help="these rows and no others; vllm: all of vllm_…")
    parser.add_argument("--full", action="store_true", help="also the rows and numbers of a night")
    parser.add_argument("--quick", action="store_true", help="as without: for ci/test")
    parser.add_argument("--json", action="store_true", help="the outcome as JSON, on stdout")
    parser.add_argument("--list", action="store_true", help="name the rows and end")
    parser.add_argument("--prepare", action="store_true", help="make environments and wheels only")
    parser.add_argument(
        "--if-possible", action="store_true", help="an environment that cannot be made skips its rows"
    )
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    options.names = []
    for word in options.only.split(",") if options.only else rows():
        # All of `vllm_…` may be called `vllm`; what takes long is not meant by that.
        named = [row for row in rows() if row.startswith(f"{word}_")]
        named = [row for row in named if options.full or not is_long(row)]
        named += [word] if word in rows() else []
        if not named:
            parser.error(f"there is no row {word}; there are {', '.join(rows())}")
        options.names += [row for row in named if row not in options.names]
    return options


def main(words: list[str]) -> int:
    """Runs what is asked for; the exit status."""
    options = parse(words)
    if options.row:
        return run_here(options)
    if options.list:
        for name in options.names:
            print(f"{name:24} {load(name).TITLE}")
        return 0
    processes.adopt_orphans()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        outcomes = run_all(options)
    finally:
        processes.end_descendants()
    if options.json:
        print(json.dumps([dataclasses.asdict(outcome) for outcome in outcomes], indent=1))
    else:
        table(outcomes)
    return 1 if any(outcome.verdict == "FAILED" for outcome in outcomes) else 0


def run_all(options: argparse.Namespace) -> list[Outcome]:
    """All rows that are asked for, one after the other: a row has both cores to itself."""
    chosen = [(name, load(name)) for name in options.names]
    if not options.full and not options.only:
        chosen = [(name, row) for name, row in chosen if not is_long(name)]
    wanted = {getattr(row, "ENVIRONMENT", None) for _, row in chosen} - {None}
    broken = prepare(sorted(wanted))
    outcomes = []
    if not options.prepare:
        for name, row in chosen:
            why = broken.get("wheels") or broken.get(getattr(row, "ENVIRONMENT", None))
            outcome = run_row(name, row, options) if why is None else without(name, row, why, options)
            tell(outcome)
            outcomes.append(outcome)
    elif broken:
        outcomes = [Outcome(name, why, "FAILED") for name, why in broken.items()]
    return outcomes


def prepare(wanted: list[str]) -> dict[str, str]:
    """Makes environments and wheels; why some could not be made."""
    broken = {}
    for name in wanted:
        begun = time.monotonic()
        fresh = not environments.is_ready(name)
        try:
            environments.prepare(name)
        except environments.EnvironmentFailed as error:
            broken[name] = str(error)
        if fresh:
            say(f"environment {name}: {broken.get(name, 'made')}, {time.monotonic() - begun:.0f} s")
    begun = time.monotonic()
    try:
        environments.wheels()
    except environments.EnvironmentFailed as error:
        broken["wheels"] = str(error)
    say(f"wheels: {broken.get('wheels', 'built')}, {time.monotonic() - begun:.0f} s")
    return broken


def without(name: str, row: object, why: str, options: argparse.Namespace) -> Outcome:
    """The outcome of a row whose environment could not be made."""
    outcome = Outcome(name, row.TITLE)
    if options.if_possible:
        outcome.verdict = f"skipped: {why.splitlines()[-1]}"
    else:
        outcome.fail(why)
    return outcome


def run_row(name: str, row: object, options: argparse.Namespace) -> Outcome:
    """A row in a process of its own, which ends in time with all that it started."""
    folder = environments.place() / "rows" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    argv = [sys.executable, str(ROWS.parent), "--row", name, "--folder", str(folder)]
    argv += ["--full"] if options.full else []
    begun = time.monotonic()
    seconds = row.SECONDS * (4 if options.full else 1)
    outcome = Outcome(name, row.TITLE)
    with (folder / "row.log").open("wb") as log:
        child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            child.wait(seconds)
        except subprocess.TimeoutExpired:
            outcome.fail(f"not done within {seconds} s")
        finally:
            left = processes.end_descendants()
    try:
        found = Outcome(**json.loads((folder / "outcome.json").read_text()))
        found.notes += outcome.notes
        outcome = found
    except (OSError, ValueError):
        outcome.fail(f"it has ended without an outcome ({left} processes were left)")
    outcome.seconds = round(time.monotonic() - begun, 1)
    for drive in folder.glob("*.drive"):
        drive.unlink()
    return outcome


def run_here(options: argparse.Namespace) -> int:
    """The row itself, in its own process."""
    module = load(options.row)
    row = Row(options.row, module, options.folder, options.full)
    try:
        module.run(row)
    except Skipped as reason:
        row.outcome.verdict = f"skipped: {reason}"
    except Exception as error:  # whatever it is, the row has failed and says so
        traceback.print_exc()
        row.outcome.fail(str(error))
    if row.outcome.verdict == "ok" and not row.outcome.checks:
        row.outcome.fail("it has checked nothing")
    text = json.dumps(dataclasses.asdict(row.outcome))
    (options.folder / "outcome.json").write_text(text)
    return 0


def say(text: str) -> None:
    """A line for whoever watches."""
    print(text, file=sys.stderr, flush=True)


def tell(outcome: Outcome) -> None:
    """The checks of a row, a line each, and the ends of its logs when one failed."""
    for check in outcome.checks:
        verdict = "ok" if check["ok"] else "FAILED"
        print(f"test {outcome.name}: {check['name']} ... {verdict}", file=sys.stderr)
    verdict = outcome.verdict
    print(f"test {outcome.name} ... {verdict}", file=sys.stderr)
    if verdict != "FAILED":
        return
    for note in outcome.notes:
        say(f"  {note}")
    for log in sorted((environments.place() / "rows" / outcome.name).glob("*.log")):
        lines = log.read_text(errors="replace").splitlines()
        say(f"---- the end of {log}")
        say("\n".join(lines[-25:]))


def table(outcomes: list[Outcome]) -> None:
    """One line for each client."""
    print(f"{'client':22} {'outcome':9} {'tokens cached':>15} {'MiB':>9} {'s':>6}  what ran")
    for row in outcomes:
        verdict = row.verdict.partition(":")[0]
        size = f"{row.bytes / (1 << 20):.2f}" if row.bytes else "-"
        line = f"{row.name:22} {verdict:9} {row.cached:>15} {size:>9} {row.seconds:6.0f}"
        print(f"{line}  {row.title}")
        reason = [row.verdict] if row.verdict.startswith("skipped") else []
        for note in reason + row.notes:
            print(f"{'':22} {note.splitlines()[0] if note else ''}")
    failed = sum(row.verdict == "FAILED" for row in outcomes)
    passed = sum(row.verdict == "ok" for row in outcomes)
    skipped = len(outcomes) - failed - passed
    print(f"{passed} passed, {failed} failed, {skipped} skipped")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
