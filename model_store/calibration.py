"""What a version's estimates are made from, beside its weights: ``calibration.safetensors``.

The file holds, in float32 unless said otherwise:

======================  ==============================================================================
``scores.<name>``       [horizon sample], each horizon sorted: a number that was measured on samples
                        which nothing was learnt from, such as the relative L2 error
``features.mean``       [feature], float64: of the training data, see ``operators.features``
``features.cholesky``   [feature feature], float64, lower triangular: of their covariance
``features.distances``  [sample], sorted: Mahalanobis distances of the calibration data
======================  ==============================================================================

and, as JSON under the key ``calibration`` of its header, where they come from (``Origin``). A file belongs to
one version's weights and to one discrete operator; with others it is refused, since its numbers would mean
nothing.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, Self, final

import numpy as np
import scipy
from jaxtyping import Float32, Float64
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save

from model_store.errors import CorruptVersion

CALIBRATION: Final = "calibration.safetensors"
# key of the header under which the origin stands
_HEADER: Final = "calibration"
_SCORES: Final = "scores."

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@final
class Origin(BaseModel):
    """Where the numbers of a calibration come from.

    Attributes:
        weights_sha256: of the version's ``weights.safetensors``.
        scheme: the discrete operator that the errors speak of.
        samples: calibration samples behind each horizon.
        horizons: of the scores: frames after the last given one; 0 for a steady problem.
        data_sha256: over the files of the calibration data.
        recipes: file name -> recipe, as JSON, that the file is made anew from.
        feature_layer: where the features are read.
        feature_samples: training inputs behind their mean and covariance.
        code_version: what computed it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    weights_sha256: Sha256
    scheme: str
    samples: PositiveInt
    horizons: tuple[NonNegativeInt, ...] = Field(min_length=1)
    data_sha256: Sha256
    recipes: Mapping[str, str]
    feature_layer: str
    feature_samples: PositiveInt
    code_version: str


@final
@dataclass(frozen=True)
class FeatureSpace:
    """How features are distributed: a Gaussian fit to those of the training data, and known distances.

    Attributes:
        mean: of the training data.
        cholesky: lower triangular factor of their covariance, regularised.
        distances: of the calibration data, sorted.
    """

    mean: Float64[np.ndarray, " feature"]
    cholesky: Float64[np.ndarray, "feature feature"]
    distances: Float32[np.ndarray, " sample"]

    def distance(self, features: Float32[np.ndarray, "row feature"]) -> Float64[np.ndarray, " row"]:
        """Mahalanobis distances ``|L^{-1} (x - mean)|``, L the Cholesky factor."""
        off = (features.astype(np.float64) - self.mean).T
        whitened = scipy.linalg.solve_triangular(self.cholesky, off, lower=True, check_finite=False)
        return np.asarray(np.sqrt(np.sum(whitened**2, axis=0)))

    def score(self, features: Float32[np.ndarray, "row feature"]) -> tuple[float, ...]:
        """Of each row the share of the calibration data that is nearer, in [0, 1).

        For an input drawn like the calibration data it is at least ``s`` with a probability of at most ``1 -
        s`` (conformal p-values, Vovk, Gammerman and Shafer 2005; Bates et al. 2023, arXiv 2104.08279).
        """
        # rounded as the known ones are, so that the same input is no nearer than itself
        found = self.distance(features).astype(np.float32)
        # what is not a number is farther than everything
        nearer = np.searchsorted(self.distances, np.nan_to_num(found, nan=np.inf), side="left")
        share: list[float] = (nearer / (len(self.distances) + 1)).tolist()
        return tuple(share)


@final
@dataclass(frozen=True)
class Calibration:
    """A version's calibration.

    Attributes:
        origin: where it comes from.
        scores: name -> [horizon sample], each horizon sorted.
        features: what tells new inputs from known ones.
    """

    origin: Origin
    scores: Mapping[str, Float32[np.ndarray, "horizon sample"]]
    features: FeatureSpace

    def quantiles(self, name: str, coverage: float) -> dict[int, float]:
        """Horizon -> the score that an exchangeable sample stays within with this probability.

        The ``ceil((n + 1) coverage)``-th smallest (split conformal: Vovk, Gammerman and Shafer 2005; Lei et
        al. 2018, section 2); none where there are too few samples to promise anything.
        """
        scores = self.scores[name]
        # 20 * 0.95 is 19, whatever rounding makes of it
        rank = int(np.ceil((scores.shape[1] + 1) * coverage - 1e-9))
        if not 1 <= rank <= scores.shape[1]:
            return {}
        chosen = scores[:, rank - 1]
        return {
            horizon: float(value)
            for horizon, value in zip(self.origin.horizons, chosen, strict=True)
            if np.isfinite(value)
        }

    def require(self, weights_sha256: str, scheme: str) -> None:
        """Make sure that it belongs to these weights and this discrete operator.

        Raises:
            CorruptVersion: it does not.
        """
        found = self.origin.weights_sha256, self.origin.scheme
        if found != (weights_sha256, scheme):
            raise CorruptVersion(
                f"{CALIBRATION} was measured with the weights {found[0][:12]} of {found[1]}, expected "
                f"{weights_sha256[:12]} of {scheme}; calibrate the version again"
            )

    def to_bytes(self) -> bytes:
        """The bytes of the file."""
        tensors: dict[str, NDArray[Any]] = {
            **{f"{_SCORES}{name}": np.ascontiguousarray(each) for name, each in self.scores.items()},
            "features.mean": self.features.mean,
            "features.cholesky": self.features.cholesky,
            "features.distances": self.features.distances,
        }
        written = save(tensors, metadata={_HEADER: self.origin.model_dump_json()})
        return bytes(written)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read the file.

        Raises:
            CorruptVersion: it is no such file.
        """
        try:
            return cls._parsed(data)
        except (SafetensorError, ValidationError, KeyError, ValueError, UnicodeDecodeError) as error:
            raise CorruptVersion(
                f"{CALIBRATION} is damaged or of another program version: {' '.join(str(error).split())}"
            ) from None

    @classmethod
    def _parsed(cls, data: bytes) -> Self:
        tensors = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        origin = Origin.model_validate_json(header["__metadata__"][_HEADER])
        space = FeatureSpace(
            tensors["features.mean"], tensors["features.cholesky"], tensors["features.distances"]
        )
        scores = {
            name.removeprefix(_SCORES): each for name, each in tensors.items() if name.startswith(_SCORES)
        }
        _require_sound(origin, scores, space)
        return cls(origin, scores, space)


def _require_sound(origin: Origin, scores: Mapping[str, NDArray[Any]], space: FeatureSpace) -> None:
    """Raises ``ValueError`` unless shapes and orders are as the module says."""
    for name, each in scores.items():
        if each.shape != (len(origin.horizons), origin.samples):
            expected = (len(origin.horizons), origin.samples)
            raise ValueError(f"{_SCORES}{name}: expected the shape {expected}, got {each.shape}")
        if not (each[:, 1:] >= each[:, :-1]).all():
            raise ValueError(f"{_SCORES}{name}: expected each horizon in ascending order")
    size = len(space.mean)
    if space.mean.ndim != 1 or space.cholesky.shape != (size, size):
        raise ValueError(f"expected a matrix for {size} features, got {space.cholesky.shape}")
    if not (np.isfinite(space.mean).all() and np.isfinite(space.cholesky).all()):
        raise ValueError("expected finite features")
    if not (np.diag(space.cholesky) > 0).all():
        raise ValueError("features.cholesky: expected a positive diagonal")
    if space.distances.ndim != 1 or not (np.diff(space.distances) >= 0).all():
        raise ValueError("features.distances: expected ascending order")
