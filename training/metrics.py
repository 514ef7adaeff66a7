"""Error metrics: one number per sample from fields [sample 1 y x] in float64, and their summary over samples.

RMSE, nRMSE, cRMSE, bRMSE and fRMSE are PDEBench's (Takamoto et al. 2022), averaged over samples rather than
over batches.
"""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float, Float64
from numpy.typing import NDArray

from operators import darcy_stencil
from training.field_metrics import BANDS, band_root_mean_squares, edge_root_mean_square, mean_size

METRICS = (
    "relative_l2",
    "relative_energy",
    "rmse",
    "nrmse",
    "max_error",
    "crmse",
    "brmse",
    *(f"frmse_{band}" for band in BANDS),
)
STATISTICS = ("median", "mean", "p90", "p95", "max")
# what ``summary`` returns, and acceptance limits are set for
SUMMARY_NAMES = tuple(f"{metric}_{statistic}" for metric in METRICS for statistic in STATISTICS)

Fields = Float[np.ndarray, "sample 1 y x"]
PerSample = Float64[np.ndarray, " sample"]


def relative_l2(predicted: Fields, reference: Fields) -> PerSample:
    """``||p - p_ref|| / ||p_ref||``, the ratio of Euclidean norms."""
    return _norm(_error(predicted, reference)) / _norm(reference)


def rmse(predicted: Fields, reference: Fields) -> PerSample:
    """``sqrt(mean((p - p_ref)^2))`` [Pa]."""
    return _root_mean_square(_error(predicted, reference))


def nrmse(predicted: Fields, reference: Fields) -> PerSample:
    """RMSE over the root mean square of the reference; for one field it equals the relative L2 error."""
    return rmse(predicted, reference) / _root_mean_square(reference)


def max_error(predicted: Fields, reference: Fields) -> PerSample:
    """``max |p - p_ref|`` [Pa]."""
    return np.asarray(np.abs(_error(predicted, reference)).max(axis=(1, 2, 3)))


def crmse(predicted: Fields, reference: Fields) -> PerSample:
    """``|mean(p - p_ref)|`` [Pa]."""
    return mean_size(_error(predicted, reference))[:, 0]


def brmse(predicted: Fields, reference: Fields) -> PerSample:
    """RMSE over the cells at the walls, corners counted twice [Pa]."""
    return edge_root_mean_square(_error(predicted, reference))[:, 0]


def frmse(predicted: Fields, reference: Fields) -> dict[str, PerSample]:
    """RMSE of the low, middle and high wavenumbers, see ``field_metrics.band_root_mean_squares`` [Pa]."""
    bands = band_root_mean_squares(_error(predicted, reference))
    return {band: values[:, 0] for band, values in bands.items()}


def relative_energy(
    predicted: Fields, reference: Fields, permeability: Fields, spacing: tuple[float, float], scheme: str
) -> PerSample:
    """``||p - p_ref||_A / ||p_ref||_A`` in the energy norm of the discrete operator ``scheme``."""
    faces = darcy_stencil.transmissibilities(_tensor(permeability), spacing, scheme)
    error = darcy_stencil.energy_norm(faces, _tensor(_error(predicted, reference)))
    return np.asarray((error / darcy_stencil.energy_norm(faces, _tensor(reference))).numpy())


def score(
    predicted: Fields, reference: Fields, permeability: Fields, spacing: tuple[float, float], scheme: str
) -> dict[str, PerSample]:
    """Every metric by name."""
    return {
        "relative_l2": relative_l2(predicted, reference),
        "relative_energy": relative_energy(predicted, reference, permeability, spacing, scheme),
        "rmse": rmse(predicted, reference),
        "nrmse": nrmse(predicted, reference),
        "max_error": max_error(predicted, reference),
        "crmse": crmse(predicted, reference),
        "brmse": brmse(predicted, reference),
        **{f"frmse_{band}": values for band, values in frmse(predicted, reference).items()},
    }


def summary(scores: Mapping[str, PerSample]) -> dict[str, float]:
    """Median, mean, 90th and 95th percentile and maximum of each metric, named ``<metric>_<statistic>``."""
    return {
        f"{metric}_{statistic}": float(value)
        for metric, values in scores.items()
        for statistic, value in _statistics(values).items()
    }


def quantile(values: Float64[np.ndarray, "sample ..."], fraction: float) -> Float64[np.ndarray, "..."]:
    """Quantile over the samples, interpolated unless a neighbor is infinite: then the larger neighbor."""
    with np.errstate(invalid="ignore"):
        between = np.quantile(values, fraction, axis=0)
    observed = np.quantile(values, fraction, axis=0, method="higher")
    return np.asarray(np.where(np.isnan(between), observed, between))


def _statistics(values: PerSample) -> dict[str, np.float64]:
    median, p90, p95 = (np.float64(quantile(values, fraction)) for fraction in (0.5, 0.9, 0.95))
    return {"median": median, "mean": values.mean(), "p90": p90, "p95": p95, "max": values.max()}


def _error(predicted: Fields, reference: Fields) -> NDArray[np.float64]:
    return predicted.astype(np.float64) - reference.astype(np.float64)


def _norm(fields: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.asarray(np.linalg.norm(fields.reshape(len(fields), -1).astype(np.float64), axis=1))


def _root_mean_square(fields: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.asarray(np.sqrt(np.mean(fields.astype(np.float64) ** 2, axis=(1, 2, 3))))


def _tensor(fields: NDArray[np.floating]) -> torch.Tensor:
    return torch.from_numpy(fields.astype(np.float64))
