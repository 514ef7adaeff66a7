"""The processes that train one surrogate together, as ``torchrun`` starts them.

Each computes the gradient of its part of every batch; the gradients are averaged, so that all take the same
step from the same weights (Li et al. 2020, arXiv 2006.15704). One of them leads: it writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, final

import torch
import torch.distributed as distributed
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from training.config import InvalidRun

# the leader generates the data while the others wait
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
        restarts: how often ``torchrun`` has started them again.
    """

    number: int = 0
    count: int = 1
    local: int = 0
    restarts: int = 0

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
        if self.count > 1:
            value = value / self.count
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
        """Until all have come here."""
        if self.count > 1:
            self.any(False)


ALONE: Final = Ranks()


@contextmanager
def joined_ranks(environment: Mapping[str, str]) -> Iterator[Ranks]:
    """The processes that ``torchrun`` started together; one that it did not start is alone."""
    if "TORCHELASTIC_RUN_ID" not in environment:
        yield ALONE
        return
    local, restarts = int(environment["LOCAL_RANK"]), int(environment["TORCHELASTIC_RESTART_COUNT"])
    if torch.cuda.is_available():
        torch.cuda.set_device(local)
    # both kinds: gradients that lie on a GPU travel by NCCL, everything else through the processors
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    store, number, count = next(rendezvous("env://", timeout=PATIENCE))
    # torchrun may keep the store for the next start: it holds the addresses of processes that are no more
    own = PrefixStore(f"start_{restarts}", store)
    distributed.init_process_group(backend, store=own, rank=number, world_size=count, timeout=PATIENCE)
    try:
        yield Ranks(number, count, local, restarts)
    finally:
        distributed.destroy_process_group()
