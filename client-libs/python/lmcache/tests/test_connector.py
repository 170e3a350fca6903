"""MemKVConnector against a real server. What LMCache's own tests of native clients ask is not repeated."""

import select
import time
import uuid

import memkv
import pytest
from memkv import identity
from memkv_lmcache import options
from memkv_lmcache.connector import MemKVConnector

PATIENCE = 20


@pytest.fixture
def connector(server):
    made = []

    def make(**params) -> MemKVConnector:
        told = {"servers": server.address, "namespace": f"n-{uuid.uuid4().hex[:12]}", **params}
        made.append(MemKVConnector(**told))
        return made[-1]

    yield make
    for one in made:
        one.close()


def done(one, number):
    """The completion of a batch."""
    end = time.monotonic() + PATIENCE
    poller = select.poll()
    poller.register(one.event_fd(), select.POLLIN)
    while time.monotonic() < end:
        poller.poll(1000)
        for told in one.drain_completions():
            if told[0] == number:
                return told
    raise AssertionError("nothing was done in time")


def test_batches(connector):
    one = connector()
    values = [bytes([number]) * 70000 for number in range(3)]
    assert done(one, one.submit_batch_set(["a", "b", "c"], values))[1:] == (True, "", [True] * 3)
    told = done(one, one.submit_batch_exists(["a", "x", "c"]))
    assert told[1:] == (True, "", [True, False, True])
    into = [bytearray(70000) for _ in range(2)] + [bytearray(70001)]
    told = done(one, one.submit_batch_get(["a", "x", "c"], into))
    assert told[3] == [True, False, False], "missing, and of another length"
    assert into[0] == values[0]
    assert done(one, one.submit_batch_delete(["a", "x"]))[3] == [True, False]


def test_what_was_named_otherwise_is_refused(connector):
    connector(namespace="native", fingerprint={"dtype": "bf16"})
    with pytest.raises(identity.FingerprintMismatch, match="bf16"):
        connector(namespace="native", fingerprint={"dtype": "fp16"})


def test_other_weights_are_another_namespace(connector, tmp_path):
    names = []
    for fill in (b"1", b"2"):
        (tmp_path / "model.safetensors").write_bytes(fill * 100)
        names.append(connector(namespace=None, model=str(tmp_path))._link.client.namespace)
    assert names[0] != names[1]


def test_keys_of_any_length(connector):
    one = connector()
    keys = ["k" * 2000 + end for end in "ab"]
    done(one, one.submit_batch_set(keys[:1], [b"1"]))
    assert done(one, one.submit_batch_exists(keys))[3] == [True, False]


def test_an_unknown_option_is_named():
    with pytest.raises(memkv.ConfigError, match="'worker'.*'workers'"):
        MemKVConnector(worker=3)


def test_a_namespace_that_turns_out_to_be_anothers_is_never_used(new_server, monkeypatch):
    monkeypatch.setattr(options, "RETRY_SECONDS", 0.1)
    monkeypatch.setattr(identity.Binding.__init__, "__defaults__", (0.1,))
    server = new_server()
    params = {"servers": server.address, "namespace": "late", "request_timeout": 1.0}
    MemKVConnector(**params, fingerprint={"side": 1}).close()
    server.kill()
    two = MemKVConnector(**params, fingerprint={"side": 2})
    server.start()
    end = time.monotonic() + PATIENCE
    while two._link.refused is None:
        assert time.monotonic() < end, "it is not refused"
        done(two, two.submit_batch_exists(["a"]))
    told = done(two, two.submit_batch_get(["a"], [bytearray(10)]))
    assert not told[1] and "belongs to another" in told[2] and told[3] == [False]
    two.close()
