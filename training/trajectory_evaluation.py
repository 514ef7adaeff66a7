"""How far a surrogate's trajectories, or those of another forecast, are from the ones of a data set."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import final

import numpy as np
from jaxtyping import Float32, Float64
from numpy.typing import NDArray

from operators import EvolutionSurrogate
from problems import EVOLUTION_PROBLEMS, Grid
from training.compat import Convention, Values
from training.dataset import InvalidDataset
from training.forecast import Forecast, SurrogateForecast, require_history
from training.metrics import PerSample, quantile, summary
from training.spectrum import RadialSpectrum
from training.trajectories import LAYOUTS, Trajectories
from training.trajectory_metrics import DEPTH, Measured, concatenate, headline, measure

BATCH_SIZE = 8
# moments of a rollout of which the spectra are taken, the first and the last frame among them
_SPECTRA = 4


# is told how many samples were done
Advance = Callable[[int], object]


def say_nothing(_: int) -> None:
    """No progress is shown."""


@dataclass(frozen=True)
class Window:
    """What is given and what is to be predicted.

    Attributes:
        first_frame: the last given frame; the next one is the first to be predicted.
        frames: how many frames to predict.
    """

    first_frame: int
    frames: int

    @property
    def given(self) -> slice:
        """The frames that are known."""
        return slice(0, self.first_frame + 1)

    @property
    def predicted(self) -> slice:
        """The frames to be predicted."""
        return slice(self.first_frame + 1, self.first_frame + 1 + self.frames)


@dataclass(frozen=True)
class Spectra:
    """Power spectra at some predicted frames, averaged over the samples.

    Attributes:
        wavenumber: cycles per length [1/m].
        frames: the predicted frames, counted from 0.
        reference: of the reference.
        predicted: of the prediction.
        error: of their difference.
    """

    wavenumber: Float64[np.ndarray, " ring"]
    frames: tuple[int, ...]
    reference: Float64[np.ndarray, "moment channel ring"]
    predicted: Float64[np.ndarray, "moment channel ring"]
    error: Float64[np.ndarray, "moment channel ring"]


@dataclass(frozen=True)
class Kept:
    """A rollout kept for pictures.

    Attributes:
        index: number of the sample in its file.
        start: the last given frame.
        reference: the frames after it.
        predicted: what was predicted for them.
    """

    index: int
    start: Float32[np.ndarray, "channel y x"]
    reference: Float32[np.ndarray, "frame channel y x"]
    predicted: Float32[np.ndarray, "frame channel y x"]


@final
@dataclass(frozen=True)
class TrajectoryEvaluation:
    """What a forecast of every trajectory of a data set is worth.

    Attributes:
        forecast: name of the forecast.
        problem: key in ``EVOLUTION_PROBLEMS``.
        names: of the channels.
        grid: of the frames.
        window: the frames that were predicted.
        start: time of the last given frame [s].
        times: of the predicted frames [s].
        measured: curves and scores.
        spectra: of reference, prediction and error.
        kept: rollouts from a good one to a bad one.
        cpu_seconds_per_sample: of all threads, on a CPU.
        seconds_per_sample: as a clock has them.
        compat: values as another code computes them, if asked for.
    """

    forecast: str
    problem: str
    names: tuple[str, ...]
    grid: Grid
    window: Window
    start: float
    times: Float64[np.ndarray, " frame"]
    measured: Measured
    spectra: Spectra
    kept: tuple[Kept, ...]
    cpu_seconds_per_sample: float
    seconds_per_sample: float
    compat: Mapping[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.scores["relative_l2"])

    @property
    def scores(self) -> dict[str, PerSample]:
        """Metric -> one number per sample."""
        return self.measured.scores

    @property
    def curves(self) -> dict[str, NDArray[np.float64]]:
        """Metric -> [sample frame], or [sample frame channel]."""
        return self.measured.curves

    @cached_property
    def summary(self) -> dict[str, float]:
        """Statistics over the samples, as ``metrics.summary`` names them."""
        return summary(self.scores)

    def per_frame(self, metric: str, fraction: float) -> Float64[np.ndarray, "frame *channel"]:
        """The quantile over the samples of a metric of ``curves``, of every predicted frame."""
        return quantile(self.curves[metric], fraction)


def evaluate_trajectories(
    surrogate: EvolutionSurrogate,
    data: Trajectories,
    first_frame: int | None = None,
    frames: int | None = None,
    batch_size: int = BATCH_SIZE,
    *,
    keep: int = 0,
    convention: Convention | None = None,
    advance: Advance = say_nothing,
) -> TrajectoryEvaluation:
    """Roll every trajectory out and compare.

    Args:
        surrogate: in evaluation mode.
        data: the trajectories, of which one batch at a time is in memory.
        first_frame: the last given frame; None for the earliest that the surrogate can start from.
        frames: how many frames to predict; None for all that follow.
        batch_size: trajectories per rollout; a convention that averages over batches depends on it.
        keep: rollouts kept for pictures.
        convention: another code's way to measure.
        advance: is told how many samples were done.

    Raises:
        InvalidDataset: the file does not have what the surrogate needs.
    """
    window = window_of(data, surrogate.history - 1 if first_frame is None else first_frame, frames)
    require_history(surrogate, data, window.first_frame)
    forecast = SurrogateForecast(surrogate, data.extent)
    return evaluate_forecast(
        forecast, data, window, batch_size, keep=keep, convention=convention, advance=advance
    )


def predict_trajectories(
    surrogate: EvolutionSurrogate,
    data: Trajectories,
    first_frame: int,
    frames: int,
    batch_size: int = BATCH_SIZE,
) -> Float32[np.ndarray, "sample frame channel y x"]:
    """What the surrogate predicts after ``first_frame``, of all samples at once: mind the memory."""
    require_history(surrogate, data, first_frame)
    forecast = SurrogateForecast(surrogate, data.extent)
    window = Window(first_frame, frames)
    parts = [
        forecast(indices, _given(data, indices, window, forecast.channels), frames).frames
        for indices in _batches(len(data), batch_size)
    ]
    return np.concatenate(parts)


def window_of(data: Trajectories, first_frame: int, frames: int | None) -> Window:
    """The frames after ``first_frame``, as many as are asked for.

    Raises:
        InvalidDataset: the file does not have them.
    """
    left = len(data.times) - 1 - first_frame
    wanted = left if frames is None else frames
    if first_frame < 0 or not 1 <= wanted <= left:
        raise InvalidDataset(
            f"{data.path} has the frames 0 to {len(data.times) - 1}: cannot predict {max(wanted, 1)} frames "
            f"after frame {first_frame}"
        )
    return Window(first_frame, wanted)


def evaluate_forecast(
    forecast: Forecast,
    data: Trajectories,
    window: Window,
    batch_size: int = BATCH_SIZE,
    *,
    keep: int = 0,
    convention: Convention | None = None,
    advance: Advance = say_nothing,
) -> TrajectoryEvaluation:
    """Let a forecast continue every trajectory and compare.

    Args:
        forecast: what continues them.
        data: the trajectories, of which one batch at a time is in memory.
        window: the frames to predict.
        batch_size: trajectories per call.
        keep: rollouts kept for pictures, made once more when the good and the bad ones are known.
        convention: another code's way to measure.
        advance: is told how many samples were done.
    """
    tally = _Tally(forecast, data, window, convention)
    for indices in _batches(len(data), batch_size):
        tally.add(indices)
        advance(len(indices))
    chosen = _from_good_to_bad(tally.measured().scores[headline(data.problem)], keep)
    return tally.result(tuple(tally.keep(index) for index in chosen))


class _Tally:
    """Gathers the measures of batches, not their frames."""

    def __init__(
        self, forecast: Forecast, data: Trajectories, window: Window, convention: Convention | None
    ) -> None:
        self._forecast, self._data, self._window, self._convention = forecast, data, window, convention
        self._names = data.names[: forecast.channels]
        self._grid = Grid(data.grid, data.extent, data.origin)
        self._rest = EVOLUTION_PROBLEMS[data.problem].rest.get(DEPTH)
        self._spectrum = RadialSpectrum.on(self._grid)
        self._moments = _moments(window.frames)
        self._parts: list[Measured] = []
        self._power: list[NDArray[np.float64]] = []
        self._compat: list[Values] = []
        self._cpu_seconds = self._seconds = 0.0

    def add(self, indices: Sequence[int]) -> None:
        """Measure one batch."""
        given, predicted, reference = self._frames(indices)
        self._parts.append(measure(predicted, reference, self._names, self._rest))
        moments = list(self._moments)
        fields = reference[:, moments], predicted[:, moments]
        with np.errstate(invalid="ignore", over="ignore"):
            power = [self._spectrum(field) for field in (*fields, fields[1] - fields[0])]
        self._power.append(np.stack(power, axis=1))
        if self._convention is not None:
            # hu and hv are ours: PDEBench's files have the depth alone
            public = slice(0, len(LAYOUTS[self._data.problem].datasets["data"]))
            batch = (array[:, :, public] for array in (predicted, reference, given))
            self._compat.append(self._convention.evolution(*batch))

    def keep(self, index: int) -> Kept:
        """Roll one sample out once more."""
        given, predicted, reference = self._frames([index])
        return Kept(index, given[0, -1, : len(self._names)], reference[0], predicted[0])

    def measured(self) -> Measured:
        """The measures of all batches."""
        return concatenate(self._parts)

    def result(self, kept: tuple[Kept, ...]) -> TrajectoryEvaluation:
        """Everything that was gathered."""
        reference, predicted, error = np.concatenate(self._power).mean(axis=0)
        times, count = self._data.times, sum(map(len, self._power))
        compat = {} if self._convention is None else self._convention.combine(self._compat)
        return TrajectoryEvaluation(
            forecast=self._forecast.name,
            problem=self._data.problem,
            names=self._names,
            grid=self._grid,
            window=self._window,
            start=float(times[self._window.first_frame]),
            times=times[self._window.predicted],
            measured=self.measured(),
            spectra=Spectra(self._spectrum.wavenumber, self._moments, reference, predicted, error),
            kept=kept,
            cpu_seconds_per_sample=self._cpu_seconds / count,
            seconds_per_sample=self._seconds / count,
            compat=compat,
        )

    def _frames(
        self, indices: Sequence[int]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Given, predicted and reference frames of a batch."""
        given = _given(self._data, indices, self._window, self._forecast.channels)
        found = self._forecast(indices, given, self._window.frames)
        self._cpu_seconds += found.cpu_seconds
        self._seconds += found.seconds
        count = len(self._names)
        reference = np.stack([self._data.read(index, self._window.predicted) for index in indices])
        return given, found.frames[:, :, :count], reference[:, :, :count]


def _given(
    data: Trajectories, indices: Sequence[int], window: Window, channels: int | None
) -> Float32[np.ndarray, "sample time channel y x"]:
    """The known frames with as many channels as a forecast takes; what a file lacks is at rest at frame 0."""
    given = np.stack([data.read(index, window.given) for index in indices])
    lacking = (channels or 0) - given.shape[2]
    if lacking <= 0:
        return given[:, :, :channels]
    if window.first_frame > 0:
        raise InvalidDataset(
            f"{data.path} has {', '.join(data.names)} alone: expected {channels} channels, or a start at "
            "frame 0, where the water is at rest (--first-frame 0)"
        )
    rest = np.zeros((len(given), 1, lacking, *given.shape[-2:]), np.float32)
    return np.concatenate([given, rest], axis=2)


def _batches(count: int, size: int) -> Iterator[range]:
    for first in range(0, count, size):
        yield range(first, min(first + size, count))


def _moments(frames: int) -> tuple[int, ...]:
    """The first frame, the last one and some between."""
    return tuple(dict.fromkeys(int(frame) for frame in np.linspace(0, frames - 1, _SPECTRA).round()))


def _from_good_to_bad(errors: PerSample, count: int) -> list[int]:
    ranks = np.linspace(0.0, 1.0, count + 2)[1:-1] * (len(errors) - 1)
    return [int(index) for index in dict.fromkeys(np.argsort(errors)[np.round(ranks).astype(int)])]
