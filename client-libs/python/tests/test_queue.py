"""Batches that run while their caller does something else, against a real server."""

import asyncio
import os
import pathlib
import select
import signal
import subprocess
import sys
import threading
import time

import memkv
import numpy
import pytest
from memkv.aio import AsyncClient

MIB = 1 << 20


@pytest.fixture
def client(server, namespace):
    with memkv.Client(server.address, namespace=namespace) as client:
        yield client


def next_of(queue, seconds: float = 30):
    """The next completion, told by the file descriptor."""
    readable, _, _ = select.select([queue.event_fd()], [], [], seconds)
    assert readable, "a completion in time"
    [completion] = queue.drain()
    return completion


def test_batches_complete_with_their_answers(client):
    queue = client.open_queue()
    assert queue.drain() == [] and queue.pending() == 0 and queue.wait(10) is False
    values = [numpy.full(100_000 + at, at, numpy.uint8) for at in range(5)]
    keys = [f"block/{at}" for at in range(5)]
    ticket = queue.submit_put(keys, values)
    done = next_of(queue)
    assert (done.id, done.op, done.ok, done.error) == (ticket, "put", True, "")
    assert done.results == [True] * 5 and done.bytes == sum(map(len, values))
    assert done.wait_seconds >= 0 and done.transfer_seconds > 0
    buffers = [numpy.zeros(len(value), numpy.uint8) for value in values]
    queue.submit_get([*keys, "none"], [*buffers, bytearray(9)])
    done = next_of(queue)
    assert (done.op, done.ok) == ("get", True)
    assert done.results == [len(value) for value in values] + [None]
    assert all((a == b).all() for a, b in zip(buffers, values, strict=True))
    queue.submit_exists([keys[0], "none"])
    assert next_of(queue).results == [True, False]
    queue.submit_match_prefix([*keys, "none"])
    assert next_of(queue).results == 5
    queue.submit_delete([keys[4], "none"])
    assert next_of(queue).results == [True, False]
    assert select.select([queue.event_fd()], [], [], 0)[0] == []


def test_the_memory_is_the_callers_own(client):
    """Nothing is copied: what a get fills is seen in the array, what a put reads is the array's."""
    arena = numpy.zeros(8 * MIB, numpy.uint8)
    start = arena.ctypes.data
    arena[: 4 * MIB] = numpy.arange(4 * MIB, dtype=numpy.uint32).astype(numpy.uint8)
    queue = client.open_queue()
    queue.submit_put(["key"], [(start, 4 * MIB)])
    assert next_of(queue).ok
    queue.submit_get(["key"], [(start + 4 * MIB, 4 * MIB)])
    assert next_of(queue).results == [4 * MIB]
    assert (arena[: 4 * MIB] == arena[4 * MIB :]).all()


def test_a_value_may_lie_in_several_places(client):
    """Keys and values of a page, as two layers have them."""
    layers = numpy.arange(4 * 3000, dtype=numpy.uint32).astype(numpy.uint8).reshape(4, 3000)
    start = layers.ctypes.data
    whole = layers.tobytes()
    queue = client.open_queue()
    queue.submit_put(["page", "one"], [[layers[0], (start + 3000, 3000), layers[2:]], b"one piece"])
    done = next_of(queue)
    assert done.results == [True, True] and done.bytes == 4 * 3000 + 9
    assert client.get("page") == whole
    into = numpy.zeros((3, 4000), numpy.uint8)
    queue.submit_get(["page", "one", "none"], [[into[0], into[1], into[2]], bytearray(9), [bytearray(3)]])
    done = next_of(queue)
    assert done.results == [12000, 9, None] and done.bytes == 12009
    assert into.tobytes() == whole
    pieces = [bytearray(1), bytearray(11998), bytearray(5)]
    assert client.get_batch_into(["page"], [pieces]) == [12000]
    assert b"".join(pieces)[:12000] == whole
    assert client.put_batch(["a", "b"], [[b"1", b"2"], b"3"], together=True) == [True, True]
    assert client.get("a") == b"12"
    with pytest.raises(ValueError, match="overlap"):
        client.get_batch_into(["page"], [[into[0], into[0]]])


def test_buffers_are_held_until_their_completion_is_drained(client):
    queue = client.open_queue()
    value = numpy.ones(MIB, numpy.uint8)
    before = sys.getrefcount(value)
    queue.submit_put(["key"], [value])
    assert queue.wait(30)
    assert sys.getrefcount(value) > before
    queue.drain()
    assert sys.getrefcount(value) == before


def test_a_batch_that_fails_says_which_key_and_why(client):
    client.put("taken", b"12345")
    queue = client.open_queue()
    queue.submit_put(["new", "taken"], [b"1", b"2"])
    done = next_of(queue)
    assert not done.ok and done.results == [True, False] and "5 bytes" in done.error


def stand_still(process):
    """Stops a process, and waits until every thread of it stands still."""
    os.kill(process, signal.SIGSTOP)
    ends = time.monotonic() + 30
    for task in pathlib.Path(f"/proc/{process}/task").iterdir():
        while (task / "stat").read_text().rpartition(")")[2].split()[0] != "T":
            assert time.monotonic() < ends


def test_no_batch_outlives_its_time_on_a_dead_server(new_server):
    server = new_server()
    client = memkv.Client(server.address, request_timeout=3)
    queue = client.open_queue()
    queue.submit_put(["key"], [bytes(MIB)])
    assert next_of(queue).ok
    # Stopped, it takes connections and says nothing.
    stand_still(server.process.pid)
    begun = time.monotonic()
    for _ in range(6):
        queue.submit_get(["key"], [bytearray(MIB)], timeout=1)
    lookup = queue.submit_match_prefix(["key"], timeout=1)
    done = []
    while len(done) < 7:
        assert queue.wait(10)
        done.extend(queue.drain())
    assert time.monotonic() - begun < 20
    assert all(not one.ok for one in done if one.op == "get")
    assert [one.results for one in done if one.id == lookup] == [0]
    os.kill(server.process.pid, signal.SIGCONT)


def test_a_closed_queue_takes_nothing_and_its_completions_remain(client):
    queue = client.open_queue()
    for at in range(4):
        queue.submit_put([f"key/{at}"], [bytes(4 * MIB)])
    queue.close()
    assert len(queue.drain()) == 4
    with pytest.raises(memkv.Closed):
        queue.submit_exists(["key/0"])
    other = client.open_queue()
    other.submit_put(["key/5"], [bytes(4 * MIB)])
    client.close()
    assert [one.ok for one in other.drain()] == [True]


def test_five_hundred_tasks_at_one_time(client):
    queue = client.open_queue(4)
    values = {at: numpy.full(70_000, at % 251, numpy.uint8) for at in range(512)}
    tickets = {}
    lock = threading.Lock()

    def submit(part):
        for at in part:
            ticket = queue.submit_put([f"key/{at}"], [values[at]])
            with lock:
                tickets[ticket] = at

    threads = [threading.Thread(target=submit, args=(range(at, 512, 8),)) for at in range(8)]
    for thread in threads:
        thread.start()
    done = []
    while len(done) < 512:
        queue.wait(30)
        done.extend(queue.drain())
    for thread in threads:
        thread.join()
    assert all(one.ok for one in done) and {one.id for one in done} == set(tickets)
    into = numpy.zeros(70_000, numpy.uint8)
    for at in (0, 255, 511):
        assert client.get_into(f"key/{at}", into) == 70_000
        assert (into == at % 251).all()


def test_a_child_of_a_fork_has_a_queue_of_its_own(client):
    queue = client.open_queue()
    queue.submit_put(["key"], [bytes(1000)])
    assert next_of(queue).ok
    pid = os.fork()
    if pid == 0:
        buffer = bytearray(1000)
        queue.submit_get(["key"], [buffer])
        good = queue.wait(30) and [one.results for one in queue.drain()] == [[1000]]
        queue.close()
        os._exit(0 if good else 1)
    queue.submit_get(["key"], [bytearray(1000)])
    assert next_of(queue).results == [1000]
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0


@pytest.mark.parametrize("stopped", [False, True], ids=["a server that answers", "a server that does not"])
def test_the_interpreter_ends_with_transfers_in_flight(new_server, stopped):
    server = new_server()
    script = f"""
import memkv, numpy, os
client = memkv.Client({server.address!r}, request_timeout=60)
queue = client.open_queue()
client.put("key", bytes(16 << 20))
if {stopped}:
    os.kill({server.process.pid}, 19)
buffers = [numpy.zeros(16 << 20, numpy.uint8) for _ in range(8)]
for buffer in buffers:
    queue.submit_get(["key"], [buffer])
    queue.submit_put([str(id(buffer))], [buffer])
print("ends", flush=True)
"""
    begun = time.monotonic()
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "ends\n", "")
    assert time.monotonic() - begun < 30


def test_no_thread_before_the_first_batch(server):
    script = f"""
import memkv, os
client = memkv.Client({server.address!r})
client.put("thread", b"1", replace=True)
queue = client.open_queue()
print(len(os.listdir("/proc/self/task")))
queue.submit_exists(["thread"])
queue.wait(30)
print(len(os.listdir("/proc/self/task")) > 1)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert ended.stdout == "1\nTrue\n", ended


def test_the_native_connector_is_what_lmcache_expects(server, namespace):
    connector = memkv.NativeConnector(server.address, namespace=namespace, workers=2)

    def done():
        assert select.select([connector.event_fd()], [], [], 30)[0]
        [one] = connector.drain_completions()
        return one

    arena = memoryview(bytearray(range(256)) * 1024)
    keys = ["model@1@0@aa", "model@1@0@bb"]
    ticket = connector.submit_batch_set(keys, [arena[:1000], arena[1000:3000]])
    assert done() == (ticket, True, "", [True, True])
    connector.submit_batch_exists([*keys, "none"])
    assert done()[1:] == (True, "", [True, True, False])
    first, second, short = bytearray(1000), bytearray(2000), bytearray(1999)
    connector.submit_batch_get([*keys, "none"], [first, second, bytearray(4)])
    assert done()[1:] == (True, "", [True, True, False])
    assert (first, second) == (arena[:1000], arena[1000:3000])
    connector.submit_batch_get([keys[1]], [short])
    assert done()[1:] == (True, "", [False]), "a value of another length is a miss"
    connector.submit_batch_delete([keys[0], "none"])
    assert done()[1:] == (True, "", [True, False])
    connector.close()


async def test_calls_are_awaited(server, namespace):
    async with AsyncClient(server.address, namespace=namespace) as client:
        values = [bytes([at]) * 100_000 for at in range(20)]
        await asyncio.gather(*(client.put(f"key/{at}", value) for at, value in enumerate(values)))
        keys = [f"key/{at}" for at in range(20)]
        assert await client.match_prefix([*keys, "none"]) == 20
        buffers = [bytearray(100_000) for _ in range(21)]
        lengths = await client.get_batch_into([*keys, "none"], buffers)
        assert lengths == [100_000] * 20 + [None]
        assert [bytes(buffer) for buffer in buffers[:20]] == values
        assert await client.get_into("none", bytearray(1)) is None
        assert await client.exists(["none", "key/7"]) == [False, True]
        assert await client.delete(["key/7"]) == [True]
        with pytest.raises(memkv.Error, match="100000 bytes"):
            await client.put("key/1", b"another length")


async def test_a_cancelled_task_leaves_the_others_alone(server, namespace):
    async with AsyncClient(server.address, namespace=namespace) as client:
        task = asyncio.ensure_future(client.put("big", bytes(64 * MIB)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await client.put("small", b"value")
        assert await client.exists(["small"]) == [True]
