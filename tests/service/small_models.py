"""Cards of small models that have learnt nothing."""

from datetime import UTC, datetime
from typing import Any, Final

from model_store import Card, FieldRecord
from operators import OperatorConfig
from operators.axial_mno import AxialMnoConfig
from problems import EVOLUTION_PROBLEMS, PROBLEMS

SMALL: Final = AxialMnoConfig(channels=8, inner_channels=8, states=2, rank=1, blocks=1)


def small_card(operator: OperatorConfig = SMALL, problem: str = "darcy", **about: Any) -> Card:
    """The card of a model of a problem, of Darcy flow on 32x32 unless ``about`` says otherwise."""
    solved, evolution = PROBLEMS[problem], EVOLUTION_PROBLEMS.get(problem)
    usual: dict[str, Any] = {
        "grids": ((32, 32),),
        "inputs": tuple(FieldRecord(name=spec.name, unit=spec.unit) for spec in solved.inputs),
        "outputs": tuple(FieldRecord(name=spec.name, unit=spec.unit) for spec in solved.outputs),
    }
    if evolution is None:
        usual["training_hull"] = {"contrast_min": 1.0, "contrast_max": 10.0}
    else:
        usual |= {
            "extent": evolution.grid.extent,
            "frame_interval": evolution.frame_interval,
            "walls": evolution.walls[0],
        }
    return Card(
        problem=problem,
        scheme=solved.schemes[0],
        operator=operator,
        dataset={"sha256": "0" * 64},
        run="",
        metrics={},
        code_version="0",
        created=datetime(2026, 1, 1, tzinfo=UTC),
        **(usual | about),
    )
