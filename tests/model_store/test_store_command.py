"""``mno store``: what a person and a program get to see."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from torch import Tensor

import mno
from model_store import Card, open_store


@pytest.fixture
def url(tmp_path: Path, state: Mapping[str, Tensor], card: Card) -> str:
    """A store of two versions, the first in production."""
    store = open_store(str(tmp_path / "store"))
    for _ in range(2):
        store.publish("darcy", state, card)
    store.set_alias("darcy", "production", 1, expected=None)
    return store.url


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = mno.run(["store", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_list(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--store", url, "list")
    assert code == 0
    header, first, second = out.splitlines()
    assert header.split()[:2] == ["VERSION", "ALIASES"]
    assert first.split()[:3] == ["darcy@1", "production", "32x32,64x32"]
    assert second.split()[:2] == ["darcy@2", "-"]


def test_list_as_json(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "--store", url, "list", "darcy", "--json")
    first, _ = json.loads(out)
    assert first["reference"] == "darcy@1"
    assert first["aliases"] == ["production"]
    assert first["metrics"] == {"pdebench": {"relative_l2_median": 0.01}}


def test_store_may_come_from_the_environment(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MNO_STORE", url)
    assert "darcy@2" in run(capsys, "list")[1]


def test_empty_store_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "--store", str(tmp_path / "absent"), "list")
    assert (code, out) == (0, "")
    assert "holds no versions" in err
    assert not (tmp_path / "absent").exists()


def test_show(url: str, card: Card, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--store", url, "show", "darcy")
    assert code == 0
    assert out.startswith("darcy@1  production\n")
    assert "scheme: tpfa-harmonic-v1" in out
    assert "relative_l2_median: 0.01" in out
    _, out, _ = run(capsys, "--store", url, "show", "darcy@2", "--json")
    shown = json.loads(out)
    assert shown["reference"] == "darcy@2"
    assert shown["run"] == card.run


def test_alias(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--store", url, "alias", "darcy", "production", "2") == (
        0,
        "darcy@production: 1 -> 2\n",
        "",
    )
    assert run(capsys, "--store", url, "alias", "darcy", "staging", "1", "--expected", "0")[0] == 0
    assert open_store(url).aliases("darcy") == {"production": 2, "staging": 1}
    code, _, err = run(capsys, "--store", url, "alias", "darcy", "production", "1", "--expected", "1")
    assert code == 2
    assert "found it at 2" in err
    assert open_store(url).aliases("darcy")["production"] == 2


def test_alias_with_a_canary_and_a_shadow(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    alias = ("--store", url, "alias", "darcy", "production", "1")
    code, out, _ = run(capsys, *alias, "--canary", "2=5%", "--shadow", "2")
    assert (code, out) == (0, "darcy@production: 1 -> 1, canary 2=5%, shadow 2\n")
    assert run(capsys, *alias)[1] == "darcy@production: 1, canary 2=5%, shadow 2 -> 1\n"
    code, _, err = run(capsys, *alias, "--canary", "2")
    assert code == 2
    assert "such as 4=5%, got '2'" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "wave"], "expected one of the models ['darcy']"),
        (["show", "darcy@9"], "expected a version among [1, 2]"),
        (["show", "Darcy@"], "expected"),
        (["alias", "darcy", "production", "9"], "expected a version among [1, 2]"),
        (["alias", "darcy", "7", "1"], "alias"),
        (["copy", "darcy", "--to", "ftp://host"], "expected a store in file:, memory:"),
    ],
)
def test_bad_input(url: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "--store", url, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_verify(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--store", url, "verify") == (0, "darcy@1: ok\ndarcy@2: ok\n", "")
    (tmp_path / "store/darcy/versions/2/weights.safetensors").unlink()
    code, out, err = run(capsys, "--store", url, "verify", "darcy")
    assert code == 1
    assert "darcy@1: ok\ndarcy@2: damaged: darcy@2 lacks weights.safetensors" in out
    assert err == "mno: 1 of 2 versions are damaged: darcy@2\n"
    assert run(capsys, "--store", url, "verify", "darcy@1")[0] == 0


def test_damaged_card_does_not_end_the_list(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = tmp_path / "store/darcy/versions/1/card.json"
    card.chmod(0o644)
    card.write_text("{}")
    code, out, _ = run(capsys, "--store", url, "list")
    assert code == 0
    assert "damaged" in out.splitlines()[1]
    assert "darcy@2" in out.splitlines()[2]


def test_gc(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "store/.mno/staging/abandoned").mkdir()
    code, out, _ = run(capsys, "--store", url, "gc")
    assert (code, out) == (0, "removed .mno/staging/abandoned\n1 leftovers removed\n")


def test_copy(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(
        capsys, "--store", url, "copy", "darcy@2", "--to", str(tmp_path / "there"), "--name", "other"
    )
    assert code == 0
    assert out.endswith(f"is other@1 of file:{tmp_path / 'there'}\n")
    open_store(str(tmp_path / "there")).verify("other", 1)


def test_built_in_store_cannot_be_written(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "--store", url, "copy", "darcy", "--to", "builtin:")
    assert code == 2
    assert "cannot be changed" in err
