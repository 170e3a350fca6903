"""Arrays in files, as the KV-cache benchmark of MLPerf Storage keeps them.

Arguments: the directory, and `fill`, `check` or `clear`. It makes the calls of that benchmark's storage backend, in
its order, and prints counts that follow from the seed alone.
"""

import concurrent.futures
import hashlib
import os
import pathlib
import shutil
import sys

import numpy as np

ROUNDS = 40
WORKERS = 4


class Backend:
    """One array a key, in a file of its own."""

    def __init__(self, folder: str, wipe: bool) -> None:
        self.folder = pathlib.Path(folder) / "kv_cache"
        self.folder.mkdir(parents=True, exist_ok=True)
        if wipe:
            for old in self.folder.glob("*.npy"):
                old.unlink()
        assert shutil.disk_usage(self.folder).free > 0

    def path(self, key: str) -> pathlib.Path:
        return self.folder / f"{key}.npy"

    def write(self, key: str, data: np.ndarray) -> int:
        with open(self.path(key), "wb") as file:
            np.save(file, data, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        return self.path(key).stat().st_size

    def read(self, key: str) -> np.ndarray:
        path = self.path(key)
        if not path.exists():
            raise KeyError(key)
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
        return np.array(np.load(path, allow_pickle=False))

    def delete(self, key: str) -> None:
        self.path(key).unlink(missing_ok=True)


def array(seed: int) -> np.ndarray:
    """Between some KiB and some 20 MiB, of several types and shapes."""
    random = np.random.default_rng(seed)
    tokens = int(random.integers(1, 160)) ** 2
    return random.standard_normal((2, tokens, 64), dtype=np.float32).astype([np.float16, np.float32][seed % 2])


def user(backend: Backend, number: int) -> dict[str, int]:
    random = np.random.default_rng(1000 + number)
    counts = {"writes": 0, "bytes written": 0, "hits": 0, "bytes read": 0, "misses": 0, "deletes": 0}
    known = {}
    for round_ in range(ROUNDS):
        key = f"user{number}_{int(random.integers(0, 6))}"
        action = random.random()
        if action < 0.4 or not known:
            known[key] = number * ROUNDS + round_
            counts["writes"] += 1
            counts["bytes written"] += backend.write(key, array(known[key]))
        elif action < 0.85:
            try:
                got = backend.read(key)
            except KeyError:
                assert key not in known, key
                counts["misses"] += 1
                continue
            expected = array(known[key])
            assert got.dtype == expected.dtype and np.array_equal(got, expected), key
            counts["hits"] += 1
            counts["bytes read"] += got.nbytes
        else:
            backend.delete(key)
            known.pop(key, None)
            counts["deletes"] += 1
    return counts


def run(backend: Backend) -> None:
    total: dict[str, int] = {}
    with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
        for counts in pool.map(lambda number: user(backend, number), range(WORKERS)):
            for name, count in counts.items():
                total[name] = total.get(name, 0) + count
    print(total)


def contents(backend: Backend) -> None:
    """What is there: names, sizes and bytes."""
    for path in sorted(backend.folder.glob("*.npy")):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        print(path.name, path.stat().st_size, digest, np.load(path, mmap_mode="r").shape)


def main() -> None:
    folder, what = sys.argv[1:]
    backend = Backend(folder, wipe=what == "fill")
    if what == "fill":
        run(backend)
    contents(backend)
    if what == "clear":
        for path in backend.folder.glob("*.npy"):
            path.unlink()
        assert os.listdir(backend.folder) == []
        backend.folder.rmdir()


main()
