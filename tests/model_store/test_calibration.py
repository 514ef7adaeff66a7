"""The file of a calibration: what is written is read, what does not fit is refused, ranks by hand."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model_store import CALIBRATION, Calibration, CorruptVersion, FeatureSpace, Origin, RefusedVersion, Store
from model_store.backends import MemoryBackend

ORIGIN = Origin(
    weights_sha256="a" * 64,
    scheme="tpfa-harmonic-v1",
    samples=4,
    horizons=(1, 2),
    data_sha256="b" * 64,
    recipes={"calibration_pdebench.hdf5": "{}"},
    feature_layer="norm",
    feature_samples=7,
    code_version="0.1.0",
)
SCORES = np.array([[0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, np.inf]], np.float32)
SPACE = FeatureSpace(
    np.array([1.0, 2.0]), np.array([[2.0, 0.0], [1.0, 0.5]]), np.array([0.5, 1.0, 1.5], np.float32)
)
FOUND = Calibration(ORIGIN, {"relative_l2": SCORES}, SPACE)


def test_what_is_written_is_read() -> None:
    read = Calibration.from_bytes(FOUND.to_bytes())
    assert read.origin == ORIGIN
    np.testing.assert_array_equal(read.scores["relative_l2"], SCORES)
    for name in ("mean", "cholesky", "distances"):
        found, expected = getattr(read.features, name), getattr(SPACE, name)
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == expected.dtype
    # the same numbers are the same bytes, whenever they are written
    assert read.to_bytes() == FOUND.to_bytes()


def test_quantiles_are_ranks() -> None:
    # of 4 samples: rank ceil(5 * 0.6) = 3, ceil(5 * 0.8) = 4, and 5 * 0.9 asks for a fifth
    assert FOUND.quantiles("relative_l2", 0.6) == {1: pytest.approx(0.3), 2: 3.0}
    assert FOUND.quantiles("relative_l2", 0.2) == {1: pytest.approx(0.1), 2: 1.0}
    # a rollout that diverged bounds nothing
    assert FOUND.quantiles("relative_l2", 0.8) == {1: pytest.approx(0.4)}
    assert FOUND.quantiles("relative_l2", 0.9) == {}


def test_a_rank_is_not_rounded_up_by_rounding() -> None:
    scores = np.arange(19, dtype=np.float32)[None]
    wide = replace(
        FOUND,
        origin=ORIGIN.model_copy(update={"samples": 19, "horizons": (0,)}),
        scores={"l2_estimate": scores},
    )
    assert wide.quantiles("l2_estimate", 0.95) == {0: 18.0}
    assert wide.quantiles("l2_estimate", 0.7) == {0: 13.0}


def test_distances_are_those_of_the_covariance() -> None:
    features = np.array([[3.0, 2.0], [1.0, 2.5], [0.0, 0.0]], np.float32)
    inverse = np.linalg.inv(SPACE.cholesky @ SPACE.cholesky.T)
    off = features - SPACE.mean
    expected = np.sqrt(np.einsum("ri,ij,rj->r", off, inverse, off))
    np.testing.assert_allclose(SPACE.distance(features), expected, rtol=1e-12)


def test_a_score_is_the_share_that_is_nearer() -> None:
    # in units of the first feature's deviation, along which the second one follows by half
    rows = [1.0 + 2.0 * distance for distance in (0.0, 0.5, 0.75, 1.5, 9.0)]
    features = np.array([[x, 2.0 + (x - 1.0) / 2] for x in rows], np.float32)
    assert SPACE.score(features) == (0.0, 0.0, 0.25, 0.5, 0.75)
    assert SPACE.score(np.array([[np.nan, 0.0]], np.float32)) == (0.75,)


def _damage(**changes: Any) -> bytes:
    return replace(FOUND, **changes).to_bytes()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "damaged"),
        (b"no safetensors file, but long enough for a header", "damaged"),
        (FOUND.to_bytes()[:-4], "damaged"),
        (_damage(scores={"relative_l2": SCORES[:, ::-1]}), "ascending"),
        (_damage(scores={"relative_l2": SCORES[:1]}), r"\(2, 4\)"),
        (_damage(scores={"relative_l2": SCORES * np.nan}), "ascending"),
        (_damage(features=replace(SPACE, mean=np.zeros(3))), "3 features"),
        (_damage(features=replace(SPACE, cholesky=np.zeros((2, 2)))), "positive diagonal"),
        (_damage(features=replace(SPACE, mean=np.array([0.0, np.inf]))), "finite"),
        (_damage(features=replace(SPACE, distances=np.array([2.0, 1.0], np.float32))), "ascending"),
    ],
)
def test_what_is_no_calibration_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(CorruptVersion, match=message):
        Calibration.from_bytes(data)


def _of(store: Store, card: Any, state: Any, **origin: str) -> tuple[int, NDArray[np.float32]]:
    """Publishes the state with a calibration whose origin is changed so."""
    files = {CALIBRATION: replace(FOUND, origin=ORIGIN.model_copy(update=origin)).to_bytes()}
    number = store.publish("darcy", state, card, files)
    loaded = store.load("darcy", number).calibration
    assert loaded is not None
    return number, loaded.scores["relative_l2"]


def test_a_version_has_the_calibration_that_was_measured_with_its_weights(card: Any, state: Any) -> None:
    store = Store(MemoryBackend())
    bare = store.publish("darcy", state, card)
    assert store.load("darcy", bare).calibration is None
    weights = store.card("darcy", bare).files["weights.safetensors"].sha256
    number, scores = _of(store, card, state, weights_sha256=weights, scheme=card.scheme)
    np.testing.assert_array_equal(scores, SCORES)
    assert set(store.card("darcy", number).files) == {"weights.safetensors", CALIBRATION}
    for wrong in ({"weights_sha256": "c" * 64}, {"scheme": "another"}):
        with pytest.raises(RefusedVersion, match="calibrate the version again"):
            _of(store, card, state, **({"weights_sha256": weights, "scheme": card.scheme} | wrong))
    assert store.versions("darcy") == [bare, number]


def test_a_calibration_of_other_weights_does_not_load(card: Any, state: Any) -> None:
    other = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    store = Store(MemoryBackend())
    weights = store.card("darcy", store.publish("darcy", state, card)).files["weights.safetensors"].sha256
    with pytest.raises(RefusedVersion, match="was measured with the weights"):
        _of(store, card, other, weights_sha256=weights, scheme=card.scheme)
