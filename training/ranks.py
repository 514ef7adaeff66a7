"""The processes that train one surrogate together, as ``torchrun`` starts them.

Each computes the gradient of its part of every batch; the gradients are averaged, so that all take the same
step from the same weights (Li et al. 2020, arXiv 2006.15704). One of them leads: it writes.

Where a process dies or a node is lost, ``torchrun`` starts all of them again, on the nodes that there are,
and they go on from the last checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final, final

import torch
import torch.distributed as distributed
from torch import Tensor, nn

# public, but not exported by name
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.nn.parallel import DistributedDataParallel

from training.arrivals import count_start
from training.config import InvalidRun

# for whoever computes a gradient as well: a node that is lost says nothing, and is missed by this alone
PROMPTNESS: Final = timedelta(minutes=10)
# for the leader that generates the data, validates, or publishes while the others wait
PATIENCE: Final = timedelta(days=7)


class UnevenBatch(InvalidRun):
    """A batch that the processes cannot share."""


@final
@dataclass(frozen=True)
class Ranks:
    """All processes of a training, and which of them this is.

    Attributes:
        number: of this process, from 0.
        count: of all processes.
        local: number of this process among those of its machine; its GPU has the same.
        again: whether ``torchrun`` started them before.
        patient: the same processes, for what the leader does alone.
    """

    number: int = 0
    count: int = 1
    local: int = 0
    again: bool = False
    patient: distributed.ProcessGroup | None = field(default=None, compare=False, repr=False)

    @property
    def leads(self) -> bool:
        """Whether this process writes, for all of them."""
        return self.number == 0

    def part(self, size: int) -> slice:
        """The places of a batch of ``size`` that are this process's.

        Raises:
            UnevenBatch: they cannot have equally many.
        """
        each, rest = divmod(size, self.count)
        if rest:
            raise UnevenBatch(
                f"optimizer.batch_size: expected a multiple of the {self.count} processes, got {size}: "
                "choose another batch size, or another number of processes"
            )
        return slice(self.number * each, (self.number + 1) * each)

    def joined(self, loss: nn.Module, device: torch.device) -> nn.Module:
        """``loss`` with gradients that are the means over all processes."""
        if self.count == 1:
            return loss
        places = [device] if device.type == "cuda" else None
        # buffers are constants; what a step does not use (a gate of one expert, blocks of a shorter
        # curriculum) has no gradient
        return DistributedDataParallel(
            loss, device_ids=places, find_unused_parameters=True, broadcast_buffers=False
        )

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a tensor over all processes."""
        return self.sum(value / self.count) if self.count > 1 else value

    def sum(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all processes, in its place."""
        if self.count > 1:
            distributed.all_reduce(value)
        return value

    def any(self, happened: bool) -> bool:
        """Whether it happened to one of the processes."""
        if self.count == 1:
            return happened
        told = torch.tensor([happened], dtype=torch.uint8)
        # a GPU's queue is not waited for: it goes through the processors
        distributed.all_reduce(told, distributed.ReduceOp.MAX)
        return bool(told.item())

    def wait(self) -> None:
        """Until all have come here, however long the leader takes."""
        if self.count > 1:
            distributed.all_reduce(torch.zeros(1), group=self.patient)


ALONE: Final = Ranks()


@contextmanager
def joined_ranks(environment: Mapping[str, str]) -> Iterator[Ranks]:
    """The processes that ``torchrun`` started together; one that it did not start is alone."""
    if "TORCHELASTIC_RUN_ID" not in environment:
        yield ALONE
        return
    number, count, local = (int(environment[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if torch.cuda.is_available():
        torch.cuda.set_device(local)
    # both kinds: gradients that lie on a GPU travel by NCCL, everything else through the processors
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    store = _open_store(environment, number)
    start = count_start(store, number, count)
    # one store may serve all starts: it holds the addresses of processes that are no more
    own = PrefixStore(f"mno/start_{start}", store)
    distributed.init_process_group(backend, store=own, rank=number, world_size=count, timeout=PROMPTNESS)
    try:
        patient = distributed.new_group(backend="gloo", timeout=PATIENCE)
        # the store may be new, and a node counts what happened to its own processes only
        counted = int(environment["TORCHELASTIC_RESTART_COUNT"])
        again = Ranks(number, count).any(start > 1 or counted > 0)
        ranks = Ranks(number, count, local, again, patient)
        yield ranks
        # the leader may still publish, by way of a rendezvous that another one's node keeps
        ranks.wait()
    finally:
        distributed.destroy_process_group()


def _open_store(environment: Mapping[str, str], number: int) -> Store:
    """Where the processes find each other: the launcher of the first node keeps it, or else process 0."""
    kept = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return TCPStore(
        environment["MASTER_ADDR"],
        int(environment["MASTER_PORT"]),
        is_master=number == 0 and not kept,
        timeout=PROMPTNESS,
        wait_for_workers=False,
    )
