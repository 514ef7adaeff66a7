"""The report of the evaluation of rollouts: Markdown with pictures and an animation."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from problems import EVOLUTION_PROBLEMS
from training import pictures
from training import pictures_trajectories as draw
from training.animation import animate
from training.journal import read_journal
from training.trajectory_evaluation import TrajectoryEvaluation
from training.trajectory_metrics import DEPTH, headline

# family -> its evaluations, that of the model first, then those of the baselines
Evaluations = Mapping[str, Sequence[TrajectoryEvaluation]]

_STATISTICS = (("median", "median"), ("mean", "mean"), ("p90", "90 %"), ("p95", "95 %"), ("max", "worst"))


def write_trajectory_report(
    directory: Path, title: str, evaluations: Evaluations, log: Path | None = None
) -> Path:
    """Write ``report.md``, its pictures and animations.

    Args:
        directory: created if need be.
        title: heading of the report.
        evaluations: family -> evaluations, the model's first.
        log: the training's log.

    Returns:
        The path of ``report.md``.
    """
    directory.mkdir(parents=True, exist_ok=True)
    sections = [f"# {title}", error_table({family: found[0] for family, found in evaluations.items()})]
    lines = read_journal(log) if log is not None else []
    if lines:
        pictures.training_curves(lines).savefig(directory / "training.png")
        sections.append("## Training\n\n![training curves](training.png)")
    sections += [_family(directory, family, found) for family, found in evaluations.items()]
    report = directory / "report.md"
    report.write_text("\n\n".join(sections) + "\n")
    return report


def error_table(evaluations: Mapping[str, TrajectoryEvaluation]) -> str:
    """The headline errors of a model, in percent."""
    headings = ["family", "samples", "frames", "error", *(heading for _, heading in _STATISTICS)]
    rows = []
    for family, found in evaluations.items():
        metric = headline(found.problem)
        errors = [f"{100.0 * found.summary[f'{metric}_{name}']:.2f}" for name, _ in _STATISTICS]
        window = found.window
        frames = f"{window.first_frame + 1}-{window.first_frame + window.frames}"
        rows.append([family, str(len(found)), frames, draw.METRIC_TITLES[metric], *errors])
    caption = "Errors in percent of each trajectory, over the predicted frames."
    return f"{caption}\n\n{markdown_table(headings, rows)}"


def cost_table(found: Sequence[TrajectoryEvaluation]) -> str:
    """Error against cost of a model and its baselines."""
    metric = headline(found[0].problem)
    headings = ["forecast", "error, median [%]", "error, mean [%]", "CPU s", "s"]
    rows = [
        [
            one.forecast,
            *(f"{100.0 * one.summary[f'{metric}_{name}']:.2f}" for name in ("median", "mean")),
            f"{one.cpu_seconds_per_sample:.3f}",
            f"{one.seconds_per_sample:.3f}",
        ]
        for one in found
    ]
    window = found[0].window
    frames = "1 frame" if window.frames == 1 else f"{window.frames} frames"
    before = " A finer solver starts from frame 0; its cost counts that." if window.first_frame else ""
    return (
        f"Error ({draw.METRIC_TITLES[metric]}) and cost of a trajectory of {frames} after frame "
        f"{window.first_frame}. CPU seconds are those of all threads; where a GPU computes, the clock counts."
        f"{before}\n\n{markdown_table(headings, rows)}"
    )


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are Markdown already."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [headings, ["---"] * len(headings), *rows])


def _family(directory: Path, family: str, found: Sequence[TrajectoryEvaluation]) -> str:
    """The section of one family, and its files."""
    model = found[0]
    sections = [f"## {family}", cost_table(found), _physics(model)]
    sections += [_values("As another code computes them", model.compat)] if model.compat else []
    draw.error_over_time(found).savefig(directory / f"{family}_error.png")
    draw.spectra(model).savefig(directory / f"{family}_spectra.png")
    sections += [
        f"![error over time]({family}_error.png)",
        "Power spectra, averaged over directions and samples.\n\n"
        f"![spectra of reference, prediction and error]({family}_spectra.png)",
    ]
    sections += _rollouts(directory, family, model)
    return "\n\n".join(part for part in sections if part)


def _rollouts(directory: Path, family: str, model: TrajectoryEvaluation) -> list[str]:
    """Fields of the rollouts that were kept, from good to bad; of the middle one all channels and a film."""
    shown = []
    middle = len(model.kept) // 2
    for number, kept in enumerate(model.kept):
        for channel in range(len(model.names)) if number == middle else [0]:
            name = f"{family}_{kept.index:04d}_{model.names[channel]}.png"
            draw.rollout(model, kept, channel).savefig(directory / name)
            shown.append(f"![reference, prediction and error of {model.names[channel]}]({name})")
        if number == middle:
            name = f"{family}_{kept.index:04d}_animation.png"
            animate(directory / name, model, kept)
            shown.append(f"![animation of reference, prediction and error]({name})")
    return shown


def _physics(model: TrajectoryEvaluation) -> str:
    """What must hold whatever the error."""
    diverged = int(model.scores["diverged"].sum())
    facts = [f"{diverged} of {len(model)} rollouts have values that are not finite."]
    if DEPTH in model.names and "mass_drift" in model.scores:
        unit = next(s.unit for s in EVOLUTION_PROBLEMS[model.problem].outputs if s.name == DEPTH)
        facts.append(f"The mass is wrong by at most {model.scores['mass_drift'].max():.2g} of itself.")
        facts.append(f"The least depth is {model.scores['minimum_depth'].min():.3g} {unit}.")
    return " ".join(facts)


def _values(heading: str, values: Mapping[str, float]) -> str:
    return f"{heading}:\n\n{markdown_table(list(values), [[f'{value:.6g}' for value in values.values()]])}"
