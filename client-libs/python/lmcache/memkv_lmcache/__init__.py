"""LMCache on memkv.

`memkv_lmcache.adapter`
    `MemKVL2Adapter`: an L2 adapter of LMCache's server, loaded by its adapter type `plugin`. It is
    told the layout of what it stores, and keeps layouts and weights apart by itself.
`memkv_lmcache.connector`
    `MemKVConnector`: the same server's interface for native clients, type `native_plugin`. It sees
    keys and bytes alone.
`memkv_lmcache.backend`
    `MemKVStorageBackend`: a storage plug-in of LMCache inside an engine's process.

What does not fit is refused when they are made, loudly. In service a store that is away, slow, full
or wrong is a miss, and the engine computes what it did not get. This package imports neither LMCache
nor torch; `adapter` and `backend` do.
"""

__version__ = "0.1.0"
