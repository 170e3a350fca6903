"""A plug-in of pytest: LMCache's own tests of an L2 adapter, with memkv where they have a mock.

MEMKV_SWAP says what stands where: `native` puts our native client into the tests' fixtures, below LMCache's
adapter; `plugin` puts our adapter in the place of theirs. Each fixture gets a namespace of its own.
"""

import itertools
import os

from memkv_lmcache.connector import MemKVConnector

SERVERS = os.environ["MEMKV_SWAP_SERVERS"]
NUMBERS = itertools.count()
VALUES = []


def namespace() -> dict:
    """The server, and a place on it that nobody has used."""
    return {"servers": SERVERS, "namespace": f"swap-{os.getpid()}-{next(NUMBERS)}"}


class Swapped(MemKVConnector):
    """Our client, made as their mock is: without a word."""

    def __init__(self):
        super().__init__(**namespace())


def make_adapter(client, max_capacity_gb=0, **_rest):
    """Our adapter, made as theirs is; the client that it would have had is not needed."""
    from memkv_lmcache.adapter import MemKVL2Adapter

    client.close()
    return MemKVL2Adapter({**namespace(), "max_capacity_gb": max_capacity_gb})


def kept(make):
    """What makes values, each kept to the end. Tests let go of some that are still being stored, for their
    mock copies at once; the next one then lies in the same memory, and what is sent has not the checksum
    of what was to be sent. LMCache itself keeps its values until they are stored."""

    def made(*arguments, **options):
        VALUES.append(make(*arguments, **options))
        return VALUES[-1]

    return made


def pytest_collection_finish(session):
    """Puts ours where theirs are, once their modules are there."""
    for module in {item.module for item in session.items}:
        if not hasattr(module, "MockNativeConnector"):
            continue
        module.create_memory_obj = kept(module.create_memory_obj)
        if os.environ["MEMKV_SWAP"] == "plugin":
            module.NativeConnectorL2Adapter = make_adapter
            continue
        module.MockNativeConnector = Swapped
        module.RecordingNativeConnector.__bases__ = (Swapped,)
