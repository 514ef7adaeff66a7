"""Options of a request: whatever is sent, what is refused is refused at once, and in one line."""

import tracemalloc
from typing import Any

import pytest

from service.errors import InvalidField
from service.options import Options, read_options


def test_a_hundred_thousand_unknown_names_cost_what_one_does() -> None:
    given = {f"{n:07d}": 1 for n in range(100_000)}
    tracemalloc.start()
    try:
        with pytest.raises(InvalidField, match="'0000000' is not an option"):
            read_options(Options, ["source"], given, strict=True)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 2**20


@pytest.mark.parametrize(
    "given",
    [
        {"x" * 10**6: 1},
        {"timeout_ms": "y" * 10**6},
        {"timeout_ms": [1.0] * 10**6},
        {"priority": {str(n): n for n in range(10**5)}},
        {"model": {"a": [1]}},
    ],
)
def test_what_is_wrong_is_quoted_in_a_line(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidField) as refusal:
        read_options(Options, ["source"], given, strict=True)
    assert len(str(refusal.value)) < 300


def test_a_wrong_name_goes_before_a_wrong_value() -> None:
    with pytest.raises(InvalidField, match="did you mean 'source'"):
        read_options(Options, ["source"], {"timeout_ms": -1, "sorce": 2}, strict=True)
