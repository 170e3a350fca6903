"""The Python client's own tests."""

from harness import environments, units

TITLE = "Tests of memkv, against real servers"
# It has what the optional parts of memkv want: prometheus-client, opentelemetry.
ENVIRONMENT = "vcpu"
SECONDS = 420


def run(row):
    """All of them; they start the servers."""
    env = row.env(MEMKV_BIN=str(environments.target() / "release" / "memkv"))
    units.run(row, "memkv", units.PACKAGES / "tests", 90, env)
