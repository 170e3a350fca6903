"""vLLM's secondary tier on memkv.

    --kv-transfer-config '{"kv_connector": "OffloadingConnector", "kv_role": "kv_both",
        "kv_connector_extra_config": {"spec_name": "TieringOffloadingSpec", "cpu_bytes_to_use":
        8000000000,
        "secondary_tiers": [{"type": "MemkvTier", "module_path": "memkv_vllm", "servers":
        "10.0.0.1:9900"}]}}'

All of it runs in vLLM's scheduler and none of it waits: look-ups, loads and stores are batches in a
`memkv.Queue`, whose completions are fetched when vLLM asks for finished jobs, once a step. Chunks
go from vLLM's shared host memory to the socket and back where they are; nothing copies them.

Nothing fails loudly here: a chunk that could not be loaded is computed, one that could not be
stored is missed later. A namespace of another deployment does fail, when the engine starts (see
`memkv.identity`).
"""

import dataclasses
import inspect
import logging
import re
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

import memkv
import memkv.metrics
from memkv import identity
from vllm.v1.kv_offload import base
from vllm.v1.kv_offload.tiering.base import JobResult, SecondaryTierManager

from . import deployment, metrics
from .lookups import Lookups

log = logging.getLogger("memkv_vllm")

#: Parameters of a tier that are arguments of `memkv.Client`.
_CLIENT = (
    "servers",
    "namespace",
    "auth_key",
    "key_id",
    "num_connections",
    "connect_timeout",
    "request_timeout",
    "config",
)
#: W3C Trace Context, section 3.2.
_TRACEPARENT = re.compile("00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
#: How often a failing server is told of, in seconds.
_TELL_SECONDS = 10.0


@dataclasses.dataclass(frozen=True)
class Settings:
    """Parameters of a tier beside those of `memkv.Client`. Times are in seconds."""

    #: Threads that move chunks.
    workers: int = 4
    #: What is not known by then is computed.
    lookup_seconds: float = 2.0
    load_seconds: float = 10.0
    store_seconds: float = 30.0
    #: How long it is remembered that a chunk is not stored, beyond the request that wanted it.
    absent_seconds: float = 1.0
    #: How long chunks live; for ever, or as the server has it.
    ttl: float | None = None
    #: Stores are answered when they survive a power cut.
    durable: bool = False
    #: Instead of what is found out about them.
    model: str | None = None
    weights: str | None = None


class _Job(NamedTuple):
    number: int
    #: As vLLM names them.
    keys: list[bytes]
    is_load: bool


def trace_of(job_metadata: Any) -> str | None:
    """The W3C trace of a request, where it was given one: a `traceparent` in its `kv_transfer_params`,
    for vLLM does not tell its tiers of the one that came by HTTP. What is none is not passed on."""
    context = getattr(job_metadata, "req_context", None)
    told = (getattr(context, "kv_transfer_params", None) or {}).get("traceparent")
    is_trace = isinstance(told, str) and _TRACEPARENT.fullmatch(told)
    return told if is_trace and told[3:35] != "0" * 32 else None


class MemkvTier(SecondaryTierManager):
    """One engine's tier. `locality` is vLLM's; other parameters are those of :class:`Settings` and
    of `memkv.Client`."""

    medium = base.Medium.STORAGE

    def __init__(
        self,
        offloading_spec: Any,
        primary_kv_view: memoryview,
        tier_type: str,
        backpressure_detector: Any = None,
        locality: str | None = None,
        **parameters: Any,
    ):
        arguments = [offloading_spec, primary_kv_view, tier_type]
        if "backpressure_detector" in inspect.signature(SecondaryTierManager.__init__).parameters:
            arguments.append(backpressure_detector)
        super().__init__(*arguments)
        self.locality = base.Locality(locality) if locality is not None else None
        client, self.settings = _parted(parameters)
        #: Bytes of a chunk: rows of the view, which has two dimensions, one byte an element.
        self._bytes = int(primary_kv_view.strides[0])
        self._view = primary_kv_view.cast("B")
        self.fingerprint = deployment.fingerprint(
            offloading_spec, self._bytes, dataclasses.asdict(self.settings)
        )
        self._client, self._binding = identity.connect(self.fingerprint, "vllm", **client)
        self._queue = self._client.open_queue(self.settings.workers)
        self._lookups = Lookups(
            self._send_lookup,
            self.settings.lookup_seconds,
            self.settings.absent_seconds,
            memkv.Error,
        )
        self._jobs: dict[int, _Job] = {}
        self._finished: list[JobResult] = []
        self._meter = metrics.Meter()
        self._stages = memkv.metrics.Stages("vllm")
        memkv.metrics.watch(self._client, "vllm")
        self._told = 0.0
        self._introduce({**client, "namespace": self._client.namespace})

    def _introduce(self, client: dict[str, Any]) -> None:
        """Says who is there, and compares hashes with whoever was here before."""
        log.info(
            "memkv: namespace %s on %s, %s, chunks of %d bytes",
            self._client.namespace,
            self._client.servers,
            self.fingerprint,
            self._bytes,
        )
        if not self._binding.bound:
            return
        algorithm = str(self.fingerprint.shared["hash"])
        sample, seeded = deployment.sample_hash(algorithm)
        with memkv.Client(**client) as plain:
            identity.check_hash_seed(plain, algorithm, sample, seeded=seeded)

    # ---- what the scheduler asks for

    def lookup(self, key: bytes, req_context: Any) -> base.LookupResult:
        if not self._binding.ready_soon():
            return base.LookupResult.MISS
        known = self._lookups.ask(key, req_context.req_id)
        if known is None:
            return base.LookupResult.RETRY
        return base.LookupResult.HIT if known else base.LookupResult.MISS

    def submit_store(self, job_metadata: Any) -> None:
        job = _Job(job_metadata.job_id, list(job_metadata.keys), False)
        options = {"ttl": self.settings.ttl, "durable": self.settings.durable}
        options["trace"] = trace_of(job_metadata)
        self._submit(job, job_metadata.chunk_ids, self.settings.store_seconds, options)

    def submit_load(self, job_metadata: Any) -> None:
        job = _Job(job_metadata.job_id, list(job_metadata.keys), True)
        self._submit(job, job_metadata.chunk_ids, self.settings.load_seconds, {"trace": trace_of(job_metadata)})

    def _submit(
        self, job: _Job, slots: Iterable[int], timeout: float, options: dict[str, Any]
    ) -> None:
        submit = self._queue.submit_get if job.is_load else self._queue.submit_put
        chunks = [self._chunk(int(slot)) for slot in slots]
        try:
            if not self._binding.ready_soon():
                raise memkv.Unavailable("the namespace is not bound yet")
            names = [_name(key) for key in job.keys]
            number = submit(names, chunks, timeout=timeout, **options)
        except memkv.Error as error:
            self._tell("a load" if job.is_load else "a store", error)
            self._finish(job, [False] * len(job.keys), 0.0, 0)
            return
        self._jobs[number] = job

    def _chunk(self, slot: int) -> memoryview:
        return self._view[slot * self._bytes : (slot + 1) * self._bytes]

    def _send_lookup(self, keys: list[bytes]) -> int:
        names = [_name(key) for key in keys]
        return self._queue.submit_exists(names, timeout=self.settings.lookup_seconds)

    # ---- what became of it

    def get_finished_jobs(self) -> Iterable[JobResult]:
        self._collect()
        finished, self._finished = self._finished, []
        return finished

    def _collect(self) -> None:
        """Fetches what the queue has done since the last time."""
        for done in self._queue.drain():
            job = self._jobs.pop(done.id, None)
            if job is None:
                self._answered(done)
            else:
                self._transferred(job, done)
            if not done.ok:
                self._stages.count("errors")
                self._tell(done.op, done.error)

    def _answered(self, done: Any) -> None:
        """What came back for a look-up."""
        self._meter.lookup(done)
        self._stages.note("lookup", done.wait_seconds + done.transfer_seconds)
        if done.ok:
            self._stages.count("hits", sum(done.results))
            self._stages.count("misses", len(done.results) - sum(done.results))
        self._lookups.answer(done.id, done.results if done.ok else None)

    def _transferred(self, job: _Job, done: Any) -> None:
        """What came of a load or a store."""
        # A value of another length is not this chunk, however it came about.
        well = [length == self._bytes for length in done.results] if job.is_load else done.results
        self._meter.transfer("load" if job.is_load else "store", done, len(well), sum(well))
        self._stages.note("wait", done.wait_seconds)
        self._stages.note("transfer", done.transfer_seconds)
        self._stages.count("bytes", done.bytes)
        moved = sum(well) * self._bytes if job.is_load else done.bytes
        self._finish(job, well, done.wait_seconds + done.transfer_seconds, moved)

    def _finish(self, job: _Job, done: list[bool], seconds: float, moved: int) -> None:
        good = [key for key, well in zip(job.keys, done, strict=True) if well]
        bad = [key for key, well in zip(job.keys, done, strict=True) if not well]
        if job.is_load:
            self._lookups.missing(bad)
        else:
            self._lookups.stored(good)
        self._finished.append(
            JobResult(
                job_id=job.number,
                success=not bad,
                successful_keys=tuple(good) if bad and job.is_load else None,
                transfer_time=seconds,
                transfer_bytes=moved,
            )
        )

    def has_pending_work(self) -> bool:
        return bool(self._jobs or self._finished)

    def drain_jobs(self) -> None:
        """Waits until no memory of vLLM's is read or written any more; deadlines see to that."""
        while self._jobs:
            self._queue.wait(1.0)
            self._collect()

    # ---- requests and steps

    def on_new_request(self, req_context: Any) -> base.RequestOffloadingContext:
        return base.RequestOffloadingContext()

    def on_request_finished(self, req_context: Any) -> None:
        self._lookups.forget(req_context.req_id)

    def on_schedule_end(self, context: Any = None) -> None:
        self._lookups.flush()

    def shutdown(self) -> None:
        """Waits for what is under way, and lets go of vLLM's memory. May be called again."""
        self._queue.close()
        self._collect()
        self._client.close()
        self._view.release()

    # ---- what it told

    @classmethod
    def build_metric_definitions(cls, extra_config: dict[str, Any]) -> dict[str, Any]:
        return metrics.definitions()

    def get_stats(self) -> Any:
        return self._meter.take(self._lookups.counts)

    @classmethod
    def config_info_keys(cls, tier_config: dict[str, Any]) -> tuple[str, ...]:
        return ("namespace", "fingerprint")

    def config_info(self) -> dict[str, str]:
        return {"namespace": self._client.namespace, "fingerprint": self.fingerprint.digest[:12]}

    def stats(self) -> dict[str, Any]:
        """Counters of this tier, and of its client."""
        return {
            "lookups": dataclasses.asdict(self._lookups.counts),
            **self._meter.as_dict(),
            "client": self._client.stats(),
        }

    def _tell(self, what: str, error: Any) -> None:
        now = time.monotonic()
        if now - self._told >= _TELL_SECONDS:
            self._told = now
            log.warning("memkv: %s failed, what is missing is computed: %s", what, error)


def _name(key: bytes) -> str:
    """The name of a chunk for people: its hash, and the group of layers that it is of."""
    return f"{key[:-4].hex()}/{int.from_bytes(key[-4:], 'big')}"


def _parted(parameters: dict[str, Any]) -> tuple[dict[str, Any], Settings]:
    """Parameters of the client, and ours; ConfigError names one that is neither's."""
    ours = {field.name for field in dataclasses.fields(Settings)}
    unknown = sorted(name for name in parameters if name not in ours and name not in _CLIENT)
    if unknown:
        known = ", ".join(sorted((*ours, *_CLIENT)))
        raise memkv.ConfigError(f"{', '.join(unknown)}: the tier takes {known}")
    client = {name: value for name, value in parameters.items() if name in _CLIENT}
    settings = Settings(**{name: parameters[name] for name in parameters if name in ours})
    for name in ("lookup_seconds", "load_seconds", "store_seconds"):
        if not getattr(settings, name) > 0:
            raise memkv.ConfigError(f"{name} is {getattr(settings, name)}: a time above 0")
    return client, settings
