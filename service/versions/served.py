"""What the service knows of a version without its weights: enough to answer everything but the numbers.

Processes that import no torch hold a version as this; whoever loads the version says it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, final

from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt

from model_store.reference import Reference

__all__ = ["ServedVersion"]


@final
class ServedVersion(BaseModel):
    """A version that some worker has loaded; travels between processes as JSON.

    Attributes:
        name: of the model in the store.
        version: its number.
        problem: the problem it solves, such as ``darcy``.
        scheme: the discrete operator that its answers approximate.
        grids: the grids (ny, nx) it was tested on.
        extent: side lengths (Ly, Lx) [m].
        training_hull: bounds of the training inputs.
        hard_range: what is done with an input outside of them: it is answered with a flag, or refused.
        calibration: quantiles of errors, and of their estimates, on data that nothing was learnt from.
        frame_interval: time between two frames [s]; None: steady.
        walls: boundary conditions, where the problem has several.
        first_frame: the earliest frame from which its rollouts were trained.
        history: frames that it starts from; 0: steady.
        frames: frames that one call returns; 0: steady.
        digests: file name -> SHA-256.
        weights_bytes: size of the parameters in memory [B].
        bounds_errors: its workers bound the errors of its answers themselves, on their device.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    version: PositiveInt
    problem: str
    scheme: str
    grids: tuple[tuple[PositiveInt, PositiveInt], ...]
    extent: tuple[PositiveFloat, PositiveFloat] = (1.0, 1.0)
    training_hull: Mapping[str, float] = {}
    hard_range: Literal["flag", "refuse"] = "flag"
    calibration: Mapping[str, float] = {}
    frame_interval: float | None = None
    walls: str | None = None
    first_frame: int = 0
    history: int = 0
    frames: int = 0
    digests: Mapping[str, str] = {}
    weights_bytes: int = 0
    bounds_errors: bool = False

    @property
    def reference(self) -> Reference:
        """``name@version``."""
        return Reference(self.name, self.version)

    def __str__(self) -> str:
        return str(self.reference)
