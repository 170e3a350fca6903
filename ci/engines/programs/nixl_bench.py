"""How fast NIXL moves 64 objects of 1 MiB, beside what else moves as much on this machine.

usage: nixl_bench.py SERVER FOLDER ROUNDS

In each round, one after the other: NIXL with memkv, memkv's own client (a batch, and a queue of as
many workers as the plug-in has), NIXL with its POSIX backend on files in FOLDER, and plain TCP over
loopback. Prints RESULT and GB/s of the medians, for writes and reads.
"""

import json
import os
import socket
import statistics
import sys
import time

import memkv
import nixl_client
from nixl_cu12._api import nixl_agent, nixl_agent_config

COUNT, SIZE = 64, 1 << 20
WHOLE = COUNT * SIZE
WORKERS = 3


class Nixl:
    """Transfers of one agent and backend, prepared once and posted each time."""

    def __init__(self, backend, settings, kind, objects):
        self.name = f"bench-{backend}"
        self.agent = nixl_agent(self.name, nixl_agent_config(backends=[]))
        self.agent.create_backend(backend, settings)
        self.memory = nixl_client.Memory(self.agent, COUNT, SIZE, seed=21, backend=backend)
        self.agent.register_memory(objects, kind, backends=[backend])
        local = self.agent.get_xfer_descs(self.memory.parts(), "DRAM")
        remote = self.agent.get_xfer_descs([stretch[:3] for stretch in objects], kind)
        self.handles = {
            operation: self.agent.initialize_xfer(
                operation, local, remote, self.name, backends=[backend]
            )
            for operation in ("WRITE", "READ")
        }

    def __call__(self, operation):
        handle = self.handles[operation]
        state = self.agent.transfer(handle)
        while state == "PROC":
            # As an engine would: it has other things to do.
            time.sleep(0.0002)
            state = self.agent.check_xfer_state(handle)
        assert state == "DONE", state


class Own:
    """memkv's client."""

    def __init__(self, server, queue):
        self.client = memkv.Client(server, num_connections=WORKERS + 1)
        self.keys = [f"own/{queue}/{at}" for at in range(COUNT)]
        self.bytes = nixl_client.np.random.default_rng(22).bytes(WHOLE)
        self.bytes = bytearray(self.bytes)
        view = memoryview(self.bytes)
        self.values = [view[at * SIZE : (at + 1) * SIZE] for at in range(COUNT)]
        self.queue = self.client.open_queue(WORKERS) if queue else None

    def __call__(self, operation):
        if self.queue:
            if operation == "WRITE":
                self.queue.submit_put(self.keys, self.values, replace=True)
            else:
                self.queue.submit_get(self.keys, self.values)
            assert self.queue.wait(30)
            assert all(done.ok for done in self.queue.drain())
        elif operation == "WRITE":
            assert all(self.client.put_batch(self.keys, self.values, replace=True))
        else:
            assert self.client.get_batch_into(self.keys, self.values) == [SIZE] * COUNT


class Tcp:
    """A child that takes all, or sends all, when it is told to."""

    def __init__(self):
        listener = socket.create_server(("127.0.0.1", 0))
        if os.fork() == 0:
            self.serve(socket.create_connection(listener.getsockname()))
            os._exit(0)
        self.peer, _ = listener.accept()
        self.bytes = bytearray(WHOLE)

    def serve(self, peer):
        """What the child does until its parent is gone."""
        memory = bytearray(WHOLE)
        while order := peer.recv(1):
            if order == b"W":
                receive(peer, memory)
                peer.sendall(b".")
            else:
                peer.sendall(memory)

    def __call__(self, operation):
        self.peer.sendall(operation[:1].encode())
        if operation == "WRITE":
            self.peer.sendall(self.bytes)
            assert self.peer.recv(1) == b"."
        else:
            receive(self.peer, self.bytes)


def receive(peer, memory):
    """Fills memory."""
    view = memoryview(memory)
    while view:
        view = view[peer.recv_into(view, min(len(view), 1 << 20)) :]


def main(server, folder, rounds):
    """All of them, in turn."""
    objects = [(0, SIZE, at + 1, f"bench/{at}") for at in range(COUNT)]
    ours = Nixl("MEMKV", {"servers": server}, "OBJ", objects)
    files = [os.open(f"{folder}/{at}.bench", os.O_CREAT | os.O_RDWR) for at in range(COUNT)]
    for file in files:
        os.posix_fallocate(file, 0, SIZE)
    subjects = {
        "nixl_memkv": ours,
        "client_batch": Own(server, False),
        "client_queue": Own(server, True),
        "tcp": Tcp(),
    }
    try:
        stretches = [(0, SIZE, file, "") for file in files]
        subjects["nixl_posix"] = Nixl("POSIX", {}, "FILE", stretches)
    except Exception as error:
        print(f"no POSIX backend: {error!r}", flush=True)
    took = {name: {"WRITE": [], "READ": []} for name in subjects}
    for turn in range(rounds + 2):
        for name, subject in subjects.items():
            for operation in ("WRITE", "READ"):
                begun = time.perf_counter()
                subject(operation)
                if turn > 1:
                    took[name][operation].append(time.perf_counter() - begun)
    told = {
        name: {
            operation.lower(): round(WHOLE / statistics.median(times) / 1e9, 3)
            for operation, times in by.items()
        }
        for name, by in took.items()
    }
    print("RESULT", json.dumps(told), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
