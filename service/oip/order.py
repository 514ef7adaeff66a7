"""What a request of the Open Inference Protocol says beside its numbers, and what that means here.

Clients say the same again and again, of other numbers. So who carries requests keeps what short ones said,
and what follows from it is found once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Final, Literal, NamedTuple, final

from pydantic import Field

from problems import EVOLUTION_PROBLEMS, PROBLEMS, STEADY_PROBLEMS
from service.errors import LONGEST_QUOTE, InvalidField
from service.oip.tensor import Described, Tensor
from service.options import Options, Urgency, read_options
from service.rollout import RolloutMethod
from service.versions.served import ServedVersion

__all__ = [
    "IN_DISTRIBUTION",
    "L2_ESTIMATE",
    "UPPER",
    "FrameOptions",
    "Order",
    "Parameter",
    "SolveOptions",
    "selector",
]

Parameter = bool | int | float | str

# outputs beside the fields
UPPER: Final = "error_upper"
L2_ESTIMATE: Final = "error_l2_estimate"
IN_DISTRIBUTION: Final = "in_distribution"
TRUST: Final = frozenset({UPPER, L2_ESTIMATE, IN_DISTRIBUTION})
# of Triton's priorities 0 is the default and 1 the highest
LEAST_URGENT_INTERACTIVE: Final = 1
SEQUENCE: Final = ("sequence_id", "sequence_start", "sequence_end")
# how Triton's own parameters begin
MEANINGLESS_HERE: Final = "triton_"


@final
class SolveOptions(NamedTuple):
    """What a request to solve says: the problem's parameters, and all else."""

    parameters: Mapping[str, float]
    options: Options


@final
class FrameOptions(Urgency):
    """What a request for a block of frames says beside the state."""

    start_step: int = Field(0, ge=0, le=2**31 - 2**16)
    method: RolloutMethod = "auto"
    walls: str | None = None


def selector(model: str, version: str) -> str:
    """What the protocol names in two parts, as the store names it: ``model`` or ``model@version``."""
    return f"{model}@{version}" if version else model


@final
class Order:
    """What a client said. Requests share it: nobody changes it.

    Attributes:
        model: its name, or ``name@alias``.
        version: a number, or empty: the version that the name means.
        name: both, as the service's names are.
        inputs: tensors that have their numbers, or wait for them.
        outputs: names of the wanted ones; empty: all.
        parameters: ``priority``, ``timeout`` [us], ``error``, ``method``, ``tolerance``, ``reproducible``,
            the problem's parameters such as ``source``, and ``start_step`` of a rollout.
        dtype: of the answer's fields.
    """

    def __init__(
        self,
        model: str,
        version: str,
        inputs: Sequence[Described | Tensor],
        outputs: tuple[str, ...] = (),
        parameters: Mapping[str, Parameter] | None = None,
    ) -> None:
        self.model = model
        self.version = version
        self.name = selector(model, version)
        self.inputs = inputs
        self.outputs = outputs
        self.parameters = parameters or {}
        doubles = any(each.datatype == "FP64" for each in inputs)
        self.dtype: Literal["float32", "float64"] = "float64" if doubles else "float32"
        # by problem
        self._named_well: set[str] = set()
        self._to_solve: dict[str, SolveOptions] = {}

    def without(self, *names: str) -> Order:
        """The same without some parameters."""
        rest = {name: value for name, value in self.parameters.items() if name not in names}
        return Order(self.model, self.version, self.inputs, self.outputs, rest)

    def check_names(self, version: ServedVersion) -> None:
        """Refuse what is no tensor of a version.

        Raises:
            InvalidField: there is such a thing.
        """
        if version.problem not in self._named_well:
            _check_names([each.name for each in self.inputs], self.outputs, version)
            self._named_well.add(version.problem)

    def to_solve(self, version: ServedVersion) -> SolveOptions:
        """What is said to a version of a steady problem.

        Raises:
            InvalidField: something that it does not understand.
        """
        known = self._to_solve.get(version.problem)
        if known is None:
            known = self._to_solve[version.problem] = _solve_options(
                version.problem, self.parameters, self.outputs
            )
        return known

    def to_step(self, version: ServedVersion) -> FrameOptions:
        """What is said to a version that steps in time.

        Raises:
            InvalidField: something that it does not understand.
        """
        names = [spec.name for spec in EVOLUTION_PROBLEMS[version.problem].inputs]
        return read_options(FrameOptions, names, _renamed(self.parameters), strict=True)


def _check_names(inputs: Sequence[str], outputs: Sequence[str], version: ServedVersion) -> None:
    # a name has a few bytes, and what it asks for as many as a field
    if len(outputs) > len(set(outputs)):
        raise InvalidField("outputs", "twice", "outputs: expected each once")
    known_inputs, known_outputs = _names_of(version.problem)
    for kind, given, known in (("input", inputs, known_inputs), ("output", outputs, known_outputs)):
        for name in given:
            if name not in known:
                quoted, expected = name[:LONGEST_QUOTE], ", ".join(sorted(known))
                message = f"{quoted!r} is no {kind} of {version}: expected {expected}"
                raise InvalidField(quoted, "unknown", message)


@cache
def _names_of(problem: str) -> tuple[frozenset[str], frozenset[str]]:
    """Names of the inputs and outputs of every model of a problem."""
    known = PROBLEMS[problem]
    trust = TRUST if problem in STEADY_PROBLEMS else {IN_DISTRIBUTION}
    inputs, outputs = ({spec.name for spec in specs} for specs in (known.inputs, known.outputs))
    return frozenset(inputs), frozenset(outputs | trust)


def _solve_options(name: str, parameters: Mapping[str, Parameter], outputs: Sequence[str]) -> SolveOptions:
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
    return SolveOptions(numbers, options)


def _renamed(parameters: Mapping[str, Parameter]) -> dict[str, Any]:
    """The parameters that mean something here, by the names that they have in this service.

    Raises:
        InvalidField: one that says that requests belong together, or a bad timeout.
    """
    rest: dict[str, Any] = {
        name: value for name, value in parameters.items() if not name.startswith(MEANINGLESS_HERE)
    }
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
