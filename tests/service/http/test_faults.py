"""Every domain error has its place in the mapping to HTTP."""

import orjson
import pytest

from service import errors
from service.http.faults import PROBLEMS_BY_FAULT, new_request_id, refuse

NAMED = [getattr(errors, name) for name in errors.__all__]
KINDS = [kind for kind in NAMED if issubclass(kind, errors.ServiceFault) and kind is not errors.ServiceFault]


@pytest.mark.parametrize("kind", KINDS)
def test_every_fault_has_a_slug_and_a_status(kind: type[errors.ServiceFault]) -> None:
    assert any(ancestor in PROBLEMS_BY_FAULT for ancestor in kind.__mro__)


def test_slugs_are_stable() -> None:
    slugs = dict(PROBLEMS_BY_FAULT.values())
    contract = {
        "invalid-field": 422,
        "unknown-model": 404,
        "payload-too-large": 413,
        "unsupported-media-type": 415,
        "overloaded": 429,
        "deadline-exceeded": 504,
        "not-available-yet": 501,
        "unauthenticated": 401,
        "forbidden": 403,
        "internal": 500,
    }
    assert contract.items() <= slugs.items()


def test_a_refusal_has_two_forms() -> None:
    fault = errors.InvalidField("x", "rank", "x: expected 2 axes, got 3", (0, 1))
    said = orjson.loads(refuse("id", fault).body)
    assert (said["type"], said["field"], said["rule"], said["index"]) == (
        "invalid-field",
        "x",
        "rank",
        [0, 1],
    )
    other = refuse("id", fault, open_inference=True)
    assert (other.status, orjson.loads(other.body)) == (400, {"error": "x: expected 2 axes, got 3"})


def test_a_refusal_says_when_to_come_back_and_who_to_be() -> None:
    assert refuse("id", errors.Overloaded("full", 7)).headers == {"Retry-After": "7"}
    assert refuse("id", errors.WorkerLost("gone", 2)).headers == {"Retry-After": "2"}
    assert refuse("id", errors.Unauthenticated("who?")).headers == {"WWW-Authenticate": "Bearer"}


def test_what_broke_is_for_the_log_alone(caplog: pytest.LogCaptureFixture) -> None:
    for fault in (errors.WorkFailed("/secret/path"), ValueError("/secret/path")):
        said = refuse("the-id", fault)
        assert said.status == 500
        assert b"secret" not in said.body
        assert b"the-id" in said.body
    assert "/secret/path" in caplog.text


def test_ids_are_the_client_s_own_or_never_the_same() -> None:
    assert new_request_id("mine:1.2_3-4") == "mine:1.2_3-4"
    bad = ["", "a b", "a\nb", "x" * 129, "é"]
    made = [new_request_id(given) for given in (*bad, None, None)]
    assert len(set(made)) == len(made)
    assert not set(made) & set(bad)
