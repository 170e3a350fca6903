"""What decides over the bytes of a page, read from SGLang: the fingerprint of a rank, and its
sample hash.

SGLang's configuration of a storage backend names model and ranks, but neither data type, weights,
page size nor layout. Those come from the host pool and, where they can be asked, from the arguments
of the server.
"""

import logging
from typing import Any

from memkv.identity import Fingerprint, weights_identity

log = logging.getLogger("memkv_sglang")

#: How pages become values. Raised when keys or the order of pieces change.
KV_LAYOUT_VERSION = 1
#: What is hashed to compare processes: tokens that no engine treats specially.
_SAMPLE = list(range(3, 67))
#: Numbers of a host pool that differ from rank to rank and give a page its shape.
_GEOMETRY = (
    "start_layer",
    "end_layer",
    "layer_num",
    "target_layer_num",
    "head_num",
    "head_dim",
    "v_head_dim",
    "kv_cache_dim",
    "kv_lora_rank",
    "qk_rope_head_dim",
    "size_per_token",
)
#: Arguments of the server that change what is computed or how it is kept.
_ARGUMENTS = ("kv_cache_dtype", "quantization", "json_model_override_args")


def server_arguments() -> Any | None:
    """The arguments that this SGLang process was started with, if it has any."""
    try:
        from sglang.srt.runtime_context import get_server_args as ask  # 0.5.2x
    except ImportError:
        try:
            from sglang.srt.server_args import get_global_server_args as ask  # earlier
        except ImportError:
            return None
    try:
        return ask()
    except Exception:  # no server in this process: whatever it raises, there is nothing to read
        return None


def sample_hash() -> tuple[str, str]:
    """Name of SGLang's hash algorithm, and what it makes of a fixed sample here."""
    from sglang.srt.mem_cache.utils import get_hash_str

    try:
        sample = get_hash_str(_SAMPLE, None, page_size=len(_SAMPLE))
    except TypeError:  # before pages were hashed in one call
        sample = get_hash_str(_SAMPLE, None)
    return "sglang-pages", str(sample[-1] if isinstance(sample, list) else sample)


def fingerprint(config: Any, pool: Any, settings: dict[str, Any]) -> Fingerprint:
    """The fingerprint of the rank that `config` (HiCacheStorageConfig) and `pool` belong to."""
    arguments = server_arguments()
    model = getattr(config, "model_name", None)
    path = getattr(arguments, "model_path", None)
    mla = bool(getattr(config, "is_mla_model", False))
    shared: dict[str, Any] = {
        "engine": "sglang",
        "kv_layout_version": KV_LAYOUT_VERSION,
        "model": settings.get("model") or model,
        "weights": settings.get("weights") or _weights(path or model, arguments),
        "dtype": str(getattr(pool, "dtype", None)),
        "page_size": int(getattr(pool, "page_size", 0)),
        "layout": getattr(pool, "layout", None),
        "pool": type(pool).__name__,
        "interface": "zero copy" if settings.get("interface_v1") else "copies",
        "mla": mla,
        "hash": "-".join(sample_hash())[: len("sglang-pages-") + 16],
    }
    for size in ("tp_size", "pp_size", "attn_cp_size", "dcp_size"):
        shared[size] = int(getattr(config, size, 1) or 1)
    for argument in _ARGUMENTS:
        value = getattr(arguments, argument, None)
        shared[argument] = None if value is None else str(value)
    rank = {"pp_rank": config.pp_rank, "attn_cp_rank": getattr(config, "attn_cp_rank", 0)}
    rank["dcp_rank"] = getattr(config, "dcp_rank", 0)
    # All tensor-parallel ranks of an MLA model keep the same bytes, which one of them writes.
    if not mla:
        rank["tp_rank"] = config.tp_rank
    for name in _GEOMETRY:
        value = getattr(pool, name, None)
        if isinstance(value, int):
            rank[name] = value
    return Fingerprint(shared, rank)


def _weights(path: str | None, arguments: Any) -> str | None:
    if path is None:
        log.warning(
            "memkv cannot tell which weights these are: name them by `weights` in the extra config"
        )
        return None
    return weights_identity(path, getattr(arguments, "revision", None))


def rank_tag(config: Any, name: str, pool: Any) -> str:
    """What tells ranks of an MLA model apart, in a pool that is sharded although KV is not."""
    if name == "kv" or not getattr(config, "is_mla_model", False):
        return ""
    sharded = name == "mamba" or hasattr(pool, "head_num")
    return f"tp{config.tp_rank}of{config.tp_size}" if sharded else ""


def is_writer(config: Any) -> bool:
    """Whether this rank writes what all ranks of an MLA model have in common."""
    writer = getattr(config, "is_storage_writer", None)
    return (not config.is_mla_model or config.tp_rank == 0) if writer is None else bool(writer)
