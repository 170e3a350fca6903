"""What all ways into LMCache are configured by, and how they get at their namespace."""

import difflib
import logging
import re
import threading
from collections.abc import Mapping, Sequence
from importlib import metadata

import memkv
from memkv import identity

log = logging.getLogger("memkv.lmcache")

#: What is handed on to `memkv.Client`.
CLIENT_OPTIONS = (
    "servers",
    "namespace",
    "auth_key",
    "key_id",
    "num_connections",
    "connect_timeout",
    "request_timeout",
    "config",
)
#: What an operation may take unless the configuration says otherwise, in seconds. An engine waits
#: for a load no longer than computing would take.
REQUEST_TIMEOUT = 10.0
#: How often a server that was away is asked whose namespace it has, in seconds.
RETRY_SECONDS = 10.0
LABEL = "lmcache"
#: Changes when values of before can no longer be read.
FORMAT = 1


def checked(options: Mapping[str, object], known: tuple[str, ...]) -> dict[str, object]:
    """The options, all of them known; else `memkv.ConfigError` names the nearest one."""
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}"
            raise memkv.ConfigError(f"there is no option {name!r}{hint}")
    return dict(options)


def named_fields(options: Mapping[str, object]) -> dict[str, object]:
    """What the option `fingerprint` adds to the fingerprint, checked."""
    told = options.get("fingerprint") or {}
    if not isinstance(told, Mapping):
        raise memkv.ConfigError(f"fingerprint is {told!r}, not an object of names and values")
    return {f"named.{name}": value for name, value in told.items()}


def lmcache_version() -> str:
    """Major and minor version of LMCache; a patch does not change how KV cache is laid out."""
    try:
        found = re.match(r"\d+\.\d+", metadata.version("lmcache"))
    except metadata.PackageNotFoundError:
        found = None
    return found.group() if found else "unknown"


class Link:
    """A namespace that is bound to a fingerprint: a client for values, and whether it may be used.

    A namespace of another deployment raises `memkv.FingerprintMismatch` here. When no server answers
    yet, a thread goes on asking, and values are found and stored as soon as one does: they begin
    with the fingerprint's prefix, so nothing of another deployment can be met meanwhile. Should the
    namespace turn out to be another's, that is logged and `refused` says so from then on.
    """

    def __init__(self, fingerprint: identity.Fingerprint, options: Mapping[str, object]):
        told = {name: options[name] for name in CLIENT_OPTIONS if options.get(name) is not None}
        told.setdefault("request_timeout", REQUEST_TIMEOUT)
        if isinstance(told.get("servers"), str):
            told["servers"] = [name.strip() for name in told["servers"].split(",")]
        self.fingerprint = fingerprint
        self.client, self.binding = identity.connect(fingerprint, LABEL, **told)
        self._room = identity.MAX_KEY_BYTES - len(self.client.prefix)
        #: What another client of the same values is made with.
        self.arguments = {**told, "namespace": self.client.namespace, "prefix": self.client.prefix}
        self._ended = threading.Event()
        self._waiter = None
        if not self.binding.bound:
            self._waiter = threading.Thread(target=self._wait, name="memkv-bind", daemon=True)
            self._waiter.start()
        log.info(
            "memkv %s, namespace %s, fingerprint %s",
            ",".join(self.client.servers),
            self.client.namespace,
            fingerprint,
        )

    @property
    def refused(self) -> Exception | None:
        """Why this namespace is never used, if so."""
        return self.binding.refused

    def keys(self, keys: Sequence[str]) -> Sequence[str | bytes]:
        """Keys as a server takes them: one that is too long ends in its hash."""
        room = self._room
        # As a rule none is, and they stay as they are.
        if all(map(str.isascii, keys)) and max(map(len, keys), default=0) <= room:
            return keys
        prefix = self.client.prefix
        return [identity.fit_key(prefix, key)[len(prefix) :] for key in keys]

    def unprefixed(self) -> memkv.Client:
        """A client of what all fingerprints share in the namespace. To be closed."""
        return memkv.Client(**{**self.arguments, "prefix": b""})

    def close(self) -> None:
        """Ends the waiting, and the client."""
        self._ended.set()
        if self._waiter is not None:
            self._waiter.join(self.client.request_timeout)
        self.client.close()

    def _wait(self) -> None:
        while not self._ended.wait(RETRY_SECONDS):
            if self.binding.ready() or self.refused is not None:
                return
