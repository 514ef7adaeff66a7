"""What a comparison shows and what it does not, from its file and its rows: no word about who wins."""

from collections.abc import Iterator, Sequence

from problems import EVOLUTION_PROBLEMS
from training.comparison.config import Comparison, OperatorSection, ProblemSection, grid_name
from training.comparison.results import Results
from training.comparison.significance import least_difference


def facts(comparison: Comparison, found: Sequence[Results]) -> str:
    """A section of Markdown."""
    shown = [_common(comparison), *(_given(results.problem) for results in found)]
    parts = [
        "## What this shows and what it does not",
        "It shows how well these operators learn these problems from the same samples, in as many steps of "
        "the same optimizer, each with the best of the same learning rates:",
        _list(shown),
        "It does not show:",
        _list(_limits(comparison, found)),
        *_origins(found),
    ]
    return "\n\n".join(parts)


def _common(comparison: Comparison) -> str:
    """What all problems share."""
    given, search = comparison.comparison, comparison.search
    seeds = f"{len(given.seeds)} seed{'s' * (len(given.seeds) > 1)} ({', '.join(map(str, given.seeds))})"
    rates = ", ".join(f"{rate:g}" for rate in search.learning_rates)
    text = f"{seeds} of weights and batches; the data are the same for all."
    if len(search.learning_rates) == 1:
        return f"{text} One learning rate for all, {rates}: nothing was searched."
    return (
        f"{text} Learning rates tried: {rates}, each for {_steps(search.steps)} with seed {search.seed}; for "
        "each operator and problem the one with the least error on the validation split was taken."
    )


def _given(problem: ProblemSection) -> str:
    """The data and the budget of a problem."""
    data, budget = problem.data, problem.budget
    train, validation, test = (
        sum(getattr(family, split) for family in data.families) for split in ("train", "validation", "test")
    )
    families = ", ".join(f"{family.name} ({family.test} test samples)" for family in data.families)
    labels = f", averaged down from {grid_name(data.label_grid)}" if data.label_grid else ""
    walls = f", {data.walls} walls" if data.walls else ""
    passes = budget.steps * budget.batch_size / train
    time = ""
    if data.problem in EVOLUTION_PROBLEMS:
        time = f" From {problem.history} frames the next {problem.frames} are predicted in one call."
    return (
        f"{problem.name}: {data.problem} on {grid_name(data.grid)} cells, scheme {data.scheme}{labels}"
        f"{walls}; {train} training, {validation} validation and {test} test samples of {families}.{time} "
        f"{_steps(budget.steps)} of {budget.batch_size} samples ({passes:.3g} passes over the training "
        f"data), AdamW with {budget.schedule} decay, {budget.warmup_steps} warm-up steps, weight decay "
        f"{budget.weight_decay:g}, gradients clipped at {budget.clip_norm:g}; the tested weights are "
        f"averages with decay {budget.ema_decay:g}. Training samples were "
        f"{'' if problem.d4 else 'not '}turned and mirrored."
    )


def _limits(comparison: Comparison, found: Sequence[Results]) -> Iterator[str]:
    """What cannot be concluded, and why."""
    yield (
        "what the operators reach on finer grids, with more samples or after longer training: what learns "
        "slowly may pass what learns fast."
    )
    yield f"the operators at the sizes of their authors. {_changes(comparison.operators)}"
    yield from _sizes(found)
    yield _power(len(comparison.comparison.seeds), len(comparison.operators))
    yield (
        "how the errors scatter with the data: the seeds change weights and batches, not the samples that "
        "are learnt from and tested on."
    )
    yield (
        "how sure all differences are together: p-values are corrected for the operators of one problem, not "
        "for the problems, nor for the best operator's having been chosen from the same errors."
    )
    yield from _edges(comparison, found)
    yield from _short_search(comparison)
    yield (
        "what other implementations and machines take: times are of this code on the devices that stand "
        "above the tables."
    )


def _changes(operators: Sequence[OperatorSection]) -> str:
    """How the operators differ from the presets."""
    changed = {operator.name: list(_options(operator)) for operator in operators}
    parts = [f"{name}: {', '.join(options)}" for name, options in changed.items() if options]
    if not parts:
        return "All have them here, at data for which their authors did not choose them."
    same = [name for name, options in changed.items() if not options]
    unchanged = f" As in their presets: {', '.join(same)}." if same else ""
    return f"Changed from the presets are {'; '.join(parts)}.{unchanged}"


def _options(operator: OperatorSection) -> Iterator[str]:
    if operator.name != operator.preset:
        yield f"preset {operator.preset}"
    yield from _flat(operator.model_dump(exclude={"name", "preset"}, exclude_defaults=True))


def _flat(options: dict[str, object]) -> Iterator[str]:
    for name, value in options.items():
        if isinstance(value, dict):
            yield from (f"{name}.{inner}" for inner in _flat(value))
        else:
            yield f"{name} = {value}"


def _sizes(found: Sequence[Results]) -> Iterator[str]:
    """By how much the operators differ in size."""
    parts = []
    for results in found:
        sizes = results.parameters
        if len(sizes) > 1:
            least, most = min(sizes, key=sizes.__getitem__), max(sizes, key=sizes.__getitem__)
            parts.append(
                f"on {results.name} from {sizes[least]:,} ({least}) to {sizes[most]:,} ({most}), "
                f"{sizes[most] / sizes[least]:.3g} times as many"
            )
    if parts:
        yield f"operators of equal size. Their parameters: {'; '.join(parts)}."


def _power(seeds: int, operators: int) -> str:
    """What a test with so many seeds can find."""
    if seeds < 2 or operators < 2:
        return "which differences are more than chance: that takes at least two seeds of two operators."
    single = least_difference(seeds, 1)
    text = (
        f"small differences: with {seeds} seeds two operators of equal spread are told apart only where "
        f"their mean log errors lie {single:.2g} standard deviations over seeds apart"
    )
    if operators > 2:
        strictest = least_difference(seeds, operators - 1)
        text += f", and {strictest:.2g} at the strictest of Holm's steps"
    return f"{text}; what is not told apart has not been shown to be equal."


def _edges(comparison: Comparison, found: Sequence[Results]) -> Iterator[str]:
    """Operators for which the search would have gone on."""
    rates = comparison.search.learning_rates
    if len(rates) < 2:
        return
    edges = {min(rates), max(rates)}
    at_edge = [
        f"{name} on {results.name} ({row.learning_rate:g})"
        for results in found
        for name, rows in results.rows.items()
        for row in rows[:1]
        if row.learning_rate in edges
    ]
    if at_edge:
        yield (
            "the best that a wider search would find: the rate that was taken is the largest or the smallest "
            f"tried for {', '.join(at_edge)}."
        )


def _short_search(comparison: Comparison) -> Iterator[str]:
    """Problems that are learnt for longer than the rates were tried."""
    search = comparison.search
    longer = [
        f"{problem.name} ({search.steps} of {problem.budget.steps} steps, "
        f"{problem.budget.warmup_steps} of them warm-up)"
        for problem in comparison.problems
        if search.steps < problem.budget.steps
    ]
    if len(search.learning_rates) > 1 and longer:
        yield (
            f"the best rate for the whole training: each was tried for a part of it on {', '.join(longer)}, "
            "which favors rates that learn fast at first, and hardly tells those apart of what learns slowly."
        )


def _origins(found: Sequence[Results]) -> Iterator[str]:
    """Whether all rows come from one code and one machine."""
    rows = [row for results in found for rows in results.rows.values() for row in rows]
    for what, values in (
        ("commits", {row.code for row in rows}),
        ("machines", {row.machine for row in rows}),
    ):
        if len(values) > 1:
            yield f"The rows come from {len(values)} {what}: {', '.join(sorted(values))}."


def _steps(count: int) -> str:
    return f"{count} step{'s' * (count != 1)}"


def _list(items: Sequence[str] | Iterator[str]) -> str:
    return "\n".join(f"- {item}" for item in items)
