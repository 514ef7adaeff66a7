"""The part of ``mno bench trust`` that is about flags: kinds of initial states that nothing was learnt from.

A frame is bad if its error exceeds twice what 95 % of the calibration trajectories stay below at its horizon,
a rollout if any of its frames is. What is flagged is the rollout, by its initial state, as a service does.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.coverage import FRESH_SEED
from benchmarks.trust_rollouts import Rollouts
from model_store import Calibration
from service.novelty import UNUSUAL
from training.config import FamilySection, Run
from training.generate import DatasetFile
from training.splits import split_files

OTHERS: Mapping[str, tuple[FamilySection, ...]] = MappingProxyType(
    {
        "shallow_water": (
            FamilySection(name="radial_dam", family="pdebench"),
            FamilySection(name="straight_dam", family="straight_dam"),
            FamilySection(name="small_dams", family="small_dams"),
            FamilySection(name="many_dams", family="many_dams"),
            FamilySection(name="deep_dams", family="deep_dams"),
            FamilySection(name="low_dams", family="low_dams"),
            FamilySection(name="steep_bumps", family="steep_bumps"),
            FamilySection(name="rapid", family="rapid"),
            FamilySection(name="long_waves", family="plane_waves", parameters={"wavelength": 2.0}),
            FamilySection(name="short_waves", family="plane_waves", parameters={"wavelength": 0.3}),
            FamilySection(
                name="smooth_surface", family="random_surface", parameters={"correlation_length": 1.5}
            ),
            FamilySection(
                name="rough_surface", family="random_surface", parameters={"correlation_length": 0.2}
            ),
        ),
        "diffusion_reaction": (
            FamilySection(name="weak_noise", family="noise", parameters={"amplitude": 0.2}),
            FamilySection(name="double_noise", family="noise", parameters={"amplitude": 2.0}),
            FamilySection(name="strong_noise", family="noise", parameters={"amplitude": 4.0}),
            FamilySection(
                name="strong", family="strong", parameters={"correlation_length": 0.3, "amplitude": 4.0}
            ),
            FamilySection(
                name="weak", family="strong", parameters={"correlation_length": 0.3, "amplitude": 0.05}
            ),
            FamilySection(name="long", family="band_limited", parameters={"correlation_length": 1.5}),
            FamilySection(name="patches", family="patches", parameters={"correlation_length": 0.3}),
            FamilySection(name="small_patches", family="patches", parameters={"correlation_length": 0.1}),
            FamilySection(name="wide_stripes", family="stripes", parameters={"wavelength": 0.8}),
            FamilySection(name="stripes", family="stripes", parameters={"wavelength": 0.25}),
            FamilySection(name="fine_stripes", family="stripes", parameters={"wavelength": 0.12}),
            FamilySection(name="spots", family="spots"),
            FamilySection(name="spiral", family="spiral"),
        ),
    }
)


def other_files(run: Run, count: int, directory: Path) -> dict[str, DatasetFile]:
    """Recipes of trajectories by family, solved and averaged as those of a run are.

    Args:
        run: that a version comes from.
        count: trajectories of each family.
        directory: where they are kept.
    """
    families = tuple(family.model_copy(update={"calibration": count}) for family in OTHERS[run.data.problem])
    data = run.data.model_copy(update={"seed": FRESH_SEED, "directory": directory, "families": families})
    return split_files(run.model_copy(update={"data": data}), "calibration")


class Tally(NamedTuple):
    """How many rollouts there are, and what became of them.

    Attributes:
        rollouts: all of them.
        bad: those with a bad frame.
        caught: of these, how many are flagged.
        alarms: how many of the others are.
        by_features: how many of all the features alone would flag.
        bad_frames: of all rollouts.
        caught_frames: of these, how many belong to a flagged rollout.
    """

    rollouts: int = 0
    bad: int = 0
    caught: int = 0
    alarms: int = 0
    by_features: int = 0
    bad_frames: int = 0
    caught_frames: int = 0


def limits(calibration: Calibration, metric: str) -> NDArray[np.float64]:
    """What the error of a frame must not exceed, per horizon; empty with too few calibration samples."""
    return 2 * np.array(list(calibration.quantiles(metric, 0.95).values()))


def tally(rolled: Rollouts, limit: NDArray[np.float64]) -> Tally:
    """Compare errors with their limits [horizon]."""
    frames = min(len(limit), len(rolled.errors))
    bad = rolled.errors[:frames] > limit[:frames, None]
    flagged = np.array([not each.in_distribution for each in rolled.novelty])
    found = [
        np.ones_like(flagged),
        bad.any(axis=0),
        bad.any(axis=0) & flagged,
        ~bad.any(axis=0) & flagged,
        rolled.scores[0] >= UNUSUAL,
        bad,
        bad & flagged,
    ]
    return Tally(*(int(each.sum()) for each in found))


def lines(known: Rollouts, others: Mapping[str, Rollouts], limit: NDArray[np.float64]) -> Iterator[str]:
    """What is flagged of fresh rollouts of the kind learnt from, and of others."""
    if not len(limit):
        yield "  too few calibration samples to say which error is unusual"
        return
    yield _line("as learnt from", known, limit)
    for name, rolled in others.items():
        yield _line(name, rolled, limit)
    total = Tally(*map(sum, zip(*(tally(each, limit) for each in others.values()), strict=True)))
    yield (
        f"  all others: {total.caught} of {total.bad} bad rollouts are flagged, with {total.caught_frames} "
        f"of {total.bad_frames} bad frames; of the {total.rollouts - total.bad} others {total.alarms}"
    )


def _line(name: str, rolled: Rollouts, limit: NDArray[np.float64]) -> str:
    found, frames = tally(rolled, limit), min(len(limit), len(rolled.errors))
    worst = (rolled.errors[:frames] / limit[:frames, None]).max(axis=0)
    return (
        f"  {name:16} median error of the last frame {np.median(rolled.errors[frames - 1]):.2g}, worst "
        f"frame over its limit {np.median(worst):.2f}; {found.bad} of {found.rollouts} bad, of which "
        f"{found.caught} flagged; of the others {found.alarms}; by features alone {found.by_features}"
    )
