"""What memkv-vllm asks of a client, and what it makes of the answers."""

from harness import units

TITLE = "Tests of memkv-vllm"
ENVIRONMENT = "vcpu"
SECONDS = 300


def run(row):
    """All of them."""
    units.run(row, "memkv-vllm", units.PACKAGES / "vllm" / "tests", 40)
