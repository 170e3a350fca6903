"""vLLM's tier in a namespace that is another deployment's, and on a drive that is full."""

from harness import direct

TITLE = "vLLM's tiered offloading -> memkv; dtype, hash, sizes, … changed: refused; full drive"
ENVIRONMENT = "vcpu"
SECONDS = 300


def run(row):
    """One thing after the other, then another rank, then no room."""
    memkv, small = row.server(), direct.small_server(row)
    told = row.program("vllm_refusals.py", memkv.address, small.address, seconds=240)
    row.must("its own chunks are found", told["stored"] and told["itself"] == 4, told)
    for field, said in told["refused"].items():
        row.check(f"another {field} is refused", f"they differ in {field}." in said, said)
        both = said.count(f'"{field}":') == 2
        row.check(f"another {field}: both fingerprints are printed", both, said)
    row.check("another rank finds nothing", told["other_rank"] == 0, told["other_rank"])
    full = told["full"]
    row.check("a full drive: a miss", not full["stored"] and full["found"] == 0, full)
