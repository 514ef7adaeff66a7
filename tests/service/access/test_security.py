"""Who is let in, and that nobody is by accident."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from service.access.security import (
    ANYBODY,
    Security,
    SecuritySettings,
    check_exposure,
    is_loopback,
    open_security,
)
from service.access.tokens import Scope, TokenRecord, edit_tokens, new_token
from service.errors import Forbidden, InvalidSettings, Unauthenticated

Issue = Callable[..., str]
SCOPES: tuple[Scope, ...] = ("solve", "admin", "metrics")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A tokens file without tokens."""
    path = tmp_path / "tokens.toml"
    with edit_tokens(path):
        pass
    return path


@pytest.fixture
def issue(path: Path) -> Issue:
    """Makes a token and returns the header that shows it."""

    def make(name: str, *scopes: Scope, not_after: datetime | None = None) -> str:
        secret, kept = new_token()
        with edit_tokens(path) as records:
            records.append(TokenRecord(name=name, hash=kept, scopes=scopes, not_after=not_after))
        return f"Bearer {secret}"

    return make


def secured(path: Path, *, open_metrics: bool = False) -> Security:
    settings = SecuritySettings(tokens=path, open_metrics=open_metrics)
    return open_security(settings, "0.0.0.0", mutual_tls=False)


def granted(security: Security, header: str | None) -> set[Scope]:
    """The scopes for which the header is enough."""
    found: set[Scope] = set()
    for scope in SCOPES:
        try:
            security.authenticate(header, scope)
        except (Forbidden, Unauthenticated):
            continue
        found.add(scope)
    return found


def test_a_token_is_who_it_was_issued_to_and_may_what_it_grants(path: Path, issue: Issue) -> None:
    solve, admin, metrics = issue("sim", "solve"), issue("ops", "admin"), issue("prometheus", "metrics")
    security = secured(path)
    assert security.authenticate(solve, "solve").client == "sim"
    # the second time it is remembered
    assert security.authenticate(solve, "solve").client == "sim"
    assert security.authenticate(admin, "admin").client == "ops"
    assert granted(security, solve) == {"solve"}
    assert granted(security, admin) == {"admin", "metrics"}
    assert granted(security, metrics) == {"metrics"}
    with pytest.raises(Forbidden, match=r"the token sim is for solve; admin"):
        security.authenticate(solve, "admin")


SPOILERS: dict[str, Callable[[str], str | None]] = {
    "none": lambda _: None,
    "empty": lambda _: "",
    "short": lambda header: header[:-1],
    "long": lambda header: header + "A",
    "basic": lambda header: header.replace("Bearer", "Basic"),
    "bare": lambda header: header.removeprefix("Bearer "),
    "scheme": lambda _: "Bearer ",
    "other": lambda _: "Bearer mno_" + 43 * "A",
    "huge": lambda _: "Bearer " + 100_000 * "x",
    "unicode": lambda _: "Bearer \xff\u20ac",
}


@pytest.mark.parametrize("spoil", SPOILERS.values(), ids=SPOILERS)
def test_whatever_is_no_issued_token_is_refused_for_everything(
    path: Path, issue: Issue, spoil: Callable[[str], str | None]
) -> None:
    header = issue("sim", "solve", "admin")
    security = secured(path)
    spoilt = spoil(header)
    assert granted(security, spoilt) == set()
    with pytest.raises(Unauthenticated, match="mno token new") as refusal:
        security.authenticate(spoilt, "solve")
    assert header.removeprefix("Bearer ") not in str(refusal.value)


def test_the_scheme_is_known_in_any_case(path: Path, issue: Issue) -> None:
    header = issue("sim", "solve")
    assert secured(path).authenticate(header.replace("Bearer", "bEARER"), "solve").client == "sim"


def test_a_token_is_refused_when_its_time_is_over_also_when_it_is_remembered(
    path: Path, issue: Issue
) -> None:
    end = datetime(2027, 1, 1, tzinfo=UTC)
    header = issue("sim", "solve", not_after=end)
    now = end.timestamp() - 1
    security = Security(path, ANYBODY, local=False, clock=lambda: now)
    assert security.authenticate(header, "solve").client == "sim"
    now += 2
    with pytest.raises(Unauthenticated, match="sim has expired"):
        security.authenticate(header, "solve")


def test_an_unknown_token_is_compared_with_every_known_one(
    path: Path, issue: Issue, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, last = [issue(f"client-{n}", "solve") for n in range(5)][::4]
    compared: list[str] = []
    matches = TokenRecord.matches

    def counting(record: TokenRecord, token: bytes) -> bool:
        compared.append(record.name)
        return matches(record, token)

    monkeypatch.setattr(TokenRecord, "matches", counting)
    security = secured(path)
    for header in (first, last, "Bearer mno_" + 43 * "A"):
        compared.clear()
        granted(security, header)
        assert compared[:5] == [f"client-{n}" for n in range(5)]


def test_tokens_are_read_again_and_those_revoked_are_out_at_once(path: Path, issue: Issue) -> None:
    old = issue("old", "solve")
    security = secured(path)
    assert granted(security, old) == {"solve"}
    new = issue("new", "solve")
    assert granted(security, new) == set()
    with edit_tokens(path) as records:
        del records[0]
    assert security.reload() == 1
    assert granted(security, old) == set()
    assert granted(security, new) == {"solve"}


def test_a_broken_file_leaves_the_tokens_that_were_known(path: Path, issue: Issue) -> None:
    header = issue("sim", "solve")
    security = secured(path)
    path.write_text("= 1")
    with pytest.raises(InvalidSettings):
        security.reload()
    assert granted(security, header) == {"solve"}


def test_a_file_without_tokens_lets_nobody_in(path: Path) -> None:
    security = secured(path)
    assert granted(security, None) == set()
    # on the loopback address, too: who sets a tokens file means it
    local = open_security(SecuritySettings(tokens=path), "127.0.0.1", mutual_tls=False)
    assert granted(local, None) == set()


def test_metrics_can_be_open(path: Path) -> None:
    assert granted(secured(path, open_metrics=True), None) == {"metrics"}


def test_without_tokens_this_machine_may_do_everything_and_others_only_ask() -> None:
    local = open_security(SecuritySettings(), "127.0.0.1", mutual_tls=False)
    assert local.authenticate(None, "admin") is ANYBODY
    # a client that always sends one is not told off
    assert local.authenticate("Bearer x", "solve") is ANYBODY
    for options, mutual_tls in ((SecuritySettings(open=True), False), (SecuritySettings(), True)):
        assert granted(open_security(options, "0.0.0.0", mutual_tls=mutual_tls), None) == {"solve"}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org", "localhost.example.org", ""])
def test_answering_other_machines_without_tokens_has_to_be_meant(host: str, path: Path) -> None:
    assert not is_loopback(host)
    with pytest.raises(InvalidSettings, match=r"mno token new .* security\.open = true"):
        open_security(SecuritySettings(), host, mutual_tls=False)
    for settings in (SecuritySettings(open=True), SecuritySettings(tokens=path)):
        check_exposure(settings, host, mutual_tls=False)
    check_exposure(SecuritySettings(), host, mutual_tls=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_the_loopback_address_needs_no_tokens(host: str) -> None:
    assert is_loopback(host)
    check_exposure(SecuritySettings(), host, mutual_tls=False)


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("rebound.example.org:8080", None),
        ("127.0.0.1:8080", "https://example.org"),
        ("127.0.0.1:8080", "null"),
        ("127.0.0.1.example.org", None),
        ("[::1", None),
    ],
)
def test_a_page_of_somebody_else_cannot_use_the_browser_of_this_machine(
    host: str, origin: str | None, path: Path
) -> None:
    local = open_security(SecuritySettings(), "127.0.0.1", mutual_tls=False)
    with pytest.raises(Forbidden, match="a page of this machine"):
        local.refuse_foreign_page(host, origin)
    # with tokens a page has none to send, and the service may have any name
    secured(path).refuse_foreign_page(host, origin)


@pytest.mark.parametrize(
    ("host", "origin"),
    [(None, None), ("localhost:8080", None), ("[::1]:8080", "http://localhost:8080"), ("127.0.0.1", None)],
)
def test_pages_and_programs_of_this_machine_are_answered(host: str | None, origin: str | None) -> None:
    open_security(SecuritySettings(), "127.0.0.1", mutual_tls=False).refuse_foreign_page(host, origin)
