"""What memkv-sglang asks of a client, and what it makes of the answers."""

from harness import sglang, units

TITLE = "Tests of memkv-sglang, on host pools of SGLang's own"
ENVIRONMENT = "sg"
SECONDS = 300


def run(row):
    """All of them."""
    env = sglang.environment(row, without_kernels=False, CUDA_VISIBLE_DEVICES="")
    units.run(row, "memkv-sglang", units.PACKAGES / "sglang" / "tests", 45, env)
