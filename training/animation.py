"""A rollout as an animated PNG: reference, prediction and error side by side."""

from pathlib import Path

import numpy as np
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from problems import EVOLUTION_PROBLEMS
from training.pictures_trajectories import error_title, field_title, panels, scales
from training.trajectory_evaluation import Kept, TrajectoryEvaluation

_DPI = 80
_FRAMES_PER_SECOND = 10
# more of them make megabytes, not a better picture
_MOST_FRAMES = 50


def animate(path: Path, evaluation: TrajectoryEvaluation, kept: Kept, channel: int = 0) -> None:
    """Write the animation of one channel to ``path``, a ``.png``; colors mean the same in all its frames."""
    spec = EVOLUTION_PROBLEMS[evaluation.problem].outputs[channel]
    figure = Figure(figsize=(10.4, 3.5), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 3)
    reference, predicted = kept.reference[:, channel], kept.predicted[:, channel]
    images = panels(axes, (reference[0], predicted[0]), evaluation, scales(reference, predicted))
    heading = figure.suptitle(" ", fontsize=11)
    # arranged once: to do so for every frame takes longer than to draw it
    figure.draw_without_rendering()
    figure.set_layout_engine("none")

    def show(frame: int) -> None:
        fields = reference[frame], predicted[frame], predicted[frame] - reference[frame]
        for image, field in zip(images, fields, strict=True):
            image.set_data(field)
        axes[2].set_title(error_title(evaluation, kept, frame, channel), fontsize=9)
        heading.set_text(f"{field_title(spec)}, sample {kept.index}, t = {evaluation.times[frame]:.2f} s")

    animation = FuncAnimation(figure, show, frames=_thinned(len(reference)), init_func=lambda: None)
    animation.save(path, PillowWriter(fps=_FRAMES_PER_SECOND))


def _thinned(count: int) -> list[int]:
    """Frames at equal distances, the last one among them."""
    stride = -(-count // _MOST_FRAMES)
    return [int(frame) for frame in np.arange(count - 1, -1, -stride)[::-1]]
