"""The log: one line an event, as JSON or as text, with the id of the request that it is about.

::

    set_up_logs(settings.logs, process="front-0")     # once a process, before anything is logged
    token = REQUEST_ID.set(request_id)                # at the start of a request
    access = AccessLog(settings.logs)                 # one a front
    access.note("http", "POST", route, "200", seconds, principal.client)

Bodies, tokens and field values are never logged: what is logged of a request is its route, its status, its
time, the name of its token and its id. Give uvicorn ``log_config=None``: its loggers then end here, too.
"""

from __future__ import annotations

import json
import logging
import random
import re
import sys
import time
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, Final, Literal, TextIO, final

import orjson
from pydantic import BaseModel, ConfigDict, Field

__all__ = ["REQUEST_ID", "AccessLog", "JsonFormatter", "LogSettings", "TextFormatter", "set_up_logs"]

# the request on whose behalf the present task runs
REQUEST_ID: Final[ContextVar[str]] = ContextVar("mno_request_id", default="")

Level = Literal["debug", "info", "warning", "error"]

# what a record has without anybody's doing; the rest came with `extra`
STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {
    "message",
    "asctime",
    "taskName",
    "color_message",
}
# whoever writes an authorization into a message by mistake does not give it away
SECRET: Final = re.compile(r"(?i)\b(bearer\s+)[\w.~+/=-]{8,}|\b(mno_)[\w-]{43}\b")


@final
class LogSettings(BaseModel):
    """What is logged, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["text", "json"] = Field(default="text", description="json: one object a line")
    level: Level = Field(default="warning", description="of the log; of other libraries at least warning")
    access: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of the requests that get a line",
    )


@final
class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """See ``logging.Formatter``."""
        entry = {"time": _time(record), "level": record.levelname.lower(), "logger": record.name}
        entry |= {"process": self._process, "message": record.getMessage(), **_extra(record)}
        if record.exc_info:
            entry["trace"] = self.formatException(record.exc_info)
        return _safe(_json(entry))


@final
class TextFormatter(logging.Formatter):
    """For people."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """See ``logging.Formatter``."""
        more = "".join(f" {name}={value}" for name, value in _extra(record).items())
        # a line break in what a client sent would look like another entry
        message = f"{record.getMessage()}{more}".replace("\n", "\\n").replace("\r", "\\r")
        line = f"{_time(record)} {record.levelname.lower()} {self._process} {record.name}: {message}"
        return _safe(f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line)


@final
class AccessLog:
    """A line for each request, or for some of them."""

    def __init__(self, settings: LogSettings, chance: random.Random | None = None) -> None:
        """``chance`` decides which requests get a line."""
        self._share = settings.access
        self._chance = chance or random.Random()
        self._log = logging.getLogger("mno.access")

    def note(
        self, protocol: str, method: str, route: str, status: str, seconds: float, client: str = ""
    ) -> None:
        """A request has been answered; ``route`` is its template, never what a client wrote."""
        if self._share < 1 and self._chance.random() >= self._share:
            return
        known = {"protocol": protocol, "method": method, "route": route, "status": status}
        timed = {"milliseconds": round(1000 * seconds, 3), "client": client}
        self._log.info("answered", extra=known | timed)


def set_up_logs(settings: LogSettings, process: str, out: TextIO | None = None) -> None:
    """Send everything that is logged in this process to ``out``, stderr by default."""
    handler = logging.StreamHandler(out or sys.stderr)
    formatter = JsonFormatter if settings.format == "json" else TextFormatter
    handler.setFormatter(formatter(process))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    root.setLevel(max(level, logging.WARNING))
    logging.getLogger("mno").setLevel(level)
    # whoever asks for lines gets them, and the audit log is never silent
    logging.getLogger("mno.access").setLevel(logging.INFO if settings.access else logging.CRITICAL)
    logging.getLogger("mno.audit").setLevel(logging.INFO)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers[:] = []
        logger.propagate = True


def _time(record: logging.LogRecord) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{whole}.{int(record.msecs):03d}Z"


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    request_id = REQUEST_ID.get()
    about = {"request_id": request_id} if request_id else {}
    # what begins with an underscore is another library's own: Ray adds such a thing to every record
    said = {name: value for name, value in vars(record).items() if not name.startswith("_")}
    return about | {name: value for name, value in said.items() if name not in STANDARD}


def _json(entry: Mapping[str, Any]) -> str:
    try:
        return orjson.dumps(entry, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
    except TypeError:  # half a character, from bytes that were no text
        return json.dumps(entry, default=str)


def _safe(text: str) -> str:
    text = text.encode("utf-8", "backslashreplace").decode()
    return SECRET.sub(r"\1\2...", text)
