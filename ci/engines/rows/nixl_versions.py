"""One binary of the plug-in for the NIXLs that there are."""

from harness import environments, nixl
from rows.nixl import MIB, refusals, roundtrip

TITLE = "NIXL 1.0.1 and 1.3.2 -> one libplugin_MEMKV.so -> memkv; 0.10.1 is refused"
ENVIRONMENT = "nixl"
SECONDS = 900
FULL_ONLY = True
VERSIONS = ["1.0.1", "1.3.2"]
TOO_OLD = "0.10.1"


def run(row):
    """A round with each, and its slots."""
    plugins = nixl.build(row)
    for version in VERSIONS:
        name = f"nixl-{version}"
        environments.prepare(name)
        python = environments.python(name)
        library = nixl.libraries(python) / "plugins" / "libplugin_POSIX.so"
        found = nixl.slots(library, "nixlPosixEngine")
        row.check(f"{version}: the slots are those of the plug-in", found == nixl.SLOTS, found)
        memkv = row.server(name=name, size=512 * MIB)
        client = nixl.Client(row, memkv, plugins, f"client-{version}", name)
        known = client("start")
        row.must(f"{version}: NIXL lists the plug-in", "MEMKV" in known["plugins"], known)
        roundtrip(row, client, f"{version}: ")
        refusals(row, client, f"{version}: ")
        told = client("threads")["threads"]
        row.check(f"{version}: 8 threads keep their own", told == ["ok"] * 8, told)
        client.process.stop()
        memkv.stop()
    too_old(row, plugins)


def too_old(row, plugins):
    """A core that calls other slots gets nothing, and a sentence."""
    name = f"nixl-{TOO_OLD}"
    environments.prepare(name)
    memkv = row.server(name=name)
    client = nixl.Client(row, memkv, plugins, f"client-{TOO_OLD}", name)
    status = client.process.wait(60)
    output = client.process.output()
    row.check("a NIXL before 1.0 makes no backend", status != 0 and "RESULT" not in output, status)
    row.check("a NIXL before 1.0 is told why", "this NIXL is older than 1.0" in output)
