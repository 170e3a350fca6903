"""SGLang's own cache controller in a namespace that is another deployment's, and on a full drive.

usage: sglang_refusals.py SERVER SMALL

SERVER is where one thing after the other is changed. SMALL is filled. Prints RESULT and a JSON
object: what was refused and why, and what became of pages that found no room.
"""

import json
import os
import sys
import traceback

from full_drive import fill
from sglang_controller import (
    PAGE,
    SECONDS,
    TOKENS,
    controller,
    device_pool,
    host_pool,
    noise,
    prefetch,
    without_server,
)

OURS = {"namespace": "ours", "model": "noise"}
# What is changed: of the accelerator's pool, the layout in host memory, what the backend is told.
CHANGES = {
    "dtype": ({"dtype": "float16"}, "page_first", {}),
    "page_size": ({"page": PAGE // 2}, "page_first", {}),
    "layout": ({}, "page_first_direct", {}),
    "model": ({}, "page_first", {"model": "another"}),
    "weights": ({}, "page_first", {"weights": "others"}),
    "hash": ({}, "page_first", {}),
    "tp_size": ({}, "page_first", {}),
}


def attach(server: str, pool: dict, layout: str, told: dict) -> object:
    """A controller; it raises what the backend raises."""
    device = device_pool("mha", **pool)
    return controller(device, host_pool("mha", device, layout), server, **{**OURS, **told})


def refused(server: str, field: str) -> str:
    """What is said when one thing differs; nothing when nobody objects."""
    import memkv_sglang.deployment as deployment
    import sglang.srt.managers.cache_controller as cache_controller
    from memkv.identity import FingerprintMismatch

    pool, layout, told = CHANGES[field]
    sample, ranks = deployment.sample_hash, cache_controller.get_parallel
    if field == "hash":
        deployment.sample_hash = lambda: (sample()[0], "00" * 32)
    if field == "tp_size":
        two = type("Ranks", (), {**vars(ranks()), "tp_size": 2})
        cache_controller.get_parallel = lambda: two
    try:
        attach(server, pool, layout, told).detach_storage_backend()
    except FingerprintMismatch as refusal:
        return str(refusal)
    finally:
        deployment.sample_hash, cache_controller.get_parallel = sample, ranks
    return ""


def full(server: str) -> dict:
    """Pages that find no room, and what is found of them."""
    from sglang.srt.managers.cache_controller import get_storage_hash_str

    device, tokens = device_pool("mha"), list(range(TOKENS))
    host = host_pool("mha", device, "page_first")
    noise(host)
    indices = host.alloc(TOKENS)
    cache = controller(device, host, server)
    filled = fill(server)
    hashes = get_storage_hash_str(tokens, None, page_size=PAGE)
    cache.write_storage(indices, tokens, hash_value=hashes, prefix_keys=None)
    stored = cache.ack_backup_queue.get(timeout=SECONDS).completed_tokens
    found, _, _ = prefetch(cache, host, tokens, "full")
    errors = cache.storage_backend.stats()["store"]["errors"]
    cache.detach_storage_backend()
    return {"filled": filled, "stored": stored, "found": found, "errors": errors}


def main() -> None:
    """One thing after the other."""
    without_server()
    server, small = sys.argv[1:3]
    attach(server, {}, "page_first", {}).detach_storage_backend()
    told = {field: refused(server, field) for field in CHANGES}
    attach(server, {}, "page_first", {}).detach_storage_backend()
    print("RESULT " + json.dumps({"refused": told, "full": full(small)}), flush=True)


if __name__ == "__main__":
    try:
        main()
        status = 0
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
