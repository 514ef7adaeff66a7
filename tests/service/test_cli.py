"""The commands, from the command line to the exit code."""

from pathlib import Path

import numpy as np
import pytest

import mno


@pytest.fixture(autouse=True)
def _store(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNO_STORE", store_url)


@pytest.fixture
def field_file(tmp_path: Path) -> Path:
    path = tmp_path / "in.npy"
    np.save(path, np.ones((3, 32, 32), dtype=np.float32))
    return path


def test_solve_writes_the_output(
    field_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.npz"
    options = ["--model", "darcy@2", "--source", "2", "--batch-size", "2"]
    assert mno.run(["solve", "darcy", str(field_file), str(output), *options]) == 0
    archive = np.load(output)
    assert archive["pressure"].shape == (3, 32, 32)
    assert archive["model"] == "darcy@2"
    assert "3 solutions by darcy@2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--tolerance", "-1"], "positive number or discretization"),
        (["--tolerance", "grid"], "positive number or discretization"),
        (["--engine", "rye"], "rye"),
        (["--model", "navier"], "navier"),
        (["--method", "magic"], "magic"),
        (["--source", "nan"], "finite"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    field_file: Path, tmp_path: Path, options: list[str], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.npy"
    assert mno.run(["solve", "darcy", str(field_file), str(output), *options]) == 2
    said = capsys.readouterr().err.strip()
    assert word in said.splitlines()[-1]
    assert not output.exists()


def test_an_unknown_variable_stops_the_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MNO_HTP_PORT", "1")
    assert mno.run(["serve", "--check-config"]) == 2
    assert "MNO_HTTP_PORT" in capsys.readouterr().err


def test_a_taken_port_is_refused(capsys: pytest.CaptureFixture[str], address: str) -> None:
    port = address.rpartition(":")[2]
    assert mno.run(["serve", "--http-port", port, "--models", "darcy"]) == 2
    assert port in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variables", "arguments", "word"),
    [
        ({"MNO_LIMITS": "abc"}, ["serve", "--check-config"], "limits"),
        ({"MNO_GRPC_PORT": "x"}, ["serve", "--check-config"], "grpc_port"),
    ],
)
def test_settings_that_make_no_sense_are_one_line_and_exit_code_2(
    variables: dict[str, str],
    arguments: list[str],
    word: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert mno.run(arguments) == 2
    said = capsys.readouterr().err.strip()
    assert word in said
    assert "internal" not in said
    assert "\n" not in said


def test_the_input_is_not_an_output(field_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mno.run(["solve", "darcy", str(field_file), str(field_file)]) == 2
    assert "input itself" in capsys.readouterr().err
