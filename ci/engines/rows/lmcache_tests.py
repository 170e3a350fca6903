"""LMCache's own tests of L2 adapters, with memkv in their fixtures."""

import re
import shutil

from harness import environments, units

TITLE = "Tests of memkv-lmcache; LMCache's own, with memkv in their fixtures"
ENVIRONMENT = "vcpu"
SECONDS = 600
VERSION = "0.5.6"

ADAPTER = "tests/v1/distributed/test_native_connector_l2_adapter.py"
OTHERS = [
    "tests/v1/distributed/test_fault_inject_l2_adapter.py",
    "tests/v1/distributed/test_l2_adapter_factory.py",
    "tests/v1/storage_backend/test_storage_plugin.py",
    "tests/v1/storage_backend/test_remote_storage_plugin.py",
]
# What is asked of the native client below LMCache's adapter, which ours does without.
OF_THE_CLIENT = "not TestPadBuffersToAlignment"


def run(row):
    """Ours; then theirs, once as a client below their adapter and once as an adapter of its own."""
    env = row.env(MEMKV_BIN=str(environments.target() / "release" / "memkv"))
    units.run(row, "memkv-lmcache", units.PACKAGES / "lmcache" / "tests", 40, env)
    here = row.folder / "lmcache"
    source = environments.sources("lmcache", VERSION, ENVIRONMENT)
    shutil.copytree(source / "tests", here / "tests")
    shutil.copy(source / "pytest.ini", here)
    memkv = row.server(mode="memory")
    env = row.env(MEMKV_SWAP="native", MEMKV_SWAP_SERVERS=memkv.address)
    swap = ["-p", "lmcache_swap"]
    passed = pytest(row, "native", here, env, [*swap, ADAPTER])
    row.check("our client passes the tests of native clients", passed >= 90, passed)
    env |= {"MEMKV_SWAP": "plugin"}
    passed = pytest(row, "plugin", here, env, [*swap, ADAPTER, "-k", OF_THE_CLIENT])
    row.check("our adapter passes the tests of adapters", passed >= 80, passed)
    if row.full:
        passed = pytest(row, "loading", here, env, [*swap, *OTHERS])
        row.check("LMCache's tests of loading plug-ins pass here", passed >= 60, passed)


def pytest(row, name, here, env, words):
    """Runs tests; how many passed, and any that did not is a failure of the row."""
    argv = [row.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "log_cli=false"]
    argv += ["--timeout", 60, "--rootdir", here, *words]
    output = row.call(f"pytest-{name}", ["env", "--chdir", here, *argv], 300, env)
    told = re.findall(r"(\d+) passed.* in ", output)
    passed = int(told[-1]) if told else 0
    row.note(f"{name}: {passed} tests passed")
    return passed
