"""The extension; everything public of it is in ``memkv``."""

from collections.abc import Sequence
from os import PathLike
from types import TracebackType
from typing import Any, Literal, TypeAlias

from typing_extensions import Buffer, Self

Key: TypeAlias = str | bytes
"""1 to 512 bytes with the client's prefix; text is UTF-8."""
Memory: TypeAlias = Buffer | tuple[int, int]
"""An object with the buffer protocol, C-contiguous, or address and length."""
Value: TypeAlias = Memory | list[Memory]
"""A list is a value in pieces, one behind the other."""
Advice: TypeAlias = Literal["release", "retain", "pin"]

__version__: str

class Error(Exception):
    """Any failure of memkv."""

    server: str | None
    """``host:port`` of the server that failed."""
    unknown_outcome: bool
    """A put or delete may have been carried out all the same."""

class ConfigError(Error): ...
class BadKey(Error): ...
class Unavailable(Error): ...
class Timeout(Error): ...
class Busy(Error): ...
class Full(Error): ...
class Conflict(Error): ...
class Refused(Error): ...
class Corrupt(Error): ...
class Closed(Error): ...

class Client:
    def __init__(
        self,
        servers: str | Sequence[str] | None = None,
        *,
        prefix: Key | None = None,
        namespace: str | None = None,
        auth_key: str | None = None,
        key_id: int | None = None,
        num_connections: int | None = None,
        connect_timeout: float | None = None,
        request_timeout: float | None = None,
        transport: Literal["auto", "tcp", "rdma"] | None = None,
        config: str | PathLike[str] | None = None,
    ) -> None: ...
    @property
    def namespace(self) -> str: ...
    @property
    def servers(self) -> list[str]: ...
    @property
    def prefix(self) -> bytes: ...
    @property
    def request_timeout(self) -> float: ...
    def put(
        self,
        key: Key,
        value: Memory,
        *,
        replace: bool = False,
        ttl: float | None = None,
        durable: bool = False,
        pin: float | None = None,
        parent: Key | None = None,
        timeout: float | None = None,
    ) -> bool: ...
    def get(self, key: Key, *, timeout: float | None = None) -> bytes | None: ...
    def get_into(
        self, key: Key, buffer: Memory, *, offset: int = 0, timeout: float | None = None
    ) -> int | None: ...
    def exists(self, keys: Sequence[Key], *, timeout: float | None = None) -> list[bool]: ...
    def match_prefix(self, keys: Sequence[Key], *, timeout: float | None = None) -> int: ...
    def put_batch(
        self,
        keys: Sequence[Key],
        values: Sequence[Value],
        *,
        replace: bool = False,
        ttl: float | None = None,
        durable: bool = False,
        pin: float | None = None,
        timeout: float | None = None,
        together: bool = False,
        errors: list[tuple[int, Error]] | None = None,
    ) -> list[bool]: ...
    def get_batch_into(
        self,
        keys: Sequence[Key],
        buffers: Sequence[Value],
        *,
        timeout: float | None = None,
        errors: list[tuple[int, Error]] | None = None,
    ) -> list[int | None]: ...
    def delete(
        self,
        keys: Sequence[Key],
        *,
        timeout: float | None = None,
        errors: list[tuple[int, Error]] | None = None,
    ) -> list[bool]: ...
    def hint(self, keys: Sequence[Key], advice: Advice, seconds: float | None = None) -> list[bool]: ...
    def stats(self) -> dict[str, Any]: ...
    def server_stats(self) -> dict[str, dict[str, int] | Error]: ...
    def traced(self, trace: str) -> Client: ...
    def open_queue(self, workers: int = 4) -> Queue: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

class Completion:
    @property
    def id(self) -> int: ...
    @property
    def op(self) -> Literal["put", "get", "exists", "match_prefix", "delete"]: ...
    @property
    def ok(self) -> bool: ...
    @property
    def error(self) -> str: ...
    @property
    def results(self) -> Any: ...
    @property
    def bytes(self) -> int: ...
    @property
    def wait_seconds(self) -> float: ...
    @property
    def transfer_seconds(self) -> float: ...

class Queue:
    def event_fd(self) -> int: ...
    def submit_put(
        self,
        keys: Sequence[Key],
        values: Sequence[Value],
        *,
        replace: bool = False,
        ttl: float | None = None,
        durable: bool = False,
        pin: float | None = None,
        timeout: float | None = None,
        trace: str | None = None,
    ) -> int: ...
    def submit_get(
        self,
        keys: Sequence[Key],
        buffers: Sequence[Value],
        *,
        timeout: float | None = None,
        trace: str | None = None,
    ) -> int: ...
    def submit_exists(
        self, keys: Sequence[Key], *, timeout: float | None = None, trace: str | None = None
    ) -> int: ...
    def submit_match_prefix(
        self, keys: Sequence[Key], *, timeout: float | None = None, trace: str | None = None
    ) -> int: ...
    def submit_delete(
        self, keys: Sequence[Key], *, timeout: float | None = None, trace: str | None = None
    ) -> int: ...
    def drain(self) -> list[Completion]: ...
    def wait(self, timeout: float | None = None) -> bool: ...
    def pending(self) -> int: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

class NativeConnector:
    def __init__(
        self,
        servers: str | Sequence[str] | None = None,
        *,
        workers: int = 4,
        ttl: float | None = None,
        pin: float | None = None,
        prefix: Key | None = None,
        namespace: str | None = None,
        auth_key: str | None = None,
        key_id: int | None = None,
        num_connections: int | None = None,
        connect_timeout: float | None = None,
        request_timeout: float | None = None,
        transport: Literal["auto", "tcp", "rdma"] | None = None,
        config: str | PathLike[str] | None = None,
    ) -> None: ...
    def event_fd(self) -> int: ...
    def submit_batch_set(self, keys: Sequence[Key], bufs: Sequence[Value]) -> int: ...
    def submit_batch_get(self, keys: Sequence[Key], bufs: Sequence[Value]) -> int: ...
    def submit_batch_exists(self, keys: Sequence[Key]) -> int: ...
    def submit_batch_delete(self, keys: Sequence[Key]) -> int: ...
    def drain_completions(self) -> list[tuple[int, bool, str, list[bool]]]: ...
    def stats(self) -> dict[str, Any]: ...
    def close(self) -> None: ...
