"""LMCache's interface for native clients: `--l2-adapter '{"type": "native_plugin", …}'`.

    {"type": "native_plugin",
     "module_path": "memkv_lmcache.connector", "class_name": "MemKVConnector",
     "adapter_params": {"servers": "10.0.0.1:9900", "model": "/models/llama", "fingerprint": {"dtype": "bf16"}}}

LMCache calls it from its controllers, waits on one file descriptor and takes what is done. It hands
over nothing but keys and bytes. So what else decides over the bytes has to be named here: the model's
weights (`model`, a directory or a name) and whatever two engines with the same keys may differ in
(`fingerprint`). `memkv_lmcache.adapter` finds that out by itself.
"""

import itertools
import os
import threading
from collections.abc import Mapping, Sequence

import memkv
from memkv import identity, metrics

from . import options

OPTIONS = (*options.CLIENT_OPTIONS, "workers", "ttl", "pin", "model", "fingerprint")
#: Ids of what is answered here, far above those of the client.
FIRST_LOCAL_ID = 1 << 61

Done = tuple[int, bool, str, list[bool] | None]


class MemKVConnector:
    """The class to name. Its parameters are those of `memkv.Client`, and

    `workers`      batches that are under way at a time (4)
    `ttl`, `pin`   what every value is stored with, in seconds
    `model`        the model's directory or name: its weights become part of the fingerprint
    `fingerprint`  an object of names and values that do as well
    """

    def __init__(self, **params: object):
        told = options.checked(params, OPTIONS)
        self._link = options.Link(fingerprint(told), told)
        extra = {name: told[name] for name in ("workers", "ttl", "pin") if told.get(name) is not None}
        try:
            self._client = memkv.NativeConnector(**self._link.arguments, **extra)
        except Exception:
            self._link.close()
            raise
        metrics.watch(self._client, options.LABEL)
        self._lock = threading.Lock()
        self._refusals: list[Done] = []
        self._ids = itertools.count(FIRST_LOCAL_ID)

    def event_fd(self) -> int:
        """Readable while something is done."""
        return self._client.event_fd()

    def submit_batch_set(self, keys: Sequence[str], buffers: Sequence[memoryview]) -> int:
        """Stores values; the batch succeeds when all of them are stored."""
        if self._link.refused is not None:
            return self._refuse(len(keys))
        return self._client.submit_batch_set(self._link.keys(keys), buffers)

    def submit_batch_get(self, keys: Sequence[str], buffers: Sequence[memoryview]) -> int:
        """Fetches values right into the buffers; one of another length is a miss."""
        if self._link.refused is not None:
            return self._refuse(len(keys))
        return self._client.submit_batch_get(self._link.keys(keys), buffers)

    def submit_batch_exists(self, keys: Sequence[str]) -> int:
        """Asks for all keys at once."""
        if self._link.refused is not None:
            return self._refuse(len(keys))
        return self._client.submit_batch_exists(self._link.keys(keys))

    def submit_batch_delete(self, keys: Sequence[str]) -> int:
        """Deletes; of a key that was not there the answer is False."""
        if self._link.refused is not None:
            return self._refuse(len(keys))
        return self._client.submit_batch_delete(self._link.keys(keys))

    def drain_completions(self) -> list[Done]:
        """What is done since the last call: (id, whether all went well, why not, one by one)."""
        done = self._client.drain_completions()
        if self._refusals:
            with self._lock:
                done, self._refusals = [*done, *self._refusals], []
        return done

    def close(self) -> None:
        """Waits for what is under way, and ends."""
        self._client.close()
        self._link.close()

    def _refuse(self, count: int) -> int:
        """Answers a batch of a namespace that turned out to be another deployment's."""
        number = next(self._ids)
        with self._lock:
            self._refusals.append((number, False, str(self._link.refused), [False] * count))
        os.write(self._client.event_fd(), (1).to_bytes(8, "little"))
        return number


def fingerprint(told: Mapping[str, object]) -> identity.Fingerprint:
    """What is known of the bytes: what was named."""
    model = told.get("model")
    shared = {
        "plugin": "memkv-lmcache native",
        "format": options.FORMAT,
        "lmcache": options.lmcache_version(),
        "model": identity.weights_identity(str(model)) if model is not None else None,
        **options.named_fields(told),
    }
    return identity.Fingerprint(shared)
