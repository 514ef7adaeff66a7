"""A convolution as a product in Fourier space, of low frequencies only (Li et al. 2020, arXiv 2010.08895)."""

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn


@final
class SpectralConvolution(nn.Module):
    """A complex matrix for each of ``modes x modes`` frequencies at the two corners of the real transform.

    It is the same on every grid that has these frequencies; of those that a coarse grid lacks it uses fewer.
    """

    def __init__(self, inputs: int, outputs: int, modes: int) -> None:
        super().__init__()
        self.modes = modes
        size = (2 * inputs * outputs) ** -0.5
        # real and imaginary parts apart: optimizers and files know them
        self.weight = nn.Parameter(size * torch.randn(2, inputs, outputs, modes, modes, 2))

    def forward(self, fields: Float[Tensor, "batch input y x"]) -> Float[Tensor, "batch output y x"]:
        """Convolve; the domain counts as periodic."""
        ny, nx = fields.shape[-2:]
        # where the rows' frequencies of both corners would meet there are fewer
        my, mx = min(self.modes, ny // 2), min(self.modes, nx // 2 + 1)
        # not every transform is there in less than float32
        dtype = torch.promote_types(fields.dtype, torch.float32)
        weight = torch.view_as_complex(self.weight.to(dtype))
        spectrum = torch.fft.rfft2(fields.to(dtype), norm="ortho")
        mixed = spectrum.new_zeros(fields.shape[0], weight.shape[2], ny, nx // 2 + 1)
        for corner, rows in zip(weight, (slice(0, my), slice(ny - my, ny)), strict=True):
            # the rows at the end hold the negative frequencies, the last of them -1
            chosen = corner[:, :, :my, :mx] if rows.start == 0 else corner[:, :, -my:, :mx]
            mixed[:, :, rows, :mx] = torch.einsum("biyx,ioyx->boyx", spectrum[:, :, rows, :mx], chosen)
        out: Tensor = torch.fft.irfft2(mixed, s=(ny, nx), norm="ortho").to(fields.dtype)
        return out
