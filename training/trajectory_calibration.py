"""What the estimates of an evolution surrogate are made from: rollouts that were never trained on.

Errors are kept by horizon, since those of other horizons are not exchangeable. Features are those of the
states that rollouts go through, all blocks together.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, final

import numpy as np
import torch
from numpy.typing import NDArray

from operators import EvolutionSurrogate
from operators.features import FeatureReader
from training.forecast import Continuation, Forecast, Given, SurrogateForecast
from training.trajectories import Trajectories, open_trajectories
from training.trajectory_evaluation import BATCH_SIZE, evaluate_forecast, window_of
from training.trajectory_metrics import headline


@dataclass(frozen=True)
class Rollouts:
    """Features of training states and of calibration states, and errors [frame sample] by metric."""

    training: NDArray[np.float32]
    held_out: NDArray[np.float32]
    scores: dict[str, NDArray[np.float64]]


@final
class Heard(NamedTuple):
    """What rollouts of the trajectories of a file were like.

    Attributes:
        metric: of the errors.
        features: of the states that blocks start from [block sample feature].
        errors: [sample frame].
    """

    metric: str
    features: NDArray[np.float32]
    errors: NDArray[np.float64]


def measure_rollouts(
    surrogate: EvolutionSurrogate, training: Sequence[Path], held_out: Sequence[Path], first_frame: int
) -> Rollouts:
    """Roll every calibration trajectory out, and look at the states of the training data.

    Args:
        surrogate: in evaluation mode.
        training: files that it has learnt from.
        held_out: files that nothing was learnt from, each family as often as at serving time.
        first_frame: the last given one.
    """
    with FeatureReader(surrogate) as reader, ExitStack() as files:
        for data in map(files.enter_context, map(open_trajectories, training)):
            _look(surrogate, data, first_frame)
        known = reader.take().cpu().numpy()
        opened = map(files.enter_context, map(open_trajectories, held_out))
        found = [listen(surrogate, reader, data, first_frame) for data in opened]
    # all families at the horizons that the shortest of them has
    frames = min(each.errors.shape[1] for each in found)
    errors = np.concatenate([each.errors[:, :frames] for each in found])
    features = np.concatenate([each.features.reshape(-1, each.features.shape[-1]) for each in found])
    return Rollouts(known, features, {found[0].metric: errors.T})


@torch.inference_mode()
def _look(surrogate: EvolutionSurrogate, data: Trajectories, first_frame: int) -> None:
    """Have the surrogate look at the states from which its blocks start."""
    device = surrogate.shift.device
    for index in range(len(data)):
        states = data.read(index, slice(0, None))
        last = len(states) - 1 - surrogate.frames
        starts = range(first_frame, max(last, first_frame) + 1, surrogate.frames)
        histories = np.stack([states[start + 1 - surrogate.history : start + 1] for start in starts])
        surrogate(torch.from_numpy(histories).to(device), data.extent, chosen=(0,))


def listen(
    surrogate: EvolutionSurrogate, reader: FeatureReader, data: Trajectories, first_frame: int
) -> Heard:
    """Roll every trajectory of a file out.

    Args:
        surrogate: in evaluation mode.
        reader: of its features, entered.
        data: the trajectories.
        first_frame: the last given one.
    """
    forecast = _Listening(SurrogateForecast(surrogate, data.extent), reader, surrogate.frames)
    found = evaluate_forecast(forecast, data, window_of(data, first_frame, None), BATCH_SIZE)
    metric = headline(found.problem)
    return Heard(metric, np.concatenate(forecast.features, axis=1), found.curves[metric])


@final
class _Listening(Forecast):
    """A rollout whose features are kept."""

    name = "surrogate"

    def __init__(self, forecast: SurrogateForecast, reader: FeatureReader, block: int) -> None:
        self.channels = forecast.channels
        self.features: list[NDArray[np.float32]] = []
        self._forecast, self._reader, self._block = forecast, reader, block

    def __call__(self, indices: Sequence[int], given: Given, frames: int) -> Continuation:
        found = self._forecast(indices, given, frames)
        # a first call may have warmed up on a sample: what counts comes last
        blocks, samples = -(-frames // self._block), len(indices)
        counted = self._reader.take().cpu().numpy()[-blocks * samples :]
        self.features.append(counted.reshape(blocks, samples, -1))
        return found
