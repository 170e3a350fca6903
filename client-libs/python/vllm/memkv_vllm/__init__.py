"""memkv as a tier below vLLM's host memory.

vLLM loads `memkv_vllm.MemkvTier` by name (`secondary_tiers` of TieringOffloadingSpec). It is
imported when it is asked for, so that this package can be looked at where there is no vLLM.
"""

from typing import Any

__all__ = ["MemkvTier"]


def __getattr__(name: str) -> Any:
    if name == "MemkvTier":
        from .tier import MemkvTier

        return MemkvTier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
