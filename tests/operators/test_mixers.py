"""What the mixers compute, against their formulas written out in NumPy, and the symmetries that they have."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from operators.mixers import MIXERS, CannotMix, Mixer
from operators.mixers.fourier import Fourier, FourierConfig
from operators.mixers.galerkin import Galerkin, GalerkinConfig
from operators.mixers.linear_l1 import LinearL1, LinearL1Config
from operators.mixers.rotary import rotated
from operators.mixers.s6 import S6, S6Config, held_scan
from operators.mixers.softmax import Softmax, SoftmaxConfig
from operators.mixers.ssd import Ssd, SsdConfig
from operators.points import Points, grid_points
from operators.scan import Direction, selective_scan
from operators.scan_plan import PLANS

Array = NDArray[np.float64]
CHANNELS = 8
GRID = (3, 4)
# where a sequence of each direction begins, in the rows and columns of GRID
ROWS = [[row * GRID[1] + column for column in range(GRID[1])] for row in range(GRID[0])]
COLUMNS = [[row * GRID[1] + column for row in range(GRID[0])] for column in range(GRID[1])]
RASTER, COLUMN_MAJOR = ([token for line in lines for token in line] for lines in (ROWS, COLUMNS))
WALKS = {
    "bi_raster": [[RASTER], [RASTER[::-1]]],
    "cross4": [
        [RASTER],
        [RASTER[::-1]],
        [COLUMN_MAJOR],
        [COLUMN_MAJOR[::-1]],
    ],
    "axial": [ROWS, [row[::-1] for row in ROWS], COLUMNS, [column[::-1] for column in COLUMNS]],
}
# which of the directions above run backward
BACKWARD = {"bi_raster": (1,), "cross4": (1, 3), "axial": (1, 3)}


def points(grid: tuple[int, int] = GRID) -> Points:
    return grid_points(grid, (1 / grid[0], 1 / grid[1]), torch.zeros(1, dtype=torch.float64))


def tokens(count: int = math.prod(GRID), channels: int = CHANNELS, seed: int = 3) -> Tensor:
    return torch.randn(2, count, channels, dtype=torch.float64, generator=torch.manual_seed(seed))


def double(mixer: Mixer) -> Any:
    return mixer.double().eval()


def without_skip(mixer: S6) -> Any:
    """What is scanned is the whole answer: at first it is small beside the skip term."""
    with torch.no_grad():
        mixer.D.zero_()
        mixer.select.mul_(4.0)
        mixer.delta_bias.add_(2.0)
    return double(mixer)


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def softplus(x: Array) -> Array:
    return np.logaddexp(0, x)


def softmaxed(x: Array, axis: int) -> Array:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def layer_normed(x: Array) -> Array:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def s6_by_its_kernel(mixer: S6, given: Array, reference: Array | None = None) -> Array:
    """One sample through S6, as a matrix for each channel that is written out from its definition."""
    config = mixer.config
    weights = {name: value.detach().numpy() for name, value in mixer.named_parameters()}
    inner = weights["D"].shape[1]
    projected = silu(given @ weights["project_in.weight"].T)
    u, gate = projected[:, :inner], projected[:, inner:]
    y = np.zeros_like(u)
    for k, walk in enumerate(WALKS[config.plan]):
        p = 0 if config.tied else k
        selection = u @ weights["select"][p].T
        if reference is not None:
            read = silu(reference @ weights["project_in.weight"].T)[:, :inner]
            selection = selection + read @ weights["select_context"][p].T
        low_rank, B, C = np.split(selection, [mixer.rank, mixer.rank + config.states], axis=1)
        delta = softplus(low_rank @ weights["delta_weight"][p].T + weights["delta_bias"][p])
        A = -np.exp(weights["log_A"][p])
        for order in walk:
            for i, j in itertools.combinations_with_replacement(range(len(order)), 2):
                at, of = order[j], order[i]
                back = k in BACKWARD[config.plan] and config.diagonal == "once"
                # back, a token reads what is known before it: neither its own part nor its own decay
                passed = delta[order[i + 1 : j if back else j + 1]].sum(0)[:, None]
                held = delta[of][:, None]
                if config.hold == "zero_order":
                    held = np.expm1(held * A) / A
                kernel = (C[at] * np.exp(passed * A) * held * B[of]).sum(1)
                y[at] += 0 if back and i == j else kernel * u[of]
        y += weights["D"][p] * u
    return layer_normed(y) * gate @ weights["project_out.weight"].T


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("hold", ["euler", "zero_order"])
@pytest.mark.parametrize("diagonal", ["twice", "once"])
def test_s6_is_the_product_with_its_kernel(plan: Any, hold: Any, diagonal: Any) -> None:
    mixer = double(S6(S6Config(states=3, plan=plan, hold=hold, diagonal=diagonal), CHANNELS))
    given = tokens()
    found = mixer(given, points()).detach().numpy()
    for sample, values in zip(found, given.numpy(), strict=True):
        np.testing.assert_allclose(sample, s6_by_its_kernel(mixer, values), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("plan", PLANS)
def test_cross_s6_is_the_product_with_the_kernel_that_its_context_changes(plan: Any) -> None:
    mixer = double(S6(S6Config(states=3, plan=plan), CHANNELS, cross=True))
    given, read = tokens(), tokens(seed=4)
    found = mixer(given, points(), read).detach().numpy()
    for sample, values, context in zip(found, given.numpy(), read.numpy(), strict=True):
        np.testing.assert_allclose(sample, s6_by_its_kernel(mixer, values, context), rtol=1e-9, atol=1e-12)


def test_a_context_that_is_not_projected_changes_nothing() -> None:
    mixer = double(S6(S6Config(states=3), CHANNELS))
    cross = double(S6(S6Config(states=3), CHANNELS, cross=True))
    cross.load_state_dict({**mixer.state_dict(), "select_context": torch.zeros_like(cross.select_context)})
    given = tokens()
    torch.testing.assert_close(cross(given, points(), tokens(seed=4)), mixer(given, points()))


@pytest.mark.parametrize("plan", PLANS)
def test_flipped_tokens_and_exchanged_directions_give_flipped_answers(plan: Any) -> None:
    mixer = double(S6(S6Config(states=3, plan=plan), CHANNELS))
    given = tokens()
    expected = mixer(given, points()).flip(1)
    exchanged = torch.arange(len(mixer.directions)).view(-1, 2).flip(1).flatten()
    with torch.no_grad():
        for name in ("select", "delta_weight", "delta_bias", "log_A", "D"):
            parameter = getattr(mixer, name)
            parameter.copy_(parameter[exchanged].clone())
    torch.testing.assert_close(mixer(given.flip(1), points()), expected)


def test_axial_s6_with_tied_weights_commutes_with_transposition() -> None:
    mixer = without_skip(S6(S6Config(states=3, plan="axial", tied=True), CHANNELS))
    given, (ny, nx) = tokens(), GRID

    def transposed(values: Tensor, rows: int) -> Tensor:
        return values.unflatten(1, (rows, -1)).transpose(1, 2).flatten(1, 2)

    expected = transposed(mixer(given, points()), ny)
    torch.testing.assert_close(mixer(transposed(given, ny), points((nx, ny))), expected)


def test_raster_s6_with_tied_weights_does_not() -> None:
    mixer = without_skip(S6(S6Config(states=3, tied=True), CHANNELS))
    given = tokens(9).unflatten(1, (3, 3))
    turned = mixer(given.transpose(1, 2).flatten(1, 2), points((3, 3)))
    straight = mixer(given.flatten(1, 2), points((3, 3))).unflatten(1, (3, 3)).transpose(1, 2).flatten(1, 2)
    assert (turned - straight).abs().max() > 1e-2


def test_a_constant_field_has_the_same_answer_on_every_grid_where_steps_know_lengths() -> None:
    """A cell's answer is that at its end, which cells of finer grids share."""
    config = S6Config(plan="axial", hold="zero_order", diagonal="once", reference_spacing=1 / 64)
    mixer = without_skip(S6(config, CHANNELS))
    answers = {}
    with torch.no_grad():
        for side in (64, 128, 256):
            given = tokens(1)[:1].expand(-1, side * side, -1)
            fine = mixer(given, points((side, side))).unflatten(1, (side, side))
            step = side // 64
            answers[side] = fine[:, step - 1 :: step, step - 1 :: step]
    size = answers[64].abs().max()
    for side in (128, 256):
        assert (answers[side] - answers[64]).abs().max() < 1e-3 * size
    unscaled = double(S6(config.model_copy(update={"reference_spacing": None}), CHANNELS))
    unscaled.load_state_dict(mixer.state_dict())
    with torch.no_grad():
        coarse = unscaled(tokens(1)[:1].expand(-1, 64**2, -1), points((64, 64)))
        fine = unscaled(tokens(1)[:1].expand(-1, 128**2, -1), points((128, 128)))
    assert (fine.unflatten(1, (128, 128))[:, 1::2, 1::2].flatten(1, 2) - coarse).abs().max() > 1e-1 * size


# --- the paper's two propositions


def solved(a: float, b: float, u: Array, step: float, hold: str) -> Array:
    """``h' = a h + b u`` from rest, u constant within a step, as S6 steps it."""
    count, given = len(u), torch.from_numpy(u).reshape(1, -1, 1)
    steps, B, C = (torch.full((1, 1, count, 1), each, dtype=torch.float64) for each in (step, b, 1.0))
    A, along, grid = torch.full((1, 1, 1), a, dtype=torch.float64), (Direction.FORWARD,), (1, count)
    if hold == "zero_order":
        return np.asarray(held_scan(given, steps, A, B, C, along, grid)).ravel()
    scanned = selective_scan(given, steps, A, B, C, dt_softplus=False, directions=along, grid=grid)
    return np.asarray(scanned).ravel()


@pytest.mark.parametrize("seed", range(3))
def test_proposition_1_the_hold_is_exact_and_its_first_order_is_eulers_step(seed: int) -> None:
    """Cheng et al. 2024, proposition 1: cut after the linear term, the hold is an explicit Euler step.

    Against the solution of the differential equation, the hold has no error for an input that is constant
    within steps, and the mixed form of the code (A held, B by Euler's step) has one of the first order.
    """
    random = np.random.default_rng(seed)
    a, b, pieces = -random.uniform(0.5, 4), random.normal(), random.normal(size=8)
    # the equation's own solution, by the integral of its kernel over each piece
    ends = np.arange(1, 9) / 8
    exact = np.array(
        [
            sum(
                b * value * (math.exp(a * (t - min(t, (i + 1) / 8))) - math.exp(a * (t - i / 8))) / -a
                for i, value in enumerate(pieces)
                if i / 8 < t
            )
            for t in ends
        ]
    )
    np.testing.assert_allclose(solved(a, b, pieces, 1 / 8, "zero_order"), exact, rtol=1e-12, atol=1e-14)
    errors = [
        np.abs(solved(a, b, np.repeat(pieces, n), 1 / (8 * n), "euler")[n - 1 :: n] - exact).max()
        for n in (8, 16, 32, 64)
    ]
    orders = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    np.testing.assert_allclose(orders, 1.0, atol=0.1)
    # both factors of the hold, cut after their linear terms
    step = 1e-4
    assert math.exp(step * a) == pytest.approx(1 + step * a, abs=(step * a) ** 2)
    assert math.expm1(step * a) / a == pytest.approx(step, abs=step**2 * abs(a))


def test_proposition_2_the_scan_is_a_layer_of_a_neural_operator() -> None:
    """Cheng et al. 2024, proposition 2: an integral over the points with a kernel, and a local linear map.

    For frozen steps and weights the scanned sequence is linear in its values: its matrix, found column by
    column, is a kernel times quadrature weights, beside a local map.
    """
    mixer = double(S6(S6Config(states=3), CHANNELS))
    count, inner = math.prod(GRID), mixer.D.shape[1]
    u = torch.randn(1, count, inner, dtype=torch.float64, generator=torch.manual_seed(0))
    delta, B, C = mixer._select(u, None)
    A = -mixer.log_A.exp()

    def scanned(values: Tensor) -> Tensor:
        return mixer._scan(values, delta, A, B, C, GRID)

    columns = []
    for token in range(count):
        unit = torch.zeros_like(u)
        unit[:, token] = 1.0
        columns.append(scanned(unit)[0])
    matrix = torch.stack(columns)  # [of at channel]
    superposed = torch.einsum("oac,oc->ac", matrix, u[0])
    torch.testing.assert_close(superposed, scanned(u)[0])
    # halving what a token stands for halves its part: the quadrature weight is its step
    half = torch.log(torch.expm1(torch.nn.functional.softplus(delta + mixer.delta_bias[:, None]) / 2))
    halved = mixer._scan(u, half - mixer.delta_bias[:, None], 2 * A, B, C, GRID) - u * mixer.D.sum(0)
    torch.testing.assert_close(2 * halved, scanned(u) - u * mixer.D.sum(0))


# --- attention


def heads_of(mixer: Any, given: Array, read: Array) -> tuple[list[Array], list[Array], list[Array]]:
    project = mixer.project
    found = []
    for name, values in (("query", given), ("key", read), ("value", read)):
        layer = getattr(project, name)
        bias = 0.0 if layer.bias is None else layer.bias.detach().numpy()
        found.append(np.split(values @ layer.weight.detach().numpy().T + bias, project.config.heads, axis=1))
    return found[0], found[1], found[2]


def out_of(mixer: Any, heads: list[Array]) -> Array:
    layer = mixer.project.project_out
    product: Array = np.concatenate(heads, axis=1) @ layer.weight.detach().numpy().T
    return product + layer.bias.detach().numpy()


@pytest.mark.parametrize("kind", ["softmax", "linear_l1", "galerkin"])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_attention_is_its_formula(kind: str, elsewhere: bool) -> None:
    built: dict[str, Any] = {
        "softmax": lambda: Softmax(SoftmaxConfig(heads=2), CHANNELS),
        "linear_l1": lambda: LinearL1(LinearL1Config(heads=2), CHANNELS),
        "galerkin": lambda: Galerkin(GalerkinConfig(heads=2, norm="token"), CHANNELS),
    }
    mixer = double(built[kind]())
    given = tokens()
    context = tokens(20, seed=5) if elsewhere else None
    found = mixer(given, points(), context, points((4, 5)) if elsewhere else None).detach().numpy()
    read = given if context is None else context
    for sample, values, other in zip(found, given.numpy(), read.numpy(), strict=True):
        heads = []
        for q, k, v in zip(*heads_of(mixer, values, other), strict=True):
            if kind == "softmax":
                heads.append(softmaxed(q @ k.T / math.sqrt(q.shape[1]), 1) @ v)
            elif kind == "linear_l1":
                q, k = softmaxed(q, 1), softmaxed(k, 1)
                # written as attention: the weights of a token add up to one
                weights = q @ k.T
                heads.append(q + weights / weights.sum(1, keepdims=True) @ v)
            else:
                heads.append(q @ (layer_normed(k).T @ layer_normed(v)) / len(k))
        np.testing.assert_allclose(sample, out_of(mixer, heads), rtol=1e-9, atol=1e-12)


def test_coordinates_come_before_the_channels_of_each_head() -> None:
    mixer = double(Galerkin(GalerkinConfig(heads=2, positions="concat"), CHANNELS))
    given, where = tokens(), points().coordinates.numpy()
    found = mixer(given, points()).detach().numpy()
    for sample, values in zip(found, given.numpy(), strict=True):
        heads = []
        for each in zip(*heads_of(mixer, values, values), strict=True):
            q, k, v = (np.concatenate([where, part], axis=1) for part in each)
            heads.append(q @ (k.T @ v) / len(k))
        np.testing.assert_allclose(sample, out_of(mixer, heads), rtol=1e-9, atol=1e-12)


def test_products_of_rotated_vectors_depend_on_distances_alone() -> None:
    q, k = (torch.randn(1, 1, 12, 8, dtype=torch.float64, generator=torch.manual_seed(n)) for n in (1, 2))
    here = points()
    there = here._replace(coordinates=here.coordinates + torch.tensor([0.3, -1.7], dtype=torch.float64))
    scores = [rotated(q, at, 0.1) @ rotated(k, at, 0.1).mT for at in (here, there)]
    torch.testing.assert_close(scores[0], scores[1])
    assert (scores[0] - q @ k.mT).abs().max() > 1e-2
    # and a rotation keeps lengths
    torch.testing.assert_close(rotated(q, here, 3.0).norm(dim=-1), q.norm(dim=-1))


def test_dropped_out_is_in_training_only() -> None:
    mixer = double(Galerkin(GalerkinConfig(heads=2, dropout=0.5), CHANNELS))
    given = tokens()
    assert torch.equal(mixer(given, points()), mixer(given, points()))
    mixer.train()
    assert not torch.equal(mixer(given, points()), mixer(given, points()))


# --- convolutions and scans with a decay a head


def test_a_spectral_mixer_gives_the_same_function_on_every_grid() -> None:
    """Of a function whose frequencies both grids have; against the product of its Fourier series."""
    mixer = double(Fourier(FourierConfig(modes=3), 1))
    weights = torch.view_as_complex(mixer.convolution.weight).detach().numpy()[:, 0, 0]
    answers = {}
    for side in (16, 24):
        y, x = (np.arange(side) / side for _ in range(2))
        wave = 2 * np.pi * (2 * y[:, None] - x)
        given = torch.from_numpy(np.cos(wave)).reshape(1, -1, 1)
        with torch.no_grad():
            found = mixer.convolution(given.mT.unflatten(-1, (side, side)))[0, 0].numpy()
        # frequency (2, -1) and its conjugate (-2, 1), which lies at the end of the rows
        factor = weights[1, -2, 1]
        np.testing.assert_allclose(found, np.real(np.conj(factor) * np.exp(1j * wave)), atol=1e-6)
        answers[side] = found[:: side // 8, :: side // 8]
    np.testing.assert_allclose(answers[16], answers[24], atol=1e-6)


@pytest.mark.parametrize("plan", PLANS)
def test_ssd_is_its_recurrence(plan: Any) -> None:
    mixer = double(Ssd(SsdConfig(states=3, head_size=4, plan=plan), CHANNELS))
    weights = {name: value.detach().numpy() for name, value in mixer.named_parameters()}
    given = tokens()
    found = mixer(given, points()).detach().numpy()
    for sample, values in zip(found, given.numpy(), strict=True):
        projected = silu(values @ weights["project_in.weight"].T)
        u, gate = np.split(projected, 2, axis=1)
        x = u.reshape(len(u), mixer.heads, 4)
        y = np.zeros_like(x)
        for k, walk in enumerate(WALKS[plan]):
            count = mixer.heads + 6
            selection = u @ weights["select.weight"][k * count : (k + 1) * count].T
            delta, B, C = np.split(selection, [mixer.heads, mixer.heads + 3], axis=1)
            delta, A = softplus(delta + weights["delta_bias"][k]), -np.exp(weights["log_A"][k])
            for order in walk:
                state = np.zeros((mixer.heads, 4, 3))
                for t in order:
                    kept = np.exp(delta[t] * A)[:, None, None] * state
                    state = kept + (delta[t][:, None] * x[t])[..., None] * B[t]
                    y[t] += state @ C[t]
            y += weights["D"][k][:, None] * x
        expected = layer_normed(y.reshape(u.shape)) * gate @ weights["project_out.weight"].T
        np.testing.assert_allclose(sample, expected, rtol=1e-8, atol=1e-10)


# --- all of them


@pytest.mark.parametrize("kind", MIXERS)
def test_every_mixer_has_finite_gradients_for_everything(kind: str) -> None:
    config = MIXERS[kind].__init__.__annotations__["config"]
    heads = {"heads": 2} if kind in ("softmax", "linear_l1", "galerkin") else {}
    mixer = double(MIXERS[kind](config(**heads), 16))
    given = tokens(channels=16).requires_grad_()
    mixer(given, points()).square().sum().backward()
    for parameter in (given, *mixer.parameters()):
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


def test_what_cannot_be_mixed_is_refused() -> None:
    s6 = S6(S6Config(states=3), CHANNELS, cross=True).double()
    with pytest.raises(CannotMix, match="expected a context"):
        s6(tokens(), points())
    with pytest.raises(CannotMix, match="place by place: expected 12 tokens, got 20"):
        s6(tokens(), points(), tokens(20))
    with pytest.raises(CannotMix, match="expected no context"):
        S6(S6Config(states=3), CHANNELS).double()(tokens(), points(), tokens())
    for mixer in (Fourier(FourierConfig(), CHANNELS), Ssd(SsdConfig(), CHANNELS)):
        with pytest.raises(CannotMix, match="reads no context"):
            mixer(tokens().float(), points(), tokens().float())
        with pytest.raises(CannotMix, match="reads no context"):
            type(mixer)(mixer.config, CHANNELS, cross=True)  # type: ignore[arg-type]
    with pytest.raises(CannotMix, match="heads can share"):
        Softmax(SoftmaxConfig(heads=3), CHANNELS)
    with pytest.raises(CannotMix, match="heads of 16 channels"):
        Ssd(SsdConfig(), 12)
    with pytest.raises(ValueError, match="multiple of 4"):
        rotated(torch.zeros(1, 1, 12, 6), points(), 1.0)
