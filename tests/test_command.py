"""The command ``mno`` as a user meets it."""

import io
import os
import pty
import statistics
import subprocess
import sys
import termios
from pathlib import Path

import click
import pytest

import mno

ROOT = Path(__file__).parents[1]


def python_m_mno(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mno", *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = mno.run(arguments)
    out, err = capsys.readouterr()
    return code, out, err


FAILING = """
import click
from model_store import UnknownModel

ERRORS = {
    "bad-input": UnknownModel("expected one of ['darcy'],\\ngot 'wave'"),
    "absent": FileNotFoundError(2, "No such file or directory", "field.npy"),
    "full-disk": OSError(28, "No space left on device"),
    "impatience": KeyboardInterrupt(),
    "bug": ZeroDivisionError("division by zero"),
    "extra": ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib"),
}

@click.command()
@click.argument("what")
@click.pass_obj
def fail(progress, what):
    assert list(progress([1, 2], 2, "fail")) == [1, 2]
    raise ERRORS[what]
"""


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> click.Group:
    """A group whose one row leads to a command that fails as it is told to."""
    (tmp_path / "failing_commands.py").write_text(FAILING)
    monkeypatch.syspath_prepend(tmp_path)
    return mno.LazyGroup({"fail": ("failing_commands:fail", "")}, params=mno.command.params)


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(["--help"], capsys)
    assert code == 0
    assert all(name in out for name in mno.COMMANDS)


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, mno; mno.run(['--help']); print(sorted({name.split('.')[0] for name in sys.modules}))"
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    loaded = out.splitlines()[-1]
    assert not [name for name in ("numpy", "torch", "fastapi", "pydantic", "tqdm") if f"'{name}'" in loaded]
    assert not [name for name in mno.OUR_PACKAGES if f"'{name}'" in loaded]


def test_help_is_quick() -> None:
    # processor time, since others may be using the machine
    code = "import time, mno; mno.run(['--help']); print(time.process_time())"
    command = [sys.executable, "-c", code]
    seconds = [
        float(
            subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()[
                -1
            ]
        )
        for _ in range(3)
    ]
    assert statistics.median(seconds) < 0.5


def test_module_is_the_command() -> None:
    result = python_m_mno("--version")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("mno ")


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run([], capsys)
    assert code == 2
    assert "Commands:" in err


@pytest.mark.parametrize(
    "arguments", [["trian"], ["--unknown"], ["store", "--unknown"], ["bench", "unknown"]]
)
def test_wrong_usage_is_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(arguments, capsys)
    assert (code, out) == (2, "")
    assert err.startswith("mno: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", [name for name, (target, _) in mno.COMMANDS.items() if target is None])
def test_later_commands_say_so(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run([name, "anything", "--at", "all"], capsys)
    assert code == 2
    assert err == f"mno: `{name}` is not available yet in this version\n"


@pytest.mark.parametrize("name", [name for name, (target, _) in mno.COMMANDS.items() if target])
def test_every_row_leads_to_a_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run([name, "--help"], capsys)
    assert code == 0
    assert out.startswith("Usage: mno " + name)


@pytest.mark.parametrize(
    ("what", "code", "message"),
    [
        ("bad-input", 2, "mno: expected one of ['darcy'], got 'wave'\n"),
        ("absent", 2, "mno: [Errno 2] No such file or directory: 'field.npy'\n"),
        ("full-disk", 1, "mno: [Errno 28] No space left on device\n"),
        ("impatience", 1, "mno: interrupted\n"),
        (
            "bug",
            1,
            "mno: internal error: ZeroDivisionError: division by zero (`mno --debug ...` shows where)\n",
        ),
        (
            "extra",
            1,
            'mno: matplotlib is not installed; training and benchmarks need `pip install "mno[training]"`\n',
        ),
    ],
)
def test_errors_are_one_line(
    group: click.Group, what: str, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mno.run(["fail", what], group) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith(f"fail: 2/2 (100 %) in 0 s\n{message}")


def test_debug_shows_the_traceback(group: click.Group, capsys: pytest.CaptureFixture[str]) -> None:
    assert mno.run(["--debug", "fail", "bug"], group) == 1
    _, err = capsys.readouterr()
    assert "Traceback (most recent call last)" in err
    assert "ZeroDivisionError" in err.splitlines()[-1]


def test_bad_input_names_classes_that_exist() -> None:
    import importlib

    for row in mno.BAD_INPUT:
        package, _, name = row.partition(":")
        if package not in mno.OUR_PACKAGES:
            continue
        folder = ROOT / package
        assert any(f"class {name}(" in path.read_text() for path in folder.rglob("*.py")), row
    assert issubclass(importlib.import_module("tomllib").TOMLDecodeError, ValueError)


class Clock:
    """A clock that the test turns."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_progress_logs_a_line_a_minute() -> None:
    clock, out = Clock(), io.StringIO()
    with mno.LoggedProgress(None, 1000, "train", clock=clock, out=out) as bar:
        for _ in range(180):
            bar.set_postfix(loss=0.25)
            bar.update(2)
            clock.now += 1.0
    lines = [line.split(" ", 1)[1] for line in out.getvalue().splitlines()]
    assert lines == [
        "train: 122/1000 (12 %), 2/s, 7 min left, loss=0.25",
        "train: 242/1000 (24 %), 2/s, 6 min left, loss=0.25",
        "train: 360/1000 (36 %) in 3 min, loss=0.25",
    ]


def test_progress_of_resumed_work_has_an_honest_rate() -> None:
    clock, out = Clock(), io.StringIO()
    bar = mno.LoggedProgress(None, 1000, "train", clock=clock, out=out)
    bar.update(880)
    clock.now = 60.0
    bar.update(60)
    assert "940/1000 (94 %), 1/s, 60 s left" in out.getvalue()


def test_progress_goes_through_an_iterable_of_unknown_length() -> None:
    clock, out = Clock(), io.StringIO()
    assert list(mno.LoggedProgress(iter("abc"), None, "", clock=clock, out=out)) == ["a", "b", "c"]
    assert out.getvalue().endswith("progress: 3 in 0 s\n")


def test_failed_work_is_not_said_to_be_done() -> None:
    out = io.StringIO()
    with pytest.raises(ZeroDivisionError), mno.LoggedProgress(None, 2, "train", out=out):
        raise ZeroDivisionError
    assert out.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (99, "99 s"), (100, "2 min"), (11_100, "3 h 05 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert mno._duration(seconds) == text


def test_terminal_gets_a_bar() -> None:
    code = "import mno\nfor _ in mno.make_progress(range(3), None, 'solve'): pass"
    controller, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, stderr=terminal, check=True)
    os.close(terminal)
    output = os.read(controller, 65536).decode()
    os.close(controller)
    assert "solve: 100%" in output
    assert "it/s" in output


def test_output_nobody_reads_is_no_crash() -> None:
    command = [sys.executable, "-m", "mno", "--help"]
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert "Traceback" not in result.stderr
    assert "Exception ignored" not in result.stderr
