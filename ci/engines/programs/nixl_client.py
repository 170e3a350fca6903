"""A real NIXL agent with memkv as its backend, which does what it is told.

usage: nixl_client.py SERVER

Each line of standard input is an order, a JSON object: `do` names one of the functions at the end.
Each is answered by RESULT and a JSON object. Nothing here waits longer than SECONDS for a transfer.
"""

import inspect
import json
import os
import socket
import statistics
import sys
import threading
import time

import numpy as np

try:
    from nixl_cu12 import _api as api
except ImportError:
    from nixl import _api as api

nixl_agent, nixl_agent_config = api.nixl_agent, api.nixl_agent_config

MIB = 1 << 20
SECONDS = 30
NAME = "client"


class Memory:
    """Memory of the host that the agent knows."""

    def __init__(self, agent, count, size, seed=None, backend="MEMKV"):
        self.agent, self.count, self.size, self.backend = agent, count, size, backend
        self.bytes = np.zeros(count * size, dtype=np.uint8)
        if seed is not None:
            noise = np.random.default_rng(seed)
            self.bytes[:] = noise.integers(0, 256, count * size, dtype=np.uint8)
        self.address = self.bytes.ctypes.data
        stretch = [(self.address, self.bytes.nbytes, 0, "")]
        self.known = agent.register_memory(stretch, "DRAM", backends=[backend])

    def part(self, at, start=0, length=None):
        """A descriptor of one of its parts, or of a stretch of it."""
        return (self.address + at * self.size + start, length or self.size - start, 0)

    def parts(self):
        """Descriptors of all of them."""
        return [self.part(at) for at in range(self.count)]

    def close(self):
        """The agent forgets it."""
        self.agent.deregister_memory(self.known, backends=[self.backend])


def for_threads():
    """Settings of an agent that several threads use: without them NIXL guards none of its lists."""
    if "sync_mode" in inspect.signature(nixl_agent_config.__init__).parameters:
        return {"sync_mode": api.nixl_thread_sync_t.NIXL_THREAD_SYNC_STRICT}
    # Older ones do so for a listener's sake alone.
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    return {"enable_listen_thread": True, "listen_port": port}


class Client:
    """An agent, its objects and its transfers."""

    def __init__(self, settings, name=NAME, telemetry=False, threads=False):
        more = {"capture_telemetry": True} if telemetry else {}
        if threads:
            more |= for_threads()
        self.name = name
        self.agent = nixl_agent(name, nixl_agent_config(backends=[], **more))
        self.agent.create_backend("MEMKV", settings)
        self.ids = iter(range(1, 1 << 40))

    def memory(self, count, size, seed=None):
        """Memory of so many parts, of noise or empty."""
        return Memory(self.agent, count, size, seed)

    def objects(self, keys, size):
        """Registers objects; the registration, and descriptors of all of each."""
        stretches = [(0, size, next(self.ids), key) for key in keys]
        known = self.agent.register_memory(stretches, "OBJ", backends=["MEMKV"])
        return known, [stretch[:3] for stretch in stretches]

    def forget(self, known):
        """Ends a registration."""
        self.agent.deregister_memory(known, backends=["MEMKV"])

    def prepare(self, operation, memory, objects):
        """A transfer of descriptors."""
        local = self.agent.get_xfer_descs(memory, "DRAM")
        remote = self.agent.get_xfer_descs(objects, "OBJ")
        return self.agent.initialize_xfer(
            operation, local, remote, self.name, backends=["MEMKV"]
        )

    def finish(self, handle, state):
        """Polls until it is done; how it ended, or the name of what was thrown."""
        end = time.monotonic() + SECONDS
        try:
            while state == "PROC":
                if time.monotonic() > end:
                    return "late"
                state = self.agent.check_xfer_state(handle)
        except Exception as error:
            return type(error).__name__
        return state

    def move(self, operation, memory, objects):
        """One transfer from beginning to end; how it ended."""
        try:
            handle = self.prepare(operation, memory, objects)
        except Exception as error:
            return type(error).__name__
        try:
            state = self.finish(handle, self.agent.transfer(handle))
        except Exception as error:
            state = type(error).__name__
        self.agent.release_xfer_handle(handle)
        return state

    def there(self, keys):
        """Which objects are stored."""
        asked = [(0, 0, 0, key) for key in keys]
        answers = self.agent.query_memory(asked, "MEMKV", mem_type="OBJ")
        return [answer is not None for answer in answers]


def tried(call):
    """The name of what a call throws; None when it does not."""
    try:
        call()
    except Exception as error:
        return type(error).__name__
    return None


# ---- orders --------------------------------------------------------------------------------


def start(client, _order):
    """What NIXL knows of us."""
    agent = client.agent
    return {
        "plugins": agent.get_plugin_list(),
        "kinds": agent.get_backend_mem_types("MEMKV"),
        "settings": sorted(agent.get_plugin_params("MEMKV")),
        "plugin_kinds": agent.get_plugin_mem_types("MEMKV"),
    }


def roundtrip(client, order):
    """Objects are written, looked up, read, written again by the same transfer, and read in parts."""
    count, size = order.get("count", 8), order.get("size", MIB)
    source, target = client.memory(count, size, seed=1), client.memory(count, size)
    keys = [f"roundtrip/{at}" for at in range(count)]
    known, objects = client.objects(keys, size)
    told = {"before": client.there(keys)}
    write = client.prepare("WRITE", source.parts(), objects)
    told["write"] = client.finish(write, client.agent.transfer(write))
    told["after"] = client.there([*keys, "roundtrip/none"])
    read = client.prepare("READ", target.parts(), objects)
    told["read"] = client.finish(read, client.agent.transfer(read))
    told["equal"] = bool((source.bytes == target.bytes).all())
    # The same transfers again, of other bytes.
    source.bytes[:] = ~source.bytes
    told["write_again"] = client.finish(write, client.agent.transfer(write))
    told["read_again"] = client.finish(read, client.agent.transfer(read))
    told["equal_again"] = bool((source.bytes == target.bytes).all())
    for handle in (write, read):
        client.agent.release_xfer_handle(handle)
    # From the middle of the first object on, over its end: descriptors that touch, in any order.
    quarter = size // 4
    target.bytes[:] = 0
    first = objects[0][2]
    wanted = [(quarter * 2, quarter, first), (quarter, quarter, first), (quarter, quarter, first)]
    into = [target.part(0, 0, quarter), target.part(1, 7, quarter), target.part(2, 1, quarter)]
    told["ranges"] = client.move("READ", into, wanted)
    here = [(0, 0, 2), (1, 7, 1), (2, 1, 1)]
    found = [target.bytes[at * size + by :][:quarter] for at, by, _ in here]
    whole = source.bytes[:size]
    expected = [whole[quarter * place :][:quarter] for _, _, place in here]
    pairs = zip(found, expected, strict=True)
    told["ranges_equal"] = all((a == b).all() for a, b in pairs)
    told["too_long"] = client.move("READ", [target.part(0)], [(size - 16, size, first)])
    client.forget(known)
    for memory in (source, target):
        memory.close()
    return told


def pieces(client, _order):
    """An object of many descriptors is one value; one with a hole is refused, and nothing stored."""
    size, cuts = 8 * MIB, 16
    piece = size // cuts
    source, target = client.memory(cuts, piece, seed=2), client.memory(1, size)
    known, [(_, _, device)] = client.objects(["pieces/whole"], size)
    order = [7, 0, 15, 3, 1, 2, 4, 5, 6, 8, 14, 9, 10, 13, 12, 11]
    memory = [source.part(at) for at in order]
    objects = [(at * piece, piece, device) for at in order]
    told = {"write": client.move("WRITE", memory, objects)}
    told["read"] = client.move("READ", [target.part(0)], [(0, size, device)])
    told["equal"] = bool((source.bytes == target.bytes).all())
    holed, [(_, _, device)] = client.objects(["pieces/hole"], size)
    objects = [(at * piece, piece, device) for at in order]
    told["gap"] = client.move("WRITE", memory[1:], objects[1:])
    told["overlap"] = client.move("WRITE", [*memory, source.part(1)], [*objects, objects[0]])
    told["hole_is_there"] = client.there(["pieces/hole"])[0]
    twice = [target.part(0, 0, piece), target.part(0, 100, piece)]
    told["shared"] = client.move("READ", twice, [(0, piece, device), (piece, piece, device)])
    client.forget(known)
    client.forget(holed)
    source.close()
    target.close()
    return told


def refusals(client, _order):
    """What must not be is an error, and none that is only logged."""
    agent = client.agent
    size = 4096
    first, second = client.memory(1, size, seed=3), client.memory(1, size, seed=4)
    target = client.memory(1, size)
    told = {}
    # The same device id for another key.
    add = lambda key: agent.register_memory([(0, size, 7, key)], "OBJ", backends=["MEMKV"])
    known = add("refusals/a")
    told["second_key"] = tried(lambda: add("refusals/b"))
    told["write"] = client.move("WRITE", first.parts(), [(0, size, 7)])
    told["there"] = client.there(["refusals/a", "refusals/b"])
    client.forget(known)
    known = add("refusals/b")
    told["id_is_free"] = client.move("WRITE", second.parts(), [(0, size, 7)])
    told["own_bytes"] = client.move("READ", target.parts(), [(0, size, 7)])
    told["equal"] = bool((second.bytes == target.bytes).all())
    client.forget(known)
    # A device id is a key of its own where there is no name.
    plain = agent.register_memory([(0, size, 424242, "")], "OBJ", backends=["MEMKV"])
    told["by_id"] = client.move("WRITE", first.parts(), [(0, size, 424242)])
    told["by_id_there"] = client.there(["424242"])[0]
    client.forget(plain)
    told["long_key"] = tried(lambda: add("x" * 513))
    absent, objects = client.objects(["refusals/none"], size)
    told["absent"] = client.move("READ", target.parts(), objects)
    client.forget(absent)
    for memory in (first, second, target):
        memory.close()
    for what, settings in {
        "unknown_setting": {"servres": "127.0.0.1:9900"},
        "bad_server": {"servers": "a b"},
        "bad_slot": {"MEMKV_STAGING_SLOT_MB": "0"},
    }.items():
        told[what] = tried(lambda settings=settings: Client(settings, name=what))
    return told


def threads(client, order):
    """Threads of one agent, each with objects of its own, all at once."""
    client = Client(client.settings, name="threads", threads=True)
    count, rounds, size, parts = 8, order.get("rounds", 6), 256 << 10, 4
    told = [None] * count
    begin = threading.Barrier(count)

    def run(number):
        try:
            begin.wait(SECONDS)
            for turn in range(rounds):
                source = client.memory(parts, size, seed=100 * number + turn)
                target = client.memory(parts, size)
                keys = [f"threads/{number}/{turn}/{at}" for at in range(parts)]
                known, objects = client.objects(keys, size)
                states = [client.move("WRITE", source.parts(), objects)]
                states.append(client.move("READ", target.parts(), objects))
                found = all(client.there(keys)) and (source.bytes == target.bytes).all()
                client.forget(known)
                source.close()
                target.close()
                if states != ["DONE", "DONE"] or not found:
                    raise RuntimeError(f"round {turn}: {states}, {found}")
            told[number] = "ok"
        except Exception as error:
            told[number] = repr(error)

    workers = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(4 * SECONDS)
    return {"threads": told}


def move(client, order):
    """One object is written or read; how long that took."""
    memory = client.memory(1, order["size"], seed=order.get("seed"))
    known, objects = client.objects([order["key"]], order["size"])
    begun = time.monotonic()
    state = client.move(order["operation"], memory.parts(), objects)
    took = time.monotonic() - begun
    noise = np.random.default_rng(order.get("expected", 0))
    same = noise.integers(0, 256, order["size"], dtype=np.uint8)
    told = {"state": state, "seconds": took, "equal": bool((memory.bytes == same).all())}
    client.forget(known)
    memory.close()
    return told


LEFT = {}


def leave(client, order):
    """Posts reads that the server, which stands still, will not answer, and releases them."""
    count, size = order["count"], order["size"]
    memory = client.memory(count, size)
    known, objects = client.objects([f"{order['key']}/{at}" for at in range(count)], size)
    handle = client.prepare(order["operation"], memory.parts(), objects)
    state = client.agent.transfer(handle)
    # Some bytes may be on their way already.
    end = time.monotonic() + order["seconds"]
    while state == "PROC" and time.monotonic() < end:
        state = client.agent.check_xfer_state(handle)
    reposted = tried(lambda: client.agent.transfer(handle))
    begun = time.monotonic()
    released = tried(lambda: client.agent.release_xfer_handle(handle))
    took = time.monotonic() - begun
    # Whose memory it is now may do with it what he likes.
    memory.bytes[:] = 0xA5
    LEFT.update(memory=memory, known=known)
    return {"state": state, "released": released, "seconds": took, "reposted": reposted}


def left(client, order):
    """Whether anybody has written into the memory that was taken back, or stored what stood there later."""
    memory, size = LEFT["memory"], LEFT["memory"].size
    clean = bool((memory.bytes == 0xA5).all())
    client.forget(LEFT["known"])
    found = client.memory(memory.count, size)
    known, objects = client.objects([f"{order['key']}/{at}" for at in range(found.count)], size)
    state = client.move("READ", found.parts(), objects)
    stored = bool((found.bytes.reshape(-1, 4096) == 0xA5).all(axis=1).any())
    client.forget(known)
    for one in (memory, found):
        one.close()
    return {"clean": clean, "state": state, "stored": stored}


def fork(client, _order):
    """A child of a fork moves objects by its parent's agent, and its parent goes on."""
    count, size = 4, MIB
    source, target = client.memory(count, size, seed=31), client.memory(count, size)
    known, objects = client.objects([f"fork/{at}" for at in range(count)], size)
    told = {"write": client.move("WRITE", source.parts(), objects)}
    handle = client.prepare("READ", target.parts(), objects)
    state = client.agent.transfer(handle)
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            there = {"parents": client.finish(handle, state)}
            client.agent.release_xfer_handle(handle)
            there["read"] = client.move("READ", target.parts(), objects)
            there["equal"] = bool((source.bytes == target.bytes).all())
            os.write(theirs, json.dumps(there).encode())
        finally:
            os._exit(0)
    os.close(theirs)
    with os.fdopen(ours, "rb") as answer:
        told["child"] = json.loads(answer.read() or b"null")
    os.waitpid(child, 0)
    told["read"] = client.finish(handle, state)
    told["equal"] = bool((source.bytes == target.bytes).all())
    client.agent.release_xfer_handle(handle)
    client.forget(known)
    source.close()
    target.close()
    return told


def cost(client, order):
    """Microseconds that preparing and posting 64 descriptors take, as NIXL and as we measure them."""
    count, size, rounds = 64, order.get("size", 4096), order.get("rounds", 200)
    measured = Client(client.settings, name="cost", telemetry=True)
    memory = measured.memory(count, size, seed=5)
    known, objects = measured.objects([f"cost/{at}" for at in range(count)], size)
    local = measured.agent.get_xfer_descs(memory.parts(), "DRAM")
    remote = measured.agent.get_xfer_descs(objects, "OBJ")
    assert measured.move("WRITE", memory.parts(), objects) == "DONE"
    prepared, posted, moved = [], [], set()
    for _ in range(rounds):
        begun = time.perf_counter()
        handle = measured.agent.initialize_xfer(
            "READ", local, remote, measured.name, backends=["MEMKV"]
        )
        prepared.append((time.perf_counter() - begun) * 1e6)
        assert measured.finish(handle, measured.agent.transfer(handle)) == "DONE"
        told = measured.agent.get_xfer_telemetry(handle)
        posted.append(told.postDuration)
        moved.add(told.totalBytes)
        measured.agent.release_xfer_handle(handle)
    measured.forget(known)
    memory.close()
    median = statistics.median
    figures = {"prepare_us": median(prepared), "post_us": median(posted), "rounds": rounds}
    return {**figures, "bytes": count * size, "moved": sorted(moved)}


ORDERS = [start, roundtrip, pieces, refusals, threads, move, leave, left, fork, cost]


def main(server):
    """Orders until there are no more."""
    known = {order.__name__: order for order in ORDERS}
    settings = {"servers": server, **json.loads(os.environ.get("NIXL_CLIENT_SETTINGS", "{}"))}
    client = Client(settings)
    client.settings = settings
    for line in sys.stdin:
        order = json.loads(line)
        print("RESULT", json.dumps(known[order["do"]](client, order)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
