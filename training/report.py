"""The report of an evaluation: Markdown with pictures."""

from collections.abc import Mapping
from pathlib import Path

from training import pictures
from training.evaluate import Evaluation
from training.journal import read_journal

# columns of the summary table: name in the evaluation, heading, factor
_COLUMNS = (
    ("relative_l2_median", "median", 100.0),
    ("relative_l2_mean", "mean", 100.0),
    ("relative_l2_p90", "90 %", 100.0),
    ("relative_l2_p95", "95 %", 100.0),
    ("relative_l2_max", "worst", 100.0),
    ("relative_energy_median", "energy, median", 100.0),
)


def write_report(
    directory: Path, title: str, evaluations: Mapping[str, Evaluation], samples: int, log: Path | None = None
) -> Path:
    """Write ``report.md`` and its pictures.

    Args:
        directory: created if need be.
        title: heading of the report.
        evaluations: family -> evaluation.
        samples: samples to show of each family, from good to bad.
        log: the training's log.

    Returns:
        The path of ``report.md``.
    """
    directory.mkdir(parents=True, exist_ok=True)
    sections = [f"# {title}", _table(evaluations)]
    lines = read_journal(log) if log is not None else []
    if lines:
        pictures.training_curves(lines).savefig(directory / "training.png")
        sections.append("## Training\n\n![training curves](training.png)")
    pictures.error_histogram(evaluations).savefig(directory / "errors.png")
    pictures.error_over_contrast(evaluations).savefig(directory / "contrast.png")
    sections.append(
        "## Errors\n\n![histogram of the errors](errors.png)\n\n![error over contrast](contrast.png)"
    )
    for family, evaluation in evaluations.items():
        pictures.samples(evaluation, samples).savefig(directory / f"{family}.png")
        sections.append(f"## {family}\n\n![permeability, pressure, reference and error]({family}.png)")
    report = directory / "report.md"
    report.write_text("\n\n".join(sections) + "\n")
    return report


def _table(evaluations: Mapping[str, Evaluation]) -> str:
    """Relative errors in percent."""
    header = ["family", "samples", *(heading for _, heading, _ in _COLUMNS), "ms per sample"]
    rows = [_row(family, evaluation) for family, evaluation in evaluations.items()]
    body = "\n".join(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *rows])
    return f"Relative L2 error, and relative energy (flux) error, in percent.\n\n{body}"


def _row(family: str, evaluation: Evaluation) -> list[str]:
    errors = [f"{factor * evaluation.summary[name]:.2f}" for name, _, factor in _COLUMNS]
    return [family, str(len(evaluation.dataset)), *errors, f"{1e3 * evaluation.seconds_per_sample:.1f}"]
