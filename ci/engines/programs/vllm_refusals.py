"""vLLM's own tiered offloading in a namespace that is another deployment's, and on a full drive.

usage: vllm_refusals.py SERVER SMALL

No model: specification and manager are made from configurations. SERVER is where one thing after
the other is changed. SMALL is filled. Prints RESULT and a JSON object: what was refused and why, which
chunks a deployment finds of itself and of another rank, and what became of chunks without room.
"""

import dataclasses
import json
import os
import sys
import time
import traceback
from types import SimpleNamespace

from full_drive import fill

BLOCK_BYTES, SLOTS, SECONDS = 32 << 10, 64, 30
OURS = {"namespace": "ours", "model": "tiny", "weights": "none"}
# What is changed: of a part of vLLM's configuration, or what the tier is told.
CHANGES = {
    "dtype": ("model", {"dtype": "float16"}),
    "tokens_per_hash": ("cache", {"tokens_per_hash": 64}),
    "tp_size": ("parallel", {"tp_size": 2}),
    "pp_size": ("parallel", {"pp_size": 2}),
    "kv_cache_layout": (None, {"kv_cache_layout": "other"}),
    "model": ("tier", {"model": "another"}),
    "weights": ("tier", {"weights": "others"}),
    "hash": ("hash", "xxhash"),
}


def offloading(server: str, part: str | None = None, change: object = None) -> object:
    """vLLM's configuration of offloading, with one thing changed."""
    from vllm.v1.kv_offload import config

    tier = {"type": "MemkvTier", "module_path": "memkv_vllm", "servers": server, **OURS}
    if part == "tier":
        tier |= change
    parts = {
        "model": config.OffloadingModelConfig(name="tiny", dtype="bfloat16"),
        "cache": config.OffloadingCacheConfig(tokens_per_hash=32, blocks_per_chunk=8),
        "parallel": config.OffloadingParallelConfig(
            **dict.fromkeys(("world_size", "tp_size", "pp_size", "pcp_size", "dcp_size"), 1),
            rank=0,
            data_parallel_index=0,
            data_parallel_size=1,
            data_parallel_rank_local=None,
            is_parallelism_agnostic=True,
        ),
    }
    if part in parts:
        parts[part] = dataclasses.replace(parts[part], **change)
    group = config.OffloadingGroupConfig(tokens_per_block=32, layer_names=("l0",), group_id=0)
    extra = {"cpu_bytes_to_use": SLOTS * 8 * BLOCK_BYTES, "secondary_tiers": [tier]}
    return config.OffloadingConfig(
        groups=(group,),
        worker_kv_bytes_per_block=BLOCK_BYTES,
        enable_kv_cache_events=False,
        extra_config=extra,
        engine_id=f"refusals-{os.getpid()}-{time.monotonic_ns()}",
        **parts,
        **(change if part is None and change else {"kv_cache_layout": "NHD"}),
    )


def manager(server: str, part: str | None = None, change: object = None) -> object:
    """The manager with its tier; it raises what the tier raises."""
    from vllm_cpu_tier import CpuTieringSpec

    # As the connector has it, which makes the manager.
    algorithm = change if part == "hash" else "sha256"
    model = SimpleNamespace(revision=None, quantization=None, hf_overrides=None)
    cache = SimpleNamespace(prefix_caching_hash_algo=algorithm)
    vllm_config = SimpleNamespace(model_config=model, cache_config=cache)
    assert vllm_config
    return CpuTieringSpec(offloading(server, part, change)).get_manager()


def refused(server: str, field: str) -> str:
    """What is said when one thing differs; nothing when nobody objects."""
    from memkv.identity import FingerprintMismatch

    try:
        manager(server, *CHANGES[field]).shutdown()
    except FingerprintMismatch as refusal:
        return str(refusal)
    return ""


def keys(count: int) -> list:
    """Keys of chunks."""
    from vllm.v1.kv_offload.base import make_offload_key

    return [make_offload_key(bytes([number]) * 32, 0) for number in range(count)]


def finished(tier: object) -> object:
    """The next finished job."""
    ends = time.monotonic() + SECONDS
    while time.monotonic() < ends:
        for result in tier.get_finished_jobs():
            return result
    raise TimeoutError("a job did not finish")


def stored(tier: object, count: int) -> bool:
    """Stores chunks from the shared memory; whether all found room."""
    import numpy
    from vllm.v1.kv_offload.tiering.base import TransferJob

    slots = numpy.arange(count, dtype=numpy.int32)
    request = SimpleNamespace(req_id="store")
    tier.submit_store(TransferJob(1, keys(count), slots, False, request))
    return bool(finished(tier).success)


def found(tier: object, count: int) -> int:
    """How many of these chunks are there."""
    from vllm.v1.kv_offload.base import LookupResult

    request, ends = SimpleNamespace(req_id="look"), time.monotonic() + SECONDS
    while time.monotonic() < ends:
        verdicts = [tier.lookup(key, request) for key in keys(count)]
        tier.on_schedule_end()
        tier.get_finished_jobs()
        if LookupResult.RETRY not in verdicts:
            return verdicts.count(LookupResult.HIT)
    raise TimeoutError("a look-up was not answered")


def main() -> None:
    """One thing after the other."""
    server, small = sys.argv[1:3]
    first = manager(server)
    (tier,) = first.secondary_tiers
    told = {"stored": stored(tier, 4), "itself": found(tier, 4)}
    first.shutdown()
    told["refused"] = {field: refused(server, field) for field in CHANGES}
    other = manager(server, "parallel", {"rank": 1})
    told["other_rank"] = found(other.secondary_tiers[0], 4)
    other.shutdown()

    last = manager(small)
    (tier,) = last.secondary_tiers
    told["filled"] = fill(small)
    told["full"] = {"stored": stored(tier, 4), "found": found(tier, 4)}
    last.shutdown()
    print("RESULT " + json.dumps(told), flush=True)


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
