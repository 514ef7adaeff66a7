"""The options of commands that do bulk work: who does it."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any, Final, final

import click

from bulk.engine import EngineKind

if TYPE_CHECKING:
    from bulk.engine import Engine
    from bulk.ray_engine import Share

__all__ = ["Where", "engine_options"]

CLUSTER: Final = "RAY_ADDRESS"


@final
@dataclass(frozen=True)
class Where:
    """Who does the work.

    Attributes:
        kind: processes of this machine, or actors of a Ray cluster.
        workers: so many; None: one per device, or per share of the cores.
        address: of the Ray cluster; None: one is started here.
    """

    kind: EngineKind = "local"
    workers: int | None = None
    address: str | None = None

    def engine(self, local: Sequence[Mapping[str, str]], share: Share) -> Engine:
        """What does the work.

        Args:
            local: environments of the workers on this machine, where nobody says how many.
            share: what a worker takes of a cluster.
        """
        if self.kind == "ray":
            from bulk.ray_engine import RayActors

            return RayActors(self.address, self.workers, share)
        from bulk.local_engine import local_engine

        return local_engine(list(islice(cycle(local), self.workers or len(local))))


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of ``Where``, as its argument ``where``."""

    @click.option(
        "--engine",
        type=click.Choice(["local", "ray"]),
        default="local",
        show_default=True,
        help="Processes of this machine, or actors of a Ray cluster.",
    )
    @click.option(
        "--workers",
        type=click.IntRange(1),
        help="How many of them. Default: one per GPU, or the cores of this machine or cluster.",
    )
    @click.option("--address", help=f"Of the Ray cluster. Default: {CLUSTER}; else one is started here.")
    @functools.wraps(command)
    def with_where(
        *arguments: Any, engine: EngineKind, workers: int | None, address: str | None, **options: Any
    ) -> Any:
        where = Where(engine, workers, address or os.environ.get(CLUSTER) or None)
        return command(*arguments, where=where, **options)

    return with_where
