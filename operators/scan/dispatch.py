"""The choice of a backend: one table, from the top."""

import functools
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch

from operators.scan.scan import AdjointBackend, Backend, Scan

REFERENCE_LENGTH = 256
"""Up to here float64 is scanned by the reference."""

MANY_SEQUENCES = 1024
"""From here on mamba_ssm's kernel, one program for each sequence of a channel, keeps a device busy."""

MAMBA_STATES = 256
"""As many as mamba_ssm's kernel was written for."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Work:
    """What the choice depends on."""

    device: torch.device
    dtype: torch.dtype
    short: bool
    """No more than `REFERENCE_LENGTH` tokens."""
    many: bool = False
    """At least `MANY_SEQUENCES` batch x direction x channel."""
    large: bool = False
    """More than `MAMBA_STATES` states."""
    deterministic: bool = False
    """Whether torch was asked for deterministic algorithms."""


@dataclass(frozen=True)
class Row:
    """A backend and what it is taken for, if it can."""

    backend: str
    suits: Callable[[Work], bool]
    reason: str


def _on_cuda(work: Work) -> bool:
    return work.device.type == "cuda" and work.dtype != torch.float64


# the first row that suits and whose backend does not refuse; mamba_ssm goes first where it has enough to do
# until `mno bench scan` has compared the two on a device
TABLE: Final[tuple[Row, ...]] = (
    Row(
        "reference",
        lambda work: work.dtype == torch.float64 and work.short,
        f"float64 and no more than {REFERENCE_LENGTH} tokens",
    ),
    Row("cpu", lambda work: work.device.type == "cpu" and work.dtype != torch.float64, "the native kernel"),
    Row(
        "mamba_ssm",
        lambda work: _on_cuda(work) and work.many and not work.large,
        f"CUDA and at least {MANY_SEQUENCES} sequences of a channel",
    ),
    Row("triton", _on_cuda, "CUDA"),
    Row("mamba_ssm", lambda work: _on_cuda(work) and not work.large, "CUDA without Triton"),
    Row("torch", lambda work: True, "any device"),  # noqa: ARG005
)


@dataclass(frozen=True)
class Choice:
    """A backend and why it was taken."""

    backend: str
    reason: str

    def __str__(self) -> str:
        return f"{self.backend}: {self.reason}"


class _Default:
    """The backend that an entry point asked for."""

    name: str | None = None


def set_default_backend(name: str | None) -> None:
    """Prefers a backend where a call names none; None returns to the automatic choice.

    For entry points, with what their settings say (``scan_backend``, MNO_SCAN_BACKEND).
    """
    if name is not None:
        named(name)
    _Default.name = name


def named(name: str) -> Backend:
    """Looks a backend up."""
    from operators.scan import BACKENDS

    if name not in BACKENDS:
        raise ValueError(f"unknown scan backend {name!r}; there are {', '.join(BACKENDS)}")
    return BACKENDS[name]


def work_of(
    device: torch.device, dtype: torch.dtype, tokens: int, sequences: int = 1, states: int = 1
) -> Work:
    """What matters of a scan's sizes."""
    return Work(
        device,
        dtype,
        tokens <= REFERENCE_LENGTH,
        sequences >= MANY_SEQUENCES,
        states > MAMBA_STATES,
        torch.are_deterministic_algorithms_enabled(),
    )


def explain(
    device: torch.device | str,
    dtype: torch.dtype,
    tokens: int,
    backend: str | None = None,
    *,
    sequences: int = 1,
    states: int = 1,
) -> Choice:
    """Says which backend a scan of such tensors uses, and why. Refuses a named backend that cannot.

    Args:
        device: where the tensors are.
        dtype: of x.
        tokens: length.
        backend: as `selective_scan` takes it.
        sequences: batch x direction x channel.
        states: of a channel.
    """
    work = work_of(torch.device(device), dtype, tokens, sequences, states)
    return _explain(work, backend or _Default.name)


def _explain(work: Work, asked: str | None) -> Choice:
    if asked is None:
        return _from_table(work, adjoint=False)
    refusal = named(asked).refusal(work.device, work.dtype)
    if refusal is None and asked == "mamba_ssm" and work.large:
        refusal = f"it takes no more than {MAMBA_STATES} states"
    if refusal is not None:
        raise ValueError(f"the scan backend {asked!r} was asked for, but {refusal}")
    return Choice(asked, "asked for")


@functools.cache
def _from_table(work: Work, adjoint: bool) -> Choice:
    refusals: dict[str, str] = {}
    for row in TABLE:
        backend = named(row.backend)
        if not row.suits(work) or (adjoint and not isinstance(backend, AdjointBackend)):
            continue
        refusal = backend.refusal(work.device, work.dtype)
        if refusal is None:
            _warn_of_slowness(work, row, refusals)
            without = "".join(f"; not {name}: {why}" for name, why in refusals.items())
            return Choice(row.backend, row.reason + without)
        refusals[row.backend] = refusal
    raise AssertionError("the last row suits everything")


def _warn_of_slowness(work: Work, row: Row, refusals: dict[str, str]) -> None:
    if row.backend == "torch" and work.device.type == "cpu" and "cpu" in refusals:
        warnings.warn(
            f"the selective scan uses its slower torch form: {refusals['cpu']}", RuntimeWarning, stacklevel=2
        )


def choose(scan_of: Work, backend: str | None = None) -> Backend:
    """Takes the backend that `explain` names and logs it the first time."""
    return _choose(scan_of, backend or _Default.name)


@functools.cache
def _choose(work: Work, asked: str | None) -> Backend:
    choice = _explain(work, asked)
    _log_once(choice)
    return named(choice.backend)


def choose_adjoint(scan: Scan) -> AdjointBackend:
    """Takes a backend for the operation itself, which needs a backward pass of its own."""
    batch, K, tokens, width = scan.dt.shape
    work = work_of(scan.x.device, scan.x.dtype, tokens, batch * K * width, scan.A.shape[2])
    asked = None if _Default.name is None else named(_Default.name)
    if isinstance(asked, AdjointBackend) and asked.refusal(work.device, work.dtype) is None:
        return asked
    return _choose_adjoint(work)


@functools.cache
def _choose_adjoint(work: Work) -> AdjointBackend:
    choice = _from_table(work, adjoint=True)
    _log_once(choice)
    backend = named(choice.backend)
    assert isinstance(backend, AdjointBackend)
    return backend


@functools.cache
def _log_once(choice: Choice) -> None:
    logger.info("selective scan backend %s", choice)
