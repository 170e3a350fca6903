"""llama.cpp, built from the source that the package llama-cpp-python brings along.

There is no package of its library and server that would do: wheels have the one without the headers, and none
has the other. What is built lies beside the environments, and is used again while version and options are the
same; the library takes some 3 minutes of processor time, the server another 8.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from . import environments
from .row import Row

ENVIRONMENT = "llama"
PACKAGE = "llama_cpp_python"
VERSION = "0.3.36"
# Not for the machine that builds it: what is kept may be used on another. What is measured here is not
# arithmetic, so the compiler need not take its time.
OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    "CMAKE_C_FLAGS_RELEASE": "-O2 -DNDEBUG",
    "CMAKE_CXX_FLAGS_RELEASE": "-O1 -DNDEBUG",
    "BUILD_SHARED_LIBS": "ON",
    "GGML_NATIVE": "OFF",
    "GGML_LLAMAFILE": "OFF",
    "GGML_OPENMP": "OFF",
    "GGML_CCACHE": "OFF",
    "LLAMA_CURL": "OFF",
    "LLAMA_OPENSSL": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_UI": "OFF",
}
# Longest that each may take, on two busy cores.
LIBRARY_SECONDS = 1200
SERVER_SECONDS = 2400


def library(row: Row) -> tuple[list[str], Path]:
    """Builds libllama; what a compiler needs to use it, and where it lies."""
    source, binaries = _build(row, "llama", LIBRARY_SECONDS)
    includes = [f"-I{source / part}" for part in ("include", "ggml/include")]
    libraries = [f"-L{binaries}", f"-Wl,-rpath,{binaries}", "-lllama", "-lggml", "-lggml-base"]
    return [*includes, *libraries], binaries


def server(row: Row) -> Path:
    """Builds llama-server."""
    return _build(row, "llama-server", SERVER_SECONDS)[1] / "llama-server"


def model(row: Row) -> Path:
    """A model of 2.6 MB with random weights, which are the same every time."""
    path = row.folder / "tiny.gguf"
    row.program("tiny_gguf.py", path, seconds=60)
    return path


def _build(row: Row, what: str, seconds: float) -> tuple[Path, Path]:
    unpacked = environments.sources(PACKAGE, VERSION, ENVIRONMENT)
    source = unpacked / "vendor" / "llama.cpp"
    folder = environments.home() / f"llama.cpp-{VERSION}"
    recipe = "\n".join(f"{name}={value}" for name, value in OPTIONS.items())
    # Written last: what was cut short is gone on with.
    marker = folder / f"{what}.built"
    if not marker.is_file() or marker.read_text() != recipe:
        configure = ["cmake", "-S", source, "-B", folder, "-G", "Ninja"]
        configure += [f"-D{name}={value}" for name, value in OPTIONS.items()]
        row.call(f"configure-{what}", configure, 120)
        jobs = str(os.cpu_count() or 2)
        build = ["cmake", "--build", folder, "--target", what, "--parallel", jobs]
        row.call(f"build-{what}", build, seconds)
        marker.write_text(recipe)
    return source, folder / "bin"


def has_compiler() -> bool:
    """Whether it can be built at all."""
    return all(shutil.which(program) for program in ("cc", "c++"))
