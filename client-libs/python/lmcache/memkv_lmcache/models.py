"""What decides over the bytes of a key of LMCache's server beside the key: weights and layout.

A key of the server names a model, a rank, a group of layers and a chunk of tokens. Two engines that
serve other weights under one name, or keep the same layers in another data type, make equal keys for
unequal bytes. So a tag goes before each key here: a hash of the weights' identity and of the layout.
"""

import hashlib
import itertools
import json
import math
import os
import time
from collections.abc import Callable

from lmcache.v1.distributed.api import MemoryLayoutDesc, ObjectKey
from lmcache.v1.memory_management import MemoryObj, MemoryObjMetadata
from memkv import identity

#: Hex digits of a tag.
TAG_DIGITS = 16

Layout = tuple[tuple[tuple[int, ...], str], ...]
Group = tuple[str, int, int]


def group_of(key: ObjectKey) -> Group:
    """What all keys of one layout have in common."""
    return key.model_name, ObjectKey.WorldSizeFromKVRank(key.kv_rank), key.object_group_id


def layout_of(shapes: list, dtypes: list) -> Layout:
    """A layout as something to compare: the shape and data type of each tensor."""
    return tuple((tuple(shape), str(dtype)) for shape, dtype in zip(shapes, dtypes, strict=True))


def _tensors(meta: MemoryObjMetadata) -> tuple[list, list]:
    """Shapes and data types of a value."""
    if meta.shapes is not None and meta.dtypes is not None:
        return meta.shapes, meta.dtypes
    return [meta.shape], [meta.dtype]


class Models:
    """Weights by the name of their model, and layouts by group.

    Weights of a directory are identified by reading some of it, once, and again when it has changed.
    That is quick for files on a local disk and not for others, so whoever must not wait asks
    `knows` first. `now` tells seconds.
    """

    def __init__(self, weights: str | None = None, now: Callable[[], float] = time.monotonic):
        self._named = weights
        self._now = now
        self._weights: dict[str, tuple[object, str]] = {}
        self._looked: dict[str, float] = {}
        # Of each group: the layouts that were asked for, the last one first; and the one that was
        # stored last, for callers who do not say what they ask for.
        self._layouts: dict[Group, list[Layout]] = {}
        self._stored: dict[Group, Layout] = {}
        self._tags: dict[tuple[str, Layout | None], str] = {}

    def knows(self, keys: list[ObjectKey], age: float = 0.0) -> bool:
        """Whether tags of these keys can be told without reading any file of a model.

        Whether files have changed is not looked at again for `age` seconds.
        """
        names = {key.model_name for key in keys}
        return self._named is not None or all(self._is_known(name, age) for name in names)

    def _is_known(self, name: str, age: float) -> bool:
        known, now = self._weights.get(name), self._now()
        if known is None:
            return False
        if now - self._looked[name] < age:
            return True
        is_known = known[0] == _stamp(name)
        # Once one knows that they have changed nobody is content any more.
        self._looked[name] = now if is_known else -math.inf
        return is_known

    def learn(self, keys: list[ObjectKey]) -> None:
        """Identifies the weights of the models of these keys."""
        for name in {key.model_name for key in keys}:
            now, stamp = self._now(), _stamp(name)
            known = self._weights.get(name)
            if self._named is None and (known is None or known[0] != stamp):
                try:
                    weights = identity.weights_identity(name)
                except (OSError, identity.ConfigError):
                    # A name that happens to be a folder here as well: it is still a name.
                    weights = name
                # Whoever finds the weights finds when they were looked at.
                self._looked[name] = now
                self._weights[name] = stamp, weights

    def ask(self, keys: list[ObjectKey], layouts: dict[int, MemoryLayoutDesc]) -> None:
        """Remembers the layouts that a lookup expects of its groups."""
        for group in {group_of(key) for key in keys}:
            told = layouts.get(group[2])
            if told is None or not told.shapes:
                continue
            layout = layout_of(told.shapes, told.dtypes)
            seen = self._layouts.get(group, [])
            if not seen or seen[0] != layout:
                rest = [other for other in seen if other != layout]
                self._layouts[group] = [layout, *rest]

    def names(
        self, keys: list[ObjectKey], values: list[MemoryObj] | None = None
    ) -> tuple[list[str], bool]:
        """Keys as strings, each behind its tag; and whether any value comes transformed.

        It does when LMCache transforms values on their way (its option `serde`): as mere bytes, of a
        length that need not be that of their memory, and not in the layout that lookups of their
        group expect. They, and keys without values, have the tag of the layout that was asked for last.

        This is called for each batch, with Python's lock held; so what neighbours have in common, as
        a rule everything but the hash, is worked out once.
        """
        names, transformed = [], False
        last = tensors = None
        last_rank = None
        world, rank_text, head, tail = 0, "", "", ""
        metas = [value.meta for value in values] if values is not None else itertools.repeat(None)
        for key, meta in zip(keys, metas):
            model, rank, group = key.model_name, key.kv_rank, key.object_group_id
            if meta is not None:
                tensors = meta.shapes, meta.dtypes, meta.shape, meta.dtype
            if rank != last_rank:
                # Ranks of one model have its layout in common.
                last_rank, world = rank, ObjectKey.WorldSizeFromKVRank(rank)
                rank_text = f"{rank:08x}"
            if (model, world, group, tensors) != last:
                last = model, world, group, tensors
                layout, is_transformed = self._layout(key, meta and _tensors(meta))
                transformed = transformed or is_transformed
                # The words of LMCache's own adapters, so that people and tools can read them.
                head, tail = f"{self._tag(model, layout)}@{model}@", f"@{group:x}@"
            salt = f"@{key.cache_salt}" if key.cache_salt else ""
            names.append(f"{head}{rank_text}{tail}{key.chunk_hash.hex()}{salt}")
        return names, transformed

    def _layout(self, key: ObjectKey, tensors: tuple | None) -> tuple[Layout | None, bool]:
        """The layout that a key stands for, and whether its value comes transformed."""
        group = group_of(key)
        asked = self._layouts.get(group)
        layout = layout_of(*tensors) if tensors is not None else None
        is_transformed = layout is not None and asked is not None and layout not in asked
        if layout is not None and not is_transformed:
            self._stored[group] = layout
            return layout, False
        return (asked[0] if asked else self._stored.get(group)), is_transformed

    def _tag(self, name: str, layout: Layout | None) -> str:
        weights = self._named if self._named is not None else self._weights[name][1]
        tag = self._tags.get((weights, layout))
        if tag is None:
            text = json.dumps([weights, layout], sort_keys=True)
            tag = hashlib.sha256(text.encode()).hexdigest()[:TAG_DIGITS]
            self._tags[weights, layout] = tag
        return tag


def _stamp(name: str) -> object:
    """Changes when the files of a model do."""
    found = []
    for path in (name, os.path.join(name, "config.json")):
        try:
            found.append(os.stat(path).st_mtime_ns)
        except (OSError, ValueError):
            found.append(None)
    return found
