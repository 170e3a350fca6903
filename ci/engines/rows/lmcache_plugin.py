"""LMCache's server with memkv as an L2 adapter."""

from harness.lmcache import prefix_comes_back

TITLE = "vLLM -> LMCache server (plugin) -> memkv; restart, flipped bytes, stall, kill"
ENVIRONMENT = "vcpu"
SECONDS = 420


def run(row):
    """Weights and layout are found out by the adapter."""
    adapter = {
        "type": "plugin",
        "module_path": "memkv_lmcache.adapter",
        "class_name": "MemKVL2Adapter",
        "adapter_params": {},
    }
    prefix_comes_back(row, adapter)
