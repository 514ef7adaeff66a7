"""On whose behalf, how urgently and until when something is computed."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple, final

__all__ = ["ANYBODY", "Priority", "Ticket"]

Priority = Literal["interactive", "bulk"]


@final
class Ticket(NamedTuple):
    """What the queues need to know of a request beside its numbers.

    Attributes:
        client: whose share of the workers it uses: the name of a token, or empty where nobody has to say.
        priority: interactive requests go before bulk ones, which still move.
        reproducible: the answer has the same bits whatever else is computed: batches of one fixed size.
        deadline: on the clock of ``time.perf_counter`` [s]; None: none.
    """

    client: str = ""
    priority: Priority = "interactive"
    reproducible: bool = False
    deadline: float | None = None


ANYBODY: Final = Ticket()
