"""SGLang in a namespace that is another deployment's, and on a drive that is full."""

from harness import direct, sglang

TITLE = "SGLang HiCacheController -> memkv; dtype, page, layout, … changed: refused; full drive"
ENVIRONMENT = "sg"
SECONDS = 300


def run(row):
    """One thing after the other, then no room."""
    memkv, small = row.server(), direct.small_server(row)
    env = sglang.environment(row, without_kernels=False)
    words = [memkv.address, small.address]
    told = row.program("sglang_refusals.py", *words, seconds=240, env=env)
    for field, said in told["refused"].items():
        row.check(f"another {field} is refused", f"they differ in {field}." in said, said)
        both = said.count(f'"{field}":') == 2
        row.check(f"another {field}: both fingerprints are printed", both, said)
    full = told["full"]
    miss = full["stored"] == full["found"] == 0 and full["errors"] > 0
    row.check("a full drive: a miss", miss, full)
