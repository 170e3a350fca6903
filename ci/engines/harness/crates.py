"""Libraries of ours that a row loads into an engine."""

from __future__ import annotations

import os
from pathlib import Path

from .environments import ROOT, target
from .row import Row

# A cold build of the client and what it needs.
SECONDS = 600


def library(row: Row, package: str, file: str) -> Path:
    """Builds a crate; where its library lies."""
    manifest = ROOT / "Cargo.toml"
    argv = ["cargo", "build", "--release", "--quiet", "--manifest-path", manifest, "-p", package]
    env = {**os.environ, "CARGO_TARGET_DIR": str(target())}
    row.call(f"cargo-{package}", argv, SECONDS, env)
    return target() / "release" / file
