"""The Open Inference Protocol, version 2, whatever carries it: models as others see them, and inference.

A version is a model with one tensor for each field. Of a steady problem, inference is one solution; of an
evolution problem it is one block of frames that follow from a state. What is known about the error comes as
further outputs, so that a client who asks for none of them does not pay for the bound.

``oip_http.py`` and the gRPC service bring an :class:`InferRequest` and carry an :class:`InferResponse` away.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from problems import EVOLUTION_PROBLEMS, PROBLEMS, STEADY_PROBLEMS
from service.errors import LONGEST_QUOTE, InvalidField, ServiceFault, UnknownModel
from service.models import Models
from service.oip_model import ModelMetadata, describe, model_config
from service.oip_tensor import Tensor, tensor_of
from service.options import Options, read_options, ticket
from service.rollout import RolloutMethod, RolloutRequest
from service.served import ServedVersion
from service.settings import Limits
from service.solver import SolveRequest, SolveResponse, Solver
from service.statistics import Statistics
from service.ticket import Priority

__all__ = ["EXTENSIONS", "NAME", "Inference", "InferRequest", "InferResponse", "Parameter"]

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
BOUNDS: Final = frozenset({UPPER, L2_ESTIMATE})
# of Triton's priorities 0 is the default and 1 the highest
LEAST_URGENT_INTERACTIVE: Final = 1
SEQUENCE: Final = ("sequence_id", "sequence_start", "sequence_end")


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
        client: whose share of the workers it uses.
        timeout_ms: a deadline that came with the call, counted from ``received`` on [ms].
        received: ``time.perf_counter()`` when the request arrived [s].
    """

    model: str
    version: str
    id: str
    inputs: Mapping[str, Tensor]
    outputs: tuple[str, ...] = ()
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    client: str = ""
    timeout_ms: float | None = None
    received: float = field(default_factory=time.perf_counter)


@final
@dataclass(frozen=True)
class InferResponse:
    """What the model answers: the wanted tensors, in the wanted order."""

    model: str
    version: str
    id: str
    outputs: tuple[Tensor, ...]
    parameters: Mapping[str, Parameter] = field(default_factory=dict)


@final
class _FrameOptions(BaseModel):
    """What a request for a block of frames says beside the state."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    start_step: int = Field(0, ge=0, le=2**31 - 2**16)
    method: RolloutMethod = "auto"
    walls: str | None = None
    timeout_ms: float | None = Field(None, gt=0, allow_inf_nan=False)
    priority: Priority = "interactive"
    reproducible: bool = False


@final
class Inference:
    """The loaded versions as models of the protocol."""

    def __init__(self, solver: Solver, models: Models, limits: Limits, statistics: Statistics) -> None:
        self._solver = solver
        self._models = models
        self._limits = limits
        self._statistics = statistics

    def find(self, model: str, version: str = "") -> ServedVersion:
        """The loaded version that a name and a number mean.

        Raises:
            UnknownModel: there is none.
        """
        wanted = f"{model}@{version}" if version else model
        name = model.partition("@")[0]
        for problem in sorted({known.problem for known in self._models.versions if known.name == name}):
            return self._models.find(problem, wanted).version
        loaded = sorted({known.name for known in self._models.versions}) or "none at all"
        raise UnknownModel(f"model {wanted[:LONGEST_QUOTE]!r} is not loaded; expected one of {loaded}")

    def is_ready(self, model: str, version: str = "") -> bool:
        """Whether the model answers."""
        try:
            self.find(model, version)
        except ServiceFault:
            return False
        return True

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
        found = self.find(request.model, request.version)
        _refuse_sequences(request.parameters)
        _check_names(request, describe(found, ()))
        infer = self._solve if found.problem in STEADY_PROBLEMS else self._step
        try:
            outputs = await infer(found, request)
        except ServiceFault:
            seconds = time.perf_counter() - request.received
            self._statistics.failed(found.name, str(found.version), seconds)
            raise
        wanted = request.outputs or tuple(outputs)
        tensors = tuple(tensor_of(name, outputs[name]) for name in wanted)
        return InferResponse(found.name, str(found.version), request.id, tensors)

    def _versions_of(self, name: str) -> list[ServedVersion]:
        return sorted(
            (each for each in self._models.versions if each.name == name), key=lambda each: each.version
        )

    async def _solve(self, found: ServedVersion, request: InferRequest) -> dict[str, NDArray[Any]]:
        response = await self._solver.solve(_solve_request(found, request))
        self._count(found, response, time.perf_counter() - request.received)
        return _solved(response)

    def _count(self, found: ServedVersion, response: SolveResponse, seconds: float) -> None:
        timing, rows = response.timing, len(response.in_distribution)
        self._statistics.answered(
            found.name,
            str(found.version),
            rows=rows,
            batch=response.batch_size,
            queue=timing.queue / 1000,
            compute=timing.compute / 1000,
            total=seconds,
        )

    async def _step(self, found: ServedVersion, request: InferRequest) -> dict[str, NDArray[Any]]:
        rollout = await self._solver.roll_out(_rollout_request(found, request))
        try:
            frames = [frame.fields async for frame in rollout.frames]
        finally:
            await rollout.close()
        blocks = {name: np.stack([each[name] for each in frames], axis=1) for name in rollout.names}
        known = np.array(rollout.in_distribution)
        single = next(iter(request.inputs.values())).array.ndim == 2
        seconds = time.perf_counter() - request.received
        self._statistics.answered(
            found.name,
            str(found.version),
            rows=len(known),
            batch=len(known),
            queue=0.0,
            compute=seconds,
            total=seconds,
        )
        if single:
            return {name: values[0] for name, values in blocks.items()} | {IN_DISTRIBUTION: known}
        return blocks | {IN_DISTRIBUTION: known[:, np.newaxis]}


def _check_names(request: InferRequest, metadata: ModelMetadata) -> None:
    for kind, given, known in (
        ("input", request.inputs, [each.name for each in metadata.inputs]),
        ("output", request.outputs, [each.name for each in metadata.outputs]),
    ):
        for name in given:
            if name not in known:
                message = f"{name[:LONGEST_QUOTE]!r} is no {kind} of {request.model}: expected {', '.join(known)}"
                raise InvalidField(name[:LONGEST_QUOTE], "unknown", message)


def _refuse_sequences(parameters: Mapping[str, Parameter]) -> None:
    if any(parameters.get(name) for name in SEQUENCE):
        message = "sequence_id: requests are independent; send the last frame of an answer as the next input"
        raise InvalidField("sequence_id", "sequence", message)


def _solve_request(found: ServedVersion, request: InferRequest) -> SolveRequest:
    problem = STEADY_PROBLEMS[found.problem]
    given: dict[str, Any] = {name: tensor.array for name, tensor in request.inputs.items()}
    rest = _parameters(request)
    given |= {spec.name: _number(spec.name, rest.pop(spec.name)) for spec in problem.parameters if spec.name in rest}
    wants_bounds = not request.outputs or not BOUNDS.isdisjoint(request.outputs)
    rest.setdefault("error", "bound" if wants_bounds else "none")
    names = [spec.name for spec in (*problem.inputs, *problem.parameters)]
    options = read_options(Options, names, rest, strict=True)
    if options.error == "none" and not BOUNDS.isdisjoint(request.outputs):
        raise InvalidField("error", "none", "the outputs of the bound need error=bound; leave error out")
    return SolveRequest(
        problem.name,
        given,
        _precision(request),
        model=str(found),
        method=options.method,
        error=options.error,
        tolerance=options.tolerance,
        timeout_ms=options.timeout_ms,
        received=request.received,
        ticket=ticket(
            request.client,
            request.received,
            options.timeout_ms,
            options.priority,
            reproducible=options.reproducible,
        ),
    )


def _rollout_request(found: ServedVersion, request: InferRequest) -> RolloutRequest:
    rest = _parameters(request)
    names = [spec.name for spec in EVOLUTION_PROBLEMS[found.problem].inputs]
    options = read_options(_FrameOptions, names, rest, strict=True)
    return RolloutRequest(
        found.problem,
        {name: tensor.array for name, tensor in request.inputs.items()},
        options.start_step + found.frames,
        start_step=options.start_step,
        dtype=_precision(request),
        model=str(found),
        method=options.method,
        walls=options.walls,
        timeout_ms=options.timeout_ms,
        received=request.received,
        ticket=ticket(
            request.client,
            request.received,
            options.timeout_ms,
            options.priority,
            reproducible=options.reproducible,
        ),
    )


def _parameters(request: InferRequest) -> dict[str, Any]:
    """The parameters by the names that they have in this service, without those that mean nothing here."""
    rest: dict[str, Any] = {
        name: value
        for name, value in request.parameters.items()
        if name not in SEQUENCE and not name.startswith("triton_")
    }
    # microseconds there, milliseconds here; 0 is none
    own = rest.pop("timeout", 0)
    if isinstance(own, bool | str) or own < 0:
        raise InvalidField("timeout", "minimum", f"timeout: expected microseconds, got {own!r}"[:LONGEST_QUOTE])
    deadlines = [*([own / 1000] if own else []), *([request.timeout_ms] if request.timeout_ms else [])]
    if deadlines:
        rest["timeout_ms"] = min(deadlines)
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

    def column(values: Iterator[float] | Sequence[bool], dtype: type) -> NDArray[Any]:
        numbers = np.array(list(values), dtype)
        return numbers if response.single else numbers[:, np.newaxis]

    if response.errors is not None:
        outputs[UPPER] = column((error.upper for error in response.errors), np.float64)
        outputs[L2_ESTIMATE] = column((error.l2_estimate for error in response.errors), np.float64)
    outputs[IN_DISTRIBUTION] = column(response.in_distribution, np.bool_)
    return outputs


# every problem is of one of the two kinds that infer knows
assert set(PROBLEMS) == set(STEADY_PROBLEMS) | set(EVOLUTION_PROBLEMS)
