"""The choice of a backend."""

import functools
import logging
import warnings
from dataclasses import dataclass

import torch

from operators.scan.scan import AdjointBackend, Backend

REFERENCE_LENGTH = 256
"""Up to here float64 is scanned by the reference."""

logger = logging.getLogger(__name__)


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


def explain(
    device: torch.device | str, dtype: torch.dtype, tokens: int, backend: str | None = None
) -> Choice:
    """Says which backend a scan of such tensors uses, and why. Refuses a named backend that cannot."""
    return _explain(torch.device(device), dtype, tokens <= REFERENCE_LENGTH, backend or _Default.name)


def _explain(device: torch.device, dtype: torch.dtype, short: bool, asked: str | None) -> Choice:
    if asked is not None:
        refusal = named(asked).refusal(device, dtype)
        if refusal is not None:
            raise ValueError(f"the scan backend {asked!r} was asked for, but {refusal}")
        return Choice(asked, "asked for")
    if dtype == torch.float64 and short:
        return Choice("reference", f"float64 and no more than {REFERENCE_LENGTH} tokens")
    return _adjoint(device, dtype)


@functools.cache
def _adjoint(device: torch.device, dtype: torch.dtype) -> Choice:
    refusal = named("cpu").refusal(device, dtype)
    if refusal is None:
        return Choice("cpu", f"{dtype} on the CPU, and the native kernel is there")
    if device.type == "cpu" and dtype != torch.float64:
        warnings.warn(
            f"the selective scan uses its slower torch form: {refusal}", RuntimeWarning, stacklevel=2
        )
    return Choice("torch", f"the native kernel cannot: {refusal}")


def choose(device: torch.device, dtype: torch.dtype, tokens: int, backend: str | None = None) -> Backend:
    """Takes the backend that `explain` names and logs it the first time."""
    return _choose(device, dtype, tokens <= REFERENCE_LENGTH, backend or _Default.name)


@functools.cache
def _choose(device: torch.device, dtype: torch.dtype, short: bool, asked: str | None) -> Backend:
    choice = _explain(device, dtype, short, asked)
    _log_once(choice)
    return named(choice.backend)


def choose_adjoint(device: torch.device, dtype: torch.dtype) -> AdjointBackend:
    """Takes a backend for the operation itself, which needs a backward pass of its own."""
    asked = None if _Default.name is None else named(_Default.name)
    if isinstance(asked, AdjointBackend) and asked.refusal(device, dtype) is None:
        return asked
    backend = named(_adjoint(device, dtype).backend)
    assert isinstance(backend, AdjointBackend)
    return backend


@functools.cache
def _log_once(choice: Choice) -> None:
    logger.info("selective scan backend %s", choice)
