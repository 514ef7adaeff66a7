"""``mno bench certificate``: the guarantees of Darcy, judged by an independent direct solver.

Every answer's bound is compared with its true error, and every refined answer with the tolerance that was
asked for. A bound that is wrong by more than the judge's own rounding, 1e-11, is counted as violated.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import final

import click
import numpy as np

from benchmarks.certificate_cases import FAMILIES, Array, Truth, answers
from problems import STEADY_PROBLEMS, CannotSolve, ErrorBound, Fields, Grid

GRIDS = (Grid((32, 32)), Grid((64, 64)))
# what the judge itself may be off by
_JUDGE = 1e-11
_HEADER = (
    f"{'family':>16} {'bounds':>7} {'violated':>8} {'k=0: median':>12} {'95 %':>8}"
    f" {'steps':>6} {'most':>5} {'k<=1':>6} {'two-sided':>9}"
)


@final
@dataclass
class Tally:
    """What was found in one family.

    Attributes:
        evaluated: certificates judged.
        violated: those that were wrong, by kind of error.
        effectivity: upper bound over true error at k = 0.
        steps: steps that made the sides meet.
        two_sided: how many certificates have sides within 5 %.
        certified: how many were asked to.
    """

    evaluated: int = 0
    violated: list[str] = field(default_factory=list)
    effectivity: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    two_sided: int = 0
    certified: int = 0


@click.command("certificate")
@click.option("--evaluations", default=20_000, show_default=True, help="Certificates to judge.")
@click.option("--requests", default=1_000, show_default=True, help="Answers with a tolerance to judge.")
def bench_certificate(evaluations: int, requests: int) -> None:
    """Judge bounds and certified answers of Darcy by an independent direct solver."""
    started, violated = time.process_time(), 0
    click.echo(f"Darcy, tpfa-harmonic-v1, {len(FAMILIES)} families, 8 kinds of error, 32x32 and 64x64")
    click.echo(_HEADER)
    per_family = -(-evaluations // len(FAMILIES))
    for family in FAMILIES:
        tally = judge_bounds(family, per_family)
        violated += len(tally.violated)
        click.echo(_row(family, tally))
        for message in tally.violated:
            click.echo(f"VIOLATED {message}")
    met, refused, wrong = judge_answers(requests)
    click.echo(
        f"{requests} requests with a tolerance: {met} within it, {refused} refused, {len(wrong)} beyond it"
    )
    for message in wrong:
        click.echo(f"BEYOND {message}")
    click.echo(f"{time.process_time() - started:.0f} CPU seconds")
    if violated or wrong:
        raise click.ClickException("a guarantee does not hold; please report the lines above")


def judge_bounds(family: str, evaluations: int) -> Tally:
    """Bounds at k = 0 and certified ones of one family, until there are enough."""
    tally, index = Tally(), 0
    while tally.evaluated < evaluations:
        grid = GRIDS[index % len(GRIDS)]
        for name, fields, answer, truth in _cases(family, index, grid):
            _judge(tally, f"{family} {index} {name}", grid, fields, answer, truth)
            if tally.evaluated >= evaluations:
                break
        index += 1
    return tally


def _judge(tally: Tally, case: str, grid: Grid, fields: Fields, answer: Array, truth: Truth) -> None:
    darcy, solution, errors = STEADY_PROBLEMS["darcy"], {"pressure": answer}, truth.errors(answer)
    # float32 as it leaves the service
    rounded = answer.astype(np.float32)
    leaving = truth.errors(rounded.astype(np.float64))
    cheap = darcy.error_bound(fields, solution, grid)
    tight = darcy.certify(fields, solution, grid)
    covering = darcy.error_bound(fields, solution, grid, rounding=2.0**-24)
    for found, true in ((cheap, errors), (tight, errors), (covering, leaving)):
        tally.evaluated += 1
        if not holds(found, true):
            tally.violated.append(f"{case}: {true} by {found}")
    tally.effectivity.append(cheap.upper / errors[0])
    tally.steps.append(tight.steps)
    tally.two_sided += tight.two_sided
    tally.certified += 1


def holds(bound: ErrorBound, errors: tuple[float, float, float]) -> bool:
    """Whether each true error (energy, L2, largest) lies between its bounds."""
    sides = (bound.sides("energy"), bound.sides("l2"), bound.sides("pointwise"))
    return all(
        lower - _JUDGE <= true * (1 + _JUDGE) and true * (1 - _JUDGE) <= upper + _JUDGE
        for (lower, upper), true in zip(sides, errors, strict=True)
    )


def judge_answers(requests: int) -> tuple[int, int, list[str]]:
    """How many answers to a tolerance met it and how many were refused; those that did not meet it."""
    met, refused, wrong = 0, 0, []
    names = list(FAMILIES)
    for request in range(requests):
        rng = np.random.default_rng((74, request))
        family, grid = names[request % len(names)], GRIDS[request % len(GRIDS)]
        cases = list(_cases(family, 10_000 + request // len(names), grid))
        _, fields, answer, truth = cases[rng.integers(len(cases))]
        tolerance = 10 ** rng.uniform(-8, -2)
        start = {"pressure": answer} if rng.random() < 0.8 else None
        try:
            found = STEADY_PROBLEMS["darcy"].refine(fields, start, grid, tolerance=tolerance)
        except CannotSolve:
            refused += 1
            continue
        errors = truth.errors(found.fields["pressure"])
        if errors[0] <= tolerance + _JUDGE and holds(found.bound, errors):
            met += 1
        else:
            wrong.append(f"{family} {request}: {errors[0]:.3g}, asked for {tolerance:.3g}")
    return met, refused, wrong


def _cases(family: str, index: int, grid: Grid) -> Iterator[tuple[str, Fields, Array, Truth]]:
    truth = Truth(permeability := FAMILIES[family](index, grid))
    other = Truth(FAMILIES[family](index + 1, grid)).exact
    fields = {"permeability": permeability, "source": np.array(1.0)}
    for name, answer in answers(truth.exact, other, np.random.default_rng((75, index))):
        yield name, fields, answer, truth


def _row(family: str, tally: Tally) -> str:
    return (
        f"{family:>16} {tally.evaluated:>7} {len(tally.violated):>8} {median(tally.effectivity):>12.3f}"
        f" {_percentile(tally.effectivity, 95):>8.2f} {median(tally.steps):>6g} {max(tally.steps):>5}"
        f" {np.mean([steps <= 1 for steps in tally.steps]):>6.0%} {tally.two_sided / tally.certified:>9.1%}"
    )


def _percentile(values: Sequence[float], percent: float) -> float:
    return float(np.percentile(values, percent))
