"""Puts and gets values in a Mooncake store, a slice at a time, as lines on standard input ask.

usage: mooncake_slices.py HOST MASTER METADATA BYTES

Values lie in one registered region of so many bytes, walked round and round, so that they are cold;
they go out of it and come into it without a copy (put_from, get_into). A line

    put LENGTH SHARE NEXT COUNT

asks for COUNT puts to the slots from NEXT on, round in SHARE of them; get is alike, and so is
remove, which makes room for a put: a key is not stored under twice. The answer is a line of JSON:
seconds, CPU seconds of this process, and microseconds of each call.
"""

import ctypes
import importlib.metadata
import json
import mmap
import os
import sys
import time

from mooncake.store import MooncakeDistributedStore

HUGE = 2 << 20
MAP_HUGETLB = 0x40000


def region(size):
    """Memory of hugepages, or of what there is, its address and what it is made of."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    try:
        memory, pages = mmap.mmap(-1, size, flags=flags | MAP_HUGETLB), "hugepages of 2 MiB"
    except OSError:
        memory, pages = mmap.mmap(-1, size, flags=flags), "ordinary pages"
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    noise = os.urandom(HUGE)
    for at in range(0, size, HUGE):
        ctypes.memmove(address + at, noise, min(HUGE, size - at))
    return memory, address, pages


def check(what, result, good=0):
    if result != good:
        sys.exit(f"{what} returned {result}, not {good}")


class Slices:
    """One client and its cold region."""

    def __init__(self, host, master, metadata, size):
        self.store = MooncakeDistributedStore()
        # No memory for values of others here: they live in a process of their own.
        setup = self.store.setup(host, metadata, 0, 16 << 20, "tcp", "", master)
        check("setup", setup)
        self.size, self.at = size, 0
        self.memory, self.address, self.pages = region(size)
        check("register_buffer", self.store.register_buffer(self.address, size))

    def wait_for_room(self):
        """The process that has the memory for values may still be telling the master of it."""
        buffer, begun = self.buffer(4096), time.monotonic()
        while (result := self.store.put_from("0/first", buffer, 4096)) != 0:
            if time.monotonic() - begun > 30:
                check("the first put_from", result)
            time.sleep(0.05)
        check("remove", self.store.remove("0/first", True))

    def buffer(self, length):
        if self.at + length > self.size:
            self.at = 0
        buffer = self.address + self.at
        self.at += length
        return buffer

    def slice(self, operation, length, share, start, count):
        slots = [(start + turn) % share for turn in range(count)]
        names = [((slot << 32) ^ length).to_bytes(8, "little") for slot in slots]
        act = {"put": self.put, "get": self.get, "remove": self.remove}[operation]
        calls = []
        cpu, begun = time.process_time(), time.perf_counter()
        for slot, name in zip(slots, names):
            calls.append(act(f"{length}/{slot}", name, self.buffer(length), length))
        seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
        return {"seconds": seconds, "cpu": cpu, "calls": [call * 1e6 for call in calls]}

    def remove(self, key, _name, _buffer, _length):
        # What was never put cannot be removed, and need not be.
        self.store.remove(key, True)
        return 0.0

    def put(self, key, name, buffer, length):
        ctypes.memmove(buffer, name, 8)
        ctypes.memmove(buffer + length - 8, name, 8)
        begun = time.perf_counter()
        result = self.store.put_from(key, buffer, length)
        took = time.perf_counter() - begun
        check(f"put_from of {key}", result)
        return took

    def get(self, key, name, buffer, length):
        begun = time.perf_counter()
        result = self.store.get_into(key, buffer, length)
        took = time.perf_counter() - begun
        check(f"get_into of {key}", result, length)
        ends = ctypes.string_at(buffer, 8), ctypes.string_at(buffer + length - 8, 8)
        check(f"the ends of {key}", ends, (name, name))
        return took


def main():
    host, master, metadata, size = sys.argv[1:]
    # What the library says must not come between the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    slices = Slices(host, master, metadata, int(size))
    slices.wait_for_room()
    version = importlib.metadata.version("mooncake-transfer-engine-non-cuda")
    print(json.dumps({"version": version, "pages": slices.pages}), file=answers)
    for line in sys.stdin:
        operation, *numbers = line.split()
        answer = slices.slice(operation, *map(int, numbers))
        print(json.dumps(answer), file=answers)
    # Its own end waits for threads that may not end.
    os._exit(0)


main()
