"""How versions are named."""

import pytest

from model_store import InvalidReference, Reference, Selector, UnknownModel


@pytest.mark.parametrize(
    ("text", "selector"),
    [
        ("darcy", Selector("darcy", None)),
        ("darcy@3", Selector("darcy", 3)),
        ("darcy@production", Selector("darcy", "production")),
        ("shallow_water@v2-next", Selector("shallow_water", "v2-next")),
    ],
)
def test_parse(text: str, selector: Selector) -> None:
    assert Selector.parse(text) == selector
    assert str(selector) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "@1",
        "darcy@",
        "darcy@0",
        "darcy@01",
        "darcy@-1",
        "darcy@1.5",
        "Darcy",
        "a/b",
        "..",
        ".x",
        "a b",
        "a@b@c",
    ],
)
def test_parse_refuses(text: str) -> None:
    with pytest.raises(InvalidReference, match="expected"):
        Selector.parse(text)


def test_malformed_name_is_an_unknown_model() -> None:
    assert issubclass(InvalidReference, UnknownModel)


def test_reference_reads_as_a_selector() -> None:
    assert Selector.parse(str(Reference("darcy", 3))) == Selector("darcy", 3)
