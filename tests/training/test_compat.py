"""Other codes' numbers, slips included, against naive loops over batches, samples, times and channels."""

import math
from typing import Any

import numpy as np
import pytest

from training.compat import CONVENTIONS, TooFewBatches, measure_steady

Batches = list[tuple[np.ndarray, np.ndarray, np.ndarray]]


def steady(count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(count)
    reference = 1.0 + rng.random((count, 1, 32, 32))
    return reference + 0.3 * rng.standard_normal(reference.shape), reference


def batches(*sizes: int) -> Batches:
    """Predicted frames, their reference, and the given frames of every batch."""
    rng = np.random.default_rng(0)

    def draw(size: int, frames: int) -> np.ndarray:
        return rng.standard_normal((size, frames, 2, 30, 30)) + 2.0

    return [(draw(size, 5), draw(size, 5), draw(size, 3)) for size in sizes]


def combined(name: str, found: Batches) -> dict[str, float]:
    convention = CONVENTIONS[name]
    return convention.combine([convention.evolution(*batch) for batch in found])


def test_mno_takes_darcys_cells_for_another_axis_by_hand() -> None:
    reference = np.array([[[[1.0, 2.0], [4.0, 5.0]]]])
    predicted = np.array([[[[2.0, 2.0], [4.0, 3.0]]]])
    found = measure_steady(CONVENTIONS["mno"], predicted, reference)
    assert found["RMSE"] == pytest.approx((1.0 + 2.0) / 4)
    assert found["nRMSE"] == pytest.approx((1.0 / 1.0 + 2.0 / 5.0) / 4)
    assert found["RL2"] == pytest.approx(math.sqrt(5.0 / 46.0))


def test_mno_weighs_a_short_last_batch_as_much_as_the_others() -> None:
    predicted, reference = steady(5)
    found = measure_steady(CONVENTIONS["mno"], predicted, reference, batch_size=4)
    absolute = [float(np.abs(predicted[i] - reference[i]).mean()) for i in range(5)]
    assert found["RMSE"] == pytest.approx((sum(absolute[:4]) / 4 + absolute[4]) / 2)


def naive_mno(found: Batches) -> dict[str, float]:
    """Mean over b, c, t of the whole trajectory, its given frames copied into the prediction."""
    sums: dict[str, list[float]] = {"RMSE": [], "nRMSE": [], "RL2": []}
    for predicted, reference, given in found:
        answer, truth = np.concatenate([given, predicted], 1), np.concatenate([given, reference], 1)
        rmse, nrmse, relative = [], [], []
        for p, y in zip(answer, truth, strict=True):
            relative.append(math.sqrt(((p - y) ** 2).sum()) / math.sqrt((y**2).sum()))
            for t in range(p.shape[0]):
                for c in range(p.shape[1]):
                    error = math.sqrt(((p[t, c] - y[t, c]) ** 2).mean())
                    rmse.append(error)
                    nrmse.append(error / (math.sqrt((y[t, c] ** 2).mean()) + 1e-9))
        for name, values in (("RMSE", rmse), ("nRMSE", nrmse), ("RL2", relative)):
            sums[name].append(sum(values) / len(values))
    return {name: sum(values) / len(values) for name, values in sums.items()}


def test_mno_counts_the_given_frames_as_predicted() -> None:
    found = batches(4, 4, 1)
    assert combined("mno", found) == pytest.approx(naive_mno(found))


def test_mnos_rmse_is_91_101ths_of_pdebenchs_but_for_the_batches() -> None:
    rng = np.random.default_rng(0)
    shape = (2, 91, 1, 4, 4)
    predicted, reference = rng.random(shape), rng.random(shape)
    given = rng.random((2, 10, 1, 4, 4))
    mno = CONVENTIONS["mno"].evolution(predicted, reference, given)
    pdebench = CONVENTIONS["pdebench"].evolution(predicted, reference, given)
    assert mno["RMSE"] == pytest.approx(91 / 101 * pdebench["RMSE"])


def naive_pdebench_batch(predicted: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    size, times, channels, ny, nx = predicted.shape
    error = predicted - reference
    names = ("RMSE", "nRMSE", "cRMSE", "max", "bRMSE", "fRMSE_low", "fRMSE_mid", "fRMSE_high")
    sums: dict[str, float] = dict.fromkeys(names, 0.0)
    for t in range(times):
        for c in range(channels):
            e, y = error[:, t, c], reference[:, t, c]
            rmse = [math.sqrt((one**2).mean()) for one in e]
            sums["RMSE"] += sum(rmse) / size
            sums["nRMSE"] += (
                sum(r / math.sqrt((one**2).mean()) for r, one in zip(rmse, y, strict=True)) / size
            )
            sums["cRMSE"] += math.sqrt(sum(one.sum() ** 2 for one in e) / size) / (nx * ny)
            sums["max"] += np.abs(e).max()
            for one in e:
                edge = sum((line**2).sum() for line in (one[0], one[-1], one[:, 0], one[:, -1]))
                sums["bRMSE"] += math.sqrt(edge / (2 * nx + 2 * ny)) / size
            shells = naive_shells(e)
            sums["fRMSE_low"] += sum(shells[0:4]) / 4
            sums["fRMSE_mid"] += sum(shells[4:12]) / 8
            sums["fRMSE_high"] += sum(shells[12:]) / len(shells[12:])
    return {name: float(value / (times * channels)) for name, value in sums.items()}


def naive_shells(errors: np.ndarray) -> list[float]:
    """Square roots of the power summed in each shell and averaged over the batch, over nx ny."""
    ny, nx = errors.shape[-2:]
    power = [0.0] * (nx // 2)
    for error in errors:
        modes = np.fft.fft2(error)
        for i in range(ny // 2):
            for j in range(nx // 2):
                shell = math.floor(math.sqrt(i**2 + j**2))
                if shell < len(power):
                    power[shell] += abs(modes[i, j]) ** 2 / len(errors)
    return [math.sqrt(value) / (nx * ny) for value in power]


def test_pdebench_divides_by_the_last_index() -> None:
    found = batches(3, 3, 2)
    values = [naive_pdebench_batch(predicted, reference) for predicted, reference, _ in found]
    expected = {name: sum(value[name] for value in values) / 2 for name in values[0]}
    assert combined("pdebench", found) == pytest.approx(expected)


def test_pdebench_of_a_steady_problem() -> None:
    predicted, reference = steady(5)
    found = measure_steady(CONVENTIONS["pdebench"], predicted, reference, batch_size=3)
    halves = [
        naive_pdebench_batch(predicted[part, None], reference[part, None])
        for part in (slice(0, 3), slice(3, 5))
    ]
    # two batches: their sum, divided by one
    assert found == pytest.approx({name: halves[0][name] + halves[1][name] for name in found})


def test_twenty_batches_are_five_percent_too_much() -> None:
    one: dict[str, Any] = {"RMSE": 1.0}
    assert CONVENTIONS["pdebench"].combine([one] * 20)["RMSE"] == pytest.approx(20 / 19)
    assert CONVENTIONS["mno"].combine([one] * 20)["RMSE"] == pytest.approx(1.0)


def test_one_batch_is_a_division_by_zero() -> None:
    predicted, reference = steady(5)
    with pytest.raises(TooFewBatches, match="at least two batches"):
        measure_steady(CONVENTIONS["pdebench"], predicted, reference)
