"""Operators in time: a few known frames in, the next frames out; and what they look like in physical units.

One interface for three ways to reach later frames: all at once as channels (``OneShot``), by marching a
latent state (``LatentMarch``), or by feeding an operator its own output (``Autoregressive``).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn


class EvolutionOperator(nn.Module, ABC):
    """Maps the last ``history`` frames to the next ``frames`` ones.

    Attributes:
        history: frames that it needs, the last one being the present.
        frames: frames that one call returns.
        fields: channels of a frame.
        holds_equations: it computes with the equations of its problem, in physical units.
        feature_layer: the module whose output, tokens [batch .. channel], the frames are read off.
    """

    holds_equations: ClassVar[bool] = False
    feature_layer: ClassVar[str]

    history: int
    frames: int
    fields: int

    @abstractmethod
    def forward(
        self,
        history: Float[Tensor, "batch time channel y x"],
        extent: tuple[float, float],
        chosen: Sequence[int] | None = None,
    ) -> Float[Tensor, "batch frame channel y x"]:
        """The next frames.

        Args:
            history: cell averages, oldest first.
            extent: side lengths (Ly, Lx) [m].
            chosen: numbers of the frames to return, counted from 0; None for all. Training on some of them
                saves the work that the others would be.

        Raises:
            UnsupportedGrid: the grid does not fit the operator.
        """


class EvolutionSurrogate(nn.Module):
    """An evolution operator between its two normalizers: physical units in and out.

    The normalizers are affine, one shift and one scale per channel, and are stored with the weights.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, operator: EvolutionOperator, channels: int) -> None:
        super().__init__()
        self.operator = operator
        self.register_buffer("shift", torch.zeros(channels))
        self.register_buffer("scale", torch.ones(channels))

    @property
    def history(self) -> int:
        """Frames that it needs."""
        return self.operator.history

    @property
    def frames(self) -> int:
        """Frames that one call returns."""
        return self.operator.frames

    def normalize(self, shift: Sequence[float], scale: Sequence[float]) -> None:
        """Set the normalizers: inside, a channel is ``(value - shift) / scale``."""
        self.shift.copy_(torch.tensor(shift))
        self.scale.copy_(torch.tensor(scale))

    def forward(
        self,
        history: Float[Tensor, "batch time channel y x"],
        extent: tuple[float, float],
        chosen: Sequence[int] | None = None,
    ) -> Float[Tensor, "batch frame channel y x"]:
        """The next ``frames`` frames, in the units of the problem; see ``EvolutionOperator.forward``."""
        if not torch.is_grad_enabled() and history.device.type == "cpu" and history.shape[0] > 1:
            # the frames of one sample stay in the cache: a third faster at 128 x 128
            return torch.cat([self._advance(sample, extent, chosen) for sample in torch.split(history, 1)])
        return self._advance(history, extent, chosen)

    def _advance(self, history: Tensor, extent: tuple[float, float], chosen: Sequence[int] | None) -> Tensor:
        shift, scale = self.shift[:, None, None], self.scale[:, None, None]
        following: Tensor = self.operator((history - shift) / scale, extent, chosen)
        return following * scale + shift

    def blocks(
        self, history: Float[Tensor, "batch time channel y x"], extent: tuple[float, float]
    ) -> Iterator[Float[Tensor, "batch frame channel y x"]]:
        """The frames after ``history``, ``frames`` at a time, without end: a rollout on its own output."""
        while True:
            following = self(history, extent)
            yield following
            history = torch.cat([history, following], dim=1)[:, -self.history :]
