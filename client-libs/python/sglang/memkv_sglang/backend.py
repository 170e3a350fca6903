"""SGLang's HiCache storage on memkv.

    --enable-hierarchical-cache --hicache-storage-backend dynamic
    --hicache-storage-backend-extra-config '{"backend_name": "memkv", "interface_v1": 1,
        "module_path": "memkv_sglang.backend", "class_name": "MemKVHiCacheStorage"}'

SGLang calls from threads of its own (look-ups, loads and write-backs each have one), so every call
here is one synchronous batch: one round trip, with the GIL released. What goes wrong is a miss or a
page that was not stored, never an exception, and never a page that came in part: SGLang computes it
again.

A call never waits for a server that is away longer than the client's deadlines say, and one that is
bound to another fingerprint stops the engine's start (see `memkv.identity`).
"""

import dataclasses
import logging
import threading
import time
from collections.abc import Sequence
from typing import Any

import memkv
import memkv.metrics
from memkv import identity
from sglang.srt.mem_cache.hicache_storage import HiCacheStorage

from . import deployment
from .meter import Meter, Stage
from .pages import HostPool, Piece, length

log = logging.getLogger("memkv_sglang")

#: Keys of the extra config that are arguments of `memkv.Client`.
_CLIENT = (
    "servers",
    "namespace",
    "auth_key",
    "key_id",
    "num_connections",
    "connect_timeout",
    "request_timeout",
    "config",
)
#: Ours beside them.
_OURS = ("model", "weights", "ttl", "durable", "lookup_seconds", "load_seconds", "store_seconds")
#: By when a call is over, unless the extra config says otherwise; a batch is 128 pages.
_SECONDS = {"lookup": 2.0, "load": 10.0, "store": 30.0}
#: SGLang's own.
_THEIRS = ("backend_name", "module_path", "class_name", "interface_v1")
#: So many pages are remembered for `clear`, the latest ones.
_KNOWN_PAGES = 1 << 18
#: How often a failing server is told of, in seconds.
_TELL_SECONDS = 10.0

#: A pool, some pages by their hashes, and the slots where they are or belong.
_Want = tuple[HostPool, Sequence[str], Any]


class MemKVHiCacheStorage(HiCacheStorage):
    """One rank's storage: SGLang makes it, registers its host pools, and closes it."""

    def __init__(self, storage_config: Any, kwargs: dict | None = None, **_more: Any):
        self.config = storage_config
        self.settings = dict(getattr(storage_config, "extra_config", None) or {})
        unknown = [
            name
            for name in self.settings
            if name not in (*_CLIENT, *_OURS, *_THEIRS)
            and not name.startswith(("hicache", "prefetch"))
        ]
        if unknown:
            log.warning("memkv does not know %s in the extra config", ", ".join(sorted(unknown)))
        self.copied = not self.settings.get("interface_v1")
        self.seconds = {
            what: _time(self.settings, f"{what}_seconds", default)
            for what, default in _SECONDS.items()
        }
        self.writer = deployment.is_writer(storage_config)
        self.meter = Meter()
        self.fingerprint: identity.Fingerprint | None = None
        self.pools: dict[str, HostPool] = {}
        self._client: memkv.Client | None = None
        self._binding: identity.Binding | None = None
        self._known: dict[tuple[str, str], None] = {}
        self._lock = threading.Lock()
        self._told = 0.0

    # ---- coming and going

    def register_mem_pool_host(self, mem_pool_host: Any) -> None:
        """Connects, as whoever this pool's pages belong to. Raises FingerprintMismatch if that is
        not whose the namespace is."""
        super().register_mem_pool_host(mem_pool_host)
        pool = HostPool("kv", mem_pool_host, copied=self.copied)
        pool.check()
        self.fingerprint = deployment.fingerprint(self.config, mem_pool_host, self.settings)
        self._disconnect()
        self.pools = {"kv": pool}
        client = {name: self.settings[name] for name in _CLIENT if name in self.settings}
        self._client, self._binding = identity.connect(self.fingerprint, "sglang", **client)
        memkv.metrics.watch(self._client, "sglang")
        self._introduce({**client, "namespace": self._client.namespace})
        log.info(
            "memkv: namespace %s on %s, %s of %s, pages of %s bytes",
            self._client.namespace,
            self._client.servers,
            self.fingerprint,
            type(mem_pool_host).__name__,
            " + ".join(map(str, pool.sizes[:2])) + (" + …" if len(pool.sizes) > 2 else ""),
        )

    def _introduce(self, client: dict[str, Any]) -> None:
        """Compares hashes with whoever was here before, and opens the connections of requests."""
        ours = self._ready()
        if ours is None:
            return
        with memkv.Client(**client) as plain:
            # SGLang's page hashes are SHA-256 of tokens: no seed has a part in them.
            identity.check_hash_seed(plain, *deployment.sample_hash(), seeded=False)
        try:
            ours.match_prefix([b"warm-up"], timeout=self.seconds["lookup"])
        except memkv.Error as error:
            self._tell("warm-up", error)

    def register_mem_host_pool_v2(self, host_pool: Any, host_pool_name: Any) -> None:
        super().register_mem_host_pool_v2(host_pool, host_pool_name)
        name = _name(host_pool_name)
        if name == "kv" and "kv" in self.pools:
            return
        tag = deployment.rank_tag(self.config, name, host_pool)
        # Pools beside KV are moved by the calls of v2 alone, whatever is said of v1.
        pool = HostPool(name, host_pool, tag=tag)
        pool.check()
        self.pools[name] = pool

    def close(self) -> None:
        """Ends all connections. May be called again; a new instance starts anew."""
        self._disconnect()

    def _disconnect(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _ready(self) -> memkv.Client | None:
        """The client, if the namespace is bound to who we are."""
        client = self._client
        return client if client is not None and self._binding.ready() else None

    # ---- which pages are there

    def exists(self, key: str) -> bool:
        return self.batch_exists([key]) == 1

    def batch_exists(self, keys: Sequence[str], extra_info: Any = None) -> int:
        """How many leading pages are stored, by one MatchPrefix."""
        client = self._ready()
        if not keys or client is None:
            return 0
        pool = self.pools["kv"]
        with self.meter.timed("lookup", len(keys)) as call:
            try:
                call.hits = client.match_prefix(pool.keys(keys), timeout=self.seconds["lookup"])
            except memkv.Error as error:
                self._failed("lookup", call, error)
        self._remember("kv", keys[: call.hits])
        return call.hits

    def batch_exists_v2(
        self, keys: Sequence[str], pool_transfers: Any = None, extra_info: Any = None
    ) -> Any:
        """The leading pages that can be used with what other pools need, by one Exists."""
        transfers = list(pool_transfers or ())
        pools = [
            self.pools["kv"],
            *(self.pools.get(_name(transfer.name)) for transfer in transfers),
        ]
        there = self._there(keys, pools)
        pages = _leading(there[0]) if there else 0
        hits, restorable = ({"kv": pages} if pages else {}), set(range(1, pages + 1))
        for transfer, whole in zip(transfers, there[1:], strict=False):
            policy = _name(transfer.hit_policy)
            usable = _usable(policy, whole[:pages], len(transfer.keys or ()) or 1)
            if usable is None:
                continue  # a second form of the same pages, of which none is stored here
            if usable:
                hits[_name(transfer.name)] = max(usable)
            restorable &= usable
        self._remember("kv", keys[: max(restorable, default=0)])
        return _transfer_result(hits, sorted(restorable))

    def _there(self, keys: Sequence[str], pools: list[HostPool | None]) -> list[list[bool]]:
        """For each pool which pages are stored; empty if nobody can say."""
        client = self._ready()
        if not keys or client is None:
            return []
        asked = [pool.keys(keys) if pool and not pool.empty else [] for pool in pools]
        with self.meter.timed("lookup", len(keys)) as call:
            try:
                names = [key for names in asked for key in names]
                found = client.exists(names, timeout=self.seconds["lookup"])
            except memkv.Error as error:
                self._failed("lookup", call, error)
                return []
            there, start = [], 0
            for pool, names in zip(pools, asked, strict=True):
                results = found[start : start + len(names)]
                start += len(names)
                if pool is None or pool.empty:
                    # Nothing is kept of an anchor, so nothing of it can be missing; of a pool that
                    # was never registered nothing can be there.
                    there.append([pool is not None] * len(keys))
                else:
                    there.append(results)
            call.hits = _leading(there[0])
        return there

    # ---- zero copy

    def batch_get_v1(
        self, keys: Sequence[str], host_indices: Any, extra_info: Any = None
    ) -> list[bool]:
        return self._load([(self.pools["kv"], keys, host_indices)])[0]

    def batch_set_v1(
        self, keys: Sequence[str], host_indices: Any, extra_info: Any = None
    ) -> list[bool]:
        return self._store([(self.pools["kv"], keys, host_indices)])[0]

    def batch_get_v2(
        self, transfers: Sequence[Any], extra_info: Any = None
    ) -> dict[str, list[bool]]:
        return self._of_pools(self._load, transfers)

    def batch_set_v2(
        self, transfers: Sequence[Any], extra_info: Any = None
    ) -> dict[str, list[bool]]:
        return self._of_pools(self._store, transfers)

    def _of_pools(self, move: Any, transfers: Sequence[Any]) -> dict[str, list[bool]]:
        wanted: list[_Want] = []
        results = {transfer.name: [False] * len(transfer.keys or ()) for transfer in transfers}
        for transfer in transfers:
            pool, keys = self.pools.get(_name(transfer.name)), list(transfer.keys or ())
            slots = 0 if transfer.host_indices is None else transfer.host_indices.numel()
            if pool is None or slots != len(keys) * pool.slots:
                log.error("memkv: %s has %d slots for %d pages", transfer.name, slots, len(keys))
            elif keys:
                wanted.append((pool, keys, transfer.host_indices))
        if wanted:
            names = {_name(transfer.name): transfer.name for transfer in transfers}
            for (pool, _, _), pages in zip(wanted, move(wanted), strict=True):
                results[names[pool.name]] = pages
        return results

    def _load(self, wanted: list[_Want]) -> list[list[bool]]:
        """Reads pages into their places; True for those that came whole."""
        pages = [[False] * len(keys) for _, keys, _ in wanted]
        client = self._ready()
        if client is None:
            return pages
        places, copies = self._places(wanted, fresh=True)
        names = [key for pool, keys, _ in wanted if not pool.empty for key in pool.keys(keys)]
        with self.meter.timed("load", len(names)) as call:
            pages = _split(wanted, self._get(client, names, places, call))
            call.hits = sum(map(sum, pages))
        for (pool, keys, indices), came, flat in zip(wanted, pages, copies, strict=True):
            for page, tensor in enumerate(flat):
                if came[page]:
                    pool.pool.set_from_flat_data_page(int(indices[page * pool.slots]), tensor)
            self._remember(pool.name, [key for key, there in zip(keys, came, strict=True) if there])
        return pages

    def _store(self, wanted: list[_Want]) -> list[list[bool]]:
        """Stores pages from where they are; True for those that are stored now."""
        mine = [want for want in wanted if self._writes(want[0])]
        stored = iter(self._store_mine(mine)) if mine else iter(())
        # What another rank writes is stored as far as this one is concerned.
        return [
            next(stored) if self._writes(pool) else [True] * len(keys) for pool, keys, _ in wanted
        ]

    def _writes(self, pool: HostPool) -> bool:
        return self.writer or bool(deployment.rank_tag(self.config, pool.name, pool.pool))

    def _store_mine(self, wanted: list[_Want]) -> list[list[bool]]:
        client = self._ready()
        if client is None:
            return [[False] * len(keys) for _, keys, _ in wanted]
        places, _copies = self._places(wanted, fresh=False)
        names = [key for pool, keys, _ in wanted if not pool.empty for key in pool.keys(keys)]
        with self.meter.timed("store", len(names)) as call:
            pages = _split(wanted, self._put(client, names, places, call))
            call.hits = sum(map(sum, pages))
        for (pool, keys, _), kept in zip(wanted, pages, strict=True):
            self._remember(pool.name, [key for key, there in zip(keys, kept, strict=True) if there])
        return pages

    def _places(self, wanted: list[_Want], fresh: bool) -> tuple[list[list[Piece]], list[list]]:
        """Where all pages lie, and the flat copies of pools that can only be copied: empty ones if
        `fresh`, else of what is in the pool."""
        places: list[list[Piece]] = []
        copies = []
        for pool, keys, indices in wanted:
            flat: list = []
            if pool.zero_copy:
                places += pool.places(indices)
            elif not pool.empty:
                flat = [
                    self._flat(pool, int(indices[page * pool.slots]), fresh)
                    for page in range(len(keys))
                ]
                places += [[_piece(tensor)] for tensor in flat]
            copies.append(flat)
        return places, copies

    @staticmethod
    def _flat(pool: HostPool, index: int, fresh: bool) -> Any:
        if fresh:
            return pool.pool.get_dummy_flat_data_page()
        return pool.pool.get_data_page(index, flat=True).contiguous()

    def _get(
        self, client: memkv.Client, names: list[bytes], places: list[list[Piece]], call: Stage
    ) -> list[bool]:
        errors: list = []
        try:
            timeout = self.seconds["load"]
            lengths = client.get_batch_into(names, places, errors=errors, timeout=timeout)
        except memkv.Error as error:
            self._failed("load", call, error)
            return [False] * len(names)
        for _, error in errors[:1]:
            self._failed("load", call, error, len(errors))
        # A value of another length is not this page, however it came about.
        came = [found == length(place) for found, place in zip(lengths, places, strict=True)]
        call.bytes = sum(length(place) for place, there in zip(places, came, strict=True) if there)
        return came

    def _put(
        self, client: memkv.Client, names: list[bytes], places: list[list[Piece]], call: Stage
    ) -> list[bool]:
        errors: list = []
        options = {
            name: self.settings[name] for name in ("ttl", "durable") if name in self.settings
        }
        try:
            timeout = self.seconds["store"]
            kept = client.put_batch(names, places, errors=errors, timeout=timeout, **options)
        except memkv.Error as error:
            self._failed("store", call, error)
            return [False] * len(names)
        for _, error in errors[:1]:
            self._failed("store", call, error, len(errors))
        call.bytes = sum(length(place) for place, there in zip(places, kept, strict=True) if there)
        return kept

    # ---- copies, as SGLang asks for them without interface_v1

    def get(self, key: str, target_location: Any = None, target_sizes: Any = None) -> Any:
        return self.batch_get([key], [target_location])[0]

    def batch_get(
        self, keys: Sequence[str], target_locations: Any = None, target_sizes: Any = None
    ) -> list[Any]:
        """The tensors of `target_locations` that could be filled, None for the others."""
        targets = list(target_locations or ())
        if len(targets) != len(keys) or any(target is None for target in targets):
            log.error("memkv: get without a place for each of %d pages", len(keys))
            return [None] * len(keys)
        client = self._ready()
        if client is None:
            return [None] * len(keys)
        with self.meter.timed("load", len(keys)) as call:
            came = self._get(client, _flat_keys(keys), [[_piece(to)] for to in targets], call)
            call.hits = sum(came)
        self._remember("kv", [key for key, whole in zip(keys, came, strict=True) if whole])
        return [target if whole else None for target, whole in zip(targets, came, strict=True)]

    def set(
        self,
        key: str,
        value: Any = None,
        target_location: Any = None,
        target_sizes: Any = None,
    ) -> bool:
        return self.batch_set([key], [value])

    def batch_set(
        self,
        keys: Sequence[str],
        values: Any = None,
        target_locations: Any = None,
        target_sizes: Any = None,
    ) -> bool:
        """Whether all are stored now."""
        if not self.writer:
            return True
        client, values = self._ready(), list(values or ())
        if len(values) != len(keys) or client is None:
            return False
        flat = [value.contiguous() for value in values]
        with self.meter.timed("store", len(keys)) as call:
            kept = self._put(client, _flat_keys(keys), [[_piece(value)] for value in flat], call)
            call.hits = sum(kept)
        self._remember("kv", [key for key, stored in zip(keys, kept, strict=True) if stored])
        return all(kept)

    # ---- the rest

    def clear(self) -> None:
        """Deletes the pages that this process has stored or found, the latest 262,144 of them."""
        with self._lock:
            known, self._known = list(self._known), {}
        client = self._ready()
        if not known or client is None:
            return
        names = [key for name, page in known for key in self.pools[name].keys([page])]
        with self.meter.timed("clear", len(known)) as call:
            try:
                call.hits = sum(client.delete(names, timeout=self.seconds["store"]))
            except memkv.Error as error:
                self._failed("clear", call, error)

    def get_stats(self) -> Any:
        """SGLang's own metrics: pages and GB/s of each load and store since the last time."""
        if not getattr(self.config, "enable_storage_metrics", False):
            return None
        try:
            from sglang.srt.observability.metrics_collector import StorageMetrics
        except ImportError:
            from sglang.srt.metrics.collector import StorageMetrics  # before 0.5.2x

        metrics = StorageMetrics()
        for stage, pages, rates in (
            ("load", metrics.prefetch_pgs, metrics.prefetch_bandwidth),
            ("store", metrics.backup_pgs, metrics.backup_bandwidth),
        ):
            moved, at = self.meter.take(stage)
            pages.extend(moved)
            rates.extend(at)
        return metrics

    def stats(self) -> dict[str, Any]:
        """Counters of this back end by stage, and of its client."""
        client = self._client
        return {**self.meter.as_dict(), "client": client.stats() if client is not None else {}}

    def _remember(self, pool: str, pages: Sequence[str]) -> None:
        with self._lock:
            for page in pages:
                self._known[(pool, page)] = None
            while len(self._known) > _KNOWN_PAGES:
                del self._known[next(iter(self._known))]

    def _failed(self, what: str, call: Stage, error: Exception, count: int = 1) -> None:
        call.errors += count
        self._tell(what, error)

    def _tell(self, what: str, error: Exception) -> None:
        now = time.monotonic()
        if now - self._told >= _TELL_SECONDS:
            self._told = now
            log.warning("memkv: %s failed, pages are computed instead: %s", what, error)


def _time(settings: dict[str, Any], name: str, default: float) -> float:
    value = settings.get(name, default)
    if not (isinstance(value, (int, float)) and value > 0):
        raise memkv.ConfigError(f"{name} is {value!r}: a time in seconds, above 0")
    return float(value)


def _name(name: Any) -> str:
    """What an enumeration of SGLang's, or a plain string, says."""
    return str(getattr(name, "value", name))


def _piece(tensor: Any) -> Piece:
    return tensor.data_ptr(), tensor.numel() * tensor.element_size()


def _flat_keys(pages: Sequence[str]) -> list[bytes]:
    return HostPool("kv", None, copied=True).keys(pages)


def _leading(whole: Sequence[bool]) -> int:
    return next((page for page, there in enumerate(whole) if not there), len(whole))


def _usable(policy: str, whole: Sequence[bool], window: int) -> set[int] | None:
    """The lengths of prefixes that a pool can restore by its policy; None: it has no say."""
    if policy == "all_pages":
        return set(range(1, _leading(whole) + 1))
    if policy == "trailing_pages":
        ends = range(1, len(whole) + 1)
        return {end for end in ends if all(whole[max(0, end - window) : end])}
    return None


def _split(wanted: list[_Want], results: Sequence[bool]) -> list[list[bool]]:
    """Results of all pages, pool by pool. Nothing of an anchor is missing, for nothing is kept."""
    pages, start = [], 0
    for pool, keys, _ in wanted:
        end = start + (0 if pool.empty else len(keys))
        pages.append([True] * len(keys) if pool.empty else list(results[start:end]))
        start = end
    assert start == len(results), (start, len(results))
    return pages


def _transfer_result(hits: dict[str, int], restorable: list[int]) -> Any:
    from sglang.srt.mem_cache.hicache_storage import PoolTransferResult

    fields = {field.name for field in dataclasses.fields(PoolTransferResult)}
    more = {"restorable_prefix_pages": restorable} if "restorable_prefix_pages" in fields else {}
    return PoolTransferResult(restorable[-1] if restorable else 0, hits, **more)
