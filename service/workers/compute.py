"""How a batch is computed by loaded surrogates: solutions, frames and gradients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_store import LoadedVersion, Reference
from operators import AnySurrogate
from problems import EVOLUTION_PROBLEMS, PROBLEMS, STEADY_PROBLEMS, FieldSpec
from service.errors import InvalidSettings
from service.workers.worker import COTANGENT, GRADIENT, Batch, Bucket, Solutions

__all__ = ["Surrogates", "by_name", "choose_device"]


def choose_device(wanted: str) -> torch.device:
    """``cpu``, ``cuda``, ``cuda:1``; ``auto`` is CUDA where there is a device.

    Raises:
        InvalidSettings: CUDA is wanted and there is none.
    """
    found = torch.cuda.is_available()
    if wanted.startswith("cuda") and not found:
        raise InvalidSettings("device: expected a CUDA device, found none; use --device cpu or auto")
    if wanted == "auto":
        wanted = "cuda" if found else "cpu"
    return torch.device(wanted)


@final
class Surrogates:
    """Loaded versions on their device; call it with a float32 batch."""

    def __init__(self, versions: Iterable[LoadedVersion], device: torch.device) -> None:
        self._device = device
        self._surrogates: dict[Reference, AnySurrogate] = {
            version.reference: version.surrogate.to(device).eval().requires_grad_(False)
            for version in versions
        }

    def __call__(self, batch: Batch) -> Solutions:
        """Answer all rows with one forward pass: solutions, the next block of frames, or gradients."""
        if batch.bucket.task == "vjp":
            return self._differentiate(batch)
        answer = self.answer(
            batch.bucket, {name: self._tensor(values) for name, values in batch.fields.items()}
        )
        return Solutions(by_name(PROBLEMS[batch.bucket.problem].outputs, answer), (0,) * batch.rows)

    def answer(self, bucket: Bucket, fields: Mapping[str, Tensor]) -> Tensor:
        """Solutions [batch channel y x] or frames [batch frame channel y x] of fields on the device."""
        problem = PROBLEMS[bucket.problem]
        parameters = [fields[spec.name] for spec in problem.parameters]
        with torch.inference_mode():
            inputs = torch.stack([fields[spec.name] for spec in problem.inputs], dim=1)
            if problem.name in EVOLUTION_PROBLEMS:
                inputs = inputs[:, None]  # [batch time channel y x]
            answer: Tensor = self._of(bucket)(inputs, *parameters, bucket.grid.extent)
        return answer

    def _of(self, bucket: Bucket) -> AnySurrogate:
        if bucket.version is None:
            raise ValueError("a batch for the reference solver came to the surrogates")
        return self._surrogates[bucket.version]

    def _differentiate(self, batch: Batch) -> Solutions:
        """The answers, and the gradients of the sum of answers times cotangents."""
        problem = STEADY_PROBLEMS[batch.bucket.problem]
        # what has no cotangent does not count
        nothing = np.zeros((batch.rows, *batch.bucket.grid.shape), np.float32)
        cotangents = {
            spec.name: batch.fields.get(f"{COTANGENT}{spec.name}", nothing) for spec in problem.outputs
        }
        inputs = self._stacked(batch, problem.inputs).requires_grad_()
        parameters = [
            self._tensor(batch.fields[spec.name]).clone().requires_grad_() for spec in problem.parameters
        ]
        with torch.enable_grad():
            answer = self._of(batch.bucket)(inputs, *parameters, batch.bucket.grid.extent)
            by_field, *by_parameter = torch.autograd.grad(
                answer,
                [inputs, *parameters],
                self._stacked(Batch(batch.bucket, cotangents), problem.outputs),
                materialize_grads=True,
            )
        gradients = by_name(problem.inputs, by_field) | {
            spec.name: gradient.cpu().numpy()
            for spec, gradient in zip(problem.parameters, by_parameter, strict=True)
        }
        return Solutions(
            by_name(problem.outputs, answer.detach())
            | {f"{GRADIENT}{name}": gradient for name, gradient in gradients.items()},
            (0,) * batch.rows,
        )

    def _stacked(self, batch: Batch, specs: Sequence[FieldSpec]) -> Tensor:
        """Fields as channels, in memory of their own [batch channel y x]."""
        return torch.stack([self._tensor(batch.fields[spec.name]) for spec in specs], dim=1)

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        # torch knows no memory that must not be written
        return torch.from_numpy(array if array.flags.writeable else array.copy()).to(self._device)


def by_name(specs: Sequence[FieldSpec], answer: Tensor) -> dict[str, NDArray[Any]]:
    """The channels of an answer [... channel y x] as arrays of this process."""
    host = answer.cpu().numpy()
    return {spec.name: host[..., channel, :, :] for channel, spec in enumerate(specs)}
