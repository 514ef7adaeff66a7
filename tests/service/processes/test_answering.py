"""What one process answers with is read again while it runs; what is broken stays as it was."""

import logging
from pathlib import Path
from typing import Any

import pytest

from service.access.rate import Ledger
from service.access.tokens import TokenRecord, edit_tokens, new_token
from service.errors import Unauthenticated
from service.processes.answering import Answering, Rim
from service.settings import Settings
from service.telemetry.metrics import Metrics
from service.versions.models import Models
from service.versions.repository import Repository


def made(path: Path, name: str) -> str:
    """A token of this name, which is in the file from now on."""
    secret, kept = new_token()
    with edit_tokens(path) as records:
        records.append(TokenRecord(name=name, hash=kept, scopes=("solve",)))
    return f"Bearer {secret}"


def test_what_cannot_be_read_again_keeps_nothing_else_from_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokens, audit = tmp_path / "tokens.toml", tmp_path / "log" / "audit.jsonl"
    audit.parent.mkdir()
    alice = made(tokens, "alice")
    settings = Settings.model_validate({"security": {"tokens": tokens, "audit": audit}, "grpc": False})
    nobody: Any = None
    repository: Repository = nobody
    rim = Rim(Metrics(), Ledger.private(), "front-0", lambda: False)
    answering = Answering(nobody, Models(), repository, settings, rim)
    security = answering._security
    # the audit log has no folder any more, and the tokens are fine
    audit.unlink()
    audit.parent.rmdir()
    bob = made(tokens, "bob")
    answering.reload()
    assert security.authenticate(bob, "solve").client == "bob"
    assert "audit" in caplog.text
    # no tokens file is no reason to forget those who were known
    tokens.write_text("[[")
    with caplog.at_level(logging.ERROR):
        answering.reload()
    assert "tokens.toml" in caplog.text
    assert security.authenticate(alice, "solve").client == "alice"
    with pytest.raises(Unauthenticated):
        security.authenticate("Bearer mno_x", "solve")
