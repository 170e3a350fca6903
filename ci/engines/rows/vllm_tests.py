"""What memkv-vllm asks of a client, and what it makes of the answers; whose keys those are."""

from harness import units

TITLE = "Tests of memkv-vllm, and of fingerprints"
ENVIRONMENT = "vcpu"
SECONDS = 300


def run(row):
    """All of them."""
    units.run(row, "memkv-vllm", units.PACKAGES / "vllm" / "tests", 40)
    units.run(row, "fingerprints", units.PACKAGES / "tests" / "test_identity.py", 40)
