"""What both clients take, and what they make of it; only how an answer is waited for is their own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar, final

from numpy.typing import ArrayLike

from service.client.answers import Answer, Frame, Gradient, Tangent
from service.client.connection import Question
from service.client.frames import Follower
from service.client.labels import is_labelled, labelled_like, plain
from service.client.retrying import Patience
from service.client.states import first_field, state_question

__all__ = ["Asking", "Rollouts", "named_alike"]

# an answer, a gradient, a tangent, quantities, frames and descriptions: at once, or to be awaited
Solved = TypeVar("Solved")
PulledBack = TypeVar("PulledBack")
PushedForward = TypeVar("PushedForward")
Read = TypeVar("Read")
Followed = TypeVar("Followed")
Described = TypeVar("Described")
Known = TypeVar("Known", Answer, Gradient, Tangent)


def question_of(
    problem: str,
    field: ArrayLike | Any,
    options: Mapping[str, Any],
    parameters: Mapping[str, float],
    direction: ArrayLike | Any = None,
    wanted: Sequence[str] = (),
) -> Question:
    """What is asked; options that say nothing are left out."""
    return Question(
        problem,
        plain(field),
        _said(options),
        parameters,
        None if direction is None else plain(direction),
        wanted,
    )


def _said(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None and value is not False}


def _refuse_rollout(**options: object) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise ValueError(f"{', '.join(given)}: expected steps with them: they belong to a rollout")


def named_alike(field: Any, found: Known) -> Known:
    """The answer with the coordinates of the question's field, if it has any."""
    if not is_labelled(field):
        return found
    if isinstance(found, Tangent):
        if found.tangent.ndim > plain(field).ndim:
            return found
        return replace(found, tangent=labelled_like(field, {found.of: found.tangent})[found.of])
    if isinstance(found, Answer):
        return replace(found, fields=labelled_like(field, found.fields))
    # several directions have an axis that the field has not
    if found.gradient.ndim > plain(field).ndim:
        return found
    return replace(found, gradient=labelled_like(field, {found.wrt: found.gradient})[found.wrt])


@final
class Rollouts:
    """A rollout that a client follows, with coordinates where its state has them."""

    def __init__(
        self,
        problem: str,
        state: Mapping[str, ArrayLike | Any] | ArrayLike,
        options: Mapping[str, Any],
        patience: Patience,
    ) -> None:
        given = _said(options)
        if isinstance(state, Mapping):
            self._like = next(iter(state.values()), None)
            fields = {name: plain(field) for name, field in state.items()}
            self.follower = Follower(problem, fields, given, patience)
        else:
            self._like = None
            self.follower = Follower(problem, plain(state), given, patience)

    def take(self, frame: Frame, block: int) -> Frame | None:
        """See ``Follower``."""
        taken = self.follower.take(frame, block)
        if taken is None or not is_labelled(self._like):
            return taken
        return replace(taken, fields=labelled_like(self._like, taken.fields))


class Asking(ABC, Generic[Solved, PulledBack, PushedForward, Read, Followed, Described]):
    """What a client can be asked."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience

    def solve(
        self,
        problem: str,
        field: ArrayLike | Any,
        *,
        model: str | None = None,
        method: str = "auto",
        error: str = "bound",
        tolerance: float | str | None = None,
        timeout_ms: float | None = None,
        priority: str | None = None,
        reproducible: bool = False,
        **parameters: float,
    ) -> Solved:
        """Solve one field (ny, nx) or a batch (batch, ny, nx); float64 in gives float64 out.

        Args:
            problem: ``darcy``.
            field: its input field, for Darcy the permeability; an ``xarray.DataArray`` gives such answers.
            model: ``name``, ``name@alias`` or ``name@3``.
            method: ``surrogate``, ``solver``, ``hybrid`` (the solver from the surrogate's answer), or
                ``auto``: the surrogate, and with a tolerance the cheaper of the other two.
            error: ``bound``, ``certified`` (from both sides, within 5 %) or ``none``.
            tolerance: largest relative error in the energy norm, guaranteed, such as 1e-6, or
                ``discretization``: as exact as the grid resolves the equation. Such answers are float64.
            timeout_ms: deadline for the service [ms].
            priority: ``interactive``, or ``bulk`` for what can wait.
            reproducible: the same bits whatever else the service computes.
            parameters: uniform parameters of the problem, for Darcy ``source``.

        Raises:
            ServiceError: the service refused or failed.
            httpx.HTTPError: the service could not be reached; over gRPC ``Unreachable``.
        """
        options = {
            "model": model,
            "method": method,
            "error": error,
            "tolerance": tolerance,
            "timeout_ms": timeout_ms,
            "priority": priority,
            "reproducible": reproducible,
        }
        return self._solve(question_of(problem, field, options, parameters), field)

    def vjp(
        self,
        problem: str,
        field: Mapping[str, ArrayLike | Any] | ArrayLike | Any,
        cotangent: Mapping[str, ArrayLike | Any] | ArrayLike | Any,
        *,
        steps: int | None = None,
        start_step: int | None = None,
        walls: str | None = None,
        wrt: str | None = None,
        model: str | None = None,
        method: str = "auto",
        tolerance: float | None = None,
        timeout_ms: float | None = None,
        priority: str | None = None,
        reproducible: bool = False,
        **parameters: float,
    ) -> PulledBack:
        """The gradient of the sum of ``cotangent`` times the solution, or times a frame of a rollout.

        Args:
            problem: ``darcy``; with ``steps``, ``shallow_water`` or ``diffusion_reaction``.
            field: where to differentiate; see ``solve``. With ``steps`` a state; see ``rollout``.
            cotangent: in the shape of the solution, or several such on a leading axis. With ``steps`` of the
                frame, by name or as channels like the state; fields that are left out do not count.
            steps: the step of the frame, counted from the initial state. Such a gradient is that of the
                network, through the whole rollout, and nothing bounds its error.
            start_step: number of the step that the state belongs to.
            walls: boundary conditions of a rollout; those of the model are the only ones that it knows.
            wrt: the input field, ``permeability``, or ``log_permeability`` for its logarithm; of a state its
                first field, if this is left out.
            model: see ``solve``; so for the others.
            method: ``adjoint`` (of the discrete problem, with a guaranteed error), ``surrogate`` (of the
                network), or ``auto``: the surrogate where a model is named, else the adjoint; of a rollout it
                is the surrogate.
            tolerance: of the adjoint, the relative energy error of each of its solves.
            timeout_ms: deadline for the service [ms].
            priority: ``interactive``, or ``bulk`` for what can wait.
            reproducible: the same bits whatever else the service computes.
            parameters: uniform parameters of the problem, for Darcy ``source``.

        Raises:
            ValueError: cotangents of fields that the state does not have; a start without ``steps``.
            ServiceError: the service refused or failed.
            httpx.HTTPError: the service could not be reached; over gRPC ``Unreachable``.
        """
        options = {
            "wrt": wrt,
            "model": model,
            "method": method,
            "tolerance": tolerance,
            "timeout_ms": timeout_ms,
            "priority": priority,
            "reproducible": reproducible,
        }
        if steps is None:
            _refuse_rollout(start_step=start_step, walls=walls)
            return self._pull_back(question_of(problem, field, options, parameters, cotangent), field)
        options |= {"steps": steps, "start_step": start_step, "walls": walls}
        question = state_question(problem, field, "cotangent", cotangent, _said(options), parameters)
        return self._pull_back(question, first_field(field))

    def jvp(
        self,
        problem: str,
        field: Mapping[str, ArrayLike | Any] | ArrayLike | Any,
        tangent: Mapping[str, ArrayLike | Any] | ArrayLike | Any,
        *,
        steps: int | None = None,
        every: int | None = None,
        start_step: int | None = None,
        walls: str | None = None,
        wrt: str | None = None,
        model: str | None = None,
        method: str = "auto",
        tolerance: float | None = None,
        timeout_ms: float | None = None,
        priority: str | None = None,
        reproducible: bool = False,
        **parameters: float,
    ) -> PushedForward:
        """What a change of the input by ``tangent`` changes in the solution, or in frames, to first order.

        Args:
            problem: ``darcy``; with ``steps``, ``shallow_water`` or ``diffusion_reaction``.
            field: where to differentiate; see ``solve``. With ``steps`` a state; see ``rollout``.
            tangent: in the shape of the field, or several such on a leading axis. With ``steps`` of the
                state, by name or as channels like it; fields that are left out do not change.
            steps: the step of the frame, counted from the initial state. Such a tangent is that of the
                network, through the whole rollout, and nothing bounds its error.
            every: the tangents of all steps that this divides, up to ``steps``, on an axis of their own;
                None: of ``steps`` alone.
            start_step: see ``vjp``; so for ``walls``.
            walls: see ``vjp``.
            wrt: what changes: the input field, or ``log_permeability``, its logarithm. Of a state, ``log_h``
                says that the tangents of h are those of its logarithm.
            model: see ``vjp``; so for the others.
            method: see ``vjp``.
            tolerance: see ``vjp``.
            timeout_ms: deadline for the service [ms].
            priority: ``interactive``, or ``bulk`` for what can wait.
            reproducible: the same bits whatever else the service computes.
            parameters: uniform parameters of the problem, for Darcy ``source``.

        Raises:
            ValueError: tangents of fields that the state does not have; a start without ``steps``; ``every``
                is below 1.
            ServiceError: the service refused or failed.
            httpx.HTTPError: the service could not be reached; over gRPC ``Unreachable``.
        """
        options = {
            "wrt": wrt,
            "model": model,
            "method": method,
            "tolerance": tolerance,
            "timeout_ms": timeout_ms,
            "priority": priority,
            "reproducible": reproducible,
        }
        if steps is None:
            _refuse_rollout(every=every, start_step=start_step, walls=walls)
            return self._push_forward(question_of(problem, field, options, parameters, tangent), field)
        if every is not None and every < 1:
            raise ValueError(f"every: expected 1 or more, got {every}")
        options |= {"steps": steps, "every": every, "start_step": start_step, "walls": walls}
        question = state_question(problem, field, "tangent", tangent, _said(options), parameters)
        return self._push_forward(question, first_field(field))

    def quantities(
        self,
        problem: str,
        field: ArrayLike | Any,
        wanted: Sequence[str],
        *,
        model: str | None = None,
        tolerance: float | None = None,
        timeout_ms: float | None = None,
        priority: str | None = None,
        **parameters: float,
    ) -> Read:
        """Numbers that are read off the discrete solution, each with a guaranteed half-width.

        Args:
            problem: ``darcy``.
            field: see ``solve``.
            wanted: ``mean``, ``outflow``, ``outflow.left`` (right, bottom, top, or some with +),
                ``reading(y, x)`` [m].
            model: whose answer the solves start from.
            tolerance: each half-width is to be no more than this part of its value.
            timeout_ms: deadline for the service [ms].
            priority: ``interactive``, or ``bulk`` for what can wait.
            parameters: uniform parameters of the problem, for Darcy ``source``.

        Raises:
            ServiceError: the service refused or failed.
            httpx.HTTPError: the service could not be reached; over gRPC ``Unreachable``.
        """
        options = {
            "model": model,
            "tolerance": tolerance,
            "timeout_ms": timeout_ms,
            "priority": priority,
        }
        return self._read(question_of(problem, field, options, parameters, wanted=tuple(wanted)))

    def rollout(
        self,
        problem: str,
        state: Mapping[str, ArrayLike | Any] | ArrayLike,
        *,
        steps: int = 100,
        every: int = 1,
        start_step: int = 0,
        model: str | None = None,
        method: str = "auto",
        walls: str | None = None,
        defects: int | str = 0,
        timeout_ms: float | None = None,
        priority: str | None = None,
        reproducible: bool = False,
    ) -> Followed:
        """The frames that follow from a state, as they are computed; float64 in gives float64 out.

        A connection that breaks is taken up again, and the frames are those of a stream that did not break;
        of the reference solver in float32 up to rounding. Close the generator, or drop it, to stop the
        computation.

        Args:
            problem: ``shallow_water`` or ``diffusion_reaction``.
            state: fields (ny, nx) by name, or one array (channel, ny, nx); of shallow water ``hu`` and ``hv``
                may be left out where nothing moves.
            steps: the last step, counted from the initial state.
            every: yield every so-many-th step.
            start_step: number of the step that ``state`` belongs to.
            model: ``name``, ``name@alias`` or ``name@3``.
            method: ``auto``, ``surrogate`` or ``solver``.
            walls: boundary conditions; a surrogate knows those that it was trained with only.
            defects: of a surrogate, so many of the frames, or ``all``, are compared with one step of the
                reference solver from the frame before. A stream that was taken up again compares others of
                the rest, and has no ``exponential_bound`` from there on.
            timeout_ms: deadline for the last frame [ms].
            priority: ``interactive``, or ``bulk`` for what can wait.
            reproducible: the same bits whatever else the service computes.

        Raises:
            ValueError: ``every`` is below 1, or ``defects`` is no number of frames.
            ServiceError: the service refused or failed.
            httpx.HTTPError: the service could not be reached, or the stream broke and nothing new came for
                seconds; over gRPC ``Unreachable``.
        """
        options = {
            "steps": steps,
            "every": every,
            "start_step": start_step,
            "model": model,
            "method": method,
            "walls": walls,
            # a service that knows of no defects need not be told that none are wanted
            "defects": defects or None,
            "timeout_ms": timeout_ms,
            "priority": priority,
            "reproducible": reproducible,
        }
        return self._follow(Rollouts(problem, state, options, self._patience))

    def problems(self) -> Described:
        """What the service solves: fields, units, bounds, grids. Over HTTP only."""
        return self._describe("problems")

    def models(self) -> Described:
        """The models of the service, their versions, and which are loaded; over HTTP also their aliases."""
        return self._describe("models")

    @abstractmethod
    def _solve(self, question: Question, field: ArrayLike | Any) -> Solved:
        """The answer, with the coordinates of ``field``."""

    @abstractmethod
    def _pull_back(self, question: Question, field: ArrayLike | Any) -> PulledBack:
        """The gradient, with the coordinates of ``field``."""

    @abstractmethod
    def _push_forward(self, question: Question, field: ArrayLike | Any) -> PushedForward:
        """The tangent, with the coordinates of ``field``."""

    @abstractmethod
    def _read(self, question: Question) -> Read:
        """The quantities."""

    @abstractmethod
    def _follow(self, rollouts: Rollouts) -> Followed:
        """The frames, leg by leg."""

    @abstractmethod
    def _describe(self, what: str) -> Described:
        """What ``GET /v1/...`` lists under its name."""
