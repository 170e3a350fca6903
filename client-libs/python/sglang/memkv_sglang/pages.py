"""Pages of a host pool and the keys they are stored under. Imports no engine.

SGLang names a page by a hash of all tokens up to its end. In host memory a page is one piece or
several, as the pool's layout has it: K and V apart (`page_first`, `page_first_direct`), K and V of
each layer (`layer_first`), one latent piece (MLA), one piece a state (Mamba). Nothing here copies:
a page is stored as one value, gathered from its pieces and scattered to them again, so that it is
there or it is not. There is no page whose keys are stored and whose values are not.

    kv/<page hash>               K, V; or K, V of layer 0, K, V of layer 1, …
    mamba-5e884898/<page hash>   temporal state, convolution states; the digest says of which shape

A pool that cannot say where its pages lie (or SGLang, which asks for copies when `interface_v1` is
not set) has its pages stored in the order of their flat copies: `kv/<page hash>/flat`.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import memkv
from memkv.identity import fit_key

#: What a fingerprint puts before every key.
_PREFIX = bytes(17)

#: Address and length in bytes.
Piece = tuple[int, int]


class HostPool:
    """A pool of SGLang's host memory as this back end sees it.

    `pool` has `page_size` and either `get_page_buffer_meta(indices)` or the copying
    `get_data_page`, `get_dummy_flat_data_page` and `set_from_flat_data_page`. `tag` tells ranks
    apart whose pages of this pool differ although the rest of the fingerprint is the same.
    """

    def __init__(self, name: str, pool: Any, tag: str = "", copied: bool = False):
        self.name, self.pool = name, pool
        #: Slots of a page, as SGLang counts them in the indices that it hands over.
        self.slots = int(
            getattr(pool, "logical_page_size", 0) or getattr(pool, "page_size", 1) or 1
        )
        #: Whether there are no pages at all: an anchor of other pools has none of its own.
        self.empty = getattr(pool, "kv_buffer", self) is None and name == "kv"
        #: Bytes of each piece of a page; nothing where pages are copied.
        self.sizes = () if copied or self.empty else self._measured()
        shape = f"-{self.shape()}" if name != "kv" else ""
        self._stem = f"{name}{shape}{f'.{tag}' if tag else ''}"
        self._tail = "" if self.zero_copy else "/flat"

    def _measured(self) -> tuple[int, ...]:
        import torch

        page = torch.zeros(self.slots, dtype=torch.int64)
        try:
            pointers, sizes = self.pool.get_page_buffer_meta(page)
        except (AttributeError, NotImplementedError, ValueError):
            return ()  # this pool, or this layout of it, can only be copied
        assert len(pointers) == len(sizes), (self.name, len(pointers), len(sizes))
        return tuple(int(size) for size in sizes)

    def check(self) -> None:
        """Raises ConfigError if pages of this pool can neither be reached in place nor copied."""
        if self.zero_copy or self.empty:
            return
        try:
            self.pool.get_data_page(0, flat=True)
            self.pool.get_dummy_flat_data_page()
        except (AttributeError, NotImplementedError, ValueError) as error:
            layout = getattr(self.pool, "layout", None)
            what = f"{type(self.pool).__name__} with layout {layout!r}"
            raise memkv.ConfigError(f"pages of {what} cannot be stored: {error}") from error

    @property
    def zero_copy(self) -> bool:
        return bool(self.sizes)

    def shape(self) -> str:
        """A short digest of what pages of this pool look like."""
        pool = self.pool
        told = [type(pool).__name__, self.slots, self.sizes]
        told += [
            str(getattr(pool, name, None)) for name in ("dtype", "layout", "layer_num", "head_num")
        ]
        return hashlib.sha256(repr(told).encode()).hexdigest()[:8]

    def keys(self, pages: Sequence[str]) -> list[bytes]:
        """The keys of `pages`."""
        return [self._key(page) for page in pages]

    def _key(self, page: str) -> bytes:
        return fit_key(_PREFIX, f"{self._stem}/{page}{self._tail}")[len(_PREFIX) :]

    def places(self, indices: Any) -> list[list[Piece]]:
        """For each of the pages at `indices`, where its pieces are."""
        pointers, sizes = self.pool.get_page_buffer_meta(indices)
        pieces = [(int(at), int(size)) for at, size in zip(pointers, sizes, strict=True)]
        count = len(self.sizes)
        assert len(pieces) % count == 0, (self.name, len(pieces), count)
        return [pieces[start : start + count] for start in range(0, len(pieces), count)]


def length(pieces: Sequence[Piece]) -> int:
    """Bytes of a value."""
    return sum(size for _, size in pieces)
