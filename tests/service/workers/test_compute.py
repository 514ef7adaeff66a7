"""Loaded surrogates on batches: solutions, frames, and gradients that finite differences confirm."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model_store import LoadedVersion, Reference, open_store
from operators import EvolutionSurrogate, Surrogate
from problems import Grid
from service.errors import InvalidSettings
from service.workers.compute import Surrogates, choose_device
from service.workers.outputs import outputs_of
from service.workers.worker import COTANGENT, GRADIENT, TANGENT, Batch, Bucket

CPU = torch.device("cpu")
DARCY = Bucket("darcy", Reference("darcy", 1), "tpfa-harmonic-v1", Grid((32, 32), (1.0, 1.0)), "float32")
SOURCE = np.array([1.0, 2.0, 0.5], np.float32)


@pytest.fixture(scope="module")
def darcy(store_url: str) -> Surrogates:
    return Surrogates([open_store(store_url).load("darcy", 1)], CPU)


def test_a_device_that_is_not_there_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert choose_device("auto") == CPU
    with pytest.raises(InvalidSettings, match="--device cpu"):
        choose_device("cuda")


def test_the_reference_solver_is_somebody_else(darcy: Surrogates, permeability: NDArray[np.float32]) -> None:
    batch = Batch(replace(DARCY, version=None), {"permeability": permeability, "source": SOURCE})
    with pytest.raises(ValueError, match="reference solver"):
        darcy(batch)


@pytest.mark.parametrize("writeable", [True, False])
def test_solutions_are_those_of_the_surrogate(
    darcy: Surrogates, surrogate: Surrogate, permeability: NDArray[np.float32], writeable: bool
) -> None:
    field = permeability.copy()
    # such as a view of the bytes of a request
    field.flags.writeable = writeable
    found = darcy(Batch(DARCY, {"permeability": field, "source": SOURCE}))
    with torch.inference_mode():
        expected = surrogate(torch.from_numpy(permeability)[:, None], torch.from_numpy(SOURCE))[:, 0]
    assert np.array_equal(found.fields["pressure"], expected.numpy())
    assert found.iterations == (0, 0, 0)


def test_frames_are_those_of_the_surrogate(
    drift: EvolutionSurrogate,
    evolution_versions: tuple[LoadedVersion, ...],
    water: NDArray[np.float32],
) -> None:
    grid = Grid((16, 24), (5.0, 5.0))
    bucket = Bucket(
        "shallow_water",
        Reference("shallow_water", 1),
        "hllc-muscl-v1",
        grid,
        "float32",
        "outflow",
        "advance",
        4,
    )
    state = np.stack([water, 2 * water])
    fields = {name: state[:, channel] for channel, name in enumerate(("h", "hu", "hv"))}
    found = Surrogates(evolution_versions, CPU)(Batch(bucket, fields))
    expected = drift(torch.from_numpy(state)[:, None], grid.extent)
    for channel, name in enumerate(("h", "hu", "hv")):
        assert found.fields[name].shape == (2, 4, 16, 24)
        assert np.array_equal(found.fields[name], expected[:, :, channel].numpy())


def _product(surrogate: Surrogate, field: Any, source: Any, cotangent: Any) -> Any:
    """The product of solution and cotangent of each row, in float64."""
    answer = surrogate.double()(torch.from_numpy(field)[:, None], torch.from_numpy(source))[:, 0]
    return (answer.numpy() * cotangent).sum((1, 2))


def test_gradients_are_those_of_finite_differences(
    darcy: Surrogates, store_url: str, permeability: NDArray[np.float32]
) -> None:
    rng = np.random.default_rng(0)
    cotangent = rng.normal(size=permeability.shape).astype(np.float32)
    fields = {"permeability": permeability, "source": SOURCE, f"{COTANGENT}pressure": cotangent}
    found = darcy(Batch(replace(DARCY, task="vjp"), fields)).fields
    assert found.keys() == {f"{GRADIENT}permeability", f"{GRADIENT}source"}

    loaded = open_store(store_url).load("darcy", 1).surrogate
    assert isinstance(loaded, Surrogate)
    loaded.requires_grad_(False)
    field, source = permeability.astype(np.float64), SOURCE.astype(np.float64)
    direction = rng.normal(size=field.shape)
    for step, along_source in ((direction, 0.0), (0 * direction, 1.0)):
        h = 1e-6
        ahead = _product(loaded, field + h * step, source + h * along_source, cotangent)
        behind = _product(loaded, field - h * step, source - h * along_source, cotangent)
        predicted = (found[f"{GRADIENT}permeability"] * step).sum((1, 2))
        predicted = predicted + along_source * found[f"{GRADIENT}source"]
        assert np.allclose(predicted, (ahead - behind) / (2 * h), rtol=2e-3)


def test_a_row_has_the_gradient_that_it_has_alone(
    darcy: Surrogates, permeability: NDArray[np.float32]
) -> None:
    bucket = replace(DARCY, task="vjp")
    fields = {"permeability": permeability, "source": SOURCE, f"{COTANGENT}pressure": permeability}
    together = darcy(Batch(bucket, fields)).fields
    alone = darcy(Batch(bucket, {name: values[1:2] for name, values in fields.items()})).fields
    for name, values in alone.items():
        scale = np.abs(values).max()
        assert np.allclose(together[name][1:2], values, rtol=1e-4, atol=1e-5 * scale), name


def test_tangents_are_those_of_finite_differences_and_belong_to_the_gradients(
    darcy: Surrogates, store_url: str, permeability: NDArray[np.float32]
) -> None:
    rng = np.random.default_rng(3)
    tangent, cotangent = rng.normal(size=(2, *permeability.shape)).astype(np.float32)
    given = {"permeability": permeability, "source": SOURCE}
    pushed = darcy(Batch(replace(DARCY, task="jvp"), given | {f"{TANGENT}permeability": tangent})).fields
    pulled = darcy(Batch(replace(DARCY, task="vjp"), given | {f"{COTANGENT}pressure": cotangent})).fields
    (found,) = pushed.values()
    assert found.dtype == np.float32
    forth, back = np.vdot(cotangent, found), np.vdot(pulled[f"{GRADIENT}permeability"], tangent)
    assert forth == pytest.approx(back, abs=1e-5 * float(np.linalg.norm(cotangent) * np.linalg.norm(found)))

    exact = open_store(store_url).load("darcy", 1).surrogate.requires_grad_(False).double()
    field, source, h = torch.from_numpy(permeability).double(), torch.from_numpy(SOURCE).double(), 1e-5
    along = h * torch.from_numpy(tangent).double()
    ahead, behind = (exact((field + sign * along)[:, None], source)[:, 0] for sign in (1, -1))
    expected = ((ahead - behind) / (2 * h)).numpy()
    assert np.linalg.norm(found - expected) < 1e-4 * np.linalg.norm(expected)


def test_without_a_cotangent_there_is_no_gradient(
    darcy: Surrogates, permeability: NDArray[np.float32]
) -> None:
    found = darcy(Batch(replace(DARCY, task="vjp"), {"permeability": permeability, "source": SOURCE})).fields
    assert not found[f"{GRADIENT}permeability"].any()
    assert not found[f"{GRADIENT}source"].any()


def test_a_row_goes_back_through_a_block_as_it_does_alone(
    water_store: str, water: NDArray[np.float32]
) -> None:
    network = Surrogates([open_store(water_store).load("shallow_water", 1)], CPU)
    where = Grid((16, 24), (5.0, 5.0))
    reference = Reference("shallow_water", 1)
    bucket = Bucket("shallow_water", reference, "hllc-muscl-v1", where, "float32", "outflow", "vjp", 3)
    state = np.stack([water, water[:, ::-1], 2 * water])
    fields = {name: state[:, channel] for channel, name in enumerate(("h", "hu", "hv"))}
    fields |= {f"{COTANGENT}hu": state[:, 0]}
    together = network(Batch(bucket, fields)).fields
    assert {name: (values.shape[1:], values.dtype) for name, values in together.items()} == outputs_of(bucket)
    alone = network(Batch(bucket, {name: values[1:2] for name, values in fields.items()})).fields
    for name, values in alone.items():
        assert np.array_equal(together[name][1:2], values), name
    # the third frame of the block is the one that is differentiated
    surrogate: Any = open_store(water_store).load("shallow_water", 1).surrogate
    before = torch.from_numpy(state).requires_grad_()
    after = surrogate(before[:, None], where.extent)[:, 2, 1]
    (expected,) = torch.autograd.grad(after, before, before.detach()[:, 0])
    for channel, name in enumerate(("h", "hu", "hv")):
        found, wanted = together[f"{GRADIENT}{name}"], expected[:, channel].numpy()
        assert np.allclose(found, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max()), name


def test_a_row_marches_with_its_tangent_as_it_does_alone(
    water_store: str, water: NDArray[np.float32]
) -> None:
    network = Surrogates([open_store(water_store).load("shallow_water", 1)], CPU)
    where, reference = Grid((16, 24), (5.0, 5.0)), Reference("shallow_water", 1)
    bucket = Bucket("shallow_water", reference, "hllc-muscl-v1", where, "float32", "outflow", "jvp", 4)
    bucket = replace(bucket, chosen=(1, 3))
    state = np.stack([water, water[:, ::-1], 2 * water])
    fields = {name: state[:, channel] for channel, name in enumerate(("h", "hu", "hv"))}
    given = fields | {f"{TANGENT}hu": state[:, 0]}
    together = network(Batch(bucket, given)).fields
    assert {name: (values.shape[1:], values.dtype) for name, values in together.items()} == outputs_of(bucket)
    alone = network(Batch(bucket, {name: values[1:2] for name, values in given.items()})).fields
    for name, values in alone.items():
        assert np.array_equal(together[name][1:2], values), name
    # the third frame has the tangents that belong to its gradients
    back = replace(bucket, task="vjp", frames=3, chosen=())
    pulled = network(Batch(back, fields | {f"{COTANGENT}h": state[:, 1]})).fields
    forth = np.vdot(state[:, 1], together[f"{TANGENT}h"][:, 1])
    scale = np.linalg.norm(state[:, 1]) * np.linalg.norm(together[f"{TANGENT}h"][:, 1])
    assert forth == pytest.approx(np.vdot(pulled[f"{GRADIENT}hu"], state[:, 0]), abs=1e-5 * float(scale))
