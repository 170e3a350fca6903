"""Python environments of the engines, and our own wheels.

An environment is a list of exact versions, `environments/NAME.txt`. It is made by uv once, and again when
the list changes; what is installed is named by a copy of the list that is written last, so that one that
was cut short counts as missing. Our wheels are never installed into an environment: they lie in a
folder of their own, which rows put on PYTHONPATH, so that two checkouts can share environments.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
LISTS = ROOT / "ci" / "engines" / "environments"
MARKER = "memkv-environment.txt"
PYTHON = "3.11"
UV = "uv==0.13.9"
MATURIN = "maturin==1.16.0"
# Longest that making one environment may take: a cold download of gigabytes.
INSTALL_SECONDS = 1200
BUILD_SECONDS = 900


class EnvironmentFailed(Exception):
    """An environment or a wheel could not be made; says which command said what."""


def target() -> Path:
    """Where cargo builds, and this tier keeps what it makes."""
    return Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target").resolve()


def home() -> Path:
    """Where environments are kept between runs."""
    return Path(os.environ.get("MEMKV_CLIENTS_HOME") or target() / "ci" / "clients").resolve()


def place() -> Path:
    """Where this checkout's wheels, logs and drives lie."""
    return target() / "ci" / "clients"


def names() -> list[str]:
    """Environments there are lists for."""
    return sorted(path.stem for path in LISTS.glob("*.txt"))


def python(name: str) -> Path:
    """The interpreter of an environment."""
    return home() / name / "bin" / "python"


def is_ready(name: str) -> bool:
    """Whether an environment is there in full, with the versions that are wanted now."""
    marker = home() / name / MARKER
    return marker.is_file() and marker.read_bytes() == (LISTS / f"{name}.txt").read_bytes()


def prepare(name: str) -> None:
    """Makes an environment unless it is there."""
    if is_ready(name):
        return
    uv = find_uv()
    folder = home() / name
    shutil.rmtree(folder, ignore_errors=True)
    _run([uv, "venv", "--quiet", "--python", PYTHON, str(folder)], INSTALL_SECONDS)
    wanted = LISTS / f"{name}.txt"
    install = [uv, "pip", "install", "--quiet", "--python", str(python(name)), "--no-deps"]
    # Rows write no byte code: without it every start would compile an engine anew.
    install += ["--compile-bytecode"]
    _run([*install, "--prerelease=allow", "--requirement", str(wanted)], INSTALL_SECONDS)
    shutil.copyfile(wanted, folder / MARKER)


def find_uv() -> str:
    """uv as it is on the path, or else in an environment of its own."""
    on_path = shutil.which("uv")
    if on_path and _works([on_path, "--version"]):
        return on_path
    folder = home() / "tools"
    uv = folder / "bin" / "uv"
    if not uv.exists():
        _run([sys.executable, "-m", "venv", str(folder)], 120)
        _run([str(folder / "bin" / "pip"), "install", "--quiet", UV], INSTALL_SECONDS)
    return str(uv)


def sources(name: str, version: str, environment: str) -> Path:
    """A package as its authors publish its source, tests and all, unpacked; made once.

    Asking for it runs its set-up, which wants to find what it is built with: torch, in `environment`.
    """
    folder = home() / f"{name}-{version}"
    if (folder / MARKER).exists():
        return folder / f"{name}-{version}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    found = python(environment)
    pip = [sys.executable, "-m", "pip", "--quiet", "--python", str(found)]
    build = ["--target", str(folder / "build"), "setuptools>=77", "setuptools-scm", "wheel"]
    _run([find_uv(), "pip", "install", "--quiet", "--python", str(found), *build], 300)
    settings = {"NO_NATIVE_EXT": "1", "NO_CUDA_EXT": "1", "PYTHONPATH": str(folder / "build")}
    settings["SETUPTOOLS_SCM_PRETEND_VERSION"] = version
    only_source = ["--no-deps", "--no-build-isolation", "--no-binary", ":all:"]
    wanted = ["--dest", str(folder), f"{name}=={version}"]
    _run([*pip, "download", *only_source, *wanted], 300, settings)
    with tarfile.open(folder / f"{name}-{version}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    (folder / MARKER).touch()
    return folder / f"{name}-{version}"


def site() -> Path:
    """The folder that holds our packages as wheels unpack them."""
    return Path(os.environ.get("MEMKV_CLIENTS_SITE") or place() / "site").resolve()


def wheels() -> None:
    """Builds every wheel of client-libs/python and unpacks them, unless that was done elsewhere."""
    if os.environ.get("MEMKV_CLIENTS_SITE"):
        return
    uv = find_uv()
    packages = ROOT / "client-libs" / "python"
    built = place() / "wheels"
    shutil.rmtree(built, ignore_errors=True)
    built.mkdir(parents=True)
    maturin = [uv, "tool", "run", "--quiet", "--from", MATURIN, "maturin", "build", "--release"]
    manifest = str(packages / "Cargo.toml")
    _run([*maturin, "--manifest-path", manifest, "--out", str(built)], BUILD_SECONDS)
    for project in sorted(packages.glob("*/pyproject.toml")):
        build = [uv, "build", "--quiet", "--wheel", "--python", PYTHON, "--out-dir", str(built)]
        # From a copy: setuptools leaves its droppings in the source.
        copy = place() / "sources" / project.parent.name
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(project.parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
        _run([*build, str(copy)], BUILD_SECONDS)
    shutil.rmtree(site(), ignore_errors=True)
    files = sorted(str(path) for path in built.glob("*.whl"))
    install = [uv, "pip", "install", "--quiet", "--python", PYTHON, "--target", str(site())]
    _run([*install, "--no-deps", "--no-index", *files], 120)
    # Where people look for what they may install; git does not.
    shutil.rmtree(packages / "dist", ignore_errors=True)
    shutil.copytree(built, packages / "dist")


def _works(command: list[str]) -> bool:
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    return done.returncode == 0


def _run(command: list[str], seconds: float, settings: dict[str, str] | None = None) -> None:
    environment = {"UV_LINK_MODE": "hardlink", **os.environ, **(settings or {})}
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=seconds,
            text=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise EnvironmentFailed(f"{command[0]} is not there") from error
    except subprocess.TimeoutExpired as error:
        raise EnvironmentFailed(f"{seconds:.0f} s were not enough: {' '.join(command)}") from error
    if done.returncode != 0:
        end = "\n".join(done.stdout.splitlines()[-20:])
        raise EnvironmentFailed(f"{' '.join(command)} answered {done.returncode}:\n{end}")
