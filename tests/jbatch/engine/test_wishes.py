"""What a policy may go by, from lists of a call to an engine's fields."""

import pytest

from jbatch.engine.wishes import WISHES, schedule_fields, wishes_of_each
from jbatch.errors import RequestError


def test_each_prompt_has_its_own():
    lists = {"priority": [1, None], "user": ["a", "b"], "deadline": None, "e2el_ms": (5.0, 6)}
    assert wishes_of_each(lists, 2) == [
        {"priority": 1, "user": "a", "e2el_ms": 5.0},
        {"user": "b", "e2el_ms": 6},
    ]
    assert wishes_of_each({}, 2) == [{}, {}]


@pytest.mark.parametrize(
    ("lists", "kind", "message"),
    [
        ({"user": "me"}, TypeError, "user='me': give a list of one for each of 2 prompts"),
        ({"deadline": 3.0}, TypeError, "deadline=3.0: give a list"),
        ({"user": {"a", "b"}}, TypeError, "give a list"),
        ({"user": {"a": 1, "b": 2}}, TypeError, "give a list"),
        ({"predicted_len": [3]}, ValueError, "1 of predicted_len for 2 prompts: give one for each"),
        ({"priorities": [1, 2]}, TypeError, "this call has no option 'priorities'; .*priority"),
    ],
)
def test_what_is_wrong_is_named(lists, kind, message):
    with pytest.raises(kind, match=message):
        wishes_of_each(lists, 2)


def test_a_deadline_counts_from_now():
    assert schedule_fields({"deadline": 2.5, "user": "a"}, 10.0) == {"deadline": 12.5, "user": "a"}
    assert schedule_fields({}, 10.0) == {}
    with pytest.raises(RequestError, match="deadline=-1"):
        schedule_fields({"deadline": -1}, 10.0)


def test_the_names():
    assert WISHES == ("priority", "deadline", "predicted_len", "user", "ttft_ms", "tpot_ms", "e2el_ms")
