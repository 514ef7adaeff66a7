"""The results as tables in Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks.serving.raw_forward import BATCHES
from benchmarks.serving.results import Cell, Results
from benchmarks.serving.targets import Verdict

__all__ = ["inserted", "markdown", "rows"]


def rows(header: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [header, ["---"] * len(header), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown(results: Results, verdicts: Iterable[Verdict]) -> str:
    """The whole report."""
    return "\n\n".join(_sections(results, verdicts)) + "\n"


def inserted(document: str, report: str, name: str) -> str:
    """A document with the report between its ``<!-- name -->`` and ``<!-- end name -->``.

    A document without them becomes the report.
    """
    begin, end = f"<!-- {name} -->\n", f"<!-- end {name} -->"
    if begin not in document or end not in document:
        return report
    head, _, rest = document.partition(begin)
    return f"{head}{begin}\n{report}\n{end}{rest.partition(end)[2]}"


def _sections(results: Results, verdicts: Iterable[Verdict]) -> Iterator[str]:
    yield "\n".join(f"- {name}: {value}" for name, value in results.about.items())
    for model in dict.fromkeys(cell.model for cell in results.cells):
        yield f"### Model `{model}`"
        yield _raw(results, model)
        yield _cells(results, model)
    for name, extra in results.extras.items():
        yield f"### {name}"
        yield _extra(extra)
    judged = [(each.number, each.text, each.measured, each.word) for each in verdicts]
    if judged:
        yield "### Targets"
        yield rows(("#", "target", "measured", "met"), judged)
    if results.troubles:
        yield "### Not measured, or wrong"
        yield "\n".join(f"- {' '.join(trouble.split())[:600]}" for trouble in results.troubles)


def _raw(results: Results, model: str) -> str:
    medians = {batch: results.raw_median(model, batch) for batch in BATCHES}
    known = {batch: value for batch, value in medians.items() if value is not None}
    return rows(
        ("raw forward, in process", *(f"batch {batch}" for batch in known)),
        [
            ("ms", *(f"{value:.2f}" for value in known.values())),
            ("fields/s", *(number(1e3 * batch / value) for batch, value in known.items())),
        ],
    )


def _cells(results: Results, model: str) -> str:
    clients = sorted({cell.clients for cell in results.cells})
    header = [
        "server: payload, clients",
        *(f"req/s, {count}: best (median)" for count in clients),
        *(f"p50 / p99 ms, {count}" for count in clients),
        f"CPU ms/req, {clients[-1]}: best (median)",
        "PSS MB",
        "failed",
        "n",
    ]
    routes = {cell.route: cell.title for cell in results.cells if cell.model == model}
    return rows(header, (_route(results, model, route, title, clients) for route, title in routes.items()))


def _route(results: Results, model: str, route: str, title: str, clients: Sequence[int]) -> list[str]:
    cells = [results.cell(model, route, count) for count in clients]
    known = [cell for cell in cells if cell is not None]
    server = route.partition("-")[0]
    memory = results.memory_mb.get(server, {}).get(model)
    return [
        title,
        *(_best(cell, "rate") for cell in cells),
        *(_latencies(cell) for cell in cells),
        _best(cells[-1], "cpu_ms"),
        "" if memory is None else f"{memory:.0f}",
        str(sum(burst.failed for cell in known for burst in cell.good)),
        str(min((len(cell.good) for cell in known), default=0)),
    ]


def _best(cell: Cell | None, quantity: str) -> str:
    """Best and median."""
    return "-" if cell is None else f"{number(cell.best(quantity))} ({number(cell.median(quantity))})"


def _latencies(cell: Cell | None) -> str:
    """Median of p50 and of p99."""
    return "-" if cell is None else f"{number(cell.median('p50_ms'))} / {number(cell.median('p99_ms'))}"


def number(value: float) -> str:
    """Three digits that matter, and no exponent."""
    if math.isnan(value):
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _extra(extra: Any) -> str:
    """Rows that share their columns as a table; anything else as it is."""
    if isinstance(extra, list) and extra and isinstance(extra[0], Mapping):
        return rows(tuple(extra[0]), ([_cell(value) for value in row.values()] for row in extra))
    return str(extra)


def _cell(value: Any) -> str:
    return number(value) if isinstance(value, float) else str(value)
