"""Client of memkv, the shared store of KV-cache blocks for LLM inference.

    import memkv

    with memkv.Client("127.0.0.1:9900", namespace="docs") as client:
        client.put("block/1", bytes(65536))
        block = bytearray(65536)
        if client.get_into("block/1", block) is not None:
            ...

A buffer is anything with the buffer protocol (``bytes``, ``bytearray``, ``memoryview``, a NumPy array, a
ctypes array; of any shape, C-contiguous) or a pair ``(address, length)`` for memory that Python has no object
for, such as a tensor: ``(tensor.data_ptr(), tensor.nbytes)``. Nothing is copied on the way. Memory that a call
reads or fills must be left alone until it is done.

Batches that run while the caller does something else: ``Client.open_queue``, and ``memkv.aio`` for asyncio.
"""

from memkv._core import (
    BadKey,
    Busy,
    Client,
    Closed,
    Completion,
    ConfigError,
    Conflict,
    Corrupt,
    Error,
    Full,
    NativeConnector,
    Queue,
    Refused,
    Timeout,
    Unavailable,
    __version__,
)

__all__ = [
    "BadKey",
    "Busy",
    "Client",
    "Closed",
    "Completion",
    "ConfigError",
    "Conflict",
    "Corrupt",
    "Error",
    "Full",
    "NativeConnector",
    "Queue",
    "Refused",
    "Timeout",
    "Unavailable",
    "__version__",
]
