"""MemKVStorageBackend against a real server, with LMCache's own memory.

What LMCache's engine does with it is a row of `ci/clients`; here is what an engine in order never does.
"""

import asyncio
import logging
import time
import uuid

import memkv
import pytest
import torch
from lmcache.utils import CacheEngineKey
from lmcache.v1.config import LMCacheEngineConfig
from lmcache.v1.metadata import LMCacheMetadata
from lmcache.v1.storage_backend.local_cpu_backend import LocalCPUBackend
from memkv import identity
from memkv_lmcache.backend import MemKVStorageBackend

CHUNK, LAYERS, HEADS, DIM = 32, 2, 2, 8
PATIENCE = 20


def config(**extra) -> LMCacheEngineConfig:
    told = {f"memkv.{name}": value for name, value in extra.items()}
    return LMCacheEngineConfig.from_defaults(
        chunk_size=CHUNK,
        local_cpu=False,
        max_local_cpu_size=0.05,
        blocking_timeout_secs=3,
        extra_config={"memkv.model": "weights", "memkv.request_timeout": 2.0, **told},
    )


def metadata(**changes) -> LMCacheMetadata:
    told = {
        "model_name": "tiny",
        "world_size": 1,
        "local_world_size": 1,
        "worker_id": 0,
        "local_worker_id": 0,
        "kv_dtype": torch.bfloat16,
        "kv_shape": (LAYERS, 2, CHUNK, HEADS, DIM),
        "chunk_size": CHUNK,
    }
    return LMCacheMetadata(**{**told, **changes})


@pytest.fixture(scope="module")
def memory():
    """LMCache's memory, for all tests: it is whole again after each of them."""
    return LocalCPUBackend(config(), metadata(), "cpu")


@pytest.fixture
def backend(server, memory):
    made = []
    before = memory.memory_allocator.memcheck()

    def make(told_metadata=None, **extra) -> MemKVStorageBackend:
        told = {"servers": server.address, "namespace": f"n-{uuid.uuid4().hex[:12]}", **extra}
        made.append(MemKVStorageBackend(config(**told), "cpu", told_metadata or metadata(), memory))
        return made[-1]

    yield make
    for one in made:
        one.close()
    assert before and memory.memory_allocator.memcheck()


def key(number: int) -> CacheEngineKey:
    return CacheEngineKey("tiny", 1, 0, number, torch.bfloat16)


def chunk(memory, fill: int, tokens: int = CHUNK):
    """A chunk in LMCache's memory, whose bytes follow from `fill`."""
    shape = torch.Size([2, LAYERS, tokens, HEADS * DIM])
    made = memory.allocate([shape], [torch.bfloat16], busy_loop=False)
    made.tensor.copy_((torch.arange(shape.numel()) % 97 + fill).view(shape))
    return made


def put(one, memory, numbers, tokens=CHUNK):
    """Stores chunks as LMCache does: its own hold on them is gone at once."""
    objs = [chunk(memory, number, tokens) for number in numbers]
    told = one.batched_submit_put_task([key(number) for number in numbers], objs)
    for obj in objs:
        obj.ref_count_down()
    return [future.result(PATIENCE) for future in told]


def test_chunks_of_any_number_of_tokens_come_back(backend, memory):
    one = backend()
    assert put(one, memory, [1, 2]) == [True, True]
    assert put(one, memory, [3], tokens=7) == [True]
    got = one.batched_get_blocking([key(1), key(9), key(3)])
    assert got[1] is None
    for obj, fill, tokens in ((got[0], 1, CHUNK), (got[2], 3, 7)):
        want = chunk(memory, fill, tokens)
        assert obj.get_num_tokens() == tokens and torch.equal(obj.tensor, want.tensor)
        assert obj.get_ref_count() == 1
        want.ref_count_down()
        obj.ref_count_down()


def test_nothing_is_copied(backend, memory):
    one = backend()
    places = []

    class Spy:
        def __init__(self, real):
            self.real = real

        def __getattr__(self, name):
            real = getattr(self.real, name)

            def call(keys, told, *words, **more):
                places.extend(told)
                return real(keys, told, *words, **more)

            return call if name in ("submit_put", "submit_get", "get_batch_into") else real

    one._queue, one._link.client = Spy(one._queue), Spy(one._link.client)
    source = chunk(memory, 1)
    at = (source.data_ptr, source.get_size())
    assert one.batched_submit_put_task([key(1)], [source])[0].result(PATIENCE)
    source.ref_count_down()
    got = one.get_blocking(key(1))
    later = one.get_non_blocking(key(1)).result(PATIENCE)
    assert places == [at, (got.data_ptr, got.get_size()), (later.data_ptr, later.get_size())]
    got.ref_count_down()
    later.ref_count_down()


def test_the_prefix_that_is_there(backend, memory):
    one = backend()
    put(one, memory, [1, 2, 4])
    keys = [key(number) for number in (1, 2, 3, 4)]
    assert one.batched_contains(keys) == 2
    assert one.contains(key(4)) and not one.contains(key(3))
    assert asyncio.run(one.batched_async_contains("lookup", keys)) == 2
    got = asyncio.run(one.batched_get_non_blocking("lookup", keys))
    assert len(got) == 2, "what is behind the gap is given back"
    for obj in got:
        obj.ref_count_down()
    assert one.remove(key(1)) and not one.remove(key(1))
    assert one.batched_contains(keys) == 0


def test_a_chunk_that_is_on_its_way_is_not_sent_again(backend, memory):
    one = backend()
    obj = chunk(memory, 1)
    with one._changed:
        one._storing.add(key(1))
    assert one.exists_in_put_tasks(key(1))
    assert one.batched_submit_put_task([key(1)], [obj]) is None
    assert obj.get_ref_count() == 1
    with one._changed:
        one._storing.clear()
    called = []
    told = one.batched_submit_put_task([key(1)], [obj], on_complete_callback=called.append)
    assert told[0].result(PATIENCE) and called == [key(1)]
    assert obj.get_ref_count() == 1 and not one.exists_in_put_tasks(key(1))
    obj.ref_count_down()


def test_memory_of_a_load_that_nobody_waits_for_is_given_back(backend, memory):
    one = backend()
    put(one, memory, range(20))
    free = memory.memory_allocator

    async def lose():
        load = one.batched_get_non_blocking("lost", [key(number) for number in range(20)])
        task = asyncio.ensure_future(load)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(lose())
    end = time.monotonic() + PATIENCE
    while one._waiting:
        assert time.monotonic() < end
    assert free.memcheck()
    # All of the memory can be had again.
    whole = chunk(memory, 0)
    whole.ref_count_down()


def test_no_memory_is_a_miss_and_no_wait(backend, memory):
    one = backend()
    put(one, memory, [1])
    held = []
    for tokens in (CHUNK * 64, CHUNK):
        shape = torch.Size([2, LAYERS, tokens, HEADS * DIM])
        allocate = lambda: memory.allocate([shape], [torch.bfloat16], busy_loop=False)
        held += iter(allocate, None)
    begun = time.monotonic()
    assert one.batched_get_blocking([key(1)]) == [None]
    assert time.monotonic() - begun < 2
    for obj in held:
        obj.ref_count_down()
    got = one.get_blocking(key(1))
    assert got is not None
    got.ref_count_down()


@pytest.mark.parametrize(
    "change",
    [
        {"kv_dtype": torch.float16},
        {"kv_shape": (LAYERS, 2, CHUNK, HEADS, 2 * DIM)},
        {"world_size": 2},
        {"model_name": "other"},
        {"use_mla": True},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_deployment_is_refused(backend, change, caplog):
    backend(namespace="backend-bound")
    with pytest.raises(identity.FingerprintMismatch):
        backend(metadata(**change), namespace="backend-bound")
    assert any(record.levelno == logging.ERROR for record in caplog.records), "and it is said"


def test_an_unknown_option_is_refused(backend):
    with pytest.raises(memkv.ConfigError, match="'server'.*'servers'"):
        backend(server="127.0.0.1:1")


def test_a_scheduler_has_no_memory_and_asks(server, backend, memory):
    worker = backend(namespace="backend-roles")
    put(worker, memory, [1])
    told = config(servers=server.address, namespace="backend-roles")
    scheduler = MemKVStorageBackend(told, "cpu", metadata(role="scheduler"), None)
    assert scheduler.batched_contains([key(1), key(2)]) == 1
    scheduler.close()


def test_a_server_that_goes_away_is_a_miss(new_server, backend, memory):
    server = new_server()
    one = backend(servers=server.address)
    put(one, memory, [1])
    server.kill()
    begun = time.monotonic()
    assert one.batched_contains([key(1)]) == 0
    assert one.batched_get_blocking([key(1)]) == [None]
    assert asyncio.run(one.batched_get_non_blocking("lookup", [key(1)])) == []
    assert asyncio.run(one.batched_async_contains("lookup", [key(1)])) == 0
    assert put(one, memory, [2]) == [False]
    assert not one.remove(key(1))
    assert time.monotonic() - begun < PATIENCE
    server.start()
    end = time.monotonic() + PATIENCE
    while one.batched_contains([key(1)]) == 0:
        assert time.monotonic() < end, "it is not used again"


def test_closing_waits_for_what_is_under_way(server, backend, memory):
    one = backend(namespace="backend-closing")
    objs = [chunk(memory, number) for number in range(50)]
    told = one.batched_submit_put_task([key(number) for number in range(50)], objs)
    one.close()
    assert all(future.result(0) for future in told)
    assert all(obj.get_ref_count() == 1 for obj in objs)
    for obj in objs:
        obj.ref_count_down()
    assert backend(namespace="backend-closing").batched_contains([key(n) for n in range(50)]) == 50
