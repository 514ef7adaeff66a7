"""The Open Inference Protocol, version 2, whatever carries it: models as others see them, and inference.

A version is a model with one tensor for each field. Of a steady problem, inference is one solution; of an
evolution problem it is one block of frames that follow from a state. What is known about the error comes as
further outputs, so that a client who asks for none of them does not pay for the bound.

``http.py`` and the gRPC service bring an :class:`InferRequest` and carry an :class:`InferResponse` away.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from typing import Any, Final, Literal, final

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from problems import EVOLUTION_PROBLEMS, PROBLEMS, STEADY_PROBLEMS
from service.errors import LONGEST_QUOTE, InvalidField, ServiceFault
from service.oip.model import ModelMetadata, describe, model_config
from service.oip.statistics import Statistics
from service.oip.tensor import Tensor, tensor_of
from service.options import Asker, Options, Urgency, read_options
from service.rollout import Rollout, RolloutMethod, RolloutRequest
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
    "Parameter",
]

Parameter = bool | int | float | str

NAME: Final = "mno"
EXTENSIONS: Final = (
    "binary_tensor_data",
    "model_configuration",
    "model_repository",
    "parameters",
    "schedule_policy",
    "statistics",
)

# outputs beside the fields
UPPER: Final = "error_upper"
L2_ESTIMATE: Final = "error_l2_estimate"
IN_DISTRIBUTION: Final = "in_distribution"
TRUST: Final = frozenset({UPPER, L2_ESTIMATE, IN_DISTRIBUTION})
# of Triton's priorities 0 is the default and 1 the highest
LEAST_URGENT_INTERACTIVE: Final = 1
SEQUENCE: Final = ("sequence_id", "sequence_start", "sequence_end")
# what is said to whoever wants to register a region
NO_SHARED_MEMORY: Final = "shared memory is not supported; send binary tensors"


@final
@dataclass(frozen=True)
class InferRequest:
    """What a client asks of a model.

    Attributes:
        model: its name, or ``name@alias``.
        version: a number, or empty: the version that the name means.
        id: comes back with the answer.
        inputs: tensors by name.
        outputs: names of the wanted ones; empty: all.
        parameters: ``priority``, ``timeout`` [us], ``error``, ``method``, ``tolerance``, ``reproducible``,
            the problem's parameters such as ``source``, and ``start_step`` of a rollout.
        asker: who asks, and since when.
        timeout_ms: a deadline that came with the call, counted from when it was received [ms].
    """

    model: str
    version: str
    id: str
    inputs: Mapping[str, Tensor]
    outputs: tuple[str, ...] = ()
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    asker: Asker = field(default_factory=lambda: Asker("", "", time.perf_counter()))
    timeout_ms: float | None = None


@final
@dataclass(frozen=True)
class InferResponse:
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
class _FrameOptions(Urgency):
    """What a request for a block of frames says beside the state."""

    start_step: int = Field(0, ge=0, le=2**31 - 2**16)
    method: RolloutMethod = "auto"
    walls: str | None = None


@final
@dataclass(frozen=True)
class _Answer:
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
        return self._models.named(_wanted(model, version), key).version

    def is_ready(self, model: str, version: str = "") -> bool:
        """Whether the model answers."""
        try:
            return self._models.named(_wanted(model, version)).queue.available
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
        found = self.find(request.model, request.version, key)
        _check_names(request, found)
        infer = self._solve if found.problem in STEADY_PROBLEMS else self._step
        began = request.asker.received
        try:
            answer = await infer(found, request, key)
        except ServiceFault:
            self._statistics.failed(found.name, str(found.version), time.perf_counter() - began)
            raise
        self._count(found, answer, time.perf_counter() - began)
        outputs, names = answer.outputs, request.outputs or tuple(answer.outputs)
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
        found = self.find(request.model, request.version, key)
        if found.problem in STEADY_PROBLEMS:
            raise InvalidField("steps", "unknown", f"steps: {found} solves a steady problem; leave it out")
        _check_names(request, found)
        block = _rollout_request(found, request, key)
        wanted = replace(block, steps=block.start_step + steps, every=every)
        return found, await self._solver.roll_out(wanted)

    def _versions_of(self, name: str) -> list[ServedVersion]:
        return sorted(
            (each for each in self._models.versions if each.name == name), key=lambda each: each.version
        )

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


def _check_names(request: InferRequest, found: ServedVersion) -> None:
    inputs, outputs = _names_of(found.problem)
    if inputs.issuperset(request.inputs) and outputs.issuperset(request.outputs):
        return
    for kind, given, known in (("input", request.inputs, inputs), ("output", request.outputs, outputs)):
        for name in given:
            if name not in known:
                quoted, expected = name[:LONGEST_QUOTE], ", ".join(sorted(known))
                message = f"{quoted!r} is no {kind} of {found}: expected {expected}"
                raise InvalidField(quoted, "unknown", message)


def _wanted(model: str, version: str) -> str:
    return f"{model}@{version}" if version else model


@cache
def _names_of(problem: str) -> tuple[frozenset[str], frozenset[str]]:
    """Names of the inputs and outputs of every model of a problem."""
    known = PROBLEMS[problem]
    trust = TRUST if problem in STEADY_PROBLEMS else {IN_DISTRIBUTION}
    inputs, outputs = ({spec.name for spec in specs} for specs in (known.inputs, known.outputs))
    return frozenset(inputs), frozenset(outputs | trust)


def _solve_request(found: ServedVersion, request: InferRequest, key: str) -> SolveRequest:
    numbers, options = _solve_options(found.problem, _hashable(request.parameters), request.outputs)
    asker = request.asker
    given: dict[str, Any] = {name: tensor.array for name, tensor in request.inputs.items()}
    return SolveRequest(
        found.problem,
        {**given, **numbers} if numbers else given,
        _precision(request),
        _wanted(request.model, request.version),
        options.method,
        options.error,
        options.tolerance,
        asker.ticket(options, request.timeout_ms),
        key,
        asker.received,
    )


# the value's type beside it: True is 1 to a dictionary, and not to us
Given = tuple[tuple[str, type, Parameter], ...]


def _hashable(parameters: Mapping[str, Parameter]) -> Given:
    return tuple([(name, type(value), value) for name, value in parameters.items()])


# clients ask for the same again and again
@lru_cache(maxsize=512)
def _solve_options(
    name: str, parameters: Given, outputs: tuple[str, ...]
) -> tuple[Mapping[str, float], Options]:
    problem = STEADY_PROBLEMS[name]
    rest = _renamed(parameters)
    numbers = {
        spec.name: _number(spec.name, rest.pop(spec.name)) for spec in problem.parameters if spec.name in rest
    }
    wants_trust = not outputs or not TRUST.isdisjoint(outputs)
    rest.setdefault("error", "bound" if wants_trust else "none")
    names = [spec.name for spec in (*problem.inputs, *problem.parameters)]
    options = read_options(Options, names, rest, strict=True)
    if options.error == "none" and not TRUST.isdisjoint(outputs):
        unknown = ", ".join(sorted(TRUST.intersection(outputs)))
        raise InvalidField("error", "none", f"the output {unknown} needs error=bound; leave error out")
    return numbers, options


def _rollout_request(found: ServedVersion, request: InferRequest, key: str) -> RolloutRequest:
    names = [spec.name for spec in EVOLUTION_PROBLEMS[found.problem].inputs]
    options = read_options(_FrameOptions, names, _renamed(_hashable(request.parameters)), strict=True)
    return RolloutRequest(
        found.problem,
        {name: tensor.array for name, tensor in request.inputs.items()},
        options.start_step + found.frames,
        start_step=options.start_step,
        dtype=_precision(request),
        model=_wanted(request.model, request.version),
        method=options.method,
        walls=options.walls,
        ticket=request.asker.ticket(options, request.timeout_ms),
        key=key,
        received=request.asker.received,
    )


def _renamed(parameters: Given) -> dict[str, Any]:
    """The parameters by the names that they have in this service, without those that mean nothing here.

    Raises:
        InvalidField: one that says that requests belong together, or a bad timeout.
    """
    rest = {name: value for name, _, value in parameters if not name.startswith("triton_")}
    sequence = [rest.pop(name, False) for name in SEQUENCE]
    if any(sequence):
        message = "sequence_id: requests are independent; send the last frame of an answer as the next input"
        raise InvalidField("sequence_id", "sequence", message)
    # microseconds there, milliseconds here; 0 is none
    own = rest.pop("timeout", 0)
    if isinstance(own, bool | str) or not own >= 0:
        raise InvalidField(
            "timeout", "minimum", f"timeout: expected microseconds, got {own!r}"[:LONGEST_QUOTE]
        )
    if own:
        rest["timeout_ms"] = own / 1000
    urgency = rest.get("priority")
    if isinstance(urgency, int) and not isinstance(urgency, bool):
        rest["priority"] = "interactive" if urgency <= LEAST_URGENT_INTERACTIVE else "bulk"
    return rest


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidField(name, "numbers", f"{name}: expected a number, got {value!r}"[:LONGEST_QUOTE])
    return float(value)


def _precision(request: InferRequest) -> Literal["float32", "float64"]:
    doubles = any(tensor.array.dtype == np.float64 for tensor in request.inputs.values())
    return "float64" if doubles else "float32"


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
