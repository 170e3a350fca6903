"""MemKVL2Adapter against a real server, driven as LMCache's controllers drive it."""

import json
import os
import select
import time
import urllib.request
import uuid

import memkv
import pytest
import torch
from conftest import SHAPE, blank, key, layouts, value
from memkv import identity
from memkv_lmcache import options
from memkv_lmcache.adapter import MemKVL2Adapter

PATIENCE = 20


@pytest.fixture
def adapter(server):
    """Makes adapters; a test's own share a namespace when it names one."""
    made = []

    def make(**params) -> MemKVL2Adapter:
        told = {"servers": server.address, "namespace": f"n-{uuid.uuid4().hex[:12]}", **params}
        made.append(MemKVL2Adapter(told))
        return made[-1]

    yield make
    for one in made:
        one.close()


def readable(fd: int, seconds: float = 0) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(seconds * 1000))


def wait(fd: int) -> None:
    assert readable(fd, PATIENCE), "nothing was done in time"


def store(adapter, keys, values):
    number = adapter.submit_store_task(keys, values)
    while True:
        wait(adapter.get_store_event_fd())
        done = adapter.pop_completed_store_tasks()
        if number in done:
            return done[number]


def answer(query, fd, number, count):
    while True:
        wait(fd)
        found = query(number)
        if found is not None:
            return [found.test(index) for index in range(count)]


def lookup(adapter, keys, told=None):
    number = adapter.submit_lookup_and_lock_task(keys, layouts() if told is None else told)
    fd = adapter.get_lookup_and_lock_event_fd()
    return answer(adapter.query_lookup_and_lock_result, fd, number, len(keys))


def load(adapter, keys, values):
    number = adapter.submit_load_task(keys, values)
    return answer(adapter.query_load_result, adapter.get_load_event_fd(), number, len(keys))


def requests_of(server):
    status = f"http://127.0.0.1:{server.port + 1}/v1/status"
    with urllib.request.urlopen(status, timeout=5) as told:
        return json.load(told)["counters"]["memkv_requests_total"]


def test_what_is_stored_is_found_and_loaded(adapter):
    one = adapter()
    keys = [key(number) for number in range(5)]
    values = [value(number) for number in range(4)]
    assert lookup(one, keys) == [False] * 5
    result = store(one, keys[:4], values)
    assert result.is_successful() and result.bytes_transferred() == 4 * values[0].get_size()
    assert lookup(one, keys) == [True] * 4 + [False]
    got = [blank() for _ in keys]
    assert load(one, keys, got) == [True] * 4 + [False]
    assert all(torch.equal(a.raw_data, b.raw_data) for a, b in zip(values, got))
    one.delete(keys[1:2])
    assert lookup(one, keys) == [True, False, True, True, False]


def test_what_was_drained_for_another_task_is_told_again(adapter):
    one = adapter()
    fd = one.get_lookup_and_lock_event_fd()

    def answered(numbers):
        # As LMCache waits: the descriptor is read before tasks are asked for.
        wait(fd)
        os.eventfd_read(fd)
        return {each for each in numbers if one.query_lookup_and_lock_result(each) is not None}

    def submit():
        return one.submit_lookup_and_lock_task([key(1)], layouts())

    for _ in range(30):
        numbers = [submit() for _ in range(4)]
        # The first one was asked for in vain just before all were done.
        pending = set(numbers) - answered(numbers[1:])
        while pending:
            pending -= answered(sorted(pending))
    # A result that nobody asks for is told once, and not again and again.
    lost, others = submit(), {submit(), submit()}
    while others:
        others -= answered(others)
    for _ in range(20):
        if readable(fd, 0.01):
            os.eventfd_read(fd)
            one.query_lookup_and_lock_result(0)
    assert not readable(fd)
    assert one.query_lookup_and_lock_result(lost) is not None


def test_many_tasks_at_a_time_are_all_told(adapter):
    one = adapter(workers=2)
    fd = one.get_lookup_and_lock_event_fd()
    for _ in range(200):
        pending = [one.submit_lookup_and_lock_task([key(1)], layouts()) for _ in range(8)]
        while pending:
            wait(fd)
            os.eventfd_read(fd)
            done = [each for each in pending if one.query_lookup_and_lock_result(each) is not None]
            pending = [each for each in pending if each not in done]


class Spy:
    """A queue that writes down which memory it was given."""

    def __init__(self, queue):
        self.queue, self.places = queue, []

    def submit_put(self, keys, places, **more):
        self.places += places
        return self.queue.submit_put(keys, places, **more)

    def submit_get(self, keys, places, **more):
        self.places += places
        return self.queue.submit_get(keys, places, **more)

    def __getattr__(self, name):
        return getattr(self.queue, name)


def test_nothing_is_copied(adapter):
    one = adapter()
    one._stores.queue, one._loads.queue = Spy(one._stores.queue), Spy(one._loads.queue)
    keys, values, got = [key(1), key(2)], [value(1), value(2)], [blank(), blank()]
    assert store(one, keys, values).is_successful()
    assert load(one, keys, got) == [True, True]
    where = lambda objects: [(each.data_ptr, each.get_size()) for each in objects]
    assert one._stores.queue.places == where(values)
    assert one._loads.queue.places == where(got)


def test_keys_are_looked_up_in_one_round_trip(adapter, server):
    one = adapter()
    lookup(one, [key(1)])
    before = requests_of(server)
    assert not any(lookup(one, [key(number) for number in range(128)]))
    assert requests_of(server) == before + 1


def test_another_layout_is_not_found(adapter):
    one = adapter()
    assert lookup(one, [key(1)]) == [False]
    assert store(one, [key(1)], [value(1)]).is_successful()
    assert lookup(one, [key(1)]) == [True]
    assert lookup(one, [key(1)], layouts(torch.float16)) == [False]
    turned = (SHAPE[0], SHAPE[1], SHAPE[3], SHAPE[2])
    assert lookup(one, [key(1)], layouts(shape=turned)) == [False]
    assert load(one, [key(1)], [blank(torch.float16)]) == [False]
    assert lookup(one, [key(1)]) == [True]


def test_another_rank_and_another_salt_are_not_found(adapter):
    one = adapter()
    assert store(one, [key(1)], [value(1)]).is_successful()
    assert lookup(one, [key(1), key(1, rank=1), key(1, salt="tenant")]) == [True, False, False]


def test_other_weights_under_the_same_name_are_not_found(adapter, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(bytes(1000))
    name = str(tmp_path)
    one, two = adapter(namespace="weights"), None
    assert store(one, [key(1, name)], [value(1)]).is_successful()
    assert lookup(one, [key(1, name)]) == [True]
    weights.unlink()
    weights.write_bytes(bytes(999) + b"\1")
    assert lookup(one, [key(1, name)]) == [False], "a change under a running server"
    two = adapter(namespace="weights")
    assert lookup(two, [key(1, name)]) == [False], "a change between two servers"


def test_what_was_named_otherwise_is_refused(adapter):
    adapter(namespace="named", fingerprint={"quantization": "fp8"})
    adapter(namespace="named", fingerprint={"quantization": "fp8"})
    with pytest.raises(identity.FingerprintMismatch) as refusal:
        adapter(namespace="named", fingerprint={"quantization": "int4"})
    assert "fp8" in str(refusal.value) and "int4" in str(refusal.value)
    assert refusal.value.fields == ("named.quantization",)


def test_without_a_name_deployments_live_side_by_side(server):
    told = [{"servers": server.address, "fingerprint": {"side": side}} for side in (1, 2)]
    one, two = MemKVL2Adapter(told[0]), MemKVL2Adapter(told[1])
    assert store(one, [key(1)], [value(1)]).is_successful()
    assert lookup(one, [key(1)]) == [True]
    assert lookup(two, [key(1)]) == [False]
    one.close()
    two.close()


def test_transformed_values_may_be_shorter_than_their_memory(adapter):
    one = adapter()
    lookup(one, [key(1)])
    packed, memory = value(1, torch.uint8, (100,)), blank(torch.uint8, (200,))
    assert store(one, [key(1)], [packed]).is_successful()
    assert lookup(one, [key(1)]) == [True]
    assert load(one, [key(1)], [memory]) == [True]
    assert torch.equal(memory.raw_data[:100], packed.raw_data)
    assert store(one, [key(1)], [value(2, torch.uint8, (150,))]).is_successful()


def test_a_value_of_another_length_is_not_loaded(adapter):
    one = adapter()
    assert store(one, [key(1)], [value(1)]).is_successful()
    # Without the layout that tells them apart.
    one._models._tag = lambda name, layout: "same"
    shorter = (SHAPE[0], SHAPE[1], SHAPE[2] // 2, SHAPE[3])
    longer = (SHAPE[0], SHAPE[1], SHAPE[2] * 2, SHAPE[3])
    assert load(one, [key(1), key(1)], [blank(shape=shorter), blank(shape=longer)]) == [False] * 2


def test_keys_of_any_length(adapter):
    one = adapter()
    long = [key(number, "m" * 600) for number in range(2)]
    assert store(one, long[:1], [value(1)]).is_successful()
    assert lookup(one, long) == [True, False]


def test_an_unknown_option_is_named():
    with pytest.raises(memkv.ConfigError, match="'namespcae'.*'namespace'"):
        MemKVL2Adapter({"namespcae": "x"})


def test_a_server_that_is_away_is_a_miss_and_one_that_returns_is_used(new_server, monkeypatch):
    monkeypatch.setattr(options, "RETRY_SECONDS", 0.1)
    server = new_server()
    server.kill()
    params = {"servers": server.address, "namespace": "back", "request_timeout": 1.0}
    one = MemKVL2Adapter(params)
    begun = time.monotonic()
    assert lookup(one, [key(1)]) == [False]
    assert not store(one, [key(1)], [value(1)]).is_successful()
    assert load(one, [key(1)], [blank()]) == [False]
    assert time.monotonic() - begun < PATIENCE
    server.start()
    end = time.monotonic() + PATIENCE
    while not store(one, [key(1)], [value(1)]).is_successful():
        assert time.monotonic() < end, "it is not used again"
    assert lookup(one, [key(1)]) == [True]
    one.close()


def test_a_namespace_that_turns_out_to_be_anothers_is_never_used(new_server, monkeypatch):
    monkeypatch.setattr(options, "RETRY_SECONDS", 0.1)
    monkeypatch.setattr(identity.Binding.__init__, "__defaults__", (0.1,))
    server = new_server()
    params = {"servers": server.address, "namespace": "late", "request_timeout": 1.0}
    MemKVL2Adapter({**params, "fingerprint": {"side": 1}}).close()
    server.kill()
    two = MemKVL2Adapter({**params, "fingerprint": {"side": 2}})
    assert two.report_status()["is_healthy"]
    server.start()
    end = time.monotonic() + PATIENCE
    while two.report_status()["refused"] is None:
        assert time.monotonic() < end, "it is not refused"
        lookup(two, [key(1)])
    assert not two.report_status()["is_healthy"]
    assert not store(two, [key(1)], [value(1)]).is_successful()
    assert lookup(two, [key(1)]) == [False]
    assert load(two, [key(1)], [blank()]) == [False]
    two.close()


def test_a_full_drive_is_a_quiet_miss(new_server):
    server = new_server(", eviction: {enabled: false}")
    one = MemKVL2Adapter({"servers": server.address, "request_timeout": 5.0})
    shape = (2, 16, 256, 512)  # 8 MiB
    keys = [key(number) for number in range(16)]
    results = [store(one, [each], [value(1, shape=shape)]).is_successful() for each in keys]
    assert results[0] and not results[-1]
    found = lookup(one, keys, layouts(shape=shape))
    assert found == results
    assert load(one, [keys[0], keys[-1]], [blank(shape=shape) for _ in range(2)]) == [True, False]
    one.close()


def test_usage_is_counted_where_lmcache_evicts(adapter):
    one, size = adapter(max_capacity_gb=1), value(1).get_size()
    store(one, [key(1), key(2)], [value(1), value(2)])
    store(one, [key(2)], [value(2)])
    assert one.get_usage().total_bytes_used == 2 * size
    one.delete([key(1), key(3)])
    assert one.get_usage().total_bytes_used == size
    assert adapter().get_usage().usage_fraction == -1


def test_closing_waits_for_what_is_under_way(server):
    one = MemKVL2Adapter({"servers": server.address, "namespace": "closing"})
    keys = [key(number) for number in range(64)]
    one.submit_store_task(keys, [value(number) for number in range(64)])
    one.close()
    two = MemKVL2Adapter({"servers": server.address, "namespace": "closing"})
    two._models.ask(keys, layouts())
    assert all(lookup(two, keys))
    two.close()
