"""vLLM's tiered offloading on processors: the one thing that it lacks there is who copies.

`CpuTieringSpec` is TieringOffloadingSpec with a worker that copies blocks between the KV cache and
the shared host memory by plain assignment. Everything else, above all the tiers, is vLLM's own.
"""

import time

import torch
from vllm.v1.kv_offload.base import OffloadingWorker, TransferResult
from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion
from vllm.v1.kv_offload.tiering.spec import TieringOffloadingSpec


class CopyingWorker(OffloadingWorker):
    """Copies at once; a job is finished when it has been submitted."""

    def __init__(self, kv_caches, blocks_per_chunk, region):
        if len(kv_caches.group_data_refs) != 1:
            raise NotImplementedError("models with one kind of layers alone")
        self.per_chunk = blocks_per_chunk
        pages = [(tensor.tensor, tensor.page_size_bytes) for tensor in kv_caches.tensors]
        self.blocks = [tensor.view(torch.int8).view(-1, size) for tensor, size in pages]
        self.chunks = [
            region.create_next_worker_view(size * blocks_per_chunk).unflatten(
                1, (blocks_per_chunk, size)
            )
            for _, size in pages
        ]
        self.finished = []

    def _copy(self, job, blocks, chunks, to_chunks):
        begun = time.monotonic()
        # The first block may lie within a chunk; from there on they follow each other.
        first = int(blocks.block_indices[0]) % self.per_chunk
        moved = 0
        for index, block in enumerate(blocks.block_ids, first):
            chunk, place = int(chunks.block_ids[index // self.per_chunk]), index % self.per_chunk
            for mine, shared in zip(self.blocks, self.chunks):
                source, target = mine[int(block)], shared[chunk, place]
                target.copy_(source) if to_chunks else source.copy_(target)
                moved += source.nbytes
        self.finished.append(TransferResult(job, True, moved, time.monotonic() - begun))
        return True

    def submit_store(self, job_id, src_spec, dst_spec):
        return self._copy(job_id, src_spec, dst_spec, True)

    def submit_load(self, job_id, src_spec, dst_spec):
        return self._copy(job_id, dst_spec, src_spec, False)

    def get_finished(self):
        finished, self.finished = self.finished, []
        return finished

    def wait(self, job_ids):
        """Nothing is ever under way."""

    def shutdown(self):
        self.blocks, self.chunks = [], []


class CpuTieringSpec(TieringOffloadingSpec):
    """With `CopyingWorker` where vLLM says that there is none."""

    def get_worker(self, kv_caches):
        if not self._worker:
            region = SharedOffloadRegion(
                engine_id=self._engine_id,
                num_chunks=self.num_chunks,
                rank=self.config.parallel.rank,
                kv_bytes_per_chunk=self.kv_bytes_per_chunk,
                cpu_page_size=self.cpu_page_size_per_worker,
            )
            self._worker = CopyingWorker(kv_caches, self.blocks_per_chunk, region)
        return self._worker
