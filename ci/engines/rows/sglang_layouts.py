"""Every layout of SGLang's host memory, through SGLang's own controller."""

from harness import sglang

TITLE = "SGLang HiCacheController -> memkv; every layout bit-exact, nothing behind a missing page"
ENVIRONMENT = "sg"
SECONDS = 300
# As sglang_controller.py has them.
PAGE, PAGES, MISSING = 64, 20, 13


def run(row):
    """Each kind of pool, layout and interface."""
    memkv = row.server()
    env = sglang.environment(row, without_kernels=False)
    runs = row.program("sglang_controller.py", memkv.address, seconds=240, env=env)
    for told in runs:
        what = told["what"]
        stored = told["stored"] == told["found"] == told["brought"] == PAGE * PAGES
        row.check(f"{what}: stored, found and brought", stored, told)
        row.check(f"{what}: every byte", told["equal"], told)
        behind = told["deleted"] and told["left"] == PAGE * MISSING
        row.check(f"{what}: nothing is found behind a missing page", behind, told)
        row.check(f"{what}: a page is one value", told["values"] == PAGES, told)
    row.bytes(memkv.counters()["memkv_read_bytes_total"])
    row.cached(runs[0]["brought"], PAGE * (PAGES + 1))
