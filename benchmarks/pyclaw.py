"""Shallow water trajectories by PyClaw, where Clawpack is installed: with the settings of PDEBench.

Classic solver, Roe's Riemann solver with entropy fix, MC limiter, dimensional splitting, outflow (Clawpack,
BSD licence; Ketcheson et al. 2012).
"""

import contextlib
import importlib
import importlib.util
import logging
import tempfile

import numpy as np

from problems import Fields
from problems.shallow_water import ShallowWater

_COMPONENTS = ("h", "hu", "hv")


def is_installed() -> bool:
    """Whether Clawpack can be imported."""
    return importlib.util.find_spec("clawpack") is not None


def trajectory(state: Fields) -> list[Fields]:
    """The frames after the initial state."""
    # on import it opens a log file in the working directory
    with tempfile.TemporaryDirectory() as directory, contextlib.chdir(directory):
        pyclaw, riemann = (importlib.import_module(f"clawpack.{name}") for name in ("pyclaw", "riemann"))
    logging.getLogger("pyclaw").setLevel(logging.ERROR)
    problem = ShallowWater()
    solver = pyclaw.ClawSolver2D(riemann.shallow_roe_with_efix_2D)
    solver.limiters = pyclaw.limiters.tvd.MC
    solver.dimensional_split = True
    solver.cfl_desired, solver.cfl_max = 0.9, 1.0
    solver.all_bcs = pyclaw.BC.extrap
    (y, x), (ly, lx), (ny, nx) = problem.grid.origin, problem.grid.extent, problem.grid.shape
    axes = [pyclaw.Dimension(x, x + lx, nx, name="x"), pyclaw.Dimension(y, y + ly, ny, name="y")]
    domain = pyclaw.Domain(axes)
    values = pyclaw.State(domain, len(_COMPONENTS))
    values.problem_data["grav"] = 1.0
    for component, name in enumerate(_COMPONENTS):
        # PyClaw's axes are x, y
        values.q[component] = state[name].T
    controller = pyclaw.Controller()
    controller.solution = pyclaw.Solution(values, domain)
    controller.solver = solver
    controller.tfinal = problem.frame_interval * problem.frame_count
    controller.num_output_times = problem.frame_count
    controller.keep_copy, controller.output_format = True, None
    controller.run()
    return [
        {name: np.ascontiguousarray(frame.q[c].T) for c, name in enumerate(_COMPONENTS)}
        for frame in controller.frames[1:]
    ]
