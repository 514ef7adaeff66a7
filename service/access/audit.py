"""The audit log: who changed what the service serves, when, and whether it worked.

::

    audit = Audit(settings.security.audit)
    audit.note("load", "darcy@4", principal=principal.client, outcome="done", request_id=request_id)
    with audit.noting("unload", "darcy", principal.client):   # failed, with its text, if this raises
        await repository.unload("darcy")

It has a line for each load, unload, move of an alias that was seen, reload of tokens and certificates, start
and drain. Lines are JSON; with a file they are appended to it, whole, also by several processes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, final

import orjson

from service.errors import InvalidSettings
from service.telemetry.logs import REQUEST_ID

__all__ = ["Action", "Audit"]

Action = Literal["load", "unload", "alias", "reload", "start", "drain", "refused"]
Outcome = Literal["done", "failed", "refused"]

LONGEST_REASON: Final = 200
LONGEST_SUBJECT: Final = 400

log = logging.getLogger("mno.audit")


@final
class Audit:
    """Writes the audit log."""

    def __init__(self, path: Path | None = None) -> None:
        """Write to a file, or to the logger ``mno.audit``.

        Raises:
            InvalidSettings: the file cannot be written.
        """
        self._path = path
        self._file = None if path is None else _open(path)

    def note(
        self,
        action: Action,
        subject: str,
        principal: str = "",
        outcome: Outcome = "done",
        request_id: str | None = None,
        reason: str = "",
    ) -> None:
        """Write one line.

        Args:
            action: what was done.
            subject: to what: a version, a model, an alias, a file; what of it cannot be printed is escaped.
            principal: by whom: the name of a token; empty is somebody without one, or the service itself.
            outcome: whether it worked.
            request_id: of the request that asked for it; default: of the present one.
            reason: why it did not work.
        """
        asked = REQUEST_ID.get() if request_id is None else request_id
        subject = _printable(subject)
        entry = {"action": action, "subject": subject, "principal": principal, "outcome": outcome}
        if reason:
            entry["reason"] = reason[:LONGEST_REASON]
        if self._file is None:
            log.info("%s %s: %s", action, subject, outcome, extra=_asked(entry, asked))
            return
        stamped = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **_asked(entry, asked)}
        try:
            # one write of a file that was opened to append: lines of several processes do not mix
            os.write(self._file, orjson.dumps(stamped, option=orjson.OPT_APPEND_NEWLINE))
        except OSError as error:
            # what was done is done: a full disk does not break it, and does not hide it
            log.error("%s cannot be written: %s", self._path, error.strerror, extra=_asked(entry, asked))

    @contextmanager
    def noting(
        self, action: Action, subject: str, principal: str = "", request_id: str | None = None
    ) -> Iterator[None]:
        """Write one line when the block has ended, with how it ended."""
        try:
            yield
        except BaseException as error:
            self.note(action, subject, principal, "failed", request_id, str(error) or type(error).__name__)
            raise
        self.note(action, subject, principal, "done", request_id)

    def reopen(self) -> None:
        """Go on in a new file, after the old one was moved away: at SIGHUP."""
        if self._path is not None and self._file is not None:
            old, self._file = self._file, _open(self._path)
            os.close(old)

    def close(self) -> None:
        """Write nothing more to the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _printable(text: str) -> str:
    """A client may have written it."""
    shown = (char if char.isprintable() else repr(char)[1:-1] for char in text[:LONGEST_SUBJECT])
    return "".join(shown)[:LONGEST_SUBJECT]


def _asked(entry: dict[str, Any], request_id: str) -> dict[str, Any]:
    return {**entry, "request_id": request_id} if request_id else entry


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise InvalidSettings(f"{path}: expected a file for the audit log: {error.strerror}") from error
