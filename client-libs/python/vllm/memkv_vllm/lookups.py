"""Which chunks are stored, asked of servers without the scheduler waiting. Imports no engine.

The scheduler asks for one key after the other, step after step, until it knows. What it asks for
the first time in a step becomes one question, sent when the step ends; until its answer is there,
or its time is over, the answer is None ("ask again"). A verdict stays as long as a request refers
to it; of chunks that are not stored, some are remembered a little longer, for the next request with
the same prompt.

Everything here belongs to the scheduler's thread: there is no lock.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

#: How many chunks that are not stored are remembered beyond their requests.
ABSENT_MAX = 1 << 16


@dataclass(slots=True)
class _Verdict:
    known: bool | None = None
    #: The question that it is part of; None until the step ends.
    question: int | None = None
    requests: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _Question:
    ends: float
    keys: list[bytes]


@dataclass(slots=True)
class Counts:
    """What became of lookups, in keys, since the start."""

    asked: int = 0
    hits: int = 0
    misses: int = 0
    expired: int = 0
    questions: int = 0


class Lookups:
    """Verdicts and open questions.

    `send(keys)` asks and gives the number of the question, by which `answer` is told what came
    back; it raises what `failures` names if it cannot. A question is over after `deadline_seconds`:
    its keys count as not stored. `absent_seconds` is how long chunks that are not stored are
    remembered.
    """

    def __init__(
        self,
        send: Callable[[list[bytes]], int],
        deadline_seconds: float,
        absent_seconds: float,
        failures: type[Exception] | tuple[type[Exception], ...],
        clock: Callable[[], float] = time.monotonic,
    ):
        self._send, self._failures, self._clock = send, failures, clock
        self._deadline, self._absent_seconds = deadline_seconds, absent_seconds
        self._verdicts: dict[bytes, _Verdict] = {}
        self._of_request: dict[str, set[bytes]] = {}
        self._new: list[bytes] = []
        #: In the order in which they were asked, which is that in which their time is over.
        self._open: OrderedDict[int, _Question] = OrderedDict()
        self._absent: OrderedDict[bytes, float] = OrderedDict()
        self.counts = Counts()

    def ask(self, key: bytes, request: str) -> bool | None:
        """Whether a chunk is stored; None: not known yet."""
        verdict = self._verdicts.get(key)
        if verdict is None:
            verdict = self._verdicts[key] = _Verdict(known=self._remembered(key))
            self.counts.asked += 1
            if verdict.known is None:
                self._new.append(key)
            else:
                self.counts.misses += 1
        verdict.requests.add(request)
        self._of_request.setdefault(request, set()).add(key)
        return verdict.known

    def _remembered(self, key: bytes) -> bool | None:
        """False if the chunk was missing a moment ago."""
        ends = self._absent.get(key)
        if ends is None:
            return None
        if self._clock() < ends:
            return False
        del self._absent[key]
        return None

    def flush(self) -> None:
        """The step ends: gives up what nobody answered in time, and asks for what is new."""
        now = self._clock()
        while self._open and next(iter(self._open.values())).ends <= now:
            _, question = self._open.popitem(last=False)
            self.counts.expired += len(question.keys)
            self._settle(question.keys, [False] * len(question.keys))
        # Once each, and not those whose last request ended before anybody was asked.
        keys = [key for key in dict.fromkeys(self._new) if key in self._verdicts]
        self._new.clear()
        if not keys:
            return
        try:
            number = self._send(keys)
        except self._failures:
            self._settle(keys, [False] * len(keys))
            return
        self.counts.questions += 1
        self._open[number] = _Question(now + self._deadline, keys)
        for key in keys:
            self._verdicts[key].question = number

    def answer(self, number: int, stored: Sequence[bool] | None) -> None:
        """What came back for a question, None if nobody could say. Too late is no answer."""
        question = self._open.pop(number, None)
        if question is None:
            return
        if stored is None:
            self._settle(question.keys, [False] * len(question.keys))
            return
        self._settle(question.keys, stored)
        self._remember(key for key, there in zip(question.keys, stored, strict=True) if not there)

    def _settle(self, keys: list[bytes], stored: Sequence[bool]) -> None:
        for key, there in zip(keys, stored, strict=True):
            self.counts.hits += there
            self.counts.misses += not there
            verdict = self._verdicts.get(key)
            if verdict is None:
                continue
            verdict.known, verdict.question = bool(there), None
            if not verdict.requests:
                del self._verdicts[key]

    def _remember(self, keys: Iterable[bytes]) -> None:
        if not self._absent_seconds:
            return
        ends = self._clock() + self._absent_seconds
        for key in keys:
            self._absent[key] = ends
            self._absent.move_to_end(key)
        while len(self._absent) > ABSENT_MAX:
            self._absent.popitem(last=False)

    def missing(self, keys: Iterable[bytes]) -> None:
        """These could not be loaded, whatever was said of them: nobody shall try again at once."""
        keys = list(keys)
        for key in keys:
            verdict = self._verdicts.get(key)
            # One that is still being asked for hears what that brings.
            if verdict is not None and verdict.known is not None:
                verdict.known = False
        self._remember(keys)

    def stored(self, keys: Iterable[bytes]) -> None:
        """These are stored now."""
        for key in keys:
            self._absent.pop(key, None)

    def forget(self, request: str) -> None:
        """A request is over. What is being asked for stays until it is answered, for others."""
        for key in self._of_request.pop(request, ()):
            verdict = self._verdicts.get(key)
            if verdict is None:
                continue
            verdict.requests.discard(request)
            if not verdict.requests and verdict.question is None:
                del self._verdicts[key]

    @property
    def open(self) -> int:
        """Keys whose answers are awaited."""
        return sum(len(question.keys) for question in self._open.values())
