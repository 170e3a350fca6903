"""memkv as the storage of SGLang's hierarchical cache.

SGLang loads `memkv_sglang.backend.MemKVHiCacheStorage` by name (`--hicache-storage-backend
dynamic`). This package itself imports nothing of SGLang, so that it can be looked at anywhere.
"""

from .pages import HostPool

__all__ = ["HostPool"]
