"""Pages of a host pool and the keys they are stored under. Imports no engine.

SGLang names a page by a hash of all tokens up to its end. In host memory a page is one piece or
several, as the pool's layout has it: K and V apart (`page_first`, `page_first_direct`), K and V of
each layer (`layer_first`), one latent piece (MLA), one piece a state (Mamba). Nothing here copies:
every piece is stored as a value of its own, from where it lies, and a page is stored when all of
its pieces are:

    kv/<page hash>/0   K        mamba-5e884898/<page hash>/0   temporal state
    kv/<page hash>/1   V        mamba-5e884898/<page hash>/1   first convolution state

Pieces of one page are neighbours in a batch, so the number of leading keys that are stored, divided
by the pieces of a page, is the number of whole leading pages: a page whose K is there and whose V
is not does not count.

A pool that cannot say where its pages lie (or SGLang, which asks for copies when `interface_v1` is
not set) has whole pages instead, in the order of the pool's flat copy: `kv/<page hash>/w`.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import memkv
from memkv.identity import fit_key

#: What a fingerprint puts before every key.
_PREFIX = bytes(17)


class Page(NamedTuple):
    """The length of each piece of a page in bytes; of pages that are copied, none."""

    pieces: tuple[int, ...]

    @property
    def count(self) -> int:
        return len(self.pieces) or 1


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
        #: Whether there are pages at all: an anchor of other pools has none of its own.
        self.empty = getattr(pool, "kv_buffer", self) is None and name == "kv"
        self.page = Page(() if copied or self.empty else self._measured())
        shape = f"-{self.shape()}" if name != "kv" else ""
        self._stem = f"{name}{shape}{f'.{tag}' if tag else ''}"
        self._tails = [f"/{piece}" for piece in range(len(self.page.pieces))] or ["/w"]

    def _measured(self) -> tuple[int, ...]:
        import torch

        try:
            pointers, sizes = self.pool.get_page_buffer_meta(
                torch.zeros(self.slots, dtype=torch.int64)
            )
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
        return bool(self.page.pieces)

    def shape(self) -> str:
        """A short digest of what pages of this pool look like."""
        pool = self.pool
        told = [type(pool).__name__, self.slots, self.page.pieces]
        told += [
            str(getattr(pool, name, None)) for name in ("dtype", "layout", "layer_num", "head_num")
        ]
        return hashlib.sha256(repr(told).encode()).hexdigest()[:8]

    def keys(self, pages: Sequence[str]) -> list[bytes]:
        """The keys of all pieces of `pages`, page by page."""
        return [self._key(page, tail) for page in pages for tail in self._tails]

    def _key(self, page: str, tail: str) -> bytes:
        return fit_key(_PREFIX, f"{self._stem}/{page}{tail}")[len(_PREFIX) :]

    def pieces(self, indices: Any) -> list[tuple[int, int]]:
        """Address and length of all pieces of the pages at `indices`, page by page."""
        pointers, sizes = self.pool.get_page_buffer_meta(indices)
        return [(int(pointer), int(size)) for pointer, size in zip(pointers, sizes, strict=True)]

    def whole(self, results: Sequence[bool], pages: int) -> list[bool]:
        """Which pages are whole, of the results of their pieces."""
        count = self.page.count
        assert len(results) == pages * count, (self.name, len(results), pages, count)
        return [all(results[page * count : (page + 1) * count]) for page in range(pages)]
