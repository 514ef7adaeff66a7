"""The tokens file and the commands that keep it."""

import hashlib
import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError

import mno
from service.access.tokens import TokenRecord, edit_tokens, new_token, read_tokens
from service.errors import InvalidSettings

DIGEST = "sha256:" + 32 * "0" + ":" + 64 * "0"


def record(name: str, **options: object) -> TokenRecord:
    return TokenRecord.model_validate({"name": name, "hash": DIGEST, "scopes": ("solve",), **options})


def command(*arguments: str, path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = mno.run(["token", *arguments, "--file", str(path)])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_token_is_256_random_bits_and_only_its_salted_hash_is_kept() -> None:
    tokens = [new_token() for _ in range(3)]
    assert len({secret for secret, _ in tokens}) == 3
    secret, kept = tokens[0]
    _, salt, digest = kept.split(":")
    assert hashlib.sha256(bytes.fromhex(salt) + secret.encode()).hexdigest() == digest
    assert secret.startswith("mno_")
    assert len(secret) == 4 + 43


def test_a_record_knows_its_token_and_no_other() -> None:
    (secret, kept), (other, _) = new_token(), new_token()
    known = record("sim", hash=kept)
    assert known.matches(secret.encode())
    assert not known.matches(other.encode())
    assert not known.matches(b"")
    assert kept not in repr(known)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    soon = datetime(2027, 1, 2, 3, 4, 5, tzinfo=UTC)
    written = [
        record("plain"),
        record(
            "full",
            scopes=("solve", "admin", "metrics"),
            created=soon - timedelta(days=1),
            not_after=soon,
            requests_per_second=0.5,
            burst=7,
            concurrent=3,
        ),
    ]
    with edit_tokens(path) as records:
        records += written
    assert read_tokens(path) == tuple(written)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_change_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    with edit_tokens(path) as records:
        records.append(record("sim"))
    before = path.read_bytes()

    def twice() -> None:
        with edit_tokens(path) as records:
            records.append(record("sim"))

    with pytest.raises(InvalidSettings, match="several of sim"):
        twice()
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_two_editors_at_once_both_have_their_change(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"

    def add(name: str) -> None:
        with edit_tokens(path) as records:
            records.append(record(name))

    threads = [threading.Thread(target=add, args=(f"client-{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {each.name for each in read_tokens(path)} == {f"client-{n}" for n in range(8)}


@pytest.mark.parametrize(
    "text",
    [
        "token = 1",
        "[[token]]\nname = 'sim'",
        f"[[token]]\nname = 'sim'\nhash = '{DIGEST}'\nscopes = []",
        f"[[token]]\nname = 'sim'\nhash = '{DIGEST}'\nscopes = ['root']",
        f"[[token]]\nname = 'a b'\nhash = '{DIGEST}'\nscopes = ['solve']",
        "[[token]]\nname = 'sim'\nhash = 'mno_plain'\nscopes = ['solve']",
        f"[[token]]\nname = 'sim'\nhash = '{DIGEST}'\nscopes = ['solve']\nconcurrent = 0",
        f"[[token]]\nname = 'sim'\nhash = '{DIGEST}'\nscopes = ['solve']\nnot_after = 2027-01-01T00:00:00",
        "= 1",
        "\xff",
    ],
)
def test_a_broken_file_is_refused_in_one_line_that_quotes_no_secret(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text(text, "latin-1")
    with pytest.raises(InvalidSettings) as refusal:
        read_tokens(path)
    assert "\n" not in str(refusal.value)
    assert "mno_plain" not in str(refusal.value)


def test_a_missing_file_and_one_that_anybody_may_change_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    with pytest.raises(InvalidSettings, match="mno token new"):
        read_tokens(path)
    path.write_text("")
    path.chmod(0o666)
    with pytest.raises(InvalidSettings, match="chmod 600"):
        read_tokens(path)
    path.chmod(0o640)
    assert read_tokens(path) == ()


@pytest.mark.parametrize("name", ["", "a b", "a\n", "-x", 'a"', 65 * "a"])
def test_a_name_that_would_need_quoting_is_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        record(name)


def test_the_command_prints_a_token_once_and_keeps_its_hash(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tokens.toml"
    options = ("--scope", "solve", "--scope", "admin", "--days", "2", "--requests-per-second", "5")
    code, out, _ = command(
        "new", "sim", *options, "--burst", "9", "--concurrent", "3", path=path, capsys=capsys
    )
    assert code == 0
    secret = out.strip()
    assert secret not in path.read_text()
    known = read_tokens(path)[0]
    assert known.matches(secret.encode())
    assert (known.scopes, known.requests_per_second) == (("solve", "admin"), 5.0)
    assert known.not_after is not None
    assert known.created is not None
    assert known.not_after - known.created == timedelta(days=2)
    code, out, _ = command("list", path=path, capsys=capsys)
    assert code == 0
    assert "sim  solve+admin" in out
    assert "5 requests/s  9 at once  3 under way" in out
    assert known.hash not in out


def test_the_command_revokes_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tokens.toml"
    for name in ("one", "two"):
        assert command("new", name, path=path, capsys=capsys)[0] == 0
    assert command("revoke", "one", path=path, capsys=capsys)[0] == 0
    assert [each.name for each in read_tokens(path)] == ["two"]
    code, _, err = command("revoke", "one", path=path, capsys=capsys)
    assert code == mno.WRONG_USAGE
    assert "expected one of two" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ("new", "sim"),
        ("new", "a b"),
        ("new", "x", "--scope", "root"),
        ("new", "x", "--days", "1e9"),
        ("new", "x", "--days", "inf"),
        ("new", "x", "--days", "nan"),
        ("new", "x", "--days", "0"),
        ("new", "x", "--requests-per-second", "inf"),
        ("new", "x", "--requests-per-second", "nan"),
    ],
)
def test_the_command_refuses_doubles_bad_names_and_numbers_and_unknown_scopes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    path = tmp_path / "tokens.toml"
    assert command("new", "sim", path=path, capsys=capsys)[0] == 0
    code, out, err = command(*arguments, path=path, capsys=capsys)
    assert (code, out) == (mno.WRONG_USAGE, "")
    assert err.count("\n") == 1
    assert "internal" not in err
