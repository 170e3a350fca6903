"""LMCache's server with memkv as a native client."""

from harness.lmcache import prefix_comes_back

TITLE = "vLLM -> LMCache server (native_plugin) -> memkv; restart, flipped bytes, stall, kill"
ENVIRONMENT = "vcpu"
SECONDS = 420


def run(row):
    """Keys and bytes alone: the model is named."""
    adapter = {
        "type": "native_plugin",
        "module_path": "memkv_lmcache.connector",
        "class_name": "MemKVConnector",
        "adapter_params": {"model": str(row.tiny_llama()), "fingerprint": {"dtype": "bfloat16"}},
    }
    prefix_comes_back(row, adapter)
