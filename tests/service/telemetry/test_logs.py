"""What is logged, in which form, and what never is."""

import asyncio
import io
import json
import logging
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from service.access.tokens import new_token
from service.telemetry.logs import REQUEST_ID, AccessLog, LogSettings, set_up_logs

SetUp = Callable[..., io.StringIO]
LOGGERS = ("", "mno", "mno.access", "mno.audit", "uvicorn", "uvicorn.error", "uvicorn.access")


@pytest.fixture
def set_up() -> Iterator[SetUp]:
    """Sets the logs up, into memory; afterwards all is as it was."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(each, each.level, list(each.handlers), each.propagate) for each in loggers]
    yield into_memory
    for logger, level, handlers, propagate in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers
        logger.propagate = propagate


def into_memory(**settings: Any) -> io.StringIO:
    out = io.StringIO()
    set_up_logs(LogSettings(**settings), "front-0", out)
    return out


def entries(out: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_an_entry_is_an_object_with_the_request_it_is_about(set_up: SetUp) -> None:
    out = set_up(format="json", level="info")
    log = logging.getLogger("mno.service")

    async def request(request_id: str) -> None:
        REQUEST_ID.set(request_id)
        await asyncio.to_thread(log.info, "read %d bytes", 5, extra={"model": "darcy@3"})

    async def both() -> None:
        await asyncio.gather(request("one"), request("two"))

    asyncio.run(both())
    log.warning("nobody's")
    found = sorted(entries(out), key=lambda entry: entry.get("request_id", "z"))
    assert [entry.get("request_id") for entry in found] == ["one", "two", None]
    first = found[0]
    assert first.pop("time").endswith("Z")
    assert first == {
        "level": "info",
        "logger": "mno.service",
        "process": "front-0",
        "message": "read 5 bytes",
        "request_id": "one",
        "model": "darcy@3",
    }


@pytest.mark.parametrize("form", ["json", "text"])
def test_what_another_library_keeps_in_a_record_is_left_out(set_up: SetUp, form: str) -> None:
    before = logging.getLogRecordFactory()

    def stamped(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = before(*args, **kwargs)
        record.__dict__["_ray_timestamp_ns"] = 1
        return record

    out = set_up(format=form)
    logging.setLogRecordFactory(stamped)
    try:
        logging.getLogger("mno.service").error("read", extra={"model": "darcy@3"})
    finally:
        logging.setLogRecordFactory(before)
    assert "darcy@3" in out.getvalue()
    assert "timestamp" not in out.getvalue()


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_traceback_is_logged(set_up: SetUp, form: str) -> None:
    out = set_up(format=form)
    try:
        raise ArithmeticError("deep")
    except ArithmeticError:
        logging.getLogger("mno.service").exception("broke")
    assert "ArithmeticError: deep" in out.getvalue()
    assert "test_logs.py" in out.getvalue()


@pytest.mark.parametrize("form", ["json", "text"])
def test_what_a_client_sent_cannot_look_like_another_entry(set_up: SetUp, form: str) -> None:
    out = set_up(format=form)
    logging.getLogger("mno.service").warning("model %s", "x\nforged\r\nentry", extra={"more": "a\nb"})
    assert out.getvalue().count("\n") == 1


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_token_that_is_logged_by_mistake_is_not_shown(set_up: SetUp, form: str) -> None:
    out = set_up(format=form)
    secret, _ = new_token()
    log = logging.getLogger("mno.service")
    log.warning("headers %r", {"authorization": f"Bearer {secret}"})
    log.warning("token %s", secret, extra={"given": secret})
    try:
        raise ValueError(secret)
    except ValueError:
        log.exception("bearer abcdefghijkl.mnop")
    assert secret not in out.getvalue()
    assert "abcdefghijkl" not in out.getvalue()
    # names that begin alike stay
    log.warning("mno_requests_total")
    assert "mno_requests_total" in out.getvalue()


def test_the_level_is_that_of_the_service_and_others_speak_up_only_to_warn(set_up: SetUp) -> None:
    out = set_up(format="json", level="debug")
    logging.getLogger("mno.service").debug("ours")
    logging.getLogger("grpc").info("theirs")
    logging.getLogger("uvicorn.error").info("theirs")
    logging.getLogger("uvicorn.error").warning("warned")
    assert [entry["message"] for entry in entries(out)] == ["ours", "warned"]
    out = set_up(format="json", level="error")
    logging.getLogger("mno.service").warning("ours")
    assert entries(out) == []


def test_requests_are_logged_by_route_and_only_where_it_is_asked_for(set_up: SetUp) -> None:
    out = set_up(format="json", level="error", access=1.0)
    AccessLog(LogSettings(access=1.0)).note("http", "POST", "/v1/models/{name}", "200", 0.0123456, "sim")
    (entry,) = entries(out)
    assert entry["route"] == "/v1/models/{name}"
    assert (entry["status"], entry["milliseconds"], entry["client"]) == ("200", 12.346, "sim")
    out = set_up(format="json", level="info")
    AccessLog(LogSettings()).note("http", "GET", "/", "200", 0.1)
    assert entries(out) == []


def test_a_share_of_the_requests_is_logged(set_up: SetUp) -> None:
    out = set_up(format="json", access=0.25)
    log = AccessLog(LogSettings(access=0.25), random.Random(1))
    for _ in range(1000):
        log.note("http", "GET", "/", "200", 0.1)
    assert 200 < len(entries(out)) < 300


@pytest.mark.parametrize("form", ["json", "text"])
def test_whatever_is_no_json_or_no_text_is_written_all_the_same(set_up: SetUp, form: str) -> None:
    out = set_up(format=form)
    more = {"what": {1: object}, "raw": b"\xff", "half": "\ud800"}
    logging.getLogger("mno.service").warning("odd", extra=more)
    assert "odd" in out.getvalue().encode().decode()
    assert "ud800" in out.getvalue()


@pytest.mark.parametrize("given", [{"access": 1.5}, {"level": "loud"}, {"format": "xml"}, {"file": "x"}])
def test_bad_settings_are_refused(given: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        LogSettings.model_validate(given)
