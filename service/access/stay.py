"""The requests of a stream among all those of its client."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import final

from service.access.rate import Entry, RateLimits
from service.access.security import Principal

__all__ = ["Stay"]


@final
class Stay:
    """A client's stream: each of its requests is let in for itself, and while none is under way it is one.

    ::

        with stay.request():     # raises what the client's call would get that asked for the same
            ...answer...
    """

    def __init__(self, limits: RateLimits, who: Callable[[], Principal], first: Entry) -> None:
        """Begin.

        Args:
            limits: of all clients.
            who: says who asks, as long as they still may.
            first: that the stream was let in with; the first request has it.
        """
        self._limits = limits
        self._who = who
        # as many as requests are under way, but one at least
        self._entries = [first]
        self._under_way = 0
        self._fresh = True

    @contextmanager
    def request(self) -> Iterator[None]:
        """The time of one request.

        Raises:
            ServiceFault: the client may not ask, or not now.
        """
        self._enter()
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1
            if self._under_way:
                self._entries.pop().release()

    def release(self) -> None:
        """The stream has ended."""
        while self._entries:
            self._entries.pop().release()

    def _enter(self) -> None:
        if self._fresh:
            self._fresh = False
        elif self._under_way:
            self._entries.append(self._limits.enter(self._who()))
        else:
            self._limits.go_on(self._who())
