"""NIXL with our plug-in: how it is built, loaded, driven and held against NIXL's own library."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from . import environments
from .processes import Failed, Process
from .row import PROGRAMS, Row
from .server import Server

CRATE = "memkv-nixl"
PLUGIN = "libplugin_MEMKV.so"
# What building and testing it takes besides Rust and a C compiler, and the packages that have it.
NEEDED = {"c++": "g++", "libclang": "libclang-dev", "nm": "binutils"}
BUILD_SECONDS = 600
# Longest that a client does one thing.
ORDER_SECONDS = 120
# Methods of a backend in the order of their slots, for which cpp/abi.hpp was written.
SLOTS = """~ ~ supportsRemote supportsLocal supportsNotif getSupportedMems registerMem deregisterMem
connect disconnect unloadMD prepXfer postXfer checkXfer releaseReqH prepMemView prepMemView
releaseMemView getPublicData getConnInfo loadRemoteConnInfo loadRemoteMD loadLocalMD getNotifs
genNotif queryMem estimateXferCost""".split()


def prepare(row: Row) -> None:
    """Installs what the build needs, where it may."""
    missing = [package for what, package in NEEDED.items() if not _is_there(what)]
    if not missing:
        return
    if os.getuid() != 0 or not shutil.which("apt-get"):
        raise Failed(f"NIXL's plug-in is built with {', '.join(missing)}: install them")
    install = ["apt-get", "install", "--yes", "--no-install-recommends", *missing]
    apt = row.env(DEBIAN_FRONTEND="noninteractive")
    row.call("apt-update", ["apt-get", "update"], 120, apt, status=None)
    row.call("apt", install, 300, apt)


def _is_there(what: str) -> bool:
    if what != "libclang":
        return shutil.which(what) is not None
    places = [Path("/usr/lib"), *Path("/usr/lib").glob("llvm-*/lib")]
    places += Path("/usr/lib").glob("*-linux-gnu")
    # The one whose name ends with .so, as the linker wants it, or with its version.
    found = (file.name for place in places for file in place.glob("libclang*.so*"))
    return any(re.fullmatch(r"libclang(-[\d.]+)?\.so(\.\d+)?", name) for name in found)


def cargo(row: Row, name: str, *words: str, env: Mapping[str, str] | None = None) -> str:
    """cargo in this checkout; its output."""
    more = {name: value for name, value in os.environ.items() if name.startswith(("CARGO", "RUST"))}
    more["CARGO_TARGET_DIR"] = str(environments.target())
    manifest = ["--manifest-path", environments.ROOT / "Cargo.toml"]
    argv = ["cargo", words[0], *manifest, *words[1:]]
    return row.call(name, argv, BUILD_SECONDS, row.env(**more, **(env or {})))


def build(row: Row) -> Path:
    """Builds the plug-in; a folder that holds nothing else, for NIXL to look into."""
    prepare(row)
    cargo(row, "build", "build", "--release", "--package", CRATE)
    folder = row.folder / "plugins"
    folder.mkdir(exist_ok=True)
    shutil.copy2(environments.target() / "release" / PLUGIN, folder)
    return folder


def libraries(python: Path) -> Path:
    """NIXL's own libraries in an environment."""
    packages = python.parent.parent / "lib" / f"python{environments.PYTHON}" / "site-packages"
    return packages / ".nixl_cu12.mesonpy.libs"


class Client:
    """programs/nixl_client.py against a server, in an environment."""

    def __init__(
        self,
        row: Row,
        memkv: Server,
        plugins: Path,
        name: str = "client",
        environment: str | None = None,
        settings: Mapping[str, str] | None = None,
    ):
        python = environments.python(environment) if environment else row.python
        env = row.env(NIXL_PLUGIN_DIR=str(plugins), **_stub(row))
        env["NIXL_CLIENT_SETTINGS"] = json.dumps(dict(settings or {}))
        argv = [python, PROGRAMS / "nixl_client.py", memkv.address]
        self.process: Process = row.start(name, argv, env, answers=True)

    def __call__(self, do: str, **order: object) -> dict:
        return self.process.ask({"do": do, **order}, ORDER_SECONDS)


def _stub(row: Row) -> dict[str, str]:
    """For NIXL before 1.4, which imports torch whether it is used or not."""
    folder = row.folder / "stub"
    folder.mkdir(exist_ok=True)
    (folder / "torch.py").write_text("class Tensor:\n    pass\n")
    return {"PYTHONPATH": f"{row.env()['PYTHONPATH']}:{folder}"}


def slots(library: Path, name: str) -> list[str]:
    """Methods of a class of a library in the order of its slots, `~` for a destructor."""
    symbols = _run(["nm", "--demangle", "--print-size", library])
    place = re.search(rf"^(\w+) (\w+) [vVdD] vtable for {name}$", symbols, re.MULTILINE)
    if not place:
        raise Failed(f"{library.name} has no table of {name}")
    # Behind two words that are none: an offset and the type.
    begin, end = int(place[1], 16) + 16, int(place[1], 16) + int(place[2], 16)
    by_address = {}
    for line in symbols.splitlines():
        found = re.match(r"(\w+)(?: \w+)? [tTwW] (.*)$", line)
        if found:
            by_address[int(found[1], 16)] = found[2]
    methods = {}
    for line in _run(["readelf", "--relocs", "--wide", "--demangle", library]).splitlines():
        words = line.split(None, 4)
        if len(words) < 4 or not re.fullmatch(r"[0-9a-f]{16}", words[0]):
            continue
        at = int(words[0], 16)
        if begin <= at < end:
            relative = words[2] == "R_X86_64_RELATIVE"
            full = by_address.get(int(words[3], 16), "?") if relative else words[4]
            methods[(at - begin) // 8] = _method(full)
    return [methods.get(at, "?") for at in range((end - begin) // 8)]


def _method(full: str) -> str:
    """`postXfer` of `nixlPosixEngine::postXfer(nixl_xfer_op_t const&, ...) const + 0`."""
    name = full.partition("(")[0].rpartition("::")[2]
    return "~" if name.startswith("~") else name


def _run(argv: list[object]) -> str:
    words = [str(word) for word in argv]
    return subprocess.run(words, capture_output=True, timeout=60, check=True, text=True).stdout
