"""The Python client's own tests, and those of the plug-in of vLLM, which the same environment has."""

from harness import pytests

TITLE = "Tests of memkv and memkv-vllm"
ENVIRONMENT = "vcpu"
SECONDS = 600


def run(row):
    """Against real servers, which the tests start."""
    pytests.run(row, pytests.PACKAGES / "tests", 90)
    pytests.run(row, pytests.PACKAGES / "vllm" / "tests", 20)
