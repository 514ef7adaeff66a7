"""The Open Inference Protocol, version 2, whatever carries it: models as others see them, and inference.

A version is a model with one tensor for each field. Of a steady problem, inference is one solution; of an
evolution problem it is one block of frames that follow from a state. What is known about the error comes as
further outputs, so that a client who asks for none of them does not pay for the bound.

``http.py`` and the gRPC service bring an :class:`InferRequest` and carry an :class:`InferResponse` away.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Final, NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from problems import EVOLUTION_PROBLEMS, PROBLEMS, STEADY_PROBLEMS
from service.errors import InvalidField, ServiceFault
from service.oip.model import ModelMetadata, describe, model_config
from service.oip.order import IN_DISTRIBUTION, L2_ESTIMATE, UPPER, Order, selector
from service.oip.statistics import Statistics
from service.oip.tensor import Tensor, tensor_of
from service.options import Asker
from service.rollout import Frame, Rollout, RolloutRequest
from service.settings import Limits
from service.solver import Solver, SolveRequest, SolveResponse
from service.telemetry.timing import Timing
from service.versions.models import Models
from service.versions.served import ServedVersion

__all__ = [
    "EXTENSIONS",
    "NAME",
    "NO_SHARED_MEMORY",
    "InferRequest",
    "InferResponse",
    "Inference",
]

NAME: Final = "mno"
EXTENSIONS: Final = (
    "binary_tensor_data",
    "model_configuration",
    "model_repository",
    "parameters",
    "schedule_policy",
    "statistics",
)

# what is said to whoever wants to register a region
NO_SHARED_MEMORY: Final = "shared memory is not supported; send binary tensors"


@final
class InferRequest(NamedTuple):
    """What a client asks of a model.

    Attributes:
        id: comes back with the answer.
        inputs: tensors by name.
        asker: who asks, and since when.
        timeout_ms: a deadline that came with the call, counted from when it was received [ms].
    """

    order: Order
    id: str
    inputs: Mapping[str, Tensor]
    asker: Asker
    timeout_ms: float | None = None


@final
class InferResponse(NamedTuple):
    """What the model answers: the wanted tensors, in the wanted order.

    Attributes:
        batch_size: samples that were computed together, those of other requests included.
        timing: where the time went; None: nobody knows.
    """

    model: str
    version: str
    id: str
    outputs: tuple[Tensor, ...]
    batch_size: int = 1
    timing: Timing | None = None


@final
class _Answer(NamedTuple):
    """All outputs by name."""

    outputs: Mapping[str, NDArray[Any]]
    rows: int
    batch_size: int
    timing: Timing


@final
class Inference:
    """The loaded versions as models of the protocol."""

    def __init__(self, solver: Solver, models: Models, limits: Limits, statistics: Statistics) -> None:
        self._solver = solver
        self._models = models
        self._limits = limits
        self._statistics = statistics
        self._turns = map(str, itertools.count())

    def find(self, model: str, version: str = "", key: str = "") -> ServedVersion:
        """The loaded version that a name and a number mean.

        Raises:
            UnknownModel: there is none.
        """
        return self._models.named(selector(model, version), key).version

    def is_ready(self, model: str, version: str = "") -> bool:
        """Whether the model answers."""
        try:
            return self._models.named(selector(model, version)).queue.available
        except ServiceFault:
            return False

    def metadata(self, model: str, version: str = "") -> ModelMetadata:
        """Names, datatypes and shapes of a model's tensors.

        Raises:
            UnknownModel: it is not loaded.
        """
        found = self.find(model, version)
        return describe(found, [str(each.version) for each in self._versions_of(found.name)])

    def config(self, model: str, version: str = "") -> dict[str, Any]:
        """The model's configuration, with the field names of Triton's ``ModelConfig``.

        Raises:
            UnknownModel: it is not loaded.
        """
        found = self.find(model, version)
        numbers = [each.version for each in self._versions_of(found.name)]
        return model_config(found, numbers, self._limits.batch)

    def statistics(self, model: str = "", version: str = "") -> list[dict[str, Any]]:
        """Entries of ``model_stats``: one version, all of a model, or all.

        Raises:
            UnknownModel: it is not loaded.
        """
        if model and version:
            found = [self.find(model, version)]
        elif model:
            found = self._versions_of(self.find(model).name)
        else:
            found = list(self._models.versions)
        return [self._statistics.document(each.name, str(each.version)) for each in found]

    async def infer(self, request: InferRequest) -> InferResponse:
        """The answer of a model.

        Raises:
            ServiceFault: one of its kinds, when there is none.
        """
        # with one key a canary is chosen once, though it is looked for here and by the solver
        key = request.asker.key or next(self._turns)
        order = request.order
        found = self._models.named(order.name, key).version
        order.check_names(found)
        infer = self._solve if found.problem in STEADY_PROBLEMS else self._step
        try:
            answer = await infer(found, request, key)
        except ServiceFault:
            self._fail(found, request)
            raise
        self._count(found, answer, time.perf_counter() - request.asker.received)
        outputs, names = answer.outputs, order.outputs or tuple(answer.outputs)
        tensors = tuple([tensor_of(name, outputs[name]) for name in names])
        return InferResponse(
            found.name, str(found.version), request.id, tensors, answer.batch_size, answer.timing
        )

    async def roll_out(self, request: InferRequest, steps: int, every: int) -> tuple[ServedVersion, Rollout]:
        """All frames of a rollout, one by one, of a model that evolves: up to ``steps``, each ``every``-th.

        Raises:
            ServiceFault: one of its kinds, when there is none.
        """
        # with one key a canary is chosen once, though it is looked for here and by the solver
        key = request.asker.key or next(self._turns)
        found = self._models.named(request.order.name, key).version
        if found.problem in STEADY_PROBLEMS:
            raise InvalidField("steps", "unknown", f"steps: {found} solves a steady problem; leave it out")
        request.order.check_names(found)
        began = time.perf_counter()
        try:
            block = _rollout_request(found, request, key)
            wanted = replace(block, steps=block.start_step + steps, every=every)
            rollout = await self._solver.roll_out(wanted)
        except ServiceFault:
            self._fail(found, request)
            raise
        counted = self._counted(found, request, rollout, time.perf_counter() - began)
        return found, replace(rollout, frames=counted)

    async def _counted(
        self, found: ServedVersion, request: InferRequest, rollout: Rollout, computed: float
    ) -> AsyncGenerator[Frame, None]:
        """The frames of a rollout, which is counted when the last one was taken."""
        try:
            async with aclosing(rollout.frames) as frames:
                since = time.perf_counter()
                async for frame in frames:
                    computed += time.perf_counter() - since
                    yield frame
                    since = time.perf_counter()
        except ServiceFault:
            self._fail(found, request)
            raise
        rows, total = len(rollout.in_distribution), time.perf_counter() - request.asker.received
        timing = Timing.of_seconds(0.0, computed, 0.0, total)
        self._count(found, _Answer({}, rows, rows, timing), total)

    def _versions_of(self, name: str) -> list[ServedVersion]:
        return sorted(
            (each for each in self._models.versions if each.name == name), key=lambda each: each.version
        )

    def _fail(self, found: ServedVersion, request: InferRequest) -> None:
        seconds = time.perf_counter() - request.asker.received
        self._statistics.failed(found.name, str(found.version), seconds)

    def _count(self, found: ServedVersion, answer: _Answer, seconds: float) -> None:
        self._statistics.answered(
            found.name,
            str(found.version),
            rows=answer.rows,
            batch=answer.batch_size,
            queue=answer.timing.queue / 1000,
            compute=answer.timing.compute / 1000,
            total=seconds,
        )

    async def _solve(self, found: ServedVersion, request: InferRequest, key: str) -> _Answer:
        response = await self._solver.solve(_solve_request(found, request, key))
        return _Answer(_solved(response), len(response.iterations), response.batch_size, response.timing)

    async def _step(self, found: ServedVersion, request: InferRequest, key: str) -> _Answer:
        began = time.perf_counter()
        rollout = await self._solver.roll_out(_rollout_request(found, request, key))
        try:
            frames = [frame.fields async for frame in rollout.frames]
        finally:
            await rollout.close()
        outputs = {name: np.stack([each[name] for each in frames], axis=1) for name in rollout.names}
        known = np.array(rollout.in_distribution)
        seconds = time.perf_counter() - began
        timing = Timing.of_seconds(0.0, seconds, 0.0, time.perf_counter() - request.asker.received)
        if next(iter(request.inputs.values())).array.ndim == 2:
            outputs = {name: values[0] for name, values in outputs.items()}
            return _Answer({**outputs, IN_DISTRIBUTION: known}, 1, 1, timing)
        return _Answer({**outputs, IN_DISTRIBUTION: known[:, np.newaxis]}, len(known), len(known), timing)


def _solve_request(found: ServedVersion, request: InferRequest, key: str) -> SolveRequest:
    order, asker = request.order, request.asker
    numbers, options = order.to_solve(found)
    given: dict[str, Any] = {name: tensor.array for name, tensor in request.inputs.items()}
    return SolveRequest(
        found.problem,
        {**given, **numbers} if numbers else given,
        order.dtype,
        order.name,
        options.method,
        options.error,
        options.tolerance,
        asker.ticket(options, request.timeout_ms),
        key,
        asker.received,
    )


def _rollout_request(found: ServedVersion, request: InferRequest, key: str) -> RolloutRequest:
    order = request.order
    options = order.to_step(found)
    return RolloutRequest(
        found.problem,
        {name: tensor.array for name, tensor in request.inputs.items()},
        options.start_step + found.frames,
        start_step=options.start_step,
        dtype=order.dtype,
        model=order.name,
        method=options.method,
        walls=options.walls,
        ticket=request.asker.ticket(options, request.timeout_ms),
        key=key,
        received=request.asker.received,
    )


def _solved(response: SolveResponse) -> dict[str, NDArray[Any]]:
    """The tensors of a solution: of a single field [y x] and [1], of a batch [batch y x] and [batch 1]."""
    outputs = dict(response.fields)
    if response.errors is not None:
        outputs[UPPER] = np.array([error.upper for error in response.errors])
        outputs[L2_ESTIMATE] = np.array([error.l2_estimate for error in response.errors])
    if response.in_distribution is not None:
        outputs[IN_DISTRIBUTION] = np.array(response.in_distribution)
    if not response.single:
        for name in outputs.keys() - response.fields.keys():
            outputs[name] = outputs[name][:, np.newaxis]
    return outputs


# every problem is of one of the two kinds that infer knows
assert set(PROBLEMS) == set(STEADY_PROBLEMS) | set(EVOLUTION_PROBLEMS)
