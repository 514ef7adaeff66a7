"""Problems by the names that clients use, and what each kind of them can be asked for."""

from __future__ import annotations

from problems import EVOLUTION_PROBLEMS, PROBLEMS, STEADY_PROBLEMS, EvolutionProblem, Problem, SteadyProblem
from service.errors import InvalidField, UnknownProblem, quoted

__all__ = ["find_evolution", "find_problem", "find_steady"]


def find_problem(name: str) -> Problem:
    """The problem of that name.

    Raises:
        UnknownProblem: there is none.
    """
    if name not in PROBLEMS:
        raise UnknownProblem(f"no problem {quoted(name)}; expected one of {sorted(PROBLEMS)}")
    return PROBLEMS[name]


def find_steady(name: str) -> SteadyProblem:
    """The problem of that name, which has one solution.

    Raises:
        UnknownProblem: there is none.
        InvalidField: it evolves in time.
    """
    if name in STEADY_PROBLEMS:
        return STEADY_PROBLEMS[name]
    problem = find_problem(name)
    message = f"{problem.name} evolves in time and is not solved; ask for a rollout of its state"
    raise InvalidField("problem", "steady", message)


def find_evolution(name: str) -> EvolutionProblem:
    """The problem of that name, whose state evolves in time.

    Raises:
        UnknownProblem: there is none.
        InvalidField: it is steady.
    """
    if name in EVOLUTION_PROBLEMS:
        return EVOLUTION_PROBLEMS[name]
    problem = find_problem(name)
    message = f"{problem.name} is steady and has no rollout; ask for its solution with solve"
    raise InvalidField("problem", "evolution", message)
