"""The tier on a queue whose completions the test gives: what is asked, what becomes of answers."""

import dataclasses
import logging
from types import SimpleNamespace

import memkv
import numpy
import pytest
from memkv import identity
from memkv_vllm import MemkvTier, deployment
from vllm.v1.kv_offload.base import LookupResult, make_offload_key
from vllm.v1.kv_offload.config import (
    OffloadingCacheConfig,
    OffloadingConfig,
    OffloadingGroupConfig,
    OffloadingModelConfig,
    OffloadingParallelConfig,
)
from vllm.v1.kv_offload.tiering.base import SecondaryTierManager, TransferJob

CHUNK, SLOTS = 4096, 8
KEYS = [make_offload_key(bytes([number]) * 32, 0) for number in range(8)]
NAMES = [f"{number:02x}" * 32 + "/0" for number in range(8)]


class FakeQueue:
    """Batches as they were submitted; `done` completes one."""

    def __init__(self):
        self.batches, self.completions, self.closed, self.broken = [], [], False, False

    def _submit(self, op, keys, buffers, options):
        assert not self.closed
        if self.broken:
            raise memkv.Busy("too many")
        number = len(self.batches) + 1
        batch = SimpleNamespace(op=op, keys=list(keys), buffers=buffers, **options)
        self.batches.append(batch)
        return number

    def submit_exists(self, keys, **options):
        return self._submit("exists", keys, None, options)

    def submit_get(self, keys, buffers, **options):
        return self._submit("get", keys, list(buffers), options)

    def submit_put(self, keys, values, **options):
        return self._submit("put", keys, list(values), options)

    def done(self, number, results, moved=0, error=""):
        batch = self.batches[number - 1]
        batch.buffers = None
        self.completions.append(
            SimpleNamespace(
                id=number,
                op=batch.op,
                ok=not error,
                error=error,
                results=results,
                bytes=moved,
                wait_seconds=0.25,
                transfer_seconds=0.5,
            )
        )

    def drain(self):
        completions, self.completions = self.completions, []
        return completions

    def wait(self, timeout=None):
        assert timeout
        # Whatever is under way fails in the end, as deadlines have it.
        for number, batch in enumerate(self.batches, 1):
            if batch.buffers is not None:
                nothing = None if batch.op == "get" else False
                self.done(number, [nothing] * len(batch.keys), error="timed out")
        return bool(self.completions)

    def close(self):
        self.closed = True
        for batch in self.batches:
            batch.buffers = None


class FakeClient(SimpleNamespace):
    """One that can be referred to weakly, as the real one can."""


class Opened:
    """What `identity.connect` gives, and what it was asked for."""

    def __init__(self):
        self.queue, self.bound, self.options = FakeQueue(), True, None
        self.client = FakeClient(
            namespace="vllm-1",
            servers=["a:1"],
            prefix=b"",
            closed=False,
            open_queue=lambda _workers: self.queue,
            stats=dict,
        )
        self.client.close = lambda: setattr(self.client, "closed", True)

    def connect(self, fingerprint, label, **options):
        self.options = options
        binding = SimpleNamespace(bound=self.bound, ready_soon=lambda: self.bound)
        return self.client, binding


@pytest.fixture
def opened(monkeypatch):
    opened = Opened()
    monkeypatch.setattr(identity, "connect", opened.connect)
    monkeypatch.setattr(identity, "check_hash_seed", lambda *_a, **_k: True)
    monkeypatch.setattr(memkv, "Client", lambda **_o: _Context())
    return opened


class _Context:
    def __enter__(self):
        return self

    def __exit__(self, *_error):
        pass


def spec(**changes):
    """An offloading specification as vLLM makes it, with some fields of its parts changed."""
    parts = {
        "model": OffloadingModelConfig(name="tiny", dtype="bfloat16"),
        "cache": OffloadingCacheConfig(tokens_per_hash=32, blocks_per_chunk=8),
        "parallel": OffloadingParallelConfig(
            rank=0,
            world_size=1,
            tp_size=1,
            pp_size=1,
            pcp_size=1,
            dcp_size=1,
            data_parallel_index=0,
            data_parallel_size=1,
            data_parallel_rank_local=None,
            is_parallelism_agnostic=True,
        ),
    }
    for name, part in parts.items():
        mine = {key: changes.pop(key) for key in list(changes) if hasattr(part, key)}
        parts[name] = dataclasses.replace(part, **mine)
    group = OffloadingGroupConfig(tokens_per_block=32, layer_names=("l0", "l1"), group_id=0)
    fields = {
        "groups": (group,),
        "worker_kv_bytes_per_block": CHUNK // 8,
        "enable_kv_cache_events": False,
        "extra_config": {},
        "engine_id": "e",
        **parts,
        **changes,
    }
    return SimpleNamespace(config=OffloadingConfig(**fields))


def view():
    memory = numpy.zeros((SLOTS, CHUNK), dtype=numpy.int8)
    return memory, memoryview(memory)


def tier(of=None, **parameters):
    parameters = {"weights": "sha256:00", **parameters}
    memory, shared = view()
    made = MemkvTier(of or spec(), shared, "MemkvTier", None, **parameters)
    made.memory = memory
    return made


def job(number, keys, slots, load=False):
    chunks = numpy.array(slots, dtype=numpy.int32)
    request = SimpleNamespace(req_id="r1")
    return TransferJob(number, keys, chunks, load, request)


def request(name="r1"):
    return SimpleNamespace(req_id=name)


def test_a_step_is_one_question_and_nobody_waits(opened):
    made = tier()
    for key in KEYS[:4]:
        assert made.lookup(key, request()) is LookupResult.RETRY
    assert opened.queue.batches == []
    made.on_schedule_end()
    (batch,) = opened.queue.batches
    assert (batch.op, batch.keys, batch.timeout) == ("exists", NAMES[:4], 2.0)
    assert made.lookup(KEYS[0], request()) is LookupResult.RETRY
    opened.queue.done(1, [True, True, False, True])
    assert list(made.get_finished_jobs()) == []
    verdicts = [made.lookup(key, request()) for key in KEYS[:4]]
    hit, miss = LookupResult.HIT, LookupResult.MISS
    assert verdicts == [hit, hit, miss, hit]
    made.on_request_finished(request())
    made.on_schedule_end()
    assert len(opened.queue.batches) == 1


def test_a_question_that_fails_is_a_miss(opened):
    made = tier()
    made.lookup(KEYS[0], request())
    made.on_schedule_end()
    opened.queue.done(1, [], error="nobody there")
    made.get_finished_jobs()
    assert made.lookup(KEYS[0], request()) is LookupResult.MISS
    assert made.stats()["lookups"]["misses"] == 1


def test_chunks_are_stored_from_where_they_are(opened):
    made = tier(ttl=60, durable=True)
    made.submit_store(job(7, KEYS[:2], [3, 1]))
    (batch,) = opened.queue.batches
    assert (batch.op, batch.keys) == ("put", NAMES[:2])
    assert (batch.timeout, batch.ttl, batch.durable) == (30.0, 60, True)
    start = made.memory.ctypes.data
    addresses = [numpy.frombuffer(chunk, numpy.uint8).ctypes.data for chunk in batch.buffers]
    assert addresses == [start + 3 * CHUNK, start + CHUNK]
    assert [len(chunk) for chunk in batch.buffers] == [CHUNK, CHUNK]
    assert made.has_pending_work() and list(made.get_finished_jobs()) == []
    opened.queue.done(1, [True, True], moved=2 * CHUNK)
    (result,) = made.get_finished_jobs()
    assert (result.job_id, result.success, result.transfer_bytes) == (7, True, 2 * CHUNK)
    assert result.transfer_time == 0.75 and result.successful_keys is None
    assert not made.has_pending_work()


def test_chunks_are_loaded_to_where_they_belong(opened):
    made = tier()
    made.submit_load(job(1, KEYS[:2], [0, 5], load=True))
    (batch,) = opened.queue.batches
    assert (batch.op, batch.keys, batch.timeout) == ("get", NAMES[:2], 10.0)
    batch.buffers[1][:] = bytes([9]) * CHUNK
    assert made.memory[5].sum() == 9 * CHUNK and not made.memory[:5].any()
    opened.queue.done(1, [CHUNK, CHUNK], moved=2 * CHUNK)
    (result,) = made.get_finished_jobs()
    assert (result.success, result.successful_keys) == (True, None)


@pytest.mark.parametrize("short", [None, CHUNK - 1, CHUNK + 1])
def test_a_load_that_failed_in_part_names_what_came(opened, short):
    made = tier()
    for key in KEYS[:3]:
        made.lookup(key, request())
    made.on_schedule_end()
    opened.queue.done(1, [True] * 3)
    made.get_finished_jobs()
    made.submit_load(job(4, KEYS[:3], [0, 1, 2], load=True))
    opened.queue.done(2, [CHUNK, short, CHUNK], moved=2 * CHUNK)
    (result,) = made.get_finished_jobs()
    assert (result.success, result.successful_keys) == (False, (KEYS[0], KEYS[2]))
    assert result.transfer_bytes == 2 * CHUNK
    assert made.lookup(KEYS[1], request()) is LookupResult.MISS, "or it would be tried for ever"
    assert made.lookup(KEYS[2], request()) is LookupResult.HIT
    assert made.stats()["load"]["failed"] == 1


def test_a_load_that_failed_altogether_names_nothing(opened, caplog):
    made = tier()
    made.submit_load(job(4, KEYS[:2], [0, 1], load=True))
    opened.queue.done(1, [None, None], error="the server is gone")
    (result,) = made.get_finished_jobs()
    assert (result.success, result.successful_keys) == (False, ())
    assert "the server is gone" in caplog.text


def test_a_store_that_failed_in_part_is_reported(opened):
    made = tier()
    made.submit_store(job(4, KEYS[:2], [0, 1]))
    opened.queue.done(1, [True, False], moved=CHUNK, error="full")
    (result,) = made.get_finished_jobs()
    assert (result.success, result.successful_keys) == (False, None)


def test_what_cannot_be_submitted_is_reported_as_failed(opened):
    made = tier()
    opened.queue.broken = True
    made.submit_store(job(1, KEYS[:1], [0]))
    made.submit_load(job(2, KEYS[:1], [0], load=True))
    made.lookup(KEYS[0], request())
    made.on_schedule_end()
    assert made.has_pending_work()
    results = [(result.job_id, result.success) for result in made.get_finished_jobs()]
    assert results == [(1, False), (2, False)] and not made.has_pending_work()
    assert made.lookup(KEYS[0], request()) is LookupResult.MISS


def test_a_namespace_that_is_not_bound_yet_is_not_asked(opened):
    opened.bound = False
    made = tier()
    assert made.lookup(KEYS[0], request()) is LookupResult.MISS
    made.submit_store(job(1, KEYS[:1], [0]))
    assert [result.success for result in made.get_finished_jobs()] == [False]
    made.on_schedule_end()
    assert opened.queue.batches == []
    opened.bound = True
    assert made.lookup(KEYS[0], request()) is LookupResult.RETRY


def test_what_was_just_stored_is_not_called_missing(opened):
    made = tier()
    made.lookup(KEYS[0], request())
    made.on_schedule_end()
    opened.queue.done(1, [False])
    made.get_finished_jobs()
    made.on_request_finished(request())
    made.submit_store(job(1, KEYS[:1], [0]))
    opened.queue.done(2, [True], moved=CHUNK)
    made.get_finished_jobs()
    assert made.lookup(KEYS[0], request("r2")) is LookupResult.RETRY


def test_drain_waits_until_memory_is_left_alone(opened):
    made = tier()
    made.submit_store(job(1, KEYS[:2], [0, 1]))
    made.submit_load(job(2, KEYS[2:3], [2], load=True))
    made.drain_jobs()
    assert {result.job_id for result in made.get_finished_jobs()} == {1, 2}


def test_shutdown_lets_go_of_the_memory(opened):
    made = tier()
    shared = made._primary_kv_view
    made.submit_store(job(1, KEYS[:1], [0]))
    made.shutdown()
    made.shutdown()
    assert opened.queue.closed and opened.client.closed
    made._primary_kv_view = None
    shared.release()  # a BufferError if anything of it were still exported


def test_metrics_are_declared_and_told_once(opened):
    made = tier()
    assert made.get_stats() is None
    made.lookup(KEYS[0], request())
    made.on_schedule_end()
    opened.queue.done(1, [True])
    made.submit_load(job(1, KEYS[:1], [0], load=True))
    opened.queue.done(2, [CHUNK], moved=CHUNK)
    made.get_finished_jobs()
    told = made.get_stats().reduce()
    assert told["vllm:kv_offload_memkv_lookup_hits"] == 1
    assert told["vllm:kv_offload_memkv_load_bytes"] == CHUNK
    assert told["vllm:kv_offload_memkv_load_wait_seconds_sum"] == 0.25
    assert made.get_stats() is None
    declared = MemkvTier.build_metric_definitions({})
    names = {name.removesuffix("_count").removesuffix("_sum") for name in told}
    assert names <= set(declared)


def test_parameters_reach_the_client_and_others_are_refused(opened):
    tier(servers="a:1", namespace="ours", request_timeout=5, lookup_seconds=1)
    assert opened.options == {"servers": "a:1", "namespace": "ours", "request_timeout": 5}
    with pytest.raises(memkv.ConfigError, match="sevrers"):
        tier(sevrers="a:1")
    with pytest.raises(memkv.ConfigError, match="load_seconds"):
        tier(load_seconds=0)


def test_an_older_base_without_backpressure_is_understood(opened, monkeypatch):
    made = {}

    def base(self, offloading_spec, primary_kv_view, tier_type):
        made.update(spec=offloading_spec, type=tier_type)

    monkeypatch.setattr(SecondaryTierManager, "__init__", base)
    tier()
    assert made["type"] == "MemkvTier"


CHANGES = {
    "model": {"name": "other"},
    "dtype": {"dtype": "float16"},
    "tokens_per_hash": {"tokens_per_hash": 64},
    "blocks_per_chunk": {"blocks_per_chunk": 4},
    "tp_size": {"tp_size": 2},
    "pp_size": {"pp_size": 2},
    "pcp_size": {"pcp_size": 2},
    "dcp_size": {"dcp_size": 2},
    "kv_cache_layout": {"kv_cache_layout": "NHD"},
    "replicated_layout": {"replicated_layout": True},
    "kv_cache_groups": {
        "groups": (OffloadingGroupConfig(tokens_per_block=32, layer_names=("l0",), group_id=0),)
    },
}


@pytest.mark.parametrize("changed", [*CHANGES, "weights", "rank", "chunk_bytes", "hash"])
def test_each_part_of_the_fingerprint_alone_gives_another(opened, monkeypatch, changed):
    settings = {"weights": "sha256:00"}
    ours = deployment.fingerprint(spec(), CHUNK, settings)
    chunk = CHUNK
    if changed == "weights":
        settings = {"weights": "sha256:01"}
    if changed == "chunk_bytes":
        chunk = 2 * CHUNK
    if changed == "hash":
        monkeypatch.setattr(deployment, "hash_algorithm", lambda _engine: "xxhash")
    more = {"rank": 1} if changed == "rank" else CHANGES.get(changed, {})
    other = deployment.fingerprint(spec(**more), chunk, settings)
    assert ours.prefix != other.prefix
    differing = {name for name in ours.shared if ours.shared[name] != other.shared.get(name)}
    assert differing == (set() if changed == "rank" else {changed})
    assert (ours.digest == other.digest) == (changed == "rank")


def test_the_engines_configuration_is_found_above(opened):
    def connector(vllm_config):
        return tier().fingerprint.shared

    model = SimpleNamespace(revision=None, quantization="fp8", hf_overrides={})
    cache = SimpleNamespace(prefix_caching_hash_algo="sha256_cbor")
    told = connector(SimpleNamespace(model_config=model, cache_config=cache))
    assert (told["hash"], told["quantization"], told["hf_overrides"]) == (
        "sha256_cbor",
        "fp8",
        None,
    )
    assert tier().fingerprint.shared["hash"] == "unknown"


def test_a_sample_is_the_same_in_every_process_unless_seeds_differ(monkeypatch):
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    sample, seeded = deployment.sample_hash("sha256")
    assert (sample, seeded) == (deployment.sample_hash("sha256")[0], False)
    assert deployment.sample_hash("sha256_cbor")[0] != sample
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    assert deployment.sample_hash("sha256")[0] != sample
    monkeypatch.delenv("PYTHONHASHSEED")
    first, seeded = deployment.sample_hash("xxhash")
    assert seeded and first != deployment.sample_hash("xxhash")[0]


def test_the_deployment_is_said_at_the_start(opened, caplog):
    with caplog.at_level(logging.INFO, logger="memkv_vllm"):
        tier()
    assert "namespace vllm-1" in caplog.text and "4096 bytes" in caplog.text


def test_the_trace_of_a_request_goes_with_its_chunks(opened):
    made = tier()
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    for number, (told, passed) in enumerate(
        [
            ({"traceparent": parent}, parent),
            ({"traceparent": parent.upper()}, None),
            ({"traceparent": "00-" + "0" * 32 + parent[35:]}, None),
            ({"traceparent": 7}, None),
            ({}, None),
            (None, None),
        ]
    ):
        work = job(number, KEYS[:1], [0], load=number % 2 == 0)
        work.req_context.kv_transfer_params = told
        (made.submit_load if number % 2 == 0 else made.submit_store)(work)
        assert opened.queue.batches[-1].trace == passed
