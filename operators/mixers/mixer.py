"""The contract of a mixer: the kernel integral of a neural-operator layer, whatever its kernel is."""

from abc import ABC, abstractmethod

from jaxtyping import Float
from torch import Tensor, nn

from operators.points import Points


class CannotMix(ValueError):
    """Tokens or points that this mixer cannot mix."""


class Mixer(nn.Module, ABC):
    """``(K v)(x) = integral of kappa(x, y, v) v(y) dy`` over the points; no residual and no norm around it.

    Without a context the tokens are mixed with themselves, with one they read it (Kovachki et al. 2023,
    arXiv 2108.08481, equation 11: attention and selective scans are kernels that depend on ``v``).
    """

    @abstractmethod
    def forward(
        self,
        tokens: Float[Tensor, "batch token channel"],
        points: Points,
        context: Float[Tensor, "batch context_token channel"] | None = None,
        context_points: Points | None = None,
    ) -> Float[Tensor, "batch token channel"]:
        """Mix the tokens, which lie at ``points``; a context lies at ``context_points``, or there too.

        Raises:
            CannotMix: the mixer needs other points, a context, or none.
        """
