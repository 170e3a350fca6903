"""What decides over the bytes of a chunk, read from vLLM: its fingerprint, and a sample of its
hash.

vLLM's offloading specification names model, data type, block and chunk sizes, parallel sizes and
layers; its own file tier derives its folder from the same. Weights, the hash algorithm and
quantization are in the engine's configuration, which can be asked for while the engine is being set
up.
"""

import hashlib
import inspect
import json
import os
from collections.abc import Mapping
from typing import Any

from memkv.identity import Fingerprint, weights_identity

#: How chunks become values. Raised when keys change.
KV_LAYOUT_VERSION = 1
#: What is hashed to compare processes.
_SAMPLE = tuple(range(3, 67))
#: How far up the connector is looked for.
_FRAMES = 32
#: Algorithms that vLLM starts from a random value in each process, unless PYTHONHASHSEED is set.
_SEEDED = ("xxhash", "builtin")


def engine_config() -> Any | None:
    """The configuration of the engine that is being set up by this thread, if it can be found.

    vLLM hands it to the connector that makes the tiers and not on to them, so unless vLLM says
    which is in force, it is looked for where the connector has it: in a frame above this one.
    """
    try:
        from vllm.config import get_current_vllm_config_or_none as ask
    except ImportError:
        config = None
    else:
        config = ask()
    frame = inspect.currentframe()
    for _ in range(_FRAMES):
        if config is not None or frame is None:
            break
        config = frame.f_locals.get("vllm_config")
        frame = frame.f_back
    return config if hasattr(config, "model_config") else None


def fingerprint(spec: Any, chunk_bytes: int, settings: Mapping[str, Any]) -> Fingerprint:
    """The fingerprint of the deployment that `spec` (OffloadingSpec) belongs to."""
    config, engine = spec.config, engine_config()
    model = config.model.name
    shared: dict[str, Any] = {
        "engine": "vllm",
        "kv_layout_version": KV_LAYOUT_VERSION,
        "model": settings.get("model") or model,
        "weights": settings.get("weights") or _weights(model, engine),
        "dtype": str(config.model.dtype),
        "quantization": _told(engine, "model_config", "quantization"),
        "hf_overrides": _told(engine, "model_config", "hf_overrides"),
        "hash": hash_algorithm(engine),
        "tokens_per_hash": int(config.cache.tokens_per_hash),
        "blocks_per_chunk": int(config.cache.blocks_per_chunk),
        "chunk_bytes": chunk_bytes,
        "kv_cache_groups": _groups(config),
        "kv_cache_layout": getattr(config, "kv_cache_layout", None),
        "canonical_layout": _canonical(config),
        "replicated_layout": bool(getattr(config, "replicated_layout", False)),
    }
    for size in ("tp_size", "pp_size", "pcp_size", "dcp_size"):
        shared[size] = int(getattr(config.parallel, size, 1))
    return Fingerprint(shared, {"rank": int(config.parallel.rank)})


def _weights(model: str, engine: Any) -> str:
    return weights_identity(model, _told(engine, "model_config", "revision"))


def _told(engine: Any, part: str, name: str) -> str | None:
    """A field of the engine's configuration as text; None where there is none or nothing in it."""
    value = getattr(getattr(engine, part, None), name, None)
    return str(value) if value else None


def _groups(config: Any) -> str:
    """Tokens of a block in each group of layers, and a digest of which layers those are."""
    layers = [(group.tokens_per_block, list(group.layer_names)) for group in config.groups]
    digest = hashlib.sha256(json.dumps(layers).encode()).hexdigest()[:16]
    told = [f"{len(names)} layers x {tokens} tokens" for tokens, names in layers]
    return f"{', '.join(told)} ({digest})"


def _canonical(config: Any) -> str | None:
    """The format of chunks that do not depend on parallel sizes; None for the engine's own."""
    if not getattr(config, "canonical_layout", False):
        return None
    try:
        from vllm.distributed.kv_transfer.kv_connector.v1.offloading.canonical_mapping import (
            canonical_format_id,
        )
    except ImportError:
        return "unknown"
    return str(canonical_format_id(config.kv_cache_layout))


def hash_algorithm(engine: Any) -> str:
    return _told(engine, "cache_config", "prefix_caching_hash_algo") or "unknown"


def sample_hash(algorithm: str) -> tuple[str, bool]:
    """What the engine's hash makes of a sample here, and whether PYTHONHASHSEED has its part."""
    seed = os.environ.get("PYTHONHASHSEED")
    seeded = algorithm.startswith(_SEEDED)
    try:
        from vllm.utils.hashing import get_hash_fn_by_name
        from vllm.v1.core import kv_cache_utils
    except ImportError:
        return hashlib.sha256(repr(seed).encode()).hexdigest(), seeded
    # Before there was a fixed start for the cryptographic ones, all of them were random.
    fixed = getattr(kv_cache_utils, "DEFAULT_NONE_HASH_SEED", None)
    seeded = seeded or fixed is None
    if seed is None and seeded:
        return f"random {os.urandom(8).hex()}", True
    try:
        function = get_hash_fn_by_name(algorithm)
        start = function(seed if seed is not None else fixed)
        return function((start, _SAMPLE, None)).hex(), seeded
    except (ValueError, ImportError, AttributeError):
        return hashlib.sha256(repr((algorithm, seed)).encode()).hexdigest(), seeded
