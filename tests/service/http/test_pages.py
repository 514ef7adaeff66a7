"""The page of documentation."""

from typing import Any

from service.http import pages

OPENAPI: dict[str, Any] = {"paths": {"/v1/<odd>": {"post": {"description": "Has ``code`` & more."}}}}


def test_page_is_filled_in() -> None:
    page = pages.docs(OPENAPI, "http://localhost:1234")
    assert "'http://localhost:1234/v1/problems/darcy/solve" in page
    assert "{address}" not in page
    assert "Has <code>code</code> &amp; more." in page
    assert "/v1/&lt;odd&gt;" in page


def test_what_most_need_goes_before_what_few_do() -> None:
    tagged = {"/v2/odd": {"get": {"description": "Triton's own.", "tags": ["Open Inference Protocol"]}}}
    page = pages.docs({"paths": {**tagged, **OPENAPI["paths"]}}, "http://localhost:1234")
    order = ["/darcy/solve", 'id="vjp"', 'id="rollout"', "/v1/&lt;odd&gt;", "<details>", "Triton&#x27;s own."]
    assert [page.index(each) for each in order] == sorted(page.index(each) for each in order)


def test_values_are_written_as_json_has_them() -> None:
    page = pages.docs(OPENAPI, "")
    assert "<code>false</code>" in page
    assert "<code>interactive</code>" in page
    assert "<code>False</code>" not in page


def test_page_names_every_option_of_a_request() -> None:
    page = pages.docs(OPENAPI, "")
    properties = pages.SOLVE_BODY["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert [name for name in properties if f"<code>{name}</code>" not in page] == []


def _vjp_properties() -> set[str]:
    either = pages.VJP_BODY["requestBody"]["content"]["application/json"]["schema"]["oneOf"]
    return {name for one in either for name in one["properties"]}


def test_page_says_how_derivatives_and_quantities_are_asked_for() -> None:
    page = pages.docs(OPENAPI, "")
    for body in (pages.VJP_BODY, pages.JVP_BODY, pages.QUANTITIES_BODY):
        schema = body["requestBody"]["content"]["application/json"]["schema"]
        properties = [name for one in schema.get("oneOf", [schema]) for name in one["properties"]]
        assert [name for name in properties if f"<code>{name}</code>" not in page] == []
    assert "(1 + n, ny, nx)" in page
    assert "(1 + n, channel, ny, nx)" in page
    assert {"state", "steps", "permeability"} <= _vjp_properties()
    assert "<code>reading(y, x)</code>" in page


def test_page_says_how_a_rollout_is_asked_for_and_read() -> None:
    page = pages.docs(OPENAPI, "http://localhost:1234")
    properties = pages.ROLLOUT_BODY["requestBody"]["content"]["application/json"]["schema"]["properties"]
    headers = pages.ROLLOUT_BODY["responses"]["200"]["headers"]
    names = ["fields", *properties, *headers]
    assert [name for name in names if f"<code>{name}</code>" not in page] == []
    assert "record of length 0" in page
    assert "'http://localhost:1234/v1/problems/shallow_water/rollout" in page
    assert "``" not in page


def test_address_of_a_client_cannot_inject_markup() -> None:
    assert "<script>" not in pages.docs(OPENAPI, "http://<script>")
