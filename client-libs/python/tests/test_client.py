"""Calls that wait, against a real server."""

import array
import ctypes
import gc
import json
import os
import threading
import time

import memkv
import numpy
import pytest

KIB = 1024


@pytest.fixture
def client(server, namespace):
    with memkv.Client(server.address, namespace=namespace) as client:
        yield client


def pattern(length: int, salt: int = 0) -> bytes:
    return bytes((numpy.arange(length, dtype=numpy.uint64) * 2654435761 + salt >> 13).astype(numpy.uint8))


@pytest.mark.parametrize("length", [1, 4095, 64 * KIB, 256 * KIB + 1, 4 * KIB * KIB, 9 * KIB * KIB])
def test_values_of_every_size_come_back(client, length):
    value = pattern(length)
    assert client.put("key", value) is True
    assert client.get("key") == value
    into = bytearray(length)
    assert client.get_into("key", into) == length
    assert into == value
    assert client.put("key", value) is False, "it is there already"


def test_what_is_not_there_is_none(client):
    assert client.get("none") is None
    assert client.get_into("none", bytearray(10)) is None
    assert client.exists(["none"]) == [False]
    assert client.match_prefix(["none", "more"]) == 0
    assert client.delete(["none"]) == [False]


def test_a_range_is_read_and_a_long_value_is_cut(client):
    value = pattern(100_000)
    client.put("key", value)
    part = bytearray(1000)
    assert client.get_into("key", part, offset=90_000) == 100_000
    assert part == value[90_000:91_000]
    assert client.get_into("key", part, offset=99_990) == 100_000
    assert part[:10] == value[99_990:]


def test_keys_are_text_or_bytes_and_the_same(client):
    client.put("schlüssel", b"value")
    assert client.get("schlüssel".encode()) == b"value"
    assert client.exists(["schlüssel", "schlüssel".encode(), b"\xff\x00"]) == [True, True, False]


def test_a_batch_is_answered_key_by_key(client):
    values = [pattern(100_000 + at, at) for at in range(20)]
    keys = [f"block/{at}" for at in range(20)]
    errors = []
    assert client.put_batch(keys, values, errors=errors) == [True] * 20
    assert errors == []
    buffers = [bytearray(len(value)) for value in values] + [bytearray(5)]
    lengths = client.get_batch_into([*keys, "none"], buffers, errors=errors)
    assert lengths == [len(value) for value in values] + [None]
    assert [bytes(buffer) for buffer in buffers[:-1]] == values
    assert client.match_prefix([*keys, "none", keys[0]]) == 20
    assert client.exists([keys[3], "none"]) == [True, False]
    assert client.delete([keys[3], "none"]) == [True, False]
    assert client.match_prefix(keys) == 3
    assert errors == []


def test_a_key_of_a_batch_that_fails_is_told_and_the_others_are_stored(client):
    client.put("taken", b"12345")
    errors = []
    assert client.put_batch(["new", "taken", "other"], [b"1", b"2", b"3"], errors=errors) == [True, False, True]
    [(place, error)] = errors
    assert place == 1 and isinstance(error, memkv.Conflict) and isinstance(error, memkv.Error)
    assert "5 bytes" in str(error)
    with pytest.raises(memkv.Conflict):
        client.put("taken", b"2")
    assert client.put("taken", b"2", replace=True) is True
    assert client.get("taken") == b"2"


def test_a_group_is_stored_whole_or_not_at_all(client):
    assert client.put_batch(["k", "v"], [b"keys", b"values"], together=True) == [True, True]
    client.delete(["k"])
    errors = []
    assert client.put_batch(["k", "v"], [b"keys", b"other values"], together=True, errors=errors) == [False, False]
    assert [type(error) for _, error in errors] == [memkv.Conflict, memkv.Conflict]
    assert client.exists(["k", "v"]) == [False, True]


BUFFERS = {
    "bytearray": lambda: bytearray(64),
    "memoryview": lambda: memoryview(bytearray(64)),
    "array": lambda: array.array("b", bytes(64)),
    "numpy": lambda: numpy.zeros(64, numpy.uint8),
    "numpy of two dimensions": lambda: numpy.zeros((4, 16), numpy.uint8),
    "numpy of floats": lambda: numpy.zeros(16, numpy.float32),
    "ctypes, format <B": lambda: memoryview((ctypes.c_ubyte * 64)()),
    "chars, format c": lambda: memoryview(bytearray(64)).cast("c"),
    "signed, format b": lambda: memoryview(bytearray(64)).cast("b"),
    "two dimensions": lambda: memoryview(bytearray(64)).cast("B", (8, 8)),
}


@pytest.mark.parametrize("kind", BUFFERS)
def test_buffers_of_every_kind_are_read_and_filled(client, kind):
    value = bytes(range(64))
    source = BUFFERS[kind]()
    memoryview(source).cast("B")[:] = value
    assert client.put("key", source)
    assert client.get("key") == value
    into = BUFFERS[kind]()
    assert client.get_into("key", into) == 64
    assert memoryview(into).cast("B") == value


def test_an_address_and_a_length_are_a_buffer(client):
    memory = (ctypes.c_ubyte * 128)()
    memory[:64] = range(64)
    start = ctypes.addressof(memory)
    assert client.put("key", (start, 64))
    assert client.get_batch_into(["key"], [(start + 64, 64)]) == [64]
    assert list(memory[64:]) == list(range(64))


def test_what_is_no_buffer_is_refused_with_what_to_do(client):
    with pytest.raises(TypeError, match="int is no buffer: give an object with the buffer protocol"):
        client.put("key", 5)
    with pytest.raises(BufferError, match="writable"):
        client.get_into("key", b"read only")
    with pytest.raises(BufferError, match="contiguous"):
        client.put("key", numpy.zeros((4, 4), numpy.uint8)[:, ::2])
    with pytest.raises(ValueError, match="address of a buffer is 0"):
        client.put("key", (0, 10))
    with pytest.raises(ValueError, match="2 keys and 1 buffers"):
        client.put_batch(["a", "b"], [b"1"])
    memory = bytearray(100)
    with pytest.raises(ValueError, match="buffers 0 and 2 overlap"):
        view = memoryview(memory)
        client.get_batch_into(["a", "b", "c"], [view[:50], view[50:60], view[40:50]])
    with pytest.raises(TypeError, match="a list of keys"):
        client.exists("key")
    with pytest.raises(TypeError, match="str or bytes, not int"):
        client.exists([5])
    for key in ["", "x" * 513]:
        with pytest.raises(memkv.BadKey):
            client.get(key)
    with pytest.raises(memkv.Refused):
        client.put("key", b"")


def test_a_prefix_stands_before_every_key(server, namespace):
    with (
        memkv.Client(server.address, namespace=namespace, prefix="model-a/") as a,
        memkv.Client(server.address, namespace=namespace, prefix=b"model-b/") as b,
        memkv.Client(server.address, namespace=namespace) as all_of_it,
    ):
        a.put("key", b"of a")
        assert b.get("key") is None
        b.put("key", b"of b")
        assert (a.get("key"), b.get("key")) == (b"of a", b"of b")
        assert all_of_it.exists(["model-a/key", "model-b/key", "key"]) == [True, True, False]
        assert a.prefix == b"model-a/"
        with pytest.raises(memkv.BadKey):
            a.get("x" * 505)


def test_namespaces_do_not_see_each_other(server):
    with memkv.Client(server.address, namespace="one") as one, memkv.Client(server.address, namespace="two") as two:
        one.put("key", b"value")
        assert two.get("key") is None
        assert one.namespace == "one"


def test_a_value_with_a_time_to_live_goes(client):
    client.put("short", b"value", ttl=5)
    assert client.get("short") == b"value"
    ends = time.monotonic() + 60
    while client.get("short") is not None:
        assert time.monotonic() < ends
    assert client.get("short") is None


def test_hints_are_taken(client):
    client.put("key", b"value")
    assert client.hint(["key", "none"], "retain") == [True, False]
    assert client.hint(["key"], "release") == [True]
    assert client.hint(["key"], "pin", 10) == [True]
    with pytest.raises(ValueError, match="release"):
        client.hint(["key"], "forget")


def test_counters_count(client):
    client.put_batch(["a", "b"], [bytes(1000), bytes(2000)])
    client.get_batch_into(["a", "none"], [bytearray(1000), bytearray(10)])
    client.match_prefix(["a", "b", "none"])
    stats = client.stats()
    assert {name: stats["put"][name] for name in ("calls", "keys", "missing", "bytes")} == {
        "calls": 1, "keys": 2, "missing": 2, "bytes": 3000,
    }  # fmt: skip
    assert (stats["get"]["found"], stats["get"]["missing"], stats["get"]["bytes"]) == (1, 1, 1000)
    assert (stats["match_prefix"]["found"], stats["match_prefix"]["missing"]) == (2, 1)
    assert stats["get"]["seconds"] > 0 and sum(stats["get"]["buckets"]) == 1
    assert len(stats["bounds"]) == len(stats["get"]["buckets"]) - 1
    [server] = client.server_stats().values()
    assert server["hits"] >= 1 and server["puts"] >= 2


def test_a_server_that_is_not_there_is_told_and_nothing_hangs(new_server):
    server = new_server()
    client = memkv.Client(server.address, connect_timeout=20, request_timeout=20)
    client.put("key", b"value")
    server.kill()
    begun = time.monotonic()
    with pytest.raises(memkv.Unavailable) as told:
        client.get("key")
    assert told.value.server == server.address
    with pytest.raises(memkv.Unavailable):
        client.put("other", b"value")
    errors = []
    assert client.get_batch_into(["key"], [bytearray(5)], errors=errors) == [None]
    assert [place for place, _ in errors] == [0]
    assert client.exists(["key"]) == [False] and client.match_prefix(["key"]) == 0
    assert isinstance(client.server_stats()[server.address], memkv.Unavailable)
    assert time.monotonic() - begun < 10
    server.start()
    ends = time.monotonic() + 30
    value = None
    while value is None:
        assert time.monotonic() < ends, "it is found again"
        try:
            value = client.get("key")
        except memkv.Unavailable:
            time.sleep(0.05)
    assert value == b"value"


def test_what_a_client_is_made_of_is_checked(monkeypatch, tmp_path):
    with pytest.raises(memkv.ConfigError, match="nowhere"):
        memkv.Client("nowhere:port")
    with pytest.raises(memkv.ConfigError, match="auth_key"):
        memkv.Client("10.0.0.1:9900")
    with pytest.raises(memkv.ConfigError, match="auth_key"):
        memkv.Client(auth_key="12")
    with pytest.raises(TypeError, match="no argument `nmespace`"):
        memkv.Client(nmespace="x")
    with pytest.raises(ValueError, match="request_timeout is a time in seconds"):
        memkv.Client(request_timeout=-1)
    with pytest.raises(memkv.ConfigError, match="missing.yaml"):
        memkv.Client(config=tmp_path / "missing.yaml")
    file = tmp_path / "client.yaml"
    file.write_text("servers: [127.0.0.1:1]\nnamespace: of the file\nnum_connections: 2\n")
    assert memkv.Client(config=str(file)).namespace == "of the file"
    monkeypatch.setenv("MEMKV_CONFIG", str(file))
    monkeypatch.setenv("MEMKV_NAMESPACE", "of the variable")
    client = memkv.Client(request_timeout=1.5)
    assert (client.namespace, client.servers, client.request_timeout) == ("of the variable", ["127.0.0.1:1"], 1.5)
    assert memkv.Client(namespace="of the argument").namespace == "of the argument"


def test_a_closed_client_says_so(server, namespace):
    client = memkv.Client(server.address, namespace=namespace)
    client.put("key", b"value")
    client.close()
    client.close()
    with pytest.raises(memkv.Closed):
        client.get("key")


def test_the_interpreters_lock_is_given_away(client):
    """While one thread moves a large value another runs Python."""
    value = bytes(64 << 20)
    stop = threading.Event()
    turns = 0

    def turn():
        nonlocal turns
        while not stop.is_set():
            turns += 1

    other = threading.Thread(target=turn)
    other.start()
    before = turns
    client.put("key", value)
    during = turns - before
    stop.set()
    other.join()
    # With the lock held it would have had none, but for one switch at each end.
    assert during > 1000


def test_nothing_is_kept_of_buffers_and_keys(client):
    value = numpy.zeros(100_000, numpy.uint8)
    import sys

    before = sys.getrefcount(value)
    for _ in range(10):
        client.put("key", value)
        client.get_into("key", value)
    gc.collect()
    assert sys.getrefcount(value) == before
    # A bytearray that is exported cannot be resized.
    grown = bytearray(10)
    client.put("other", grown)
    grown.append(1)


def test_a_child_of_a_fork_has_connections_of_its_own(client):
    client.put("key", b"of the parent")
    pid = os.fork()
    if pid == 0:
        # Nothing of the test runner may run on in the child.
        good = client.get("key") == b"of the parent" and client.put("child", b"of the child")
        os._exit(0 if good else 1)
    assert client.get("key") == b"of the parent"
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert client.get("child") == b"of the child"


def test_servers_name_the_trace_of_a_request(new_server):
    server = new_server(level="debug")
    digits = "4bf92f3577b34da6a3ce929d0e0e4736"
    with memkv.Client(server.address) as client:
        with client.traced(f"00-{digits}-00f067aa0ba902b7-01") as traced:
            traced.put("a", b"1" * 4096)
        client.put("b", b"2" * 4096)
        with client.open_queue() as queue:
            queue.submit_exists(["a"], trace=digits)
            assert queue.wait(20)
        for bad in ("", "0" * 32, digits.upper(), f"00-{digits}"):
            with pytest.raises(ValueError, match="trace"):
                client.traced(bad)
    server.stop()
    server.reader.join(20)
    told = [json.loads(line) for line in server.said if digits in line]
    assert [(line["opcode"], line["status"]) for line in told] == [("put", "ok"), ("presence", "ok")]
