"""``mno bench accuracy`` compares times at equal errors: the errors are right, and so is the conclusion."""

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from click.testing import CliRunner

from benchmarks.equal_accuracy import FRESH_SEED, SURROGATE, Rung, bench_accuracy, darcy_rungs, table
from model_store import open_catalog
from problems import STEADY_PROBLEMS, Grid
from problems.two_point_flux import SCHEMES, assemble, transmissibilities
from tests.benchmarks.small_water import publish_small_water


def test_the_surrogate_s_error_is_that_to_the_exact_solution_and_steps_make_the_solver_s_smaller():
    catalog = open_catalog(None)
    version = catalog.load("darcy", catalog.resolve("darcy@production").version)
    rungs = {rung.name: rung for rung in darcy_rungs(version, 1)}
    grid = Grid(version.card.grids[0])
    fields = STEADY_PROBLEMS["darcy"].sample("pdebench", {}, FRESH_SEED, 0, grid)
    matrix = assemble(transmissibilities(fields["permeability"], grid, SCHEMES[version.card.scheme]))
    exact = scipy.sparse.linalg.spsolve(matrix, np.full(matrix.shape[0], grid.cell_area))
    with torch.inference_mode():
        field = torch.from_numpy(fields["permeability"].astype(np.float32))[None, None]
        answer = version.surrogate(field, torch.ones(1)).numpy().ravel()
    error = np.linalg.norm(answer - exact) / np.linalg.norm(exact)
    assert rungs[SURROGATE].error == pytest.approx(error, rel=1e-3)
    errors = [rung.error for name, rung in rungs.items() if name != SURROGATE]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] < 0.05
    assert errors[-1] < 1e-5


def test_the_cheapest_solver_that_is_no_worse_is_named():
    rungs = [
        Rung(SURROGATE, 0.02, 0.01),
        Rung("quick", 0.001, 0.02),
        Rung("enough", 0.005, 0.01),
        Rung("exact", 0.04, 0.0),
    ]
    assert list(table(rungs))[-1] == "at equal accuracy: enough takes 0.25 of the surrogate's time"
    assert list(table(rungs[:2]))[-1] == "no solver here is as accurate as the surrogate"


def test_an_evolution_model_is_compared_on_the_grids_up_to_the_truth(tmp_path):
    options = ["--model", "shallow_water@1", "--store", publish_small_water(tmp_path)]
    result = CliRunner().invoke(bench_accuracy, [*options, "--samples", "1", "--finest", "48"])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0].startswith("shallow_water@1 at 12 x 16, 1 fresh samples")
    names = [line[:34].strip() for line in lines[3:-1]]
    assert names == [
        SURROGATE,
        *(f"{scheme} at {side}" for side in (12, 24) for scheme in ("hllc-muscl-v1", "roe-mc-split-v1")),
        "hllc-muscl-v1 at 48, the truth",
    ]
    errors = [float(line.split()[-1].rstrip("%")) for line in lines[3:-1]]
    # a finer grid is closer to the truth, which an untrained network is not
    assert 0 == errors[-1] < errors[3] < errors[1] < errors[0]
    assert lines[-1].startswith("at equal accuracy: ")
