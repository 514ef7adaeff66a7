"""How a batch is computed by loaded surrogates: solutions, frames and gradients."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_store import LoadedVersion, Reference
from operators import AnySurrogate
from operators.features import FeatureReader
from problems import EVOLUTION_PROBLEMS, PROBLEMS, STEADY_PROBLEMS, FieldSpec
from service.errors import InvalidSettings
from service.workers import block_gradient, device_bounds
from service.workers.tangent import push_forward
from service.workers.worker import COTANGENT, GRADIENT, Batch, Bucket, Solutions

__all__ = ["Answer", "Surrogates", "by_name", "choose_device"]


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
class Answer(NamedTuple):
    """What a forward pass gives, on the device.

    Attributes:
        values: solutions [batch channel y x] or frames [batch frame channel y x].
        features: what the version makes of each input [batch feature]; None: nobody would know what it means.
    """

    values: Tensor
    features: Tensor | None


@final
class Surrogates:
    """Loaded versions on their device; call it with a float32 batch."""

    def __init__(self, versions: Collection[LoadedVersion], device: torch.device) -> None:
        self._device = device
        self._surrogates: dict[Reference, AnySurrogate] = {
            version.reference: version.surrogate.to(device).eval().requires_grad_(False)
            for version in versions
        }
        # features mean nothing without those of a calibration
        self._spaces = {
            version.reference: version.calibration.features
            for version in versions
            if version.calibration is not None
        }
        self._readers = {reference: FeatureReader(self._surrogates[reference]) for reference in self._spaces}

    def __call__(self, batch: Batch) -> Solutions:
        """Answer all rows with one forward pass: solutions, frames, gradients; or bound their errors."""
        if batch.bucket.task == "vjp":
            evolves = batch.bucket.problem in EVOLUTION_PROBLEMS
            return self._differentiate_block(batch) if evolves else self._differentiate(batch)
        if batch.bucket.task == "jvp":
            return push_forward(self._of(batch.bucket), batch, self._device)
        if batch.bucket.task == "bound":
            return device_bounds.bound_errors(batch, self._device)
        answer = self.answer(
            batch.bucket, {name: self._tensor(values) for name, values in batch.fields.items()}
        )
        return self.solutions(batch.bucket, answer)

    def solutions(self, bucket: Bucket, answer: Answer) -> Solutions:
        """An answer, by then on the host or not, as arrays of this process."""
        fields = by_name(PROBLEMS[bucket.problem].outputs, answer.values)
        return Solutions(fields, (0,) * len(answer.values), novelty=self._novelty(bucket, answer.features))

    def _novelty(self, bucket: Bucket, features: Tensor | None) -> tuple[float, ...]:
        if features is None:
            return ()
        return self._spaces[self._reference(bucket)].score(features.cpu().numpy())

    def answer(self, bucket: Bucket, fields: Mapping[str, Tensor]) -> Answer:
        """The forward pass for fields on the device."""
        problem = PROBLEMS[bucket.problem]
        parameters = [fields[spec.name] for spec in problem.parameters]
        with torch.inference_mode():
            inputs = torch.stack([fields[spec.name] for spec in problem.inputs], dim=1)
            if problem.name in EVOLUTION_PROBLEMS:
                inputs = inputs[:, None]  # [batch time channel y x]
            surrogate, reader = self._of(bucket), self._readers.get(self._reference(bucket))
            if reader is None:
                return Answer(surrogate(inputs, *parameters, bucket.grid.extent), None)
            with reader:
                return Answer(surrogate(inputs, *parameters, bucket.grid.extent), reader.take())

    def _of(self, bucket: Bucket) -> AnySurrogate:
        return self._surrogates[self._reference(bucket)]

    def _reference(self, bucket: Bucket) -> Reference:
        if bucket.version is None:
            raise ValueError("a batch for the reference solver came to the surrogates")
        return bucket.version

    def _differentiate(self, batch: Batch) -> Solutions:
        """The gradients of the sum of answers times cotangents."""
        problem = STEADY_PROBLEMS[batch.bucket.problem]
        inputs = self._stacked(batch, problem.inputs).requires_grad_()
        parameters = [
            self._tensor(batch.fields[spec.name]).clone().requires_grad_() for spec in problem.parameters
        ]
        with torch.enable_grad():
            answer = self._of(batch.bucket)(inputs, *parameters, batch.bucket.grid.extent)
            by_field, *by_parameter = torch.autograd.grad(
                answer,
                [inputs, *parameters],
                self._cotangents(batch, problem.outputs),
                materialize_grads=True,
            )
        gradients = by_name(problem.inputs, by_field) | {
            spec.name: gradient.cpu().numpy()
            for spec, gradient in zip(problem.parameters, by_parameter, strict=True)
        }
        found = {f"{GRADIENT}{name}": gradient for name, gradient in gradients.items()}
        return Solutions(found, (0,) * batch.rows)

    def _differentiate_block(self, batch: Batch) -> Solutions:
        """The gradients with respect to the state before a block, of a frame that has cotangents."""
        problem, bucket = EVOLUTION_PROBLEMS[batch.bucket.problem], batch.bucket
        gradients = block_gradient.pull_back(
            self._of(bucket),
            self._stacked(batch, problem.inputs),
            self._cotangents(batch, problem.outputs),
            bucket.grid.extent,
            bucket.frames,
        )
        by_field = by_name(problem.inputs, gradients)
        return Solutions(
            {f"{GRADIENT}{name}": gradient for name, gradient in by_field.items()}, (0,) * batch.rows
        )

    def _cotangents(self, batch: Batch, outputs: Sequence[FieldSpec]) -> Tensor:
        """Of the outputs [batch channel y x]; what has none does not count."""
        nothing = np.zeros((batch.rows, *batch.bucket.grid.shape), np.float32)
        given = {spec.name: batch.fields.get(f"{COTANGENT}{spec.name}", nothing) for spec in outputs}
        return self._stacked(Batch(batch.bucket, given), outputs)

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
