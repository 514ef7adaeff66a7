"""A surrogate: an operator between its two normalizers, physical units in and out."""

from jaxtyping import Float
from torch import Tensor, nn

from operators.operator import Operator


class Surrogate(nn.Module):
    """Solves ``-div(a grad p) = f`` with p = 0 on the wall by a neural operator.

    Dividing the permeability by its geometric mean a0 and lengths by the width Lx turns the problem into
    ``-div(k grad u) = 1`` with ``p = (f Lx^2 / a0) u``. So scaling f, or a by a constant factor, scales the
    answer exactly (up to rounding) whatever the operator has learnt.
    """

    def __init__(self, operator: Operator) -> None:
        super().__init__()
        self.operator = operator

    def forward(
        self,
        permeability: Float[Tensor, "batch 1 y x"],
        source: Float[Tensor, " batch"],
        extent: tuple[float, float] = (1.0, 1.0),
    ) -> Float[Tensor, "batch 1 y x"]:
        """Pressure [Pa] from permeability [m^2 / (Pa s)] and uniform source [1/s].

        Args:
            permeability: cell averages, positive.
            source: one value per sample.
            extent: side lengths (Ly, Lx) [m].

        Raises:
            UnsupportedGrid: the grid does not fit the operator.
        """
        ly, lx = extent
        ny, nx = permeability.shape[-2:]
        a0 = permeability.log().mean(dim=(-2, -1), keepdim=True).exp()
        u = self.operator(permeability / a0, (ly / lx / ny, 1.0 / nx))
        pressure: Tensor = source.reshape(-1, 1, 1, 1) * lx**2 / a0 * u
        return pressure
