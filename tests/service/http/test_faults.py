"""Every domain error has its place in the mapping to HTTP."""

import re
from http import HTTPStatus
from pathlib import Path

import orjson
import pytest

from service import errors
from service.http import abortable, head
from service.http.faults import OTHER_PROBLEMS, PROBLEMS_BY_FAULT, new_request_id, refuse

PAGE = Path(__file__).parents[3] / "docs" / "serving.md"

NAMED = [kind for name in errors.__all__ if isinstance(kind := getattr(errors, name), type)]
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
        "not-certifiable": 409,
        "unauthenticated": 401,
        "forbidden": 403,
        "internal": 500,
    }
    assert contract.items() <= slugs.items()


def test_the_page_tells_every_type_and_its_status() -> None:
    _, _, rest = PAGE.read_text("utf-8").partition("<!-- types -->\n")
    rows = [row.split(" | ") for row in rest.partition("<!-- end of types -->")[0].splitlines()[2:]]
    told = {slug: int(row[1]) for row in rows for slug in re.findall("`(.*?)`", row[0])}
    assert told == {**dict(PROBLEMS_BY_FAULT.values()), **OTHER_PROBLEMS}
    assert list(told.values()) == sorted(told.values())


def test_what_connections_and_the_router_refuse_is_known() -> None:
    source = "".join(Path(file).read_text("utf-8") for file in (abortable.__file__, head.__file__))
    refused = {slug: int(status) for status, slug in re.findall(r'\((\d{3}), "([a-z-]+)"', source)}
    assert len(refused) >= 4
    # there is too much of many things, and of connections it is another status
    assert refused.pop("overloaded") == 503
    assert refused.items() <= OTHER_PROBLEMS.items()
    for slug in ("not-found", "method-not-allowed"):
        assert HTTPStatus(OTHER_PROBLEMS[slug]).phrase.lower().replace(" ", "-") == slug


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
