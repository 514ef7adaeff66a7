"""What two processes of the service tell and ask each other over a control socket.

A message is told, or it is a question that has one answer::

    {"ask": 7, "what": "index", "with": {...}}
    {"answer": 7, "value": ...}                              or
    {"answer": 7, "fault": "UnknownModel", "text": "..."}
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import orjson

from service import errors
from service.workers.lane import BlockingLane, Lane, LaneClosed, Message

__all__ = ["Link", "LinkLost", "Told", "answer_questions"]

log = logging.getLogger("mno.service")

# called with a message that is no question, and with the descriptors that came with it
Told = Callable[[Mapping[str, Any], Sequence[int]], None]
# gives the answer to a question, by its name and arguments
Answer = Callable[[str, Mapping[str, Any]], Awaitable[Any]]

# answers may be long, such as the cards of all versions; a lane's messages may not
PIECE: Final = 2**20


class LinkLost(Exception):
    """The other process is gone."""


@final
@dataclass(frozen=True)
class _Pending:
    future: asyncio.Future[Any]
    pieces: list[str]


@final
class Link:
    """One end, in an event loop."""

    def __init__(self, end: socket.socket, told: Told, answer: Answer, lost: Callable[[], None]) -> None:
        """Takes over ``end``; ``lost`` is called once when the other process is gone."""
        self._told = told
        self._answer = answer
        self._lost = lost
        self._numbers = itertools.count()
        self._pending: dict[int, _Pending] = {}
        # the event loop keeps weak references only
        self._answering: set[asyncio.Task[None]] = set()
        self._lane = Lane(end, self._receive, self._end)

    def tell(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send; nothing happens when the other process is gone, which ``lost`` tells."""
        try:
            self._lane.send(message, fds)
        except LaneClosed:
            log.debug("told a process that is gone: %s", list(message))

    async def ask(self, what: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """The other process' answer.

        Raises:
            LinkLost: the other process is gone.
            ServiceFault: what the other process raised.
        """
        number = next(self._numbers)
        pending = _Pending(asyncio.get_running_loop().create_future(), [])
        self._pending[number] = pending
        try:
            self._lane.send({"ask": number, "what": what, "with": arguments or {}})
            return await pending.future
        except LaneClosed as error:
            raise LinkLost(what) from error
        finally:
            del self._pending[number]

    def close(self) -> None:
        """Hear and say no more."""
        self._lane.close()
        self._give_up()

    def _end(self) -> None:
        self._give_up()
        self._lost()

    def _give_up(self) -> None:
        for pending in self._pending.values():
            if not pending.future.done():
                pending.future.set_exception(LinkLost("the other process is gone"))
        for task in self._answering:
            task.cancel()

    def _receive(self, message: dict[str, Any], fds: list[int]) -> None:
        if "ask" in message:
            task = asyncio.get_running_loop().create_task(self._reply(message))
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)
        elif "answer" in message:
            self._take(message)
        else:
            self._told(message, fds)

    async def _reply(self, message: Mapping[str, Any]) -> None:
        number = message["ask"]
        try:
            for reply in _replies(number, await self._answer(message["what"], message["with"])):
                self.tell(reply)
        except errors.ServiceFault as error:
            self.tell(_fault(number, error))
        except asyncio.CancelledError:
            # where only the work was given up, whoever asked is still there
            self.tell(_fault(number, errors.WorkerLost("it was given up; ask again")))
            raise
        except Exception as error:  # the edge of a process: whoever asks gets an answer
            log.exception("no answer to %s", message["what"])
            self.tell(_fault(number, error))

    def _take(self, message: Mapping[str, Any]) -> None:
        pending = self._pending.get(message["answer"])
        # whoever asked may have left
        if pending is None or pending.future.done():
            return
        if "fault" in message:
            pending.future.set_exception(_raised(message["fault"], message["text"]))
            return
        pending.pieces.append(message["value"])
        if not message.get("more"):
            pending.future.set_result(orjson.loads("".join(pending.pieces)))


def answer_questions(lane: BlockingLane, answer: Callable[[str, Mapping[str, Any]], Any]) -> None:
    """Answer, one question after another, until the other process wants no more or is gone."""
    while True:
        try:
            message, _ = lane.receive()
        except LaneClosed:
            return
        if "drain" in message:
            return
        try:
            replies = _replies(message["ask"], answer(message["what"], message["with"]))
        except Exception as error:  # the edge of a process: whoever asks gets an answer
            replies = [_fault(message["ask"], error)]
        for reply in replies:
            lane.send(reply)


def _replies(number: int, value: Any) -> list[Message]:
    text = orjson.dumps(value).decode()
    pieces = [text[begin : begin + PIECE] for begin in range(0, len(text), PIECE)]
    return [
        *({"answer": number, "value": piece, "more": True} for piece in pieces[:-1]),
        {"answer": number, "value": pieces[-1]},
    ]


def _fault(number: int, error: Exception) -> Message:
    return {"answer": number, "fault": type(error).__name__, "text": str(error)}


def _raised(name: str, text: str) -> Exception:
    kinds = {kind.__name__: kind for kind in (errors.UnknownModel, errors.LoadFailed, errors.WorkerLost)}
    # a fault of a kind that nobody expects has no words for a client
    return kinds[name](text) if name in kinds else errors.WorkFailed(f"{name}: {text}")
