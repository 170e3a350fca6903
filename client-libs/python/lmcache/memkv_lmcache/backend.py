"""A storage plug-in of LMCache inside an engine's process.

    storage_plugins: ["memkv"]
    extra_config:
      storage_plugin.memkv.module_path: memkv_lmcache.backend
      storage_plugin.memkv.class_name: MemKVStorageBackend
      memkv.servers: "10.0.0.1:9900"

A chunk of KV cache is stored as it lies in LMCache's memory, with nothing before or behind it; how
many tokens a shorter one has follows from its length. So whatever else decides over the shape of a
chunk is in the fingerprint of the namespace. LMCache logs and swallows what a constructor raises, and
goes on without the backend; this one says so itself first, as an error.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import memkv
import torch
from lmcache.utils import CacheEngineKey, LayerCacheEngineKey
from lmcache.v1 import token_database
from lmcache.v1.config import LMCacheEngineConfig
from lmcache.v1.memory_management import MemoryFormat, MemoryObj
from lmcache.v1.metadata import LMCacheMetadata
from lmcache.v1.storage_backend.abstract_backend import StoragePluginInterface
from lmcache.v1.storage_backend.local_cpu_backend import LocalCPUBackend
from memkv import identity, metrics

from . import options

log = logging.getLogger("memkv.lmcache")

#: Options are keys of `extra_config` that begin so.
OPTION_PREFIX = "memkv."
OPTIONS = (*options.CLIENT_OPTIONS, "workers", "ttl", "pin", "model", "fingerprint")
#: How long the thread waits for a completion before it looks again, in seconds.
TICK_SECONDS = 1.0
#: After a warning of a miss there is none for so long, in seconds.
SILENT_SECONDS = 10.0
SAMPLE_TOKENS = 16


class MemKVStorageBackend(StoragePluginInterface):
    """The class to name. Its options are those of `memkv.Client`, each with `memkv.` before it, and

    `workers`      batches that are under way at a time (4)
    `ttl`, `pin`   what every chunk is stored with, in seconds
    `model`        names the weights by another directory or name than the engine does
    `fingerprint`  an object of names and values that decide over the bytes as well
    """

    def __init__(
        self,
        config: LMCacheEngineConfig | None = None,
        dst_device: str = "cpu",
        metadata: LMCacheMetadata | None = None,
        local_cpu_backend: LocalCPUBackend | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
        **_later: object,
    ):
        super().__init__(dst_device, config, metadata, local_cpu_backend, loop)
        try:
            told = _told(config)
            self._shapes = Shapes(config, metadata)
            self._link = options.Link(fingerprint(config, metadata, told), told)
        except Exception as error:
            log.error("there is no memkv backend: %s", error)
            raise
        self._extra = {name: told[name] for name in ("ttl", "pin") if told.get(name) is not None}
        self._wait_seconds = float(config.blocking_timeout_secs or options.REQUEST_TIMEOUT)
        self._queue = self._link.client.open_queue(int(told.get("workers") or 4))
        self._stages = metrics.Stages(options.LABEL)
        metrics.watch(self._link.client, options.LABEL)
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._storing: set[CacheEngineKey] = set()
        self._waiting: dict[int, Callable[[memkv.Completion], None]] = {}
        self._finisher: threading.Thread | None = None
        self._ended = False
        self._silent_until = 0.0
        if self._link.binding.bound:
            self._check_hash()

    def __str__(self) -> str:
        return "MemKVStorageBackend"

    # ---- is it there? ----------------------------------------------------------------------

    def contains(self, key: CacheEngineKey, pin: bool = False) -> bool:
        return self.batched_contains([key], pin) == 1

    def batched_contains(self, keys: list[CacheEngineKey], pin: bool = False) -> int:
        """How many of the first keys are there, in one round trip.

        Nothing is pinned: a chunk that is evicted before it is fetched is computed.
        """
        if self._link.refused is not None:
            return 0
        try:
            with self._stages.time("lookup"):
                found = self._link.client.match_prefix(self._names(keys))
        except memkv.Error as error:
            self._missed("keys could not be looked up", error)
            found = 0
        self._stages.count("hits", found)
        self._stages.count("misses", len(keys) - found)
        return found

    async def batched_async_contains(
        self, lookup_id: str, keys: list[CacheEngineKey], pin: bool = False
    ) -> int:
        if self._link.refused is not None:
            return 0
        submit = self._queue.submit_match_prefix
        told: Future = Future()

        def finish(done: memkv.Completion | None) -> None:
            if told.set_running_or_notify_cancel():
                told.set_result(done.results if done is not None and done.ok else 0)

        self._submit(lambda: submit(self._names(keys)), finish)
        return await asyncio.wrap_future(told)

    def exists_in_put_tasks(self, key: CacheEngineKey) -> bool:
        with self._lock:
            return key in self._storing

    # ---- put -------------------------------------------------------------------------------

    def batched_submit_put_task(
        self,
        keys: Sequence[CacheEngineKey],
        objs: list[MemoryObj],
        transfer_spec: object = None,
        on_complete_callback: Callable[[CacheEngineKey], None] | None = None,
    ) -> list[Future] | None:
        """Stores chunks from where they lie; they are held until their bytes are out."""
        if self._link.refused is not None:
            return None
        with self._lock:
            fresh = {key: obj for key, obj in zip(keys, objs) if key not in self._storing}
            self._storing.update(fresh)
        if not fresh:
            return None
        for obj in fresh.values():
            obj.ref_count_up()
        told = {key: Future() for key in fresh}

        def finish(done: memkv.Completion | None) -> None:
            with self._lock:
                self._storing.difference_update(told)
            for obj in fresh.values():
                obj.ref_count_down()
            stored = done.results if done is not None else [False] * len(fresh)
            if done is not None and not done.ok:
                self._missed("chunks could not be stored", done.error)
            for (key, future), is_stored in zip(told.items(), stored):
                if is_stored and on_complete_callback is not None:
                    _call(on_complete_callback, key)
                future.set_result(is_stored)

        names, places = self._names(list(fresh)), _places(list(fresh.values()))
        self._submit(lambda: self._queue.submit_put(names, places, **self._extra), finish)
        return list(told.values())

    async def async_batched_submit_put_task(
        self,
        keys: Sequence[CacheEngineKey],
        objs: list[MemoryObj],
        transfer_spec: object = None,
        on_complete_callback: Callable[[CacheEngineKey], None] | None = None,
    ) -> None:
        self.batched_submit_put_task(keys, objs, transfer_spec, on_complete_callback)

    # ---- get -------------------------------------------------------------------------------

    def get_blocking(self, key: CacheEngineKey) -> MemoryObj | None:
        return self.batched_get_blocking([key])[0]

    def batched_get_blocking(self, keys: list[CacheEngineKey]) -> list[MemoryObj | None]:
        """Fetches chunks in one batch, each right into its memory."""
        objs = self._allocate(keys)
        lengths: list[int | None] = []
        if objs:
            names = self._names(keys[: len(objs)])
            errors: list = []
            try:
                with self._stages.time("load"):
                    lengths = self._link.client.get_batch_into(
                        names, _places(objs), timeout=self._wait_seconds, errors=errors
                    )
            except memkv.Error as error:
                errors.append((0, error))
            if errors:
                self._missed("chunks could not be fetched", errors[0][1])
        got = self._fitted(keys, objs, lengths)
        return got + [None] * (len(keys) - len(got))

    async def batched_get_non_blocking(
        self, lookup_id: str, keys: list[CacheEngineKey], transfer_spec: object = None
    ) -> list[MemoryObj]:
        """The first chunks, up to one that is not there."""
        return await asyncio.wrap_future(self._fetch(keys, _leading))

    def get_non_blocking(self, key: CacheEngineKey, location: str | None = None) -> Future:
        """One chunk, as a future of it or of None."""
        return self._fetch([key], lambda got: got[0] if got else None)

    # ---- the rest --------------------------------------------------------------------------

    def pin(self, key: CacheEngineKey) -> bool:
        """Chunks are not pinned: memkv keeps what is used, and a miss is computed."""
        return True

    def unpin(self, key: CacheEngineKey) -> bool:
        return True

    def remove(self, key: CacheEngineKey, force: bool = True) -> bool:
        return self.batched_remove([key], force) == 1

    def batched_remove(self, keys: list[CacheEngineKey], force: bool = True) -> int:
        if self._link.refused is not None:
            return 0
        try:
            return sum(self._link.client.delete(self._names(keys)))
        except memkv.Error as error:
            self._missed("chunks could not be removed", error)
            return 0

    def touch_cache(self) -> None:
        """memkv sees by itself what is used."""

    def get_allocator_backend(self) -> LocalCPUBackend:
        return self.local_cpu_backend

    def close(self) -> None:
        """Waits for what is under way, within its deadlines, and ends."""
        with self._changed:
            if self._ended:
                return
            self._ended = True
            self._changed.notify_all()
        self._queue.close()
        if self._finisher is not None:
            self._finisher.join()
        self._link.close()

    # ---- inside ----------------------------------------------------------------------------

    def _names(self, keys: Sequence[CacheEngineKey]) -> Sequence[str | bytes]:
        return self._link.keys([key.to_string() for key in keys])

    def _allocate(self, keys: Sequence[CacheEngineKey]) -> list[MemoryObj]:
        """Memory for the first keys, as many as there is room for: never waits."""
        objs: list[MemoryObj] = []
        if self._link.refused is None:
            for key in keys:
                layout = self._shapes.full(key)
                obj = self.local_cpu_backend.allocate(*layout, eviction=True, busy_loop=False)
                if obj is None:
                    self._missed("chunks could not be fetched", "no memory is free")
                    break
                objs.append(obj)
        return objs

    def _fitted(
        self,
        keys: Sequence[CacheEngineKey],
        objs: list[MemoryObj],
        lengths: Sequence[int | None],
    ) -> list[MemoryObj | None]:
        """Each memory cut to what came into it, None where nothing of use did."""
        got: list[MemoryObj | None] = []
        for index, obj in enumerate(objs):
            length = lengths[index] if index < len(lengths) else None
            if length is not None and self._shapes.cut(keys[index], obj, length):
                got.append(obj)
            else:
                obj.ref_count_down()
                got.append(None)
        return got

    def _fetch(self, keys: Sequence[CacheEngineKey], chosen: Callable) -> Future:
        """Fetches without waiting; the future has what `chosen` makes of the chunks.

        Memory is filled until the batch is done, also when nobody waits for it any more: then it is
        given back here.
        """
        told: Future = Future()
        objs = self._allocate(keys)

        def finish(done: memkv.Completion | None) -> None:
            if done is not None and not done.ok:
                self._missed("chunks could not be fetched", done.error)
            got = self._fitted(keys, objs, done.results if done is not None else [])
            if told.set_running_or_notify_cancel():
                told.set_result(chosen(got))
            else:
                for obj in filter(None, got):
                    obj.ref_count_down()

        names, places = self._names(keys[: len(objs)]), _places(objs)
        submit = self._queue.submit_get
        if objs:
            self._submit(lambda: submit(names, places, timeout=self._wait_seconds), finish)
        else:
            finish(None)
        return told

    def _submit(
        self, submit: Callable[[], int], finish: Callable[[memkv.Completion | None], None]
    ) -> None:
        """Starts a batch; `finish` gets its completion, or None when there is none."""
        # The lock is held until the batch has its entry: its completion may come at once.
        with self._changed:
            try:
                if self._finisher is None:
                    self._finisher = threading.Thread(
                        target=self._finish_all, name="memkv-lmcache", daemon=True
                    )
                    self._finisher.start()
                self._waiting[submit()] = finish
                self._changed.notify_all()
                return
            except memkv.Error as error:
                refusal = error
        self._missed("a batch could not be started", refusal)
        finish(None)

    def _finish_all(self) -> None:
        """The thread that tells of batches that are done."""
        while True:
            with self._changed:
                while not self._waiting:
                    if self._ended:
                        return
                    self._changed.wait()
            self._queue.wait(TICK_SECONDS)
            with self._changed:
                done = [(self._waiting.pop(one.id), one) for one in self._queue.drain()]
            for finish, completion in done:
                self._stages.completed(completion)
                try:
                    finish(completion)
                except Exception:
                    log.exception("a batch is done, and could not be told")

    def _missed(self, what: str, why: object) -> None:
        """A miss for a reason that people should know, said now and then."""
        self._stages.count("errors")
        now = time.monotonic()
        with self._lock:
            if now < self._silent_until:
                return
            self._silent_until = now + SILENT_SECONDS
        log.warning("%s: %s", what, why)

    def _check_hash(self) -> None:
        """Warns when tokens hash otherwise here than in the engine that started before."""
        algorithm = self.config.pre_caching_hash_algorithm
        try:
            hash_tokens = _hash_function(algorithm)
            sample = hash_tokens((token_database.NONE_HASH, tuple(range(SAMPLE_TOKENS)), None))
        except Exception as error:
            log.warning("hash algorithm %s cannot be checked: %s", algorithm, error)
            return
        with self._link.unprefixed() as client:
            text = sample if isinstance(sample, bytes) else str(sample)
            identity.check_hash_seed(client, algorithm, text)


class Shapes:
    """What a chunk in memory looks like, by its key and its length."""

    def __init__(self, config: LMCacheEngineConfig, metadata: LMCacheMetadata):
        if config.use_layerwise and (metadata.use_mla or config.enable_blending):
            what = "use_layerwise with MLA or blending"
            raise memkv.ConfigError(f"{what}: chunks of this kind are not supported")
        self._metadata = metadata
        self._chunk_tokens = config.chunk_size

    def full(self, key: CacheEngineKey) -> tuple[list[torch.Size], list[torch.dtype], MemoryFormat]:
        """Shapes, data types and format of a whole chunk."""
        return self._of(key, self._chunk_tokens)

    def cut(self, key: CacheEngineKey, obj: MemoryObj, length: int) -> bool:
        """Makes a chunk of `length` bytes of memory for a whole one; whether there is such a chunk."""
        whole = obj.get_size()
        if length == whole:
            return True
        token_bytes = whole // self._chunk_tokens
        if not 0 < length < whole or length % token_bytes:
            return False
        shapes, dtypes, _ = self._of(key, length // token_bytes)
        ends = [0]
        for shape, dtype in zip(shapes, dtypes, strict=True):
            ends.append(ends[-1] + shape.numel() * dtype.itemsize)
        # What the allocator knows it by, address and physical size, stays as it is.
        obj.raw_data = obj.raw_data[:length]
        obj.meta.shape = shapes[0]
        if obj.meta.shapes is not None:
            obj.meta.shapes = shapes
        obj.group_prefix_sum = ends
        return True

    def _of(
        self, key: CacheEngineKey, tokens: int
    ) -> tuple[list[torch.Size], list[torch.dtype], MemoryFormat]:
        # Asked each time: LMCache learns of groups of layers after its backends are made.
        shapes, dtypes = self._metadata.get_shapes(tokens), self._metadata.get_dtypes()
        if isinstance(key, LayerCacheEngineKey):
            kv, _, _, hidden = shapes[0]
            return [torch.Size([tokens, kv, hidden])], dtypes[:1], MemoryFormat.KV_T2D
        mla = self._metadata.use_mla
        return shapes, dtypes, MemoryFormat.KV_MLA_FMT if mla else MemoryFormat.KV_2LTD


def fingerprint(
    config: LMCacheEngineConfig, metadata: LMCacheMetadata, told: dict
) -> identity.Fingerprint:
    """All that decides over the bytes of a chunk and is not in its key, and some that is."""
    algorithm = config.pre_caching_hash_algorithm
    hash_tokens = _hash_function(algorithm)
    model = str(told.get("model") or metadata.model_name)
    return identity.Fingerprint(
        {
            "plugin": "memkv-lmcache backend",
            "format": options.FORMAT,
            "lmcache": options.lmcache_version(),
            "model": metadata.model_name,
            "weights": identity.weights_identity(model),
            "world_size": metadata.world_size,
            "kv_dtype": str(metadata.kv_dtype),
            "kv_shape": "x".join(str(size) for size in metadata.kv_shape),
            "mla": bool(metadata.use_mla),
            "chunk_size": config.chunk_size,
            "layerwise": bool(config.use_layerwise),
            "hash": f"{algorithm} {hash_tokens.__module__}.{hash_tokens.__qualname__}",
            **options.named_fields(told),
        }
    )


def _told(config: LMCacheEngineConfig) -> dict[str, object]:
    """Our options in the configuration of LMCache."""
    extra = config.extra_config or {}
    ours = [name for name in extra if name.startswith(OPTION_PREFIX)]
    told = {name.removeprefix(OPTION_PREFIX): extra[name] for name in ours}
    return options.checked(told, OPTIONS)


def _hash_function(algorithm: str) -> Callable:
    """The function that LMCache hashes tokens by: of vLLM where that is at hand."""
    # Not a database of its own: making one starts vLLM's chain of hashes anew.
    database = object.__new__(token_database.ChunkedTokenDatabase)
    return database._get_vllm_hash_func(algorithm)


def _places(objs: Sequence[MemoryObj]) -> list[tuple[int, int]]:
    """Where chunks lie: addresses and lengths."""
    return [(obj.data_ptr, obj.get_size()) for obj in objs]


def _leading(got: list[MemoryObj | None]) -> list[MemoryObj]:
    """The chunks before the first that is missing; those behind it are given back."""
    first = got.index(None) if None in got else len(got)
    for obj in filter(None, got[first:]):
        obj.ref_count_down()
    return got[:first]


def _call(callback: Callable[[CacheEngineKey], None], key: CacheEngineKey) -> None:
    try:
        callback(key)
    except Exception:
        log.exception("what was to be called when a chunk is stored has failed")
