"""Questions and verdicts, on a clock that the test turns."""

import pytest
from memkv_vllm import lookups
from memkv_vllm.lookups import Lookups


class Asked:
    """What was sent; answers come when the test gives them."""

    def __init__(self, deadline=2.0, absent=1.0):
        self.sent, self.now, self.broken = [], 100.0, False
        self.lookups = Lookups(self.send, deadline, absent, OSError, clock=lambda: self.now)

    def send(self, keys):
        if self.broken:
            raise OSError("closed")
        self.sent.append(list(keys))
        return len(self.sent)


@pytest.fixture
def asked():
    return Asked()


def test_a_step_asks_once_for_all_that_is_new(asked):
    look = asked.lookups
    assert [look.ask(key, "r1") for key in (b"a", b"b")] == [None, None]
    assert [look.ask(key, "r2") for key in (b"b", b"c")] == [None, None]
    assert asked.sent == []
    look.flush()
    assert asked.sent == [[b"a", b"b", b"c"]]
    assert look.ask(b"a", "r1") is None
    look.flush()
    assert len(asked.sent) == 1, "what is being asked for is not asked for again"
    look.answer(1, [True, False, True])
    assert [look.ask(key, "r1") for key in (b"a", b"b", b"c")] == [True, False, True]
    look.flush()
    assert len(asked.sent) == 1
    assert (look.counts.hits, look.counts.misses, look.counts.questions) == (2, 1, 1)


def test_who_does_not_answer_in_time_has_nothing(asked):
    look = asked.lookups
    look.ask(b"a", "r1")
    look.flush()
    asked.now += 1.9
    look.ask(b"b", "r1")
    look.flush()
    assert (look.ask(b"a", "r1"), look.open) == (None, 2)
    asked.now += 0.1
    look.flush()
    assert (look.ask(b"a", "r1"), look.ask(b"b", "r1")) == (False, None)
    assert look.counts.expired == 1
    look.answer(1, [True])
    assert look.ask(b"a", "r1") is False, "too late is no answer"
    look.answer(2, [True])
    assert look.ask(b"b", "r1") is True


def test_a_late_answer_does_not_reach_a_new_question(asked):
    look = asked.lookups
    look.ask(b"a", "r1")
    look.flush()
    asked.now += 2
    look.flush()
    look.forget("r1")
    look.ask(b"a", "r2")
    look.flush()
    look.answer(1, [True])
    assert look.ask(b"a", "r2") is None
    look.answer(2, [False])
    assert look.ask(b"a", "r2") is False


def test_a_failed_question_is_a_miss_that_is_not_remembered(asked):
    look = asked.lookups
    look.ask(b"a", "r1")
    look.flush()
    look.answer(1, None)
    assert look.ask(b"a", "r1") is False
    look.forget("r1")
    assert look.ask(b"a", "r2") is None
    asked.broken = True
    look.flush()
    assert look.ask(b"a", "r2") is False


def test_absence_is_remembered_for_a_while_and_until_it_is_stored(asked):
    look = asked.lookups
    for key in (b"a", b"b", b"c"):
        look.ask(key, "r1")
    look.flush()
    look.answer(1, [False, False, True])
    look.forget("r1")
    assert (look.ask(b"a", "r2"), look.ask(b"c", "r2")) == (False, None)
    look.stored([b"b"])
    assert look.ask(b"b", "r2") is None
    look.forget("r2")
    asked.now += 1
    assert look.ask(b"a", "r3") is None


def test_memory_of_absence_is_bounded(asked, monkeypatch):
    monkeypatch.setattr(lookups, "ABSENT_MAX", 10)
    look = asked.lookups
    keys = [bytes([key]) for key in range(30)]
    for key in keys:
        look.ask(key, "r1")
    look.flush()
    look.answer(1, [False] * 30)
    look.forget("r1")
    assert len(look._absent) == 10
    assert [look.ask(key, "r2") for key in (keys[0], keys[19], keys[20])] == [None, None, False]


def test_a_chunk_that_could_not_be_loaded_is_not_promised_again(asked):
    look = asked.lookups
    look.ask(b"a", "r1")
    look.ask(b"b", "r1")
    look.flush()
    look.answer(1, [True, True])
    look.missing([b"a"])
    assert (look.ask(b"a", "r1"), look.ask(b"b", "r1")) == (False, True)
    assert look.ask(b"a", "r2") is False
    look.ask(b"c", "r1")
    look.missing([b"c"])
    look.flush()
    look.answer(2, [True])
    assert look.ask(b"c", "r1") is True, "what is asked for hears the answer"


def test_requests_share_a_question_and_leave_nothing_behind(asked):
    look = asked.lookups
    look.ask(b"a", "r1")
    look.ask(b"b", "r1")
    look.flush()
    look.forget("r1")
    assert look.ask(b"a", "r2") is None
    look.flush()
    assert len(asked.sent) == 1
    look.answer(1, [True, True])
    assert look.ask(b"a", "r2") is True
    look.forget("r2")
    look.forget("r2")
    look.forget("never seen")
    assert look._verdicts == {} and look._of_request == {} and look.open == 0


def test_a_request_that_ends_in_the_step_it_asked_in_asks_nobody(asked):
    look = asked.lookups
    look.ask(b"a", "r1")
    look.forget("r1")
    look.flush()
    assert asked.sent == []
    look.ask(b"a", "r1")
    look.forget("r1")
    look.ask(b"a", "r2")
    look.flush()
    assert asked.sent == [[b"a"]], "once, though two asked"
