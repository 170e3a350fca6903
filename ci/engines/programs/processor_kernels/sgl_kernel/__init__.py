"""Stands where SGLang's kernels are, on a machine that cannot load them.

SGLang runs a small model on processors with torch alone (`SGLANG_USE_CPU_ENGINE=1`), but imports
its kernels whatever it runs. Here every name of theirs exists and may be imported; what is called
says which kernel is missing. Three kernels are there: those that copy pages between the device's
pool and the host's, as torch copies.
"""

import builtins
import importlib.abc
import importlib.machinery
import sys
import types

import torch

__path__ = []
__version__ = "0.4.10"


class Absent:
    """A kernel, or a namespace of kernels, that is not here."""

    def __init__(self, name):
        self._name = name

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent(f"{self._name}.{name}")

    def __call__(self, *_arguments, **_named):
        raise NotImplementedError(f"{self._name} is not there on processors")


def _names_of(module):
    def look_up(name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent(f"{module}.{name}")

    return look_up


__getattr__ = _names_of(__name__)


class _Submodules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Any `sgl_kernel.anything` can be imported."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname.startswith(f"{__name__}."):
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__path__, module.__getattr__ = [], _names_of(spec.name)
        return module

    def exec_module(self, module):
        """There is nothing to run."""


class _Runtime:
    """The CUDA runtime as SGLang asks it to pin host memory: it is pinned enough."""

    class cudaError:
        success = 0

    def __getattr__(self, name):
        return lambda *_arguments: 0


def transfer_kv_direct(src_layers, dst_layers, src_indices, dst_indices, page_size):
    """Slots of layers to slots of layers."""
    for source, target in zip(src_layers, dst_layers, strict=True):
        target[dst_indices.long()] = source[src_indices.long()]


def _pages(indices, page_size):
    """The number of the page that each run of `page_size` slots of a host pool is."""
    return (indices[::page_size] // page_size).tolist()


def transfer_kv_all_layer_direct_lf_pf(src_ptrs, dst_ptrs, src_indices, dst_indices, page_size):
    """All layers of the device, K's before V's, to pages of the host: [page, layer, slot, …]."""
    layers = len(src_ptrs) // len(dst_ptrs)
    rows = src_indices.long().view(-1, page_size)
    for kind, host in enumerate(dst_ptrs):
        for layer, device in enumerate(src_ptrs[kind * layers : (kind + 1) * layers]):
            for page, slots in zip(_pages(dst_indices, page_size), rows, strict=True):
                host[page, layer].copy_(device[slots].view_as(host[page, layer]))


def transfer_kv_per_layer_direct_pf_lf(
    src_ptrs, dst_ptrs, src_indices, dst_indices, layer_id, page_size
):
    """Pages of the host to one layer of the device."""
    rows = dst_indices.long().view(-1, page_size)
    for host, device in zip(src_ptrs, dst_ptrs, strict=True):
        for page, slots in zip(_pages(src_indices, page_size), rows, strict=True):
            device[slots] = host[page, layer_id].view_as(device[slots])


sys.meta_path.insert(0, _Submodules())
torch.cuda.cudart = _Runtime
# Where there is no GPU, SGLang's pools use these names without having imported them.
for _kernel in (
    transfer_kv_direct,
    transfer_kv_all_layer_direct_lf_pf,
    transfer_kv_per_layer_direct_pf_lf,
):
    setattr(builtins, _kernel.__name__, _kernel)
