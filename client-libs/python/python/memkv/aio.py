"""memkv for asyncio.

    from memkv.aio import AsyncClient

    async with AsyncClient("127.0.0.1:9900") as client:
        await client.put_batch(keys, blocks)
        matched = await client.match_prefix(keys)

The calls are those of ``memkv.Client`` without ``errors``: a failure of any key is raised, except by
``get_batch_into``, where it is a miss. An ``AsyncClient`` belongs to the event loop that first awaits it.
Cancelling a task does not stop the transfer: the buffers are used until it is over.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

from memkv._core import Client, Closed, Completion, Error, Queue

__all__ = ["AsyncClient"]


class AsyncClient:
    """A client whose calls are awaited. Takes the arguments of ``memkv.Client``, and ``workers``."""

    def __init__(self, servers: Any = None, *, workers: int = 4, **arguments: Any) -> None:
        self.client = Client(servers, **arguments)
        self._workers = workers
        self._queue: Queue | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._fd = -1
        self._waiting: dict[int, asyncio.Future[Completion]] = {}

    async def put(self, key: str | bytes, value: Any, **options: Any) -> None:
        """Stores a value, unless one of its length is there."""
        await self.put_batch([key], [value], **options)

    async def put_batch(self, keys: Sequence[str | bytes], values: Sequence[Any], **options: Any) -> None:
        """Stores many values, in the order of their chain."""
        queue = self._open()
        self._good(await self._done(queue.submit_put(keys, values, **options)))

    async def get_into(self, key: str | bytes, buffer: Any, **options: Any) -> int | None:
        """Reads a value into ``buffer``; its length, or None when there is none."""
        queue = self._open()
        completion = self._good(await self._done(queue.submit_get([key], [buffer], **options)))
        return completion.results[0]

    async def get_batch_into(
        self, keys: Sequence[str | bytes], buffers: Sequence[Any], **options: Any
    ) -> list[int | None]:
        """Reads many values; per key its length, or None when there is none or it could not be read."""
        queue = self._open()
        return (await self._done(queue.submit_get(keys, buffers, **options))).results

    async def exists(self, keys: Sequence[str | bytes], **options: Any) -> list[bool]:
        """Which keys are stored."""
        queue = self._open()
        return self._good(await self._done(queue.submit_exists(keys, **options))).results

    async def match_prefix(self, keys: Sequence[str | bytes], **options: Any) -> int:
        """How many keys at the front of the list are stored."""
        queue = self._open()
        return self._good(await self._done(queue.submit_match_prefix(keys, **options))).results

    async def delete(self, keys: Sequence[str | bytes], **options: Any) -> list[bool]:
        """Removes blocks; per key, whether there was one."""
        queue = self._open()
        return self._good(await self._done(queue.submit_delete(keys, **options))).results

    async def close(self) -> None:
        """Waits for what is under way and takes nothing more."""
        if self._queue is not None:
            # In a thread, so that whoever awaits a transfer hears of it meanwhile.
            await asyncio.to_thread(self._queue.close)
            self._drain()
            if self._loop is not None:
                self._loop.remove_reader(self._fd)
        self.client.close()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.close()

    def _open(self) -> Queue:
        loop = asyncio.get_running_loop()
        if self._queue is None:
            self._queue = self.client.open_queue(self._workers)
            self._loop = loop
            self._fd = self._queue.event_fd()
            loop.add_reader(self._fd, self._drain)
        elif self._loop is not loop:
            raise Closed("an AsyncClient belongs to the event loop that first awaited it")
        return self._queue

    def _drain(self) -> None:
        assert self._queue is not None
        for completion in self._queue.drain():
            waiting = self._waiting.pop(completion.id, None)
            # A task that was cancelled waits no more.
            if waiting is not None and not waiting.done():
                waiting.set_result(completion)

    def _done(self, ticket: int) -> "asyncio.Future[Completion]":
        # The loop drains, and it is not running now: the completion cannot have been missed.
        waiting = asyncio.get_running_loop().create_future()
        self._waiting[ticket] = waiting
        return waiting

    @staticmethod
    def _good(completion: Completion) -> Completion:
        if not completion.ok:
            raise Error(completion.error)
        return completion
