"""The page of documentation."""

from service.http import pages

OPENAPI = {"paths": {"/v1/<odd>": {"post": {"description": "Has ``code`` & more."}}}}


def test_page_is_filled_in() -> None:
    page = pages.docs(OPENAPI, "http://localhost:1234")
    assert "'http://localhost:1234/v1/problems/darcy/solve" in page
    assert "{address}" not in page
    assert "Has <code>code</code> &amp; more." in page
    assert "/v1/&lt;odd&gt;" in page


def test_page_names_every_option_of_a_request() -> None:
    page = pages.docs(OPENAPI, "")
    properties = pages.SOLVE_BODY["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert [name for name in properties if f"<code>{name}</code>" not in page] == []


def test_page_says_how_a_gradient_is_asked_for() -> None:
    page = pages.docs(OPENAPI, "")
    properties = pages.VJP_BODY["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert [name for name in properties if f"<code>{name}</code>" not in page] == []
    assert "(2, ny, nx)" in page


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
