"""Whose keys these are: the fingerprint of a deployment, beside the keys that it stores.

An engine's key names the tokens of a page or chunk. It does not name what else decides over the
bytes: the weights, the data type, the layout of a page, the hash that made the key. Two deployments
that differ in one of these make equal keys for unequal bytes, and whoever read the other's would go
on with garbage. So every plug-in

1. writes all of it down once, as a :class:`Fingerprint`,
2. begins each of its keys with `Fingerprint.prefix`, so that another fingerprint's value cannot be
   found at all,
3. binds the namespace to it (`Fingerprint.bind`), so that a mistake in the configuration is refused
   with both fingerprints printed, instead of being a cache that never hits and nobody knows why.

Step 2 is what keeps bytes apart; steps 1 and 3 say so to people. :func:`connect` does all of it for
a plug-in.

Nothing here knows an engine, and nothing but the standard library is imported beside `memkv`
itself.
"""

import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from ._core import Client, ConfigError, Conflict, Error

__all__ = [
    "Binding",
    "Fingerprint",
    "FingerprintMismatch",
    "check_hash_seed",
    "connect",
    "fit_key",
    "weights_identity",
]

log = logging.getLogger("memkv.identity")

#: The longest key that a server takes, in bytes.
MAX_KEY_BYTES = 512
#: Where a namespace says whose it is.
FINGERPRINT_KEY = b"memkv/fingerprint"
#: Before the name of a hash algorithm: what it made of a fixed sample in the process that started
#: last.
HASH_KEY = b"memkv/hash/"
#: What a server is asked to keep such small entries for; it cuts this to its own limit.
_PIN_SECONDS = 7 * 24 * 3600
#: The namespace of a client that was told none.
_UNNAMED = "default"
#: Hash algorithms whose results depend on PYTHONHASHSEED.
_SEEDED = frozenset({"builtin", "hash"})
#: How many pieces of a file of weights are read, and how long one is, in bytes.
_SAMPLES, _SAMPLE_BYTES = 64, 64 << 10
_WEIGHTS = (".safetensors", ".gguf", ".bin", ".pt", ".pth")

_AWAY = "memkv cannot be asked yet, everything is a miss until it can: %s"

Scalar = str | int | bool | None


class FingerprintMismatch(Error):
    """The namespace belongs to another fingerprint.

    `ours` and `theirs` are the documents, `fields` names what differs.
    """

    def __init__(
        self, message: str, ours: str = "", theirs: str = "", fields: tuple[str, ...] = ()
    ):
        super().__init__(message)
        self.ours, self.theirs, self.fields = ours, theirs, fields


def _canonical(fields: Mapping[str, Scalar]) -> str:
    """The one way to write `fields`: sorted, no blanks, ASCII."""
    return json.dumps(dict(fields), sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def _checked(name: str, fields: Mapping[str, Scalar]) -> dict[str, Scalar]:
    for key, value in fields.items():
        # A float has more than one way to be written, and a list or an object hides what differs.
        if not isinstance(key, str) or not (value is None or isinstance(value, (str, int, bool))):
            kinds = "a fingerprint is made of str, int, bool and None"
            raise ConfigError(f"{name}[{key!r}] is {value!r}: {kinds}")
    return dict(fields)


class Fingerprint:
    """All that decides over the bytes behind a key, beside the tokens.

    `shared` is what all ranks of one deployment have in common: engine and the version of its KV
    layout, model, weights, data type, sizes of parallel groups, page or chunk size, layout, hash
    algorithm. `rank` is what tells one rank's bytes from another's (tp_rank, pp_rank); a model
    whose ranks keep the same bytes leaves it empty.
    """

    def __init__(self, shared: Mapping[str, Scalar], rank: Mapping[str, int] | None = None):
        if not shared:
            raise ConfigError("shared is empty: a fingerprint names at least the model")
        self.shared = _checked("shared", shared)
        self.rank = _checked("rank", rank or {})
        #: SHA-256 of `shared` alone, 64 hex digits: equal in all ranks of a deployment.
        self.digest = hashlib.sha256(_canonical(self.shared).encode()).hexdigest()
        both = f"{_canonical(self.shared)}\n{_canonical(self.rank)}"
        #: What every key begins with: 16 hex digits of SHA-256 of `shared` and `rank`, and a slash.
        self.prefix = hashlib.sha256(both.encode()).hexdigest()[:16].encode() + b"/"

    def __eq__(self, other: object) -> bool:
        # Not by `shared`: 1 and True are equal in Python, and are not the same setting.
        return isinstance(other, Fingerprint) and self.prefix == other.prefix

    def __hash__(self) -> int:
        return hash(self.prefix)

    def __repr__(self) -> str:
        return f"Fingerprint({self.digest[:12]}, {self.prefix.decode()})"

    def document(self) -> str:
        """`shared` for people: JSON, a field a line."""
        return json.dumps(self.shared, sort_keys=True, indent=1, ensure_ascii=True)

    def default_namespace(self, label: str) -> str:
        """The namespace of a deployment that was told none: all of them live side by side."""
        return f"{label}-{self.digest[:12]}"

    def bind(self, client: Client) -> None:
        """Makes the namespace of `client` this fingerprint's, or raises FingerprintMismatch if it
        is another's.

        `client` has no prefix. What the server cannot answer is raised as it comes (Unavailable,
        Timeout, …).
        """
        ours = self.document().encode()
        found = _publish(client, FINGERPRINT_KEY, ours)
        theirs = _parsed(found)
        if theirs is not None and _canonical(theirs) == _canonical(self.shared):
            return
        fields = _differing(self.shared, theirs)
        them = found.decode("utf-8", "replace")
        raise FingerprintMismatch(
            f"namespace {client.namespace!r} belongs to another deployment; they differ in "
            f"{', '.join(fields)}.\n"
            f"here: {self.document()}\nthere: {them}\n"
            "Name another namespace, or none: then each deployment gets its own.",
            ours=self.document(),
            theirs=them,
            fields=fields,
        )


def _publish(client: Client, key: bytes, value: bytes) -> bytes:
    """Puts `value` unless the key has one, and returns what the key has then."""
    for _ in range(3):
        found = client.get(key)
        if found is not None:
            return bytes(found)
        try:
            if client.put(key, value, pin=_PIN_SECONDS):
                return value
        except Conflict:
            pass  # somebody was faster, with a value of another length: read it
    what = f"{key.decode()!r} in namespace {client.namespace!r}"
    raise Error(f"{what} is neither there nor can it be stored")


def _parsed(document: bytes) -> dict[str, Scalar] | None:
    try:
        fields = json.loads(document)
    except ValueError:
        return None
    return fields if isinstance(fields, dict) else None


def _differing(ours: Mapping[str, Scalar], theirs: Mapping[str, Scalar] | None) -> tuple[str, ...]:
    if theirs is None:
        return ("everything (what is there is no fingerprint)",)
    # By what is written: 1 and True are equal in Python, and are not the same setting.
    told, tells = ({name: json.dumps(of[name]) for name in of} for of in (ours, theirs))
    return tuple(name for name in sorted({*ours, *theirs}) if told.get(name) != tells.get(name))


class Binding:
    """A namespace that is bound as soon as its server can be asked; nobody waits for it.

    An engine starts without its cache if it must. `ready()` says whether values may be read and
    written: it tries to bind, at most once in `retry_seconds`, and returns False as long as nobody
    answers. A namespace of another fingerprint is refused by the first attempt, in `connect`; where
    the server was away then, the refusal is logged as an error and `ready()` stays False for good.
    """

    def __init__(
        self, fingerprint: Fingerprint, opened: Callable[[], Client], retry_seconds: float = 10.0
    ):
        self.fingerprint, self._opened, self._retry = fingerprint, opened, retry_seconds
        self._lock, self._next = threading.Lock(), 0.0
        #: Whether the namespace is bound; and why it never will be.
        self.bound, self.refused = False, None

    def ready(self) -> bool:
        if self.bound:
            return True
        # One caller tries; the others have a cache that is not there yet.
        if not self._lock.acquire(blocking=False):
            return False
        try:
            if self.bound or self.refused is not None or time.monotonic() < self._next:
                return self.bound
            try:
                self.bind()
            except FingerprintMismatch as refusal:
                log.error("memkv is not used: %s", refusal)
            except Error as error:
                log.warning(_AWAY, error)
            return self.bound
        finally:
            self._lock.release()

    def ready_soon(self) -> bool:
        """As `ready`, for who must not wait at all: another thread tries."""
        if not (self.bound or self.refused is not None or time.monotonic() < self._next):
            self._next = time.monotonic() + self._retry
            threading.Thread(target=self._try_now, name="memkv-bind", daemon=True).start()
        return self.bound

    def _try_now(self) -> None:
        self._next = 0.0
        self.ready()

    def bind(self) -> None:
        """Binds now, or raises."""
        self._next = time.monotonic() + self._retry
        try:
            with self._opened() as client:
                self.fingerprint.bind(client)
            self.bound = True
        except FingerprintMismatch as refusal:
            self.refused = refusal
            raise


def connect(fingerprint: Fingerprint, label: str, **client: object) -> tuple[Client, Binding]:
    """The client of a plug-in: bound to `fingerprint`, its prefix before every key.

    `client` is what `memkv.Client` takes. Without a namespace (argument, MEMKV_NAMESPACE or file;
    `default` counts as none) it is `fingerprint.default_namespace(label)`. A namespace of another
    fingerprint raises FingerprintMismatch; a server that does not answer is no error: see
    :class:`Binding`.
    """
    if not client.get("namespace"):
        with Client(**client) as told:
            named = told.namespace
        client["namespace"] = fingerprint.default_namespace(label) if named == _UNNAMED else named
    binding = Binding(fingerprint, lambda: Client(**client))
    try:
        binding.bind()
    except (ConfigError, FingerprintMismatch):
        raise
    except Error as error:
        log.warning(_AWAY, error)
    return Client(**client, prefix=fingerprint.prefix), binding


def fit_key(prefix: bytes, key: str | bytes) -> bytes:
    """`prefix + key`; where that is longer than a server takes, its readable head, `#` and the
    SHA-256 of the key.
    """
    raw = key.encode() if isinstance(key, str) else bytes(key)
    if len(prefix) + len(raw) <= MAX_KEY_BYTES:
        return prefix + raw
    tail = b"#" + hashlib.sha256(raw).hexdigest().encode()
    room = MAX_KEY_BYTES - len(prefix) - len(tail)
    if room < 0:
        raise ConfigError(f"a prefix of {len(prefix)} bytes leaves no room for a key")
    head = raw[:room]
    if isinstance(key, str):
        head = head.decode("utf-8", "ignore").encode()  # no half of a character
    return prefix + head + tail


def weights_identity(model: str, revision: str | None = None) -> str:
    """What tells these weights from others, cheaply.

    A directory: SHA-256 over its config.json and, of every file of weights in it, the name, the
    length, the first MiB (of a safetensors file the names and places of all tensors) and 64 pieces
    of 64 KiB at even distances up to its end. The same files under another path are the same
    weights. A file: the same of that file alone. Anything else is the name of a model of a hub: the
    name and its revision, as a commit where the local cache of that hub knows which. Some bytes of
    a file are never read: whoever patches weights in place names a new identity by hand.
    """
    path = Path(model)
    if path.is_file():
        return f"sha256:{_of_files([path])}"
    if not path.is_dir():
        return f"{model}@{_commit(model, revision or 'main')}"
    files = sorted(entry for entry in path.iterdir() if entry.is_file())
    of_kind = [[file for file in files if file.suffix == kind] for kind in _WEIGHTS]
    # Directories often keep the same weights in two formats, and engines read the better one.
    chosen = next((kind for kind in of_kind if kind), [])
    config = path / "config.json"
    if not chosen and not config.is_file():
        what = "has neither weights nor a config.json: name the identity of its weights"
        raise ConfigError(f"{model!r} {what}")
    return f"sha256:{_of_files([*([config] if config.is_file() else []), *chosen])}"


def _of_files(files: list[Path]) -> str:
    total = hashlib.sha256()
    for file in files:
        length = file.stat().st_size
        total.update(f"{file.name}\0{length}\0".encode())
        with file.open("rb") as opened:
            total.update(opened.read(1 << 20))
            for sample in range(1, _SAMPLES + 1):
                opened.seek(max(0, length * sample // _SAMPLES - _SAMPLE_BYTES))
                total.update(opened.read(_SAMPLE_BYTES))
    return total.hexdigest()


def _commit(model: str, revision: str) -> str:
    """The commit that `revision` was when the model was fetched to here, else `revision`."""
    home = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
    cache = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub")
    reference = cache / f"models--{model.replace('/', '--')}" / "refs" / revision
    try:
        return reference.read_text().strip() or revision
    except (OSError, ValueError):
        return revision


def check_hash_seed(
    client: Client, algorithm: str, sample_hash: str | bytes, *, seeded: bool | None = None
) -> bool:
    """Whether this process hashes as the one that started before it: else neither finds the other's
    keys.

    `sample_hash` is what the engine's hash function `algorithm` makes of a fixed sample here. It is
    published in the namespace of `client` (which has no prefix) and compared with what the last
    process published. A difference is a warning with both values, and so is an unset PYTHONHASHSEED
    where the algorithm depends on it (`seeded`; known for Python's own). Never raises: a check that
    cannot be made is logged, and True.
    """
    sample = sample_hash.hex() if isinstance(sample_hash, bytes) else sample_hash
    seed = os.environ.get("PYTHONHASHSEED")
    if (algorithm in _SEEDED if seeded is None else seeded) and seed in (None, "", "random"):
        log.warning(
            "PYTHONHASHSEED is not set, and the hash algorithm %s depends on it: keys of this "
            "process are found by no other, nor after a restart. Set PYTHONHASHSEED to the same "
            "number everywhere (this process hashes the sample to %s)",
            algorithm,
            sample,
        )
    key = HASH_KEY + algorithm.encode()
    ours: dict[str, Scalar] = {"algorithm": algorithm, "sample": sample, "PYTHONHASHSEED": seed}
    value = _canonical(ours).encode()
    try:
        found = client.get(key)
        theirs = None if found is None else _parsed(bytes(found)) or {}
        if theirs is None or theirs != ours:
            client.put(key, value, replace=True, pin=_PIN_SECONDS)
    except Error as error:
        log.warning("cannot compare hash algorithm %s with other processes: %s", algorithm, error)
        return True
    if theirs is None or theirs.get("sample") == sample:
        return True
    log.warning(
        "the hash algorithm %s made %s of the sample here (PYTHONHASHSEED=%s), and %s in the "
        "process that started before (PYTHONHASHSEED=%s), in namespace %r: neither finds the "
        "other's keys. Set PYTHONHASHSEED to the same number everywhere, and use the same versions",
        algorithm,
        sample,
        seed,
        theirs.get("sample"),
        theirs.get("PYTHONHASHSEED"),
        client.namespace,
    )
    return False
