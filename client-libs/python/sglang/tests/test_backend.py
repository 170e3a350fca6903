"""The storage backend on a client in a dictionary: what a server is asked, and what becomes of its
answers.
"""

import dataclasses

import memkv
import pytest
import torch
from conftest import PAGE, mha_pool
from memkv_sglang import deployment
from memkv_sglang.backend import MemKVHiCacheStorage
from memkv_sglang.pages import HostPool
from sglang.srt.mem_cache.hicache_storage import (
    HiCacheStorageConfig,
    PoolHitPolicy,
    PoolName,
    PoolTransfer,
)

LAYOUTS = {"page_first": 2, "page_first_direct": 2, "page_head": 2, "layer_first": 6}
HASHES = [f"{page:064x}" for page in range(8)]


def config(**changes):
    fields = {
        "tp_rank": 0,
        "tp_size": 1,
        "pp_rank": 0,
        "pp_size": 1,
        "attn_cp_rank": 0,
        "attn_cp_size": 1,
        "is_mla_model": False,
        "enable_storage_metrics": True,
        "is_page_first_layout": True,
        "model_name": "tiny",
    }
    fields.update(changes)
    extra = {"backend_name": "memkv", "interface_v1": 1, "weights": "sha256:00"}
    fields["extra_config"] = {**extra, **fields.pop("extra", {})}
    return HiCacheStorageConfig(**fields)


def backend(pool, **changes):
    made = MemKVHiCacheStorage(config(**changes), {})
    made.register_mem_pool_host(pool)
    made._client.calls.clear()
    return made


def filled(pool):
    generator = torch.Generator().manual_seed(7)
    noise = torch.randint(0, 256, (pool.kv_buffer.nbytes,), dtype=torch.uint8, generator=generator)
    pool.kv_buffer.view(torch.uint8).flatten().copy_(noise)
    return pool


def slots(*pages):
    return torch.cat([torch.arange(page * PAGE, (page + 1) * PAGE) for page in pages])


def equal(one, other):
    """By bytes: noise has values that are not equal to themselves."""
    return torch.equal(one.view(torch.uint8), other.view(torch.uint8))


def same(pool, page, other, at):
    return equal(pool.get_data_page(page * PAGE), other.get_data_page(at * PAGE))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pages_come_back_bit_exact_in_one_request_each(store, layout):
    pool = filled(mha_pool(layout))
    first = backend(pool)
    assert first.batch_exists(HASHES[:3]) == 0
    assert first.batch_set_v1(HASHES[:3], slots(5, 0, 2)) == [True] * 3
    assert first._client.calls == [("match_prefix", 3), ("put", 3)]
    assert [len(value) for value in store.values.values()] == [PAGE * pool.size_per_token] * 3
    first.close()

    empty = mha_pool(layout)
    empty.kv_buffer.zero_()
    second = backend(empty)
    assert second.batch_exists(HASHES) == 3
    assert second.batch_get_v1(HASHES[:4], slots(1, 2, 3, 4)) == [True, True, True, False]
    assert second._client.calls == [("match_prefix", 8), ("get", 4)]
    for page, at in ((5, 1), (0, 2), (2, 3)):
        assert same(pool, page, empty, at)
    assert not empty.get_data_page(4 * PAGE).any(), "a page that was not there was written"


@pytest.mark.parametrize(("layout", "pieces"), LAYOUTS.items())
def test_no_byte_is_copied_on_the_way(store, layout, pieces):
    pool = filled(mha_pool(layout))
    made, seen = backend(pool), []
    start, end = pool.kv_buffer.data_ptr(), pool.kv_buffer.data_ptr() + pool.kv_buffer.nbytes
    put, get = made._client.put_batch, made._client.get_batch_into
    made._client.put_batch = lambda k, v, **o: (seen.extend(v), put(k, v, **o))[1]
    made._client.get_batch_into = lambda k, v, **o: (seen.extend(v), get(k, v, **o))[1]
    made.batch_set_v1(HASHES[:2], slots(0, 1))
    made.batch_get_v1(HASHES[:2], slots(2, 3))
    assert [len(page) for page in seen] == [pieces] * 4
    places = [piece for page in seen for piece in page]
    assert all(start <= address and address + length <= end for address, length in places)
    assert len({address for address, _ in places}) == 4 * pieces
    assert sum(length for _, length in places) == 4 * PAGE * pool.size_per_token


def test_what_follows_a_page_that_is_missing_is_no_hit(store):
    made = backend(filled(mha_pool()))
    made.batch_set_v1(HASHES[:4], slots(0, 1, 2, 3))
    (key,) = [key for key in store.values if key.endswith(HASHES[2].encode())]
    del store.values[key]
    assert made.batch_exists(HASHES[:4]) == 2
    assert made.batch_get_v1(HASHES[:4], slots(4, 5, 6, 7)) == [True, True, False, True]


def test_a_value_of_another_length_is_no_page(store):
    made = backend(filled(mha_pool()))
    made.batch_set_v1(HASHES[:2], slots(0, 1))
    key = next(key for key in store.values if key.endswith(HASHES[0].encode()))
    for wrong in (store.values[key][:-1], store.values[key] + b"\0"):
        store.values[key] = wrong
        assert made.batch_get_v1(HASHES[:2], slots(2, 3)) == [False, True]


def test_a_server_that_is_gone_is_a_miss_everywhere(store, caplog):
    made = backend(filled(mha_pool()))
    made.batch_set_v1(HASHES[:1], slots(0))
    made._client.away = True
    transfer = PoolTransfer(PoolName.KV, host_indices=slots(0), keys=HASHES[:1])
    assert made.batch_exists(HASHES[:1]) == 0 and not made.exists(HASHES[0])
    assert made.batch_get_v1(HASHES[:1], slots(0)) == [False]
    assert made.batch_set_v1(HASHES[:1], slots(0)) == [False]
    assert made.batch_exists_v2(HASHES[:1]).kv_hit_pages == 0
    assert made.batch_get_v2([transfer]) == {"kv": [False]}
    assert made.batch_get(HASHES[:1], [torch.zeros(4)]) == [None]
    assert made.set(HASHES[0], torch.zeros(4)) is False
    made.clear()
    assert sum("nobody there" in text for text in caplog.messages) == 1, "told once, not each time"
    assert made.stats()["lookup"]["errors"] == 3
    made._client.away = False
    assert made.batch_set_v1(HASHES[:1], slots(0)) == [True] and made.exists(HASHES[0])


def test_a_namespace_that_is_not_bound_yet_is_not_asked(store):
    made = backend(filled(mha_pool()))
    store.binding.bound = False
    try:
        assert made.batch_set_v1(HASHES[:1], slots(0)) == [False]
        assert made.batch_exists(HASHES[:1]) == 0
        assert made.batch_get_v1(HASHES[:1], slots(0)) == [False]
        assert made._client.calls == [] and store.values == {}
    finally:
        store.binding.bound = True
    assert made.batch_set_v1(HASHES[:1], slots(0)) == [True]


def test_a_full_store_says_which_pages_it_has(store):
    made = backend(filled(mha_pool()))
    made._client.full = 2
    assert made.batch_set_v1(HASHES[:3], slots(0, 1, 2)) == [True, False, False]
    assert made.batch_exists(HASHES[:3]) == len(store.values) == 1
    assert made.stats()["store"]["errors"] == 2


@pytest.mark.parametrize("layout", ["page_first", "page_first_direct", "layer_first"])
def test_copies_come_back_bit_exact(store, layout):
    pool = filled(mha_pool(layout))
    made = backend(pool, extra={"interface_v1": 0})
    values = [pool.get_data_page(page * PAGE) for page in (3, 1)]
    assert made.batch_set(HASHES[:2], values)
    assert made.batch_exists(HASHES[:3]) == 2 and made.exists(HASHES[1])
    targets = [pool.get_dummy_flat_data_page() for _ in range(3)]
    found = made.batch_get(HASHES[:3], targets)
    assert found[0] is targets[0] and found[1] is targets[1] and found[2] is None
    assert equal(found[0], values[0]) and equal(found[1], values[1])
    assert made.get(HASHES[2], targets[2]) is None
    assert made.set(HASHES[2], values[0])
    assert equal(made.get(HASHES[2], targets[2]), values[0])
    assert made.batch_get(HASHES[:1], None) == [None]


def test_a_pool_that_has_no_addresses_is_copied(store):
    class Plain:
        """A pool of a kind that can only hand out copies."""

        page_size, layout, dtype = PAGE, "odd", torch.float16

        def __init__(self):
            self.kv_buffer = torch.zeros(8, 32, dtype=torch.float16)

        def get_page_buffer_meta(self, indices):
            raise ValueError("Unsupported layout: odd")

        def get_data_page(self, index, flat=True):
            return self.kv_buffer[index // PAGE]

        def get_dummy_flat_data_page(self):
            return torch.zeros(32, dtype=torch.float16)

        def set_from_flat_data_page(self, index, page):
            self.kv_buffer[index // PAGE] = page

    pool = Plain()
    pool.kv_buffer[2], pool.kv_buffer[3] = 2.5, 3.5
    made = backend(pool)
    assert made.batch_set_v1(HASHES[:2], slots(2, 3)) == [True, True]
    assert made.batch_get_v1(HASHES[:3], slots(5, 4, 6)) == [True, True, False]
    assert pool.kv_buffer[5].eq(2.5).all() and pool.kv_buffer[4].eq(3.5).all()
    assert not pool.kv_buffer[6].any()
    assert made._client.calls == [("put", 2), ("get", 3)]


def test_a_layout_that_cannot_be_stored_stops_the_attach(store):
    made = MemKVHiCacheStorage(config(), {})
    with pytest.raises(memkv.ConfigError, match="page_unified"):
        made.register_mem_pool_host(mha_pool("page_unified"))


def test_ranks_of_an_mla_model_share_pages_that_one_writes(store):
    pool = filled(mha_pool())
    writer = backend(pool, is_mla_model=True, tp_rank=0, tp_size=2)
    reader = backend(mha_pool(), is_mla_model=True, tp_rank=1, tp_size=2)
    assert reader.batch_set_v1(HASHES[:1], slots(0)) == [True], "the writer's business"
    assert reader.batch_set(HASHES[:1], [torch.zeros(4)]) and store.values == {}
    assert writer.batch_set_v1(HASHES[:1], slots(0)) == [True]
    assert reader.batch_exists(HASHES[:1]) == 1
    assert reader.batch_get_v1(HASHES[:1], slots(3)) == [True]
    assert same(pool, 0, reader.mem_pool_host, 3)


def test_ranks_of_other_models_have_their_own_pages(store):
    one = backend(filled(mha_pool()), tp_rank=0, tp_size=2)
    two = backend(filled(mha_pool()), tp_rank=1, tp_size=2)
    assert one.fingerprint.digest == two.fingerprint.digest
    one.batch_set_v1(HASHES[:1], slots(0))
    assert one.batch_exists(HASHES[:1]) == 1 and two.batch_exists(HASHES[:1]) == 0
    two.batch_set_v1(HASHES[:1], slots(0))
    assert len(store.values) == 2


CHANGES = {
    "model": {"model_name": "other"},
    "weights": {"extra": {"weights": "sha256:01"}},
    "tp_size": {"tp_size": 2},
    "pp_size": {"pp_size": 2},
    "attn_cp_size": {"attn_cp_size": 2},
    "mla": {"is_mla_model": True},
    "interface": {"extra": {"interface_v1": 0}},
}
POOLS = {
    "dtype": {"dtype": torch.float16},
    "page_size": {"page": 2 * PAGE},
    "layout": {"layout": "page_first_direct"},
}
RANKS = {
    "tp_rank": {"tp_rank": 1, "tp_size": 2},
    "pp_rank": {"pp_rank": 1, "pp_size": 2},
    "attn_cp_rank": {"attn_cp_rank": 1, "attn_cp_size": 2},
}


@pytest.mark.parametrize("changed", [*CHANGES, *POOLS])
def test_each_part_of_the_fingerprint_alone_gives_another(store, changed):
    ours = backend(mha_pool()).fingerprint
    other = backend(mha_pool(**POOLS.get(changed, {})), **CHANGES.get(changed, {})).fingerprint
    differing = {name for name in ours.shared if ours.shared[name] != other.shared.get(name)}
    assert differing == {changed}
    assert ours.digest != other.digest and ours.prefix != other.prefix


@pytest.mark.parametrize("changed", RANKS)
def test_each_rank_has_its_own_prefix(store, changed):
    sizes = {name: size for name, size in RANKS[changed].items() if name.endswith("size")}
    ours = backend(mha_pool(), **sizes).fingerprint
    other = backend(mha_pool(), **RANKS[changed]).fingerprint
    assert ours.digest == other.digest and ours.prefix != other.prefix


def test_layers_and_heads_of_a_stage_are_in_its_prefix(store):
    assert backend(mha_pool()).fingerprint.prefix != backend(mha_pool(layers=2)).fingerprint.prefix


def test_another_hash_algorithm_is_another_fingerprint(store, monkeypatch):
    ours = backend(mha_pool()).fingerprint
    monkeypatch.setattr(deployment, "sample_hash", lambda: ("sglang-pages", "00" * 32))
    assert backend(mha_pool()).fingerprint.digest != ours.digest


def test_attach_and_detach_can_be_repeated(store):
    pool = filled(mha_pool())
    for round_ in range(3):
        made = backend(pool)
        assert made.batch_exists(HASHES[:1]) == (1 if round_ else 0)
        assert made.batch_set_v1(HASHES[:1], slots(0)) == [True]
        made.close()
        made.close()
        assert made.batch_exists(HASHES[:1]) == 0
        assert made.batch_get_v1(HASHES[:1], slots(1)) == [False]
    assert all(client.closed for client in store.opened)


def test_a_second_host_pool_replaces_the_connection(store):
    made = backend(mha_pool())
    made.register_mem_pool_host(mha_pool())
    assert [client.closed for client in store.opened] == [True, False]


def test_clear_deletes_what_was_stored_or_found(store):
    first = backend(filled(mha_pool()))
    first.batch_set_v1(HASHES[:3], slots(0, 1, 2))
    second = backend(mha_pool())
    second.batch_exists(HASHES[:2])
    second.clear()
    assert second.batch_exists(HASHES[:3]) == 0 and len(store.values) == 1
    first.clear()
    assert store.values == {}
    first.clear()
    assert [name for name, _ in first._client.calls].count("delete") == 1


def test_metrics_are_of_what_was_moved_since_the_last_time(store):
    made = backend(filled(mha_pool()))
    made.batch_set_v1(HASHES[:2], slots(0, 1))
    made.batch_get_v1(HASHES[:3], slots(0, 1, 2))
    taken = made.get_stats()
    assert (taken.backup_pgs, taken.prefetch_pgs) == ([2], [2])
    assert all(rate > 0 for rate in taken.backup_bandwidth + taken.prefetch_bandwidth)
    assert made.get_stats().backup_pgs == []
    stats = made.stats()
    assert stats["store"]["bytes"] == stats["load"]["bytes"] == 2 * PAGE * 192
    assert (stats["load"]["pages"], stats["load"]["hits"], stats["load"]["errors"]) == (3, 2, 0)
    assert backend(mha_pool(), enable_storage_metrics=False).get_stats() is None


def test_settings_reach_the_client(store, caplog):
    extra = {"servers": ["a:1"], "namespace": "ours", "ttl": 60, "durable": True, "prefetch_x": 1}
    made = backend(filled(mha_pool()), extra={**extra, "sevrers": "typo"})
    assert store.opened[-1].options_given == {"servers": ["a:1"], "namespace": "ours"}
    made.batch_set_v1(HASHES[:1], slots(0))
    assert made._client.options == {"ttl": 60, "durable": True}
    assert made._client.timeouts["put"] == 30.0
    assert [text for text in caplog.messages if "does not know" in text] == [
        "memkv does not know sevrers in the extra config"
    ]


def test_each_call_has_its_time(store):
    extra = {"lookup_seconds": 1, "load_seconds": 3, "store_seconds": 0.5}
    made = backend(filled(mha_pool()), extra=extra)
    made.batch_set_v1(HASHES[:1], slots(0))
    made.batch_get_v1(HASHES[:1], slots(0))
    made.batch_exists(HASHES[:1])
    made.batch_exists_v2(HASHES[:1])
    made.clear()
    times = {"put": 0.5, "get": 3.0, "match_prefix": 1.0, "exists": 1.0, "delete": 0.5}
    assert made._client.timeouts == times
    for wrong in (0, -1, "soon", None):
        with pytest.raises(memkv.ConfigError, match="load_seconds"):
            MemKVHiCacheStorage(config(extra={"load_seconds": wrong}), {})


# ---- hybrid pools


class Sidecar:
    """A pool beside KV with one state a page, as Mamba has."""

    page_size, layout, dtype = 1, "page_first", torch.float32

    def __init__(self):
        self.states = torch.zeros(16, 24)
        self.tails = torch.zeros(16, 5)

    def get_page_buffer_meta(self, indices):
        rows = [(buffer, int(row)) for row in indices for buffer in (self.states, self.tails)]
        return [b[row].data_ptr() for b, row in rows], [b[row].nbytes for b, row in rows]


@pytest.fixture
def hybrid(store):
    made = backend(filled(mha_pool()))
    made.register_mem_host_pool_v2(Sidecar(), PoolName.MAMBA)
    made.register_mem_host_pool_v2(filled(mha_pool()), PoolName.DRAFT)
    return made


def transfer(name, pages, indices=None, policy=PoolHitPolicy.ALL_PAGES):
    return PoolTransfer(name, host_indices=indices, keys=list(pages), hit_policy=policy)


def test_pools_are_moved_together_in_one_request(hybrid, store):
    mamba = hybrid.registered_pools[PoolName.MAMBA]
    mamba.states[3], mamba.tails[3] = 1.5, -2.0
    wanted = [
        transfer(PoolName.MAMBA, HASHES[2:3], torch.tensor([3])),
        transfer(PoolName.DRAFT, HASHES[:2], slots(0, 1)),
    ]
    assert hybrid.batch_set_v2(wanted) == {"mamba": [True], "draft": [True, True]}
    assert hybrid._client.calls == [("put", 1 + 2)]
    wanted = [
        transfer(PoolName.MAMBA, HASHES[1:3], torch.tensor([4, 5])),
        transfer(PoolName.DRAFT, HASHES[:1], slots(6)),
    ]
    assert hybrid.batch_get_v2(wanted) == {"mamba": [False, True], "draft": [True]}
    assert mamba.states[5].eq(1.5).all() and mamba.tails[5].eq(-2.0).all()
    assert not mamba.states[4].any()
    draft = hybrid.registered_pools[PoolName.DRAFT]
    assert same(draft, 0, draft, 6)


def test_a_transfer_whose_slots_do_not_fit_is_no_success(hybrid):
    wrong = [
        transfer(PoolName.MAMBA, HASHES[:2], torch.tensor([1])),
        transfer(PoolName.SWA, HASHES[:1], torch.tensor([1])),
        transfer(PoolName.DRAFT, HASHES[:1]),
    ]
    assert hybrid.batch_set_v2(wrong) == {"mamba": [False] * 2, "swa": [False], "draft": [False]}
    assert hybrid._client.calls == []


def test_pools_decide_together_which_prefix_is_usable(hybrid):
    hybrid.batch_set_v1(HASHES[:6], slots(0, 1, 2, 3, 4, 5))
    states = [(1, 1), (3, 3), (4, 4)]  # states after pages 1, 3 and 4
    pages = [HASHES[page] for page, _ in states]
    hybrid.batch_set_v2([transfer(PoolName.MAMBA, pages, torch.tensor([1, 3, 4]))])
    hybrid.batch_set_v2([transfer(PoolName.DRAFT, HASHES[:4], slots(0, 1, 2, 3))])
    hybrid._client.calls.clear()
    one = transfer(PoolName.MAMBA, HASHES[5:6], policy=PoolHitPolicy.TRAILING_PAGES)
    found = hybrid.batch_exists_v2(HASHES, [one])
    assert (found.kv_hit_pages, found.restorable_prefix_pages) == (5, [2, 4, 5])
    assert found.extra_pool_hit_pages == {"kv": 6, "mamba": 5}
    assert hybrid._client.calls == [("exists", 8 + 8)]
    two = transfer(PoolName.MAMBA, HASHES[4:6], policy=PoolHitPolicy.TRAILING_PAGES)
    assert hybrid.batch_exists_v2(HASHES, [two]).restorable_prefix_pages == [5]
    everything = transfer(PoolName.DRAFT, HASHES)
    found = hybrid.batch_exists_v2(HASHES, [one, everything])
    assert (found.kv_hit_pages, found.restorable_prefix_pages) == (4, [2, 4])
    groups = transfer(PoolName.SWA, HASHES, policy=PoolHitPolicy.BLOCK_GROUPS)
    found = hybrid.batch_exists_v2(HASHES, [groups])
    assert (found.kv_hit_pages, found.extra_pool_hit_pages) == (6, {"kv": 6})
    unknown = transfer(PoolName.SWA, HASHES)
    assert hybrid.batch_exists_v2(HASHES, [unknown]).kv_hit_pages == 0
    assert hybrid.batch_exists_v2([], [one]).kv_hit_pages == 0


def test_an_anchor_without_pages_leaves_the_say_to_the_others(store):
    class Anchor:
        page_size, layout, dtype, kv_buffer = PAGE, "page_first", torch.uint8, None

    made = backend(Anchor())
    made.register_mem_host_pool_v2(filled(mha_pool()), PoolName.DRAFT)
    made.batch_set_v2([transfer(PoolName.DRAFT, HASHES[:2], slots(0, 1))])
    assert (
        made.batch_exists_v2(HASHES[:4], [transfer(PoolName.DRAFT, HASHES[:4])]).kv_hit_pages == 2
    )


def test_a_sharded_pool_of_an_mla_model_is_every_ranks_own(store):
    ranks = []
    for rank in range(2):
        made = backend(filled(mha_pool()), is_mla_model=True, tp_rank=rank, tp_size=2)
        made.register_mem_host_pool_v2(Sidecar(), PoolName.MAMBA)
        made.registered_pools[PoolName.MAMBA].states[0] = float(rank + 1)
        ranks.append(made)
    for made in ranks:
        assert made.batch_set_v2([transfer(PoolName.MAMBA, HASHES[:1], torch.tensor([0]))]) == {
            "mamba": [True]
        }
    assert len(store.values) == 2
    for rank, made in enumerate(ranks):
        made.batch_get_v2([transfer(PoolName.MAMBA, HASHES[:1], torch.tensor([7]))])
        assert made.registered_pools[PoolName.MAMBA].states[7].eq(float(rank + 1)).all()


def test_pools_of_another_shape_have_other_keys(store):
    class Wider(Sidecar):
        def __init__(self):
            self.states, self.tails = torch.zeros(16, 48), torch.zeros(16, 5)

    narrow, wide = HostPool("mamba", Sidecar()), HostPool("mamba", Wider())
    assert set(narrow.keys(HASHES)).isdisjoint(wide.keys(HASHES))
    assert narrow.keys(HASHES[:1]) == HostPool("mamba", Sidecar()).keys(HASHES[:1])


def test_keys_fit_whatever_a_page_is_called():
    pool = HostPool("kv", Sidecar())
    keys = pool.keys(["a" * length for length in range(470, 520)])
    assert len(set(keys)) == len(keys) and max(map(len, keys)) == 512 - 17


def test_storage_config_of_an_older_release_is_understood():
    @dataclasses.dataclass
    class Older:
        tp_rank: int = 1
        tp_size: int = 2
        pp_rank: int = 0
        pp_size: int = 1
        is_mla_model: bool = True
        is_page_first_layout: bool = True
        model_name: str = "tiny"
        extra_config: dict = dataclasses.field(default_factory=lambda: {"weights": "w"})

    made = MemKVHiCacheStorage(Older())
    assert made.writer is False and made.copied
    assert MemKVHiCacheStorage(Older(tp_rank=0), {}, mem_pool=None).writer is True
