"""SGLang's own cache controller (its threads, its factory, its host pools) on memkv, without a
model.

usage: sglang_controller.py SERVER

For each kind of pool, each layout and each interface: noise is stored, the storage is detached, and
a controller with an empty pool of its own gets it back, every byte compared; then one page is
deleted, and it and all behind it must not be found. Prints RESULT and a JSON object: a list of what
was run.
"""

import json
import os
import queue
import sys
import threading
import time
import traceback
from types import SimpleNamespace

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

PAGE, PAGES, LAYERS = 64, 20, 4
TOKENS = PAGE * PAGES
MISSING = 13
SECONDS = 30
# Kind of pool, layout, whether SGLang moves pages in place.
RUNS = [
    ("mha", "page_first", True),
    ("mha", "page_first_direct", True),
    ("mha", "layer_first", True),
    ("mha", "page_head", True),
    ("mla", "page_first", True),
    ("mla", "page_first_direct", True),
    ("mla", "layer_first", True),
    ("mha", "page_first", False),
    ("mha", "page_first_direct", False),
    ("mha", "layer_first", False),
]


def without_server() -> None:
    """What a server's arguments would have said: one rank of one."""
    import sglang.srt.managers.cache_controller as cache_controller
    import torch.distributed

    torch.distributed.init_process_group(
        "gloo", rank=0, world_size=1, store=torch.distributed.HashStore()
    )
    alone = {
        f"{group}_{what}": what == "size" for group in ("tp", "pp") for what in ("rank", "size")
    }
    alone |= {"attn_tp_rank": 0, "attn_tp_size": 1, "attn_dp_rank": 0}
    alone |= {"attn_dcp_rank": 0, "attn_dcp_size": 1}
    ranks = SimpleNamespace(**{name: int(value) for name, value in alone.items()})
    cache_controller.get_parallel = lambda: ranks
    cache_controller.is_dp_attention_enabled = lambda: False


def device_pool(kind: str, dtype: str = "bfloat16", page: int = PAGE) -> object:
    """The pool of an accelerator, which is this processor."""
    import torch
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, MLATokenToKVPool

    layers = {"start_layer": 0, "end_layer": LAYERS - 1}
    slots, type_ = 2 * TOKENS, getattr(torch, dtype)
    if kind == "mla":
        return MLATokenToKVPool(slots, page, type_, 96, 32, LAYERS, "cpu", False, **layers)
    return MHATokenToKVPool(slots, page, type_, 2, 64, LAYERS, "cpu", False, **layers)


def host_pool(kind: str, device: object, layout: str) -> object:
    """A pool in host memory, with room for what is stored."""
    from sglang.srt.mem_cache.pool_host.mha import MHATokenToKVPoolHost
    from sglang.srt.mem_cache.pool_host.mla import MLATokenToKVPoolHost

    info = device.get_device_pool_infos()[0].buffer_info
    named = {
        "pin_memory": False,
        "device_capacity_tokens": device.size,
        "start_layer": device.start_layer,
        "end_layer": device.end_layer,
    }
    if kind == "mla":
        page, named["target_layer_num"] = device.page_size, LAYERS
        return MLATokenToKVPoolHost(info, 1, 0, page, layout, **named)
    return MHATokenToKVPoolHost(info, 1, 0, device.page_size, layout, **named)


def controller(
    device: object, host: object, server: str, in_place: bool = True, **more: object
) -> object:
    """SGLang's controller with memkv attached; `more` is told to the backend."""
    import torch.distributed
    from sglang.srt.managers.cache_controller import HiCacheController

    extra = {
        "backend_name": "memkv",
        "module_path": "memkv_sglang.backend",
        "class_name": "MemKVHiCacheStorage",
        "interface_v1": int(in_place),
        "servers": server,
        "weights": "none",
        **more,
    }
    return HiCacheController(
        SimpleNamespace(get_kvcache=lambda: device),
        host,
        device.page_size,
        torch.distributed.group.WORLD,
        threading.Event(),
        write_policy="write_through",
        io_backend="direct",
        storage_backend="dynamic",
        prefetch_threshold=device.page_size,
        model_name="noise",
        storage_backend_extra_config=extra,
    )


def noise(pool: object) -> None:
    """Fills a pool with bytes that are the same in every run."""
    import torch

    buffer = pool.kv_buffer
    generator = torch.Generator().manual_seed(99)
    bytes_ = torch.randint(0, 256, (buffer.nbytes,), dtype=torch.uint8, generator=generator)
    buffer.view(torch.uint8).flatten().copy_(bytes_)


def pages_of(pool: object, indices: object) -> list:
    """Copies of pages, as bytes: noise has values that are not equal to themselves."""
    import torch

    starts = indices[::PAGE].tolist()
    return [pool.get_data_page(start).clone().view(torch.uint8) for start in starts]


def prefetch(cache: object, host: object, tokens: list, name: str) -> tuple[int, int, object]:
    """Tokens found, tokens brought, and where they are."""
    cache.prefetch(name, tokens, None, None)
    operation = cache.prefetch_hit_queue.get(timeout=SECONDS)
    found = operation.storage_hit_count
    if not found:
        return 0, 0, None
    operation.host_indices = host.alloc(found)
    cache.prefetch_buffer.put(operation)
    brought, ends = 0, time.monotonic() + SECONDS
    while time.monotonic() < ends:
        try:
            told = cache.ack_prefetch_queue.get(timeout=1)
        except queue.Empty:
            continue
        brought = max(brought, told.completed_tokens or 0)
        if told.completed_req:
            return found, brought, operation.host_indices
    raise TimeoutError("SGLang did not finish its prefetch")


def run(kind: str, layout: str, in_place: bool, server: str) -> dict:
    """One kind, layout and interface."""
    import memkv
    import torch
    from sglang.srt.managers.cache_controller import get_storage_hash_str

    device, tokens = device_pool(kind), list(range(TOKENS))
    first = host_pool(kind, device, layout)
    noise(first)
    indices = first.alloc(TOKENS)
    cache = controller(device, first, server, in_place)
    backend = cache.storage_backend
    hashes = get_storage_hash_str(tokens, None, page_size=PAGE)
    cache.write_storage(indices, tokens, hash_value=hashes, prefix_keys=None)
    stored = cache.ack_backup_queue.get(timeout=SECONDS).completed_tokens
    cache.detach_storage_backend()

    second = host_pool(kind, device, layout)
    second.kv_buffer.zero_()
    cache = controller(device, second, server, in_place)
    more = tokens + list(range(9000, 9000 + PAGE))
    found, brought, places = prefetch(cache, second, more, "whole")
    pairs = zip(pages_of(first, indices), pages_of(second, places), strict=True)
    equal = all(torch.equal(mine, theirs) for mine, theirs in pairs)

    names, prefix = backend.pools["kv"].keys(hashes), backend.fingerprint.prefix
    namespace = cache.storage_backend._client.namespace
    with memkv.Client(server, namespace=namespace, prefix=prefix) as plain:
        values = sum(plain.exists(names))
        (deleted,) = plain.delete([names[MISSING]])
    left, _, _ = prefetch(cache, second, more, "less")
    calls = cache.storage_backend.stats()["client"]
    cache.detach_storage_backend()
    return {
        "what": f"{kind} {layout} {'in place' if in_place else 'copied'}",
        "stored": stored,
        "found": found,
        "brought": brought,
        "equal": equal,
        "values": values,
        "deleted": deleted,
        "left": left,
        "get_calls": calls.get("get", {}).get("calls"),
    }


def main() -> None:
    """All of them."""
    without_server()
    print("RESULT " + json.dumps([run(*how, sys.argv[1]) for how in RUNS]), flush=True)


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
