"""The models that all servers of the benchmark answer with: the same seeded weights for all.

Imports nothing but torch, because it runs in the environments of the peers too.
"""

import os
import time
import warnings
from array import array
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

__all__ = ["MAX_BATCH", "MODELS", "SIDE", "SLOW_SECONDS", "Forward", "build", "read_journal"]

Forward = Callable[[Tensor], Tensor]

SIDE = 128
MAX_BATCH = 32
SLOW_SECONDS = 0.5
_PATCH, _CHANNELS, _BLOCKS = 32, 32, 64


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(_CHANNELS, _CHANNELS, 3, padding=1)
        self.norm = nn.GroupNorm(4, _CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        return x + nn.functional.gelu(self.norm(self.mix(x)))


class PatchConv(nn.Module):
    """Patches, 64 residual blocks on 4x4 of them, and back: [batch y x] to [batch y x].

    Its cost at batch 1 is the overhead of some 200 small operations, so that batching pays, as it does for a
    neural operator on a GPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Conv2d(1, _CHANNELS, _PATCH, _PATCH)
        self.blocks = nn.Sequential(*(_Block() for _ in range(_BLOCKS)))
        self.project = nn.ConvTranspose2d(_CHANNELS, 1, _PATCH, _PATCH)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.project(self.blocks(self.lift(x[:, None])))[:, 0]
        return answer


def _patch(frozen: bool) -> Forward:
    torch.manual_seed(0)
    module = PatchConv().eval()
    if not frozen:
        return module
    with warnings.catch_warnings():
        # torch would rather have it exported; TorchScript is what all of these servers can run
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(module, torch.ones(2, SIDE, SIDE))  # type: ignore[no-untyped-call]
        scripted = torch.jit.freeze(traced)
    for _ in range(3):
        scripted(torch.ones(2, SIDE, SIDE))
    frozen_module: Forward = scripted
    return frozen_module


def _null(frozen: bool) -> Forward:  # noqa: ARG001
    return lambda x: x


def _slow(frozen: bool) -> Forward:  # noqa: ARG001
    path = os.environ.get("BENCH_JOURNAL")

    def forward(x: Tensor) -> Tensor:
        time.sleep(SLOW_SECONDS)
        if path is not None:
            with Path(path).open("ab") as journal:
                journal.write(x[:, 0, 0].contiguous().numpy().tobytes())
        return x

    return forward


def read_journal(path: Path) -> set[float]:
    """The first elements of all fields that the slow model has computed."""
    return set(array("f", path.read_bytes())) if path.exists() else set()


def _nan(frozen: bool) -> Forward:  # noqa: ARG001
    def forward(x: Tensor) -> Tensor:
        # constant inputs pass, with which a server may warm up
        uneven = x[:, 0, 0] != x[:, 0, 1]
        return torch.where(uneven[:, None, None], torch.nan, x)

    return forward


# slow and nan serve the table of behavior; slow keeps a journal of the fields that it has computed
MODELS: dict[str, Callable[[bool], Forward]] = {
    "null": _null,
    "patch": _patch,
    "slow": _slow,
    "nan": _nan,
}


def build(name: str, frozen: bool = False) -> Forward:
    """A model on one thread: float32 [batch y x] to the same shape.

    Args:
        name: a row of ``MODELS``.
        frozen: as frozen TorchScript, which needs the interpreter's lock for the call only.
    """
    torch.set_num_threads(1)
    forward = MODELS[name](frozen)

    def run(x: Tensor) -> Tensor:
        with torch.inference_mode():
            return forward(x)

    return run
