"""Tests of SGLang's plug-in, on host pools of SGLang's own classes."""

from harness import pytests

TITLE = "Tests of memkv-sglang"
ENVIRONMENT = "sg"
SECONDS = 420


def run(row):
    """On a client that is a dictionary: real servers are for the rows of engines."""
    pytests.run(row, pytests.PACKAGES / "sglang" / "tests", 20)
