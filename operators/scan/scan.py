"""What is scanned, and what a backend has to be able to do with it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from operators.scan.path import Path, paths


class InvalidScan(ValueError):
    """Tensors of a scan that do not fit together."""


@dataclass(frozen=True)
class Scan:
    """One selective scan (S6; Gu and Dao 2023, section 3) over K directions of one sequence of tokens.

    For each direction k, in its own order of the tokens::

        h[t] = exp(dt[t] A) h[t-1] + dt[t] x[t] B[t]
        y[t] = C[t] . h[t] + D x[t]

    with ``dt = softplus(dt + dt_bias)`` if ``dt_softplus``. The y of all directions are added and gated by
    silu(z).
    """

    x: Float[Tensor, "batch token channel"]
    dt: Float[Tensor, "batch direction token channel"]
    A: Float[Tensor, "direction channel state"]
    B: Float[Tensor, "batch direction token state"]
    C: Float[Tensor, "batch direction token state"]
    D: Float[Tensor, "direction channel"] | None
    z: Float[Tensor, "batch token channel"] | None
    dt_bias: Float[Tensor, "direction channel"] | None
    dt_softplus: bool
    paths: tuple[Path, ...]

    @property
    def checkpoints(self) -> int:
        """Stored states of all directions."""
        return sum(p.checkpoints for p in self.paths)

    @property
    def lasts(self) -> int:
        """Directions that run through the whole sequence, and so have a last state."""
        return sum(not p.resets for p in self.paths)


class Result(NamedTuple):
    """What a forward pass gives."""

    y: Float[Tensor, "batch token channel"]
    checkpoint: Float[Tensor, "batch checkpoint state channel"]
    last_state: Float[Tensor, "batch last channel state"]


class Gradients(NamedTuple):
    """The cotangents of the inputs; empty where an input is absent."""

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    z: Tensor
    dt_bias: Tensor


class Backend(ABC):
    """A way to compute a scan whose operations torch can differentiate."""

    name: str

    @abstractmethod
    def refusal(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Says why this backend cannot treat such tensors; None if it can."""

    @abstractmethod
    def forward(self, scan: Scan, save: bool) -> Result:
        """Scans; ``save`` keeps the states that the backward pass starts from."""


class AdjointBackend(Backend, ABC):
    """A backend with a backward pass of its own, to be called through the registered operation."""

    @abstractmethod
    def backward(self, scan: Scan, checkpoint: Tensor, dy: Tensor) -> Gradients:
        """Maps the cotangent of y to those of the inputs."""


def prepare(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    directions: Sequence[int],
    grid: Sequence[int],
) -> Scan:
    """Checks that the tensors fit together and works out the paths."""
    if x.ndim != 3 or A.ndim != 3:
        raise InvalidScan(
            "expected x [batch token channel] and A [direction channel state], "
            f"got {list(x.shape)} and {list(A.shape)}"
        )
    batch, tokens, width = x.shape
    states, K = A.shape[2], len(directions)
    _expect("dt", dt, (batch, K, tokens, width))
    _expect("A", A, (K, width, states))
    _expect("B", B, (batch, K, tokens, states))
    _expect("C", C, (batch, K, tokens, states))
    _expect("D", D, (K, width))
    _expect("z", z, (batch, tokens, width))
    _expect("dt_bias", dt_bias, (K, width))
    if tokens == 0 or K == 0:
        raise InvalidScan(f"a scan needs tokens and directions, got {tokens} tokens and {K} directions")
    return Scan(x, dt, A, B, C, D, z, dt_bias, dt_softplus, paths(directions, grid, tokens))


def _expect(name: str, tensor: Tensor | None, shape: tuple[int, ...]) -> None:
    if tensor is not None and tensor.shape != shape:
        raise InvalidScan(
            f"expected {name} of shape {list(shape)} for this x, A and these directions, "
            f"got {list(tensor.shape)}"
        )
