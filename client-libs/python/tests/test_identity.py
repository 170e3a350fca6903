"""Identity of keys: what changes a fingerprint, what a namespace does with a second one."""

import json
import logging
import threading

import pytest
from memkv import ConfigError, Conflict, Unavailable, identity
from memkv.identity import Binding, Fingerprint, FingerprintMismatch, check_hash_seed, fit_key

SHARED = {
    "engine": "sglang",
    "kv_layout_version": 1,
    "model": "llama-70b",
    "weights": "sha256:0011",
    "dtype": "bfloat16",
    "tp_size": 4,
    "pp_size": 1,
    "page_size": 64,
    "layout": "page_first",
    "hash_algorithm": "sha256",
    "hash_seed": None,
    "mla": False,
}
OTHER = {
    "engine": "vllm",
    "kv_layout_version": 2,
    "model": "llama-8b",
    "weights": "sha256:0012",
    "dtype": "float16",
    "tp_size": 8,
    "pp_size": 2,
    "page_size": 128,
    "layout": "page_first_direct",
    "hash_algorithm": "builtin",
    "hash_seed": "0",
    "mla": True,
}
RANK = {"tp_rank": 1, "pp_rank": 0}


class FakeServer:
    """What a server does with small values, in a dictionary; `away` makes it one that is gone."""

    def __init__(self):
        self.values, self.away, self.connections = {}, False, []

    def open(self, **options):
        self.connections.append(options)
        return FakeClient(self, **options)


class FakeClient:
    def __init__(self, server, namespace=None, prefix=b"", **_options):
        self.server, self.namespace, self.prefix = server, namespace or "default", prefix

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        self.server = None

    def _place(self, key):
        if self.server.away:
            raise Unavailable("nobody there")
        return self.namespace, self.prefix + key

    def get(self, key):
        return self.server.values.get(self._place(key))

    def put(self, key, value, *, replace=False, pin=None):
        assert pin, "an entry that says whose a namespace is must not be the first to be evicted"
        place = self._place(key)
        there = self.server.values.get(place)
        if there is not None and not replace:
            if len(there) != len(value):
                raise Conflict("another length")
            return False
        self.server.values[place] = bytes(value)
        return True


@pytest.fixture
def server(monkeypatch):
    server = FakeServer()
    monkeypatch.setattr(identity, "Client", server.open)
    return server


def test_every_shared_field_changes_digest_and_prefix_alone():
    ours = Fingerprint(SHARED, RANK)
    assert SHARED.keys() == OTHER.keys()
    seen = {(ours.digest, ours.prefix)}
    for field, value in OTHER.items():
        other = Fingerprint({**SHARED, field: value}, RANK)
        seen.add((other.digest, other.prefix))
        assert other != ours, field
    assert len({digest for digest, _ in seen}) == len({prefix for _, prefix in seen}) == 13


@pytest.mark.parametrize("field", sorted(SHARED))
def test_one_other_field_is_refused_by_name(server, field):
    Fingerprint(SHARED, RANK).bind(server.open(namespace="ours"))
    with pytest.raises(FingerprintMismatch) as refused:
        Fingerprint({**SHARED, field: OTHER[field]}, RANK).bind(server.open(namespace="ours"))
    assert refused.value.fields == (field,)
    assert refused.value.ours != refused.value.theirs
    for told in ("'ours'", field, refused.value.ours, refused.value.theirs):
        assert told in str(refused.value)


@pytest.mark.parametrize("rank", ["tp_rank", "pp_rank"])
def test_a_rank_has_its_own_prefix_and_the_namespace_of_all(server, rank):
    one, two = Fingerprint(SHARED, RANK), Fingerprint(SHARED, {**RANK, rank: 3})
    assert one.digest == two.digest and one.prefix != two.prefix and one != two
    one.bind(server.open())
    two.bind(server.open())


def test_a_field_that_is_missing_is_another_fingerprint(server):
    less = {field: value for field, value in SHARED.items() if field != "dtype"}
    assert Fingerprint(less).digest != Fingerprint(SHARED).digest
    Fingerprint(SHARED).bind(server.open())
    with pytest.raises(FingerprintMismatch) as refused:
        Fingerprint(less).bind(server.open())
    assert refused.value.fields == ("dtype",)


def test_one_and_true_and_text_are_three_settings(server):
    digests = {Fingerprint({"a": value}).digest for value in (1, True, "1", "true", None)}
    assert len(digests) == 5
    Fingerprint({"a": 1}).bind(server.open())
    with pytest.raises(FingerprintMismatch):
        Fingerprint({"a": True}).bind(server.open())


def test_order_of_fields_means_nothing():
    ours, reversed_ = Fingerprint(SHARED), Fingerprint(dict(reversed(SHARED.items())))
    assert (ours.digest, ours.prefix) == (reversed_.digest, reversed_.prefix)
    assert ours.document() == reversed_.document()


def test_a_digest_stays_the_same_between_releases():
    # Who changes these makes every cache in the field a miss.
    ours = Fingerprint({"model": "mödel", "tp_size": 2, "mla": False, "seed": None}, {"tp_rank": 1})
    assert ours.digest == "808d30af421b45d92ed54445f62a384716f4ea7a6aa1bc051d1e255486a769fd"
    assert ours.prefix == b"31eb96d45794802a/"


def test_document_is_what_digest_is_of():
    ours = Fingerprint(SHARED, RANK)
    assert json.loads(ours.document()) == SHARED
    assert Fingerprint(json.loads(ours.document())).digest == ours.digest
    assert len(ours.document().splitlines()) == len(SHARED) + 2


@pytest.mark.parametrize("value", [1.5, ["a"], {"a": 1}, b"a", object()])
def test_values_that_can_be_written_in_two_ways_are_refused(value):
    with pytest.raises(ConfigError, match="dtype"):
        Fingerprint({"dtype": value})
    with pytest.raises(ConfigError, match="rank"):
        Fingerprint(SHARED, {"tp_rank": value})


def test_an_empty_fingerprint_is_refused():
    with pytest.raises(ConfigError):
        Fingerprint({})


def test_bind_again_writes_nothing(server):
    ours = Fingerprint(SHARED)
    ours.bind(server.open())
    before = dict(server.values)
    ours.bind(server.open())
    assert server.values == before == {("default", b"memkv/fingerprint"): ours.document().encode()}


def test_something_else_under_the_key_is_refused_not_replaced(server):
    server.values[("default", b"memkv/fingerprint")] = b"\xff not ours"
    with pytest.raises(FingerprintMismatch, match="not ours"):
        Fingerprint(SHARED).bind(server.open())
    assert server.values[("default", b"memkv/fingerprint")] == b"\xff not ours"


@pytest.mark.parametrize("length", ["same", "other"])
def test_two_that_bind_at_once_agree_on_one(server, length):
    theirs = {**SHARED, "dtype": "float16x" if length == "same" else "fp8"}
    assert (len(Fingerprint(theirs).document()) == len(Fingerprint(SHARED).document())) == (
        length == "same"
    )
    client = server.open()
    looked = client.get

    def get(key):
        found = looked(key)
        if found is None:  # the other one stores its own right after this one looked
            Fingerprint(theirs).bind(server.open())
        return found

    client.get = get
    with pytest.raises(FingerprintMismatch):
        Fingerprint(SHARED).bind(client)


def test_namespaces_are_derived_where_none_is_named(server):
    one, two = Fingerprint(SHARED), Fingerprint({**SHARED, "dtype": "float16"})
    first, bound = identity.connect(one, "sglang", servers="a:1")
    second, also = identity.connect(two, "sglang", servers="a:1")
    assert first.namespace == f"sglang-{one.digest[:12]}" != second.namespace
    assert first.prefix == one.prefix and second.prefix == two.prefix
    assert bound.ready() and also.ready()
    assert {namespace for namespace, _ in server.values} == {first.namespace, second.namespace}


def test_a_named_namespace_is_bound_and_refuses_the_next(server):
    client, _ = identity.connect(Fingerprint(SHARED), "sglang", namespace="ours")
    assert client.namespace == "ours"
    with pytest.raises(FingerprintMismatch):
        identity.connect(Fingerprint({**SHARED, "page_size": 1}), "sglang", namespace="ours")


def test_an_engine_starts_without_its_server_and_binds_later(server, caplog):
    server.away = True
    client, binding = identity.connect(Fingerprint(SHARED), "sglang")
    assert client.prefix and not binding.bound
    assert "everything is a miss" in caplog.text
    server.away, attempts = False, len(server.connections)
    assert not binding.ready(), "it asks again only after a while"
    assert len(server.connections) == attempts
    patient = Binding(Fingerprint(SHARED), server.open, retry_seconds=0)
    server.away = True
    assert not patient.ready()
    server.away = False
    assert patient.ready() and patient.bound


def test_who_must_not_wait_has_another_thread_bind(server):
    server.away = True
    binding = Binding(Fingerprint(SHARED), server.open, retry_seconds=0)

    def attempt():
        answer = binding.ready_soon()
        for thread in threading.enumerate():
            if thread.name == "memkv-bind":
                thread.join(10)
        return answer

    assert not attempt() and not binding.bound
    server.away = False
    attempt()
    assert binding.ready_soon() and binding.bound


def test_a_late_refusal_is_for_good(server, caplog):
    binding = Binding(Fingerprint(SHARED), server.open, retry_seconds=0)
    server.away = True
    assert not binding.ready()
    server.away = False
    Fingerprint({**SHARED, "dtype": "float16"}).bind(server.open())
    assert not binding.ready()
    assert isinstance(binding.refused, FingerprintMismatch)
    assert [record.levelno for record in caplog.records].count(logging.ERROR) == 1
    server.values.clear()
    assert not binding.ready(), "the process has been told that this is not its cache"


def test_keys_that_fit_are_kept_and_others_shortened_without_meeting():
    assert fit_key(b"p/", "abc") == b"p/abc"
    assert fit_key(b"p/", b"k" * 510) == b"p/" + b"k" * 510
    long = [fit_key(b"p/", "k" * length) for length in range(511, 700)]
    assert {len(key) for key in long} == {512}
    assert len(set(long)) == len(long)
    assert all(key.startswith(b"p/kkkk") for key in long)
    assert fit_key(b"p/", b"k" * 600) == fit_key(b"p/", "k" * 600)
    fit_key(b"", "ä" * 300).decode()
    assert fit_key(b"", "ä" * 300) != fit_key(b"", "ä" * 301)
    with pytest.raises(ConfigError):
        fit_key(b"p" * 500, "k" * 600)


def test_weights_are_known_by_what_they_are_not_by_where(tmp_path):
    def model(name, tensors, config=b"{}", files=("model-1.safetensors", "model-2.safetensors")):
        directory = tmp_path / name
        directory.mkdir()
        (directory / "config.json").write_bytes(config)
        for file in files:
            (directory / file).write_bytes(tensors)
        return identity.weights_identity(str(directory))

    tensors = bytes(range(256)) * (3 << 12)  # 3 MiB
    ours = model("a", tensors)
    assert ours.startswith("sha256:") and ours == model("b", tensors)
    middle = tensors[: 2 << 20] + b"\xff" + tensors[(2 << 20) + 1 :]
    others = [
        model("middle", middle),
        model("end", tensors[:-1] + b"\0"),
        model("longer", tensors + b"\0"),
        model("config", tensors, config=b"{ }"),
        model("names", tensors, files=("model-1.safetensors", "model-3.safetensors")),
        model("fewer", tensors, files=("model-1.safetensors",)),
    ]
    assert len({ours, *others}) == 7
    (tmp_path / "a" / "pytorch_model.bin").write_bytes(b"the same in another format")
    (tmp_path / "a" / "README.md").write_bytes(b"words")
    assert identity.weights_identity(str(tmp_path / "a")) == ours
    assert identity.weights_identity(str(tmp_path / "a" / "model-1.safetensors")) != ours
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ConfigError, match="nothing"):
        identity.weights_identity(str(tmp_path / "nothing"))


def test_weights_of_a_hub_are_their_commit_where_it_is_known(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert identity.weights_identity("org/model") == "org/model@main"
    assert identity.weights_identity("org/model", "v2") == "org/model@v2"
    refs = tmp_path / "models--org--model" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("0123abcd\n")
    assert identity.weights_identity("org/model") == "org/model@0123abcd"


def test_another_hash_of_the_sample_is_warned_of_with_both_values(server, monkeypatch, caplog):
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    assert check_hash_seed(server.open(), "sha256", b"\xaa\x01")
    assert check_hash_seed(server.open(), "sha256", "aa01")
    assert not caplog.records
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    assert not check_hash_seed(server.open(), "sha256", "bb02")
    (warning,) = caplog.messages
    for told in ("PYTHONHASHSEED=7", "PYTHONHASHSEED=0", "aa01", "bb02", "sha256"):
        assert told in warning
    # The one that started last is what the next is compared with; another algorithm is no matter.
    assert check_hash_seed(server.open(), "sha256", "bb02")
    assert check_hash_seed(server.open(), "xxhash", "cc03")
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("seed", [None, "random"])
def test_an_unset_seed_is_warned_of_where_it_matters(server, monkeypatch, caplog, seed):
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    if seed:
        monkeypatch.setenv("PYTHONHASHSEED", seed)
    check_hash_seed(server.open(), "sha256", "aa01")
    assert not caplog.records
    check_hash_seed(server.open(), "builtin", "aa01")
    check_hash_seed(server.open(), "xxhash", "aa01", seeded=True)
    assert [text.split(" is not set")[0] for text in caplog.messages] == ["PYTHONHASHSEED"] * 2


def test_a_hash_check_without_a_server_is_no_error(server, caplog):
    server.away = True
    assert check_hash_seed(server.open(), "sha256", "aa01")
    assert "cannot compare" in caplog.text
