"""A rollout as an animated PNG: reference, prediction and error side by side."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.text import Text
from PIL import Image

from problems import EVOLUTION_PROBLEMS
from training.pictures_trajectories import error_title, field_title, panels, scales
from training.trajectory_evaluation import Kept, TrajectoryEvaluation

_DPI = 80
_MILLISECONDS = 100
# the film stops for a moment before it starts again
_LAST_MILLISECONDS = 1000
# more of them make megabytes, not a better picture
_MOST_FRAMES = 50


def animate(path: Path, evaluation: TrajectoryEvaluation, kept: Kept, channel: int = 0) -> None:
    """Write the animation of one channel to ``path``, a ``.png``; colors mean the same in all its frames."""
    frames = _thinned(len(kept.reference))
    first, *others = _film(evaluation, kept, channel, frames)
    duration = [_MILLISECONDS] * len(others) + [_LAST_MILLISECONDS]
    first.save(path, save_all=True, append_images=others, duration=duration, loop=0)


def _film(
    evaluation: TrajectoryEvaluation, kept: Kept, channel: int, frames: Sequence[int]
) -> Iterator[Image.Image]:
    spec = EVOLUTION_PROBLEMS[evaluation.problem].outputs[channel]
    reference, predicted = kept.reference[:, channel], kept.predicted[:, channel]
    figure = Figure(figsize=(10.4, 3.5), dpi=_DPI, layout="constrained")
    axes = list(figure.subplots(1, 3))
    images = panels(axes, (reference[0], predicted[0]), evaluation, scales(reference, predicted))
    # the layout is made once: it leaves room for a title
    axes[2].set_title(error_title(evaluation, kept, 0, channel), fontsize=9)
    heading = figure.suptitle(" ", fontsize=11)
    stage = _Stage(figure, axes, images, [heading, axes[2].title])
    for frame in frames:
        fields = reference[frame], predicted[frame], predicted[frame] - reference[frame]
        for image, field in zip(images, fields, strict=True):
            image.set_data(field)
        axes[2].title.set_text(error_title(evaluation, kept, frame, channel))
        time = f"t = {evaluation.times[frame]:.2f} s"
        heading.set_text(f"{field_title(spec)}, sample {kept.index}, {time}")
        yield stage.shoot()


class _Stage:
    """Draws what moves over what stays: everything anew takes ten times as long."""

    def __init__(
        self, figure: Figure, axes: Sequence[Axes], images: Sequence[AxesImage], texts: Sequence[Text]
    ) -> None:
        self._figure, self._canvas = figure, FigureCanvasAgg(figure)
        spines = [spine for one in axes for spine in one.spines.values()]
        # in this order: the frames of the axes lie over the images
        self._moving: list[Artist] = [*images, *spines, *texts]
        for artist in self._moving:
            artist.set_animated(True)
        self._canvas.draw()  # type: ignore[no-untyped-call]
        self._scenery = self._canvas.copy_from_bbox(figure.bbox)  # type: ignore[no-untyped-call]

    def shoot(self) -> Image.Image:
        """The picture as it is now."""
        self._canvas.restore_region(self._scenery)  # type: ignore[no-untyped-call]
        for artist in self._moving:
            self._figure.draw_artist(artist)
        pixels = np.asarray(self._canvas.buffer_rgba())  # type: ignore[no-untyped-call]
        return Image.fromarray(pixels).convert("RGB")


def _thinned(count: int) -> list[int]:
    """Frames at equal distances, the last one among them."""
    stride = -(-count // _MOST_FRAMES)
    return [int(frame) for frame in np.arange(count - 1, -1, -stride)[::-1]]
