"""LMCache's engine in this process, with memkv as its storage plug-in and nothing else behind it.

usage: lmcache_engine.py SERVERS MODEL

Reads a JSON object a line: {"do": "store"}, "load" or "drill", and what is to be different from `Options`.
Each gets an engine of its own, with nothing in memory, and answers with RESULT and a JSON object. Keys and
values of the paged cache follow from a seed, so that another process can tell whether what it loads is
what was stored.
"""

import dataclasses
import json
import os
import sys
import time
import traceback

os.environ.setdefault("LMCACHE_TRACK_USAGE", "false")
os.environ.setdefault("LMCACHE_LOG_LEVEL", "WARNING")

import torch
from lmcache.v1.cache_engine import LMCacheEngineBuilder
from lmcache.v1.config import LMCacheEngineConfig
from lmcache.v1.gpu_connector.gpu_connectors import GPUConnectorInterface
from lmcache.v1.metadata import LMCacheMetadata

LAYERS, HEADS, HEAD_SIZE, CHUNK = 4, 2, 64, 256
SLOTS, HIDDEN = 4096, HEADS * HEAD_SIZE
WHOLE, REST = 8, 100


class Paged(GPUConnectorInterface):
    """Moves tokens between a paged cache in ordinary memory and LMCache's: [2, layers, tokens, hidden]."""

    def from_gpu(self, memory_obj, start, end, **kwargs):
        """Reads tokens out of the paged cache."""
        slots = kwargs["slot_mapping"][start:end]
        for layer, cache in enumerate(kwargs["kvcaches"]):
            memory_obj.tensor[:, layer] = cache[:, slots]

    def to_gpu(self, memory_obj, start, end, **kwargs):
        """Writes tokens into it."""
        slots = kwargs["slot_mapping"][start:end]
        for layer, cache in enumerate(kwargs["kvcaches"]):
            cache[:, slots] = memory_obj.tensor[:, layer]

    def batched_from_gpu(self, memory_objs, starts, ends, **kwargs):
        """All of a request."""
        for memory_obj, start, end in zip(memory_objs, starts, ends):
            self.from_gpu(memory_obj, start, end, **kwargs)

    def batched_to_gpu(self, memory_objs=None, starts=None, ends=None, **kwargs):
        """All of a request."""
        for memory_obj, start, end in zip(memory_objs, starts, ends):
            self.to_gpu(memory_obj, start, end, **kwargs)

    def get_shape(self, num_tokens):
        """Of so many tokens."""
        return torch.Size([2, LAYERS, num_tokens, HIDDEN])


@dataclasses.dataclass
class Options:
    """What an engine is made with."""

    do: str
    servers: str
    model: str
    name: str = "tiny"
    namespace: str | None = None
    unfull: bool = True
    dtype: str = "bfloat16"
    chunk: int = CHUNK
    world: int = 1
    worker: int = 0
    hash: str = "builtin"
    seed: int = 1


def make_engine(options, name):
    """An engine with its own memory, empty."""
    extra = {
        "storage_plugin.memkv.module_path": "memkv_lmcache.backend",
        "storage_plugin.memkv.class_name": "MemKVStorageBackend",
        "memkv.servers": options.servers,
        "memkv.model": options.model,
        "memkv.request_timeout": 3.0,
    }
    if options.namespace:
        extra["memkv.namespace"] = options.namespace
    config = LMCacheEngineConfig.from_defaults(
        chunk_size=options.chunk,
        local_cpu=False,
        max_local_cpu_size=0.25,
        lmcache_instance_id=name,
        save_unfull_chunk=options.unfull,
        blocking_timeout_secs=3,
        pre_caching_hash_algorithm=options.hash,
        storage_plugins=["memkv"],
        extra_config=extra,
    )
    metadata = LMCacheMetadata(
        model_name=options.name,
        world_size=options.world,
        local_world_size=1,
        worker_id=options.worker,
        local_worker_id=0,
        kv_dtype=getattr(torch, options.dtype),
        kv_shape=(LAYERS, 2, options.chunk, HEADS, HEAD_SIZE),
        role="worker",
        chunk_size=options.chunk,
    )
    same = [lambda tensor, source: None, lambda value, source: value]
    engine = LMCacheEngineBuilder.get_or_create(name, config, metadata, Paged(), *same)
    engine.post_init()
    return engine


def made_up(options):
    """The prompt, and a paged cache that follows from it: tokens, cache, slots."""
    generator = torch.Generator().manual_seed(options.seed)
    count = WHOLE * CHUNK + (REST if options.unfull else 0)
    tokens = torch.arange(count) * 7 % 30000
    dtype = getattr(torch, options.dtype)
    shape = (2, SLOTS, HIDDEN)
    caches = [torch.randn(shape, generator=generator).to(dtype) for _ in range(LAYERS)]
    return tokens, caches, torch.randperm(SLOTS, generator=generator)[:count]


def store(engine, options):
    """Stores the prompt, and waits until all of it is found."""
    backends = list(engine.storage_manager.storage_backends)
    tokens, caches, slots = made_up(options)
    before = engine.lookup(tokens)
    engine.store(tokens, kvcaches=caches, slot_mapping=slots)
    end = time.monotonic() + 20
    while engine.lookup(tokens) < len(tokens) and time.monotonic() < end:
        time.sleep(0.005)
    return {"backends": backends, "before": before, "found": engine.lookup(tokens)}


def load(engine, options):
    """Loads what is found of the prompt; how many tokens, and whether they are the right ones."""
    tokens, caches, slots = made_up(options)
    empty = [torch.zeros_like(cache) for cache in caches]
    begun = time.perf_counter()
    found = engine.lookup(tokens, lookup_id="request", pin=True)
    mask = engine.retrieve(tokens, kvcaches=empty, slot_mapping=slots, req_id="request")
    seconds = time.perf_counter() - begun
    engine.lookup_unpin("request")
    loaded = int(mask.sum())
    here, there = slots[:loaded], slots[loaded:]
    exact = all(torch.equal(one[:, here], got[:, here]) for one, got in zip(caches, empty))
    untouched = all(not got[:, there].any() for got in empty)
    allocator = engine.storage_manager.local_cpu_backend.memory_allocator
    return {
        "tokens": len(tokens),
        "found": found,
        "loaded": loaded,
        "exact": exact and untouched,
        "seconds": round(seconds, 4),
        "memory_is_sound": bool(allocator.memcheck()),
    }


def drill(engine, options):
    """A hole in the middle of the prefix: looked up, loaded, and loaded as if it were not there."""
    plugin = engine.storage_manager.storage_backends["memkv"]
    tokens, _, _ = made_up(options)
    other = torch.cat([tokens[: 4 * CHUNK], tokens[4 * CHUNK :] + 1])
    keys = [key for _, _, key in engine.token_database.process_tokens(tokens)]
    told = {"common_prefix": engine.lookup(other), "removed": plugin.remove(keys[3])}
    got = plugin.batched_get_blocking(keys)
    for obj in filter(None, got):
        obj.ref_count_down()
    return told | {"gap": [obj is not None for obj in got], "hole": load(engine, options)}


def main():
    """Serves lines until there are none."""
    print('RESULT {"ready": true}', flush=True)
    for number, line in enumerate(sys.stdin):
        options = Options(servers=sys.argv[1], model=sys.argv[2], **json.loads(line))
        name = f"engine-{number}"
        engine = make_engine(options, name)
        told = {"store": store, "load": load, "drill": drill}[options.do](engine, options)
        LMCacheEngineBuilder.destroy(name)
        print("RESULT " + json.dumps(told), flush=True)


if __name__ == "__main__":
    try:
        main()
        STATUS = 0
    except BaseException:
        traceback.print_exc()
        STATUS = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # LMCache leaves threads that would not let the interpreter end.
    os._exit(STATUS)
