"""The audit log: a whole line for each change, whoever writes."""

import json
import logging
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from service.access.audit import Audit
from service.errors import InvalidSettings
from service.telemetry.logs import REQUEST_ID


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_says_who_did_what_when_and_how_it_ended(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    audit = Audit(path)
    audit.note("load", "darcy@4", "ops", request_id="r1")
    audit.note("alias", "darcy@production -> 4")
    with audit.noting("unload", "darcy", "ops", "r2"):
        pass
    found = lines(path)
    assert all(line.pop("time").endswith("+00:00") for line in found)
    assert found == [
        {"action": "load", "subject": "darcy@4", "principal": "ops", "outcome": "done", "request_id": "r1"},
        {"action": "alias", "subject": "darcy@production -> 4", "principal": "", "outcome": "done"},
        {"action": "unload", "subject": "darcy", "principal": "ops", "outcome": "done", "request_id": "r2"},
    ]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    audit.close()


def test_what_failed_is_noted_with_its_reason_and_still_fails(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    audit = Audit(path)

    def fail() -> None:
        with audit.noting("load", "darcy@4", "ops"):
            raise ArithmeticError(1000 * "x")

    with pytest.raises(ArithmeticError):
        fail()
    (line,) = lines(path)
    assert (line["outcome"], line["reason"]) == ("failed", 200 * "x")
    audit.close()


def test_a_subject_that_a_client_wrote_is_printable_and_bounded(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    audit = Audit(path)
    audit.note("refused", "a\nb\x1b[2Jc\udc80ä")
    audit.note("refused", 1000 * "\n")
    first, second = lines(path)
    assert first["subject"] == "a\\nb\\x1b[2Jc\\udc80ä"
    assert second["subject"] == 200 * "\\n"
    audit.close()


def test_the_present_request_is_named(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    audit = Audit(path)
    token = REQUEST_ID.set("r3")
    audit.note("drain", "service")
    REQUEST_ID.reset(token)
    assert lines(path)[0]["request_id"] == "r3"
    audit.close()


def test_without_a_file_it_is_the_log_s(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "mno.audit"):
        Audit().note("load", "darcy@4", "ops", outcome="failed", reason="no such version")
    (record,) = caplog.records
    assert record.name == "mno.audit"
    assert record.getMessage() == "load darcy@4: failed"
    assert (vars(record)["principal"], vars(record)["reason"]) == ("ops", "no such version")


def test_a_file_that_was_moved_away_is_left_when_it_is_asked_for(tmp_path: Path) -> None:
    path, moved = tmp_path / "audit.jsonl", tmp_path / "audit.1.jsonl"
    audit = Audit(path)
    audit.note("start", "service")
    path.rename(moved)
    audit.note("reload", "tokens, certificates")
    audit.reopen()
    audit.note("drain", "service")
    assert [line["action"] for line in lines(moved)] == ["start", "reload"]
    assert [line["action"] for line in lines(path)] == ["drain"]
    audit.close()


def test_a_full_disk_breaks_nothing_and_the_log_has_the_line(caplog: pytest.LogCaptureFixture) -> None:
    full = Audit(Path("/dev/full"))
    with full.noting("load", "darcy@4", "ops"):
        pass
    (record,) = caplog.records
    assert "No space left" in record.getMessage()
    assert (vars(record)["action"], vars(record)["subject"]) == ("load", "darcy@4")
    full.close()


def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match="expected a file for the audit log"):
        Audit(tmp_path)


WRITER = """
import sys
from pathlib import Path
from service.access.audit import Audit
audit = Audit(Path(sys.argv[1]))
for n in range(200):
    audit.note("load", f"darcy@{n}", sys.argv[2])
"""


def test_lines_of_several_processes_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", WRITER, str(path)]
    writers = [subprocess.Popen([*command, name], cwd=root) for name in ("front-0", "front-1")]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0]
    found = lines(path)
    for name in ("front-0", "front-1"):
        subjects = [line["subject"] for line in found if line["principal"] == name]
        assert subjects == [f"darcy@{n}" for n in range(200)]
