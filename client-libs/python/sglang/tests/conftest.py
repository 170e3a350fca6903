"""A memkv client in a dictionary, and host pools of SGLang's own classes."""

import ctypes
from types import SimpleNamespace

import memkv
import pytest
import torch
from memkv import identity

PAGE, LAYERS, HEADS, DIM = 16, 3, 2, 8


class FakeClient:
    """What the back end asks of `memkv.Client`. `calls` is what a server would have been asked.

    `away` makes it one that is gone, `full` one that takes the values before that one of a batch.
    """

    away = full = False

    def __init__(self, values=None):
        self.values = {} if values is None else values
        self.namespace, self.servers, self.prefix = "fake", ["fake:1"], b""
        self.calls, self.timeouts, self.closed = [], {}, False

    def _called(self, operation, keys, timeout):
        assert not self.closed, "a closed client was used"
        self.timeouts[operation] = timeout
        assert len(set(keys)) == len(keys), "a key twice in one batch"
        self.calls.append((operation, len(keys)))
        if self.away:
            raise memkv.Unavailable("nobody there")

    def match_prefix(self, keys, *, timeout):
        self._called("match_prefix", keys, timeout)
        return next((i for i, key in enumerate(keys) if key not in self.values), len(keys))

    def exists(self, keys, *, timeout):
        self._called("exists", keys, timeout)
        return [key in self.values for key in keys]

    def get_batch_into(self, keys, buffers, *, timeout, errors=None):
        self._called("get", keys, timeout)
        lengths = []
        for key, pieces in zip(keys, buffers, strict=True):
            value = self.values.get(key)
            lengths.append(None if value is None else len(value))
            rest = value or b""
            for address, length in pieces:
                ctypes.memmove(address, rest, min(length, len(rest)))
                rest = rest[length:]
        return lengths

    def put_batch(self, keys, values, *, timeout, errors=None, **options):
        self._called("put", keys, timeout)
        self.options = options
        kept = []
        for index, (key, pieces) in enumerate(zip(keys, values, strict=True)):
            if self.full and index >= self.full - 1:
                errors.append((index, memkv.Full("no room")))
                kept.append(False)
                continue
            value = b"".join(ctypes.string_at(address, length) for address, length in pieces)
            self.values.setdefault(key, value)
            kept.append(True)
        return kept

    def delete(self, keys, *, timeout):
        self._called("delete", keys, timeout)
        return [self.values.pop(key, None) is not None for key in keys]

    def stats(self):
        return {"calls": len(self.calls)}

    def close(self):
        self.closed = True

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        self.close()


class Bound:
    bound = True

    def ready(self):
        return self.bound


@pytest.fixture
def store(monkeypatch):
    """One server's values, and the clients that were opened on them in `opened`."""

    store = SimpleNamespace(values={}, opened=[], binding=Bound())

    def connect(fingerprint, label, **options):
        client = FakeClient(_Prefixed(store.values, fingerprint.prefix))
        client.options_given = options
        store.opened.append(client)
        return client, store.binding

    monkeypatch.setattr(identity, "connect", connect)
    monkeypatch.setattr(memkv, "Client", lambda **_options: FakeClient({}))
    monkeypatch.setattr(identity, "check_hash_seed", lambda *_a, **_k: True)
    return store


class _Prefixed:
    """A view of a dictionary under a prefix."""

    def __init__(self, values, prefix):
        self.inner, self.prefix = values, prefix

    def get(self, key):
        return self.inner.get(self.prefix + key)

    def pop(self, key, default):
        return self.inner.pop(self.prefix + key, default)

    def setdefault(self, key, value):
        return self.inner.setdefault(self.prefix + key, value)

    def __contains__(self, key):
        return self.prefix + key in self.inner


def mha_pool(layout="page_first", dtype=torch.bfloat16, page=PAGE, pages=8, layers=LAYERS):
    """A host pool of SGLang's for keys and values of several heads."""
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool
    from sglang.srt.mem_cache.pool_host.mha import MHATokenToKVPoolHost

    device = MHATokenToKVPool(
        page * pages,
        page,
        dtype,
        HEADS,
        DIM,
        layers,
        "cpu",
        False,
        start_layer=0,
        end_layer=layers - 1,
    )
    return MHATokenToKVPoolHost(
        device.get_device_pool_infos()[0].buffer_info,
        1,
        0,
        page,
        layout,
        pin_memory=False,
        device_capacity_tokens=device.size,
        start_layer=device.start_layer,
        end_layer=device.end_layer,
    )
