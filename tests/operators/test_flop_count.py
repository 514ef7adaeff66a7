"""Counts of floating-point operations against counts by hand."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from operators import Surrogate, surrogate_from_config
from operators.flop_count import count_flops
from operators.mixers.linear_l1 import LinearL1, LinearL1Config
from operators.mixers.softmax import Softmax, SoftmaxConfig
from operators.points import Points, grid_points
from operators.presets import PRESETS, Task, preset
from operators.scan import BACKENDS, Direction, selective_scan
from operators.spectral_convolution import SpectralConvolution

BOTH = (Direction.FORWARD, Direction.REVERSE)
# preset -> multiplications for each point, whatever the number of samples
GATES = 4 * (2 * 192 + 192 * 192 + 192 * 1)
QUERIES = 2 * 128 + 256 * 256 + 256 * 256
OF_POINTS = {"gnot": GATES, "mamba_gnot": GATES, "oformer": QUERIES, "mamba_oformer": QUERIES}


def points() -> Points:
    return grid_points((3, 4), (0.25, 0.25), torch.zeros(()))


@pytest.mark.parametrize(
    ("function", "shape", "expected"),
    [
        pytest.param(nn.Linear(3, 5), (4, 7, 3), 2 * 28 * 3 * 5, id="linear"),
        pytest.param(
            nn.Conv2d(4, 6, 3, padding=1, groups=2), (1, 4, 5, 5), 2 * 25 * 6 * 2 * 9, id="convolution"
        ),
        # each cell becomes 2 x 2
        pytest.param(
            nn.ConvTranspose2d(4, 6, 2, stride=2), (1, 4, 5, 5), 2 * 25 * 6 * 4 * 4, id="transposed"
        ),
        pytest.param(nn.Sequential(nn.LayerNorm(8), nn.GELU()), (4, 8), 0, id="elementwise"),
        # 2 x 3 transforms of 8 x 16 real numbers, and as many back; log2 128 = 7
        pytest.param(torch.fft.rfft2, (2, 3, 8, 16), 2.5 * 6 * 128 * 7, id="rfft2"),
        pytest.param(
            lambda x: torch.fft.irfft2(torch.complex(x, x), s=(8, 16)),
            (2, 3, 8, 9),
            2.5 * 6 * 128 * 7,
            id="irfft2",
        ),
        pytest.param(lambda x: torch.fft.fft(torch.complex(x, x)), (3, 16), 5 * 3 * 16 * 4, id="fft"),
        # a multiplication of complex numbers is 6 operations, an addition 2
        pytest.param(
            lambda x: torch.complex(x, x) @ torch.complex(x, x).mT, (5, 2, 3), 5 * 2 * 2 * 3 * 8, id="complex"
        ),
        pytest.param(lambda x: x @ x[0], (4, 3), 2 * 4 * 3, id="vector"),
        # both transforms, and two corners of 2 x 2 frequencies
        pytest.param(
            SpectralConvolution(3, 5, modes=2),
            (1, 3, 8, 8),
            2.5 * (3 + 5) * 64 * 6 + 2 * 4 * 8 * 3 * 5,
            id="spectral_convolution",
        ),
    ],
)
def test_counts_are_those_by_hand(
    function: Callable[[Tensor], Tensor], shape: tuple[int, ...], expected: float
) -> None:
    assert count_flops(function, torch.ones(shape)) == expected


# the values of the second are narrower, which PyTorch computes in another way
@pytest.mark.parametrize("width", [8, 4])
def test_softmax_attention_is_two_products(width: int) -> None:
    query, key, value = torch.ones(2, 4, 6, 8), torch.ones(2, 4, 9, 8), torch.ones(2, 4, 9, width)
    expected = 2 * (2 * 4) * (6 * 9) * (8 + width)
    assert count_flops(functional.scaled_dot_product_attention, query, key, value) == expected


def test_a_mixer_is_its_projections_and_its_attention() -> None:
    tokens, heads = torch.ones(1, 12, 16), 2
    projections = 4 * 2 * 12 * 16 * 16
    softmax = Softmax(SoftmaxConfig(heads=heads), 16)
    assert count_flops(softmax, tokens, points()) == projections + heads * 2 * (12 * 12) * (8 + 8)
    linear = LinearL1(LinearL1Config(heads=heads), 16)
    assert count_flops(linear, tokens, points()) == projections + heads * 2 * 12 * (8 * 8 + 8 * 8)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("whole", [True, False])
def test_a_scan_counts_the_same_with_every_backend(backend: str, whole: bool) -> None:
    if refusal := BACKENDS[backend].refusal(torch.device("cpu"), torch.float32):
        pytest.skip(refusal)
    batch, tokens, channels, states = 2, 5, 3, 4

    def scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, D: Tensor, bias: Tensor) -> Tensor:
        if whole:
            return selective_scan(x, dt, A, B, B, D, x, bias, directions=BOTH, backend=backend)
        return selective_scan(x, dt, A, B, B, dt_softplus=False, directions=BOTH, backend=backend)

    inputs = [
        torch.ones(batch, tokens, channels),
        torch.ones(batch, 2, tokens, channels),
        -torch.ones(2, channels, states),
        torch.ones(batch, 2, tokens, states),
        torch.ones(2, channels),
        torch.ones(2, channels),
    ]
    # dt x, the states; then bias, softplus and D: twice; the sum of both directions; the gate
    each = 2 * (1 + 7 * states + (1 + 3 + 2) * whole) + 1 + 4 * whole
    assert count_flops(scan, *inputs) == batch * tokens * channels * each
    with torch.inference_mode():
        assert count_flops(scan, *inputs) == batch * tokens * channels * each


@pytest.mark.parametrize("name", PRESETS)
def test_twice_the_samples_are_twice_the_operations(name: str) -> None:
    surrogate = surrogate_from_config(preset(name, Task())).eval()
    assert isinstance(surrogate, Surrogate)
    one, two = (count_flops(surrogate, torch.ones(n, 1, 16, 16), torch.ones(n)) for n in (1, 2))
    # but for what is said about the points, once for all samples
    assert 2 * one - two == 2 * 16 * 16 * OF_POINTS.get(name.split("_softmax")[0].split("_c4")[0], 0)
    assert two > one
