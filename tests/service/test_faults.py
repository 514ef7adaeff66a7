"""Every domain error has its place in the mapping to HTTP."""

import pytest

from service import errors
from service.faults import PROBLEMS_BY_FAULT

KINDS = [getattr(errors, name) for name in errors.__all__ if name != "ServiceFault"]


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
        "internal": 500,
    }
    assert contract.items() <= slugs.items()
