"""An L2 adapter of LMCache's server: `--l2-adapter '{"type": "plugin", …}'`.

    {"type": "plugin",
     "module_path": "memkv_lmcache.adapter", "class_name": "MemKVL2Adapter",
     "adapter_params": {"servers": "10.0.0.1:9900"}}

Values move between the server's memory (L1) and memkv's sockets without a copy here: what is handed
to the client are addresses. Its three kinds of work have a queue each, whose file descriptors are
what LMCache waits on; no thread of this adapter is on the way, and submitting never waits. The one
exception is the first operation on a model, whose weights are identified by a thread meanwhile.
"""

import dataclasses
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import memkv
from lmcache.lmcache_native import Bitmap
from lmcache.v1.distributed.api import MemoryLayoutDesc, ObjectKey
from lmcache.v1.distributed.internal_api import L1MemoryDesc, L2StoreResult
from lmcache.v1.distributed.l2_adapters.base import L2AdapterInterface, L2TaskId
from lmcache.v1.memory_management import MemoryObj
from memkv import identity, metrics

from . import options
from .models import Models

log = logging.getLogger("memkv.lmcache")

OPTIONS = (
    *options.CLIENT_OPTIONS,
    "workers",
    "ttl",
    "pin",
    "model",
    "fingerprint",
    "hash_algorithm",
    "max_capacity_gb",
)
GIB = 1 << 30
#: Results that are kept for whoever asks; LMCache may lose interest in a task.
RESULTS_MAX = 4096
#: Seconds for which the files of a model are what they were, to who moves values: an engine that has loaded
#: others needed longer, and has looked something up since. On a busy machine whoever has Python's lock may
#: lose the core at any system call.
LOOK_AGAIN = 1.0


@dataclasses.dataclass
class Task:
    """One batch that LMCache waits for."""

    keys: list[ObjectKey]
    sizes: list[int]
    # Values fill their memory; those that come transformed need not.
    transformed: bool = False
    begun: float = dataclasses.field(default_factory=time.perf_counter)


class Lane:
    """One kind of work: a queue of the client, and the tasks that are in it.

    Tasks have ids of their own, for one may be begun before its batch can be submitted. One that
    could not be submitted at all is done, and has no completion.
    """

    def __init__(self, client: memkv.Client, workers: int, stage: str, stages: metrics.Stages):
        self.queue = client.open_queue(workers)
        self.fd = self.queue.event_fd()
        self.last_error = ""
        self._stage, self._stages = stage, stages
        self._lock = threading.Lock()
        self._next = 0
        self._tasks: dict[int, tuple[L2TaskId, Task]] = {}
        self._failed: list[tuple[L2TaskId, Task]] = []
        self._results: dict[L2TaskId, Bitmap] = {}
        # Results that nobody has asked for yet, and for which tasks they did since.
        self._untold: dict[L2TaskId, set[L2TaskId]] = {}

    def begin(self) -> L2TaskId:
        """The id of a task to come."""
        with self._lock:
            self._next += 1
            return self._next

    def submit(self, number: L2TaskId, task: Task, submit: Callable[[], int]) -> None:
        """Hands a task's batch to the client. Whatever fails, the task is done some time."""
        # Nobody drains in between: its completion would be nobody's.
        with self._lock:
            try:
                self._tasks[submit()] = number, task
                return
            except memkv.Error as error:
                self.last_error = str(error)
                self._failed.append((number, task))
        self._ring()

    def fail(self, number: L2TaskId, task: Task, why: object) -> None:
        """Makes a task done without anything."""
        with self._lock:
            self.last_error = str(why)
            self._failed.append((number, task))
        self._ring()

    def drain(self) -> list[tuple[L2TaskId, Task, memkv.Completion | None]]:
        """The tasks that are done since the last call."""
        with self._lock:
            done = [(*self._tasks.pop(one.id), one) for one in self.queue.drain()]
            failed, self._failed = self._failed, []
        for _, task, completion in done:
            self._stages.note(self._stage, time.perf_counter() - task.begun)
            self._stages.completed(completion)
            if not completion.ok:
                self.last_error = completion.error
        if failed:
            self._stages.count("errors", len(failed))
        return [*done, *((number, task, None) for number, task in failed)]

    def keep(self, number: L2TaskId, result: Bitmap) -> None:
        """Keeps the result of a task until it is asked for."""
        with self._lock:
            self._results[number] = result
            self._untold[number] = set()
            while len(self._results) > RESULTS_MAX:
                forgotten = next(iter(self._results))
                del self._results[forgotten]
                self._untold.pop(forgotten, None)

    def take(self, number: L2TaskId) -> Bitmap | None:
        """The result of a task, once.

        Whoever waits for several tasks asks for each of them, in a round, when the descriptor is
        readable. A task that was asked for in vain may be done, and drained on behalf of a later one,
        within one round; so the descriptor is made readable again, and again by each later question
        of that round, whose draining has silenced it. Who asks for a task a second time has begun
        another round, in which the first one's turn comes if anybody wants it.
        """
        with self._lock:
            found = self._results.pop(number, None)
            self._untold.pop(number, None)
            for other, asked in list(self._untold.items()):
                if number in asked:
                    del self._untold[other]
                asked.add(number)
            if self._untold:
                self._ring()
        return found

    def close(self) -> None:
        """Waits for what is under way."""
        self.queue.close()

    def _ring(self) -> None:
        os.write(self.fd, (1).to_bytes(8, "little"))


class MemKVL2Adapter(L2AdapterInterface):
    """The class to name. `adapter_params` are those of `memkv.Client`, and

    `workers`          batches of one kind that are under way at a time (4)
    `ttl`, `pin`       what every value is stored with, in seconds
    `model`            names the weights by another model's directory or name than the keys do
    `fingerprint`      an object of names and values that decide over the bytes as well
    `hash_algorithm`   that of the server (`--hash-algorithm`; blake3): to warn when it hashes otherwise here
    `max_capacity_gb`  lets LMCache evict what it has stored here; 0 leaves that to memkv, which
                       knows what all of its clients use
    """

    def __init__(self, params: dict, l1_memory_desc: L1MemoryDesc | None = None):
        told = options.checked(params, OPTIONS)
        capacity = told.get("max_capacity_gb") or 0
        super().__init__(max_capacity_bytes=int(capacity * GIB))
        self._sizes: dict[ObjectKey, int] | None = {} if capacity > 0 else None
        self._arena = l1_memory_desc
        model = told.get("model")
        self._models = Models(None if model is None else identity.weights_identity(str(model)))
        self._link = options.Link(fingerprint(told), told)
        self._extra = {name: told[name] for name in ("ttl", "pin") if told.get(name) is not None}
        self._stages = metrics.Stages(options.LABEL)
        metrics.watch(self._link.client, options.LABEL)
        workers = int(told.get("workers") or 4)
        self._stores, self._lookups, self._loads = (
            Lane(self._link.client, workers, stage, self._stages)
            for stage in ("store", "lookup", "load")
        )
        self._lock = threading.Lock()
        self._learner = ThreadPoolExecutor(1, "memkv-models")
        self._check_hash(str(told.get("hash_algorithm") or "blake3"))

    # ---- what LMCache waits on -------------------------------------------------------------

    def get_store_event_fd(self) -> int:
        return self._stores.fd

    def get_lookup_and_lock_event_fd(self) -> int:
        return self._lookups.fd

    def get_load_event_fd(self) -> int:
        return self._loads.fd

    # ---- store -----------------------------------------------------------------------------

    def submit_store_task(self, keys: list[ObjectKey], objects: list[MemoryObj]) -> L2TaskId:
        task = Task(list(keys), [value.get_size() for value in objects])

        def submit() -> int:
            # A transformed value need not have the length of the one that is there.
            names, replace = self._names(keys, objects)
            places = _places(objects, task.sizes)
            return self._stores.queue.submit_put(names, places, replace=replace, **self._extra)

        return self._start(self._stores, task, submit)

    def pop_completed_store_tasks(self) -> dict[L2TaskId, L2StoreResult]:
        results = {}
        for number, task, completion in self._stores.drain():
            stored = completion.results if completion else [False] * len(task.keys)
            self._count_stored(task, stored)
            # All or nothing is what LMCache asks for; what was stored of a failed task is found.
            results[number] = L2StoreResult(all(stored), sum(task.sizes))
        return results

    # ---- lookup ----------------------------------------------------------------------------

    def submit_lookup_and_lock_task(
        self, keys: list[ObjectKey], group_layout_descs: dict[int, MemoryLayoutDesc]
    ) -> L2TaskId:
        # Nothing is locked: a value that is evicted before it is loaded is a miss of that key.
        self._models.ask(keys, group_layout_descs)
        task = Task(list(keys), [])

        def submit() -> int:
            return self._lookups.queue.submit_exists(self._names(keys)[0])

        return self._start(self._lookups, task, submit, age=0.0)

    def query_lookup_and_lock_result(self, task_id: L2TaskId) -> Bitmap | None:
        for number, task, completion in self._lookups.drain():
            found = completion.results if completion else []
            self._stages.count("hits", sum(found))
            self._stages.count("misses", len(task.keys) - sum(found))
            self._lookups.keep(number, _bitmap(len(task.keys), found))
        return self._lookups.take(task_id)

    def submit_unlock(self, keys: list[ObjectKey]) -> None:
        """Nothing was locked."""

    # ---- load ------------------------------------------------------------------------------

    def submit_load_task(self, keys: list[ObjectKey], objects: list[MemoryObj]) -> L2TaskId:
        task = Task(list(keys), [value.get_size() for value in objects])

        def submit() -> int:
            names, task.transformed = self._names(keys, objects)
            return self._loads.queue.submit_get(names, _places(objects, task.sizes))

        return self._start(self._loads, task, submit)

    def query_load_result(self, task_id: L2TaskId) -> Bitmap | None:
        for number, task, completion in self._loads.drain():
            lengths = completion.results if completion else []
            # As a rule all of them are whole, which costs no look at each.
            hits, loaded = task.keys, [True] * len(task.keys)
            if lengths != task.sizes:
                loaded = [
                    length is not None and (length == size or task.transformed and length < size)
                    for length, size in zip(lengths, task.sizes)
                ]
                hits = [key for key, hit in zip(task.keys, loaded) if hit]
            self._stages.count("bytes", completion.bytes if completion else 0)
            self._loads.keep(number, _bitmap(len(task.keys), loaded))
            if hits:
                self._notify_keys_accessed(hits)
        return self._loads.take(task_id)

    # ---- eviction by LMCache, state, end ---------------------------------------------------

    def delete(self, keys: list[ObjectKey]) -> None:
        if self._link.refused is not None or not keys:
            return
        self._models.learn(keys)
        try:
            gone = self._link.client.delete(self._names(keys)[0])
        except memkv.Error as error:
            log.warning("%d keys could not be deleted: %s", len(keys), error)
            return
        deleted = [key for key, was_there in zip(keys, gone) if was_there]
        with self._lock:
            sizes = [self._sizes.pop(key, 0) if self._sizes else 0 for key in deleted]
        if deleted:
            self._notify_keys_deleted(deleted, sizes)

    def report_status(self) -> dict:
        lanes = {"store": self._stores, "lookup": self._lookups, "load": self._loads}
        return {
            "is_healthy": self._link.refused is None,
            "type": "memkv",
            "servers": list(self._link.client.servers),
            "namespace": self._link.client.namespace,
            "fingerprint": self._link.fingerprint.shared,
            "bound": self._link.binding.bound,
            "l1_bytes": self._arena.size if self._arena is not None else None,
            "refused": self._link.refused and str(self._link.refused),
            "pending": {name: lane.queue.pending() for name, lane in lanes.items()},
            "last_errors": {name: lane.last_error for name, lane in lanes.items()},
            "client": self._link.client.stats(),
        }

    def close(self) -> None:
        self._learner.shutdown(wait=True)
        for lane in (self._stores, self._lookups, self._loads):
            lane.close()
        self._link.close()

    # ---- inside ----------------------------------------------------------------------------

    def _start(
        self, lane: Lane, task: Task, submit: Callable[[], int], age: float = LOOK_AGAIN
    ) -> L2TaskId:
        number = lane.begin()
        if self._link.refused is not None:
            lane.fail(number, task, self._link.refused)
        elif self._models.knows(task.keys, age):
            lane.submit(number, task, submit)
        else:
            self._learner.submit(self._learn_and_submit, lane, number, task, submit)
        return number

    def _learn_and_submit(
        self, lane: Lane, number: L2TaskId, task: Task, submit: Callable[[], int]
    ) -> None:
        try:
            self._models.learn(task.keys)
            lane.submit(number, task, submit)
        except Exception as error:
            # LMCache waits for this task, whatever is wrong.
            log.exception("a batch of %d keys cannot be submitted", len(task.keys))
            lane.fail(number, task, error)

    def _names(
        self, keys: list[ObjectKey], values: list[MemoryObj] | None = None
    ) -> tuple[Sequence[str | bytes], bool]:
        names, transformed = self._models.names(keys, values)
        return self._link.keys(names), transformed

    def _count_stored(self, task: Task, stored: list[bool]) -> None:
        """Tells LMCache what it may evict, where it is the one to evict."""
        if self._sizes is None and all(stored):
            self._notify_keys_stored(task.keys, [0] * len(task.keys))
            return
        keys, sizes = [], []
        with self._lock:
            for key, size, is_stored in zip(task.keys, task.sizes, stored):
                if is_stored:
                    counted = self._sizes is not None and key not in self._sizes
                    if counted:
                        self._sizes[key] = size
                    keys.append(key)
                    sizes.append(size if counted else 0)
        if keys:
            self._notify_keys_stored(keys, sizes)

    def _check_hash(self, algorithm: str) -> None:
        """Warns when chunks hash otherwise here than in the server that started before."""
        if not self._link.binding.bound:
            return
        try:
            from lmcache.v1.multiprocess.token_hasher import TokenHasher

            hasher = TokenHasher(chunk_size=16, hash_algorithm=algorithm)
            sample = hasher.hash_func((hasher.none_hash, tuple(range(16)), None))
        except Exception as error:
            log.warning("hash algorithm %s cannot be checked: %s", algorithm, error)
            return
        with self._link.unprefixed() as client:
            text = sample if isinstance(sample, bytes) else str(sample)
            identity.check_hash_seed(client, algorithm, text)


def fingerprint(told: dict) -> identity.Fingerprint:
    """What all values of the namespace have in common; weights and layouts are in the keys."""
    return identity.Fingerprint(
        {
            "plugin": "memkv-lmcache l2",
            "format": options.FORMAT,
            "lmcache": options.lmcache_version(),
            **options.named_fields(told),
        }
    )


def _bitmap(count: int, found: list[bool]) -> Bitmap:
    if len(found) == count and all(found):
        return Bitmap(count, count)
    bitmap = Bitmap(count)
    for index, is_found in enumerate(found):
        if is_found:
            bitmap.set(index)
    return bitmap


def _places(values: list[MemoryObj], sizes: list[int]) -> list[tuple[int, int]]:
    """Where values lie: addresses and lengths."""
    return [(value.data_ptr, size) for value, size in zip(values, sizes)]
