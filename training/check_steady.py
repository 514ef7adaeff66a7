"""The check of a file of Darcy samples."""

from pathlib import Path

import h5py
import numpy as np

from problems import STEADY_PROBLEMS, Grid, InvalidField
from training.check_origin import check_duplicates, check_recipe, digest, probes
from training.dataset import Dataset, read_dataset
from training.findings import Finding, Report
from training.progress import Progress
from training.steady_recipe import SteadyRecipe

DARCY = STEADY_PROBLEMS["darcy"]
# the scheme of PDEBench's own labels, which have not yet come to rest
_FOREIGN_SCHEME = "pdebench-ghost0-v1"
# relative L2; float32 alone leaves 1e-7
_LABEL_TOLERANCE = 1e-5


def check_steady(path: Path, progress: Progress) -> Report:
    """Look at every sample, and solve some again.

    Raises:
        InvalidDataset: the file cannot be read.
    """
    data = read_dataset(path)
    with progress(None, len(data), f"check {path.name}") as bar:
        inputs = {"permeability": [digest(field) for field in data.permeability]}
        bar.update(len(data))
    ny, nx = data.grid
    findings = (
        _coordinates(path, data),
        _values(data),
        check_duplicates(inputs),
        _labels(data),
        _recipe(data),
    )
    title = f"darcy, {len(data)} samples, {ny} x {nx}, source {data.source:g}"
    return Report(path, title, findings, inputs)


def _coordinates(path: Path, data: Dataset) -> Finding:
    with h5py.File(path, "r") as file:
        found = [np.asarray(file[f"{axis}-coordinate"][()], np.float64) for axis in "yx"]
    for axis, centres, expected in zip("yx", found, Grid(data.grid, data.extent).coordinates(), strict=True):
        if not np.allclose(centres, expected, rtol=0, atol=1e-3 * (expected[1] - expected[0])):
            text = f"{axis} from {centres[0]:g} to {centres[-1]:g} m are not centres of equal cells from 0"
            return Finding("coordinates", "fault", text)
    (ny, nx), (ly, lx) = data.grid, data.extent
    return Finding("coordinates", "ok", f"{ny} x {nx} cell centres, y in (0, {ly:g}) m, x in (0, {lx:g}) m")


def _values(data: Dataset) -> Finding:
    try:
        DARCY.inputs[0].validate_batch(data.permeability[:, 0])
        DARCY.outputs[0].validate_batch(data.pressure[:, 0])
        DARCY.parameters[0].validate(data.source)
    except InvalidField as error:
        return Finding("values", "fault", f"{error} (sample, y, x)")
    a, p = data.permeability, data.pressure
    text = f"permeability {a.min():.4g} to {a.max():.4g}, pressure {p.min():.4g} to {p.max():.4g}"
    return Finding("values", "ok", text)


def _labels(data: Dataset) -> Finding:
    """Some pressures against the solution of the declared scheme."""
    scheme = str(data.attributes.get("scheme", _FOREIGN_SCHEME))
    if scheme not in DARCY.schemes:
        return Finding("labels", "fault", f"unknown scheme {scheme}, expected {', '.join(DARCY.schemes)}")
    try:
        errors = [_label_error(data, index, scheme) for index in probes(len(data))]
    except InvalidField:
        return Finding("labels", "note", "not judged: there is no solution for such values")
    text = f"{max(errors):.1e} relative L2 from the steady state of {scheme}, {len(errors)} solved"
    if max(errors) <= _LABEL_TOLERANCE:
        return Finding("labels", "ok", text)
    return Finding("labels", "fault" if "scheme" in data.attributes else "note", text)


def _label_error(data: Dataset, index: int, scheme: str) -> float:
    fields = {
        "permeability": data.permeability[index, 0].astype(np.float64),
        "source": np.array(data.source),
    }
    exact = DARCY.solve(fields, Grid(data.grid, data.extent), scheme).fields["pressure"]
    return float(np.linalg.norm(data.pressure[index, 0] - exact) / np.linalg.norm(exact))


def _recipe(data: Dataset) -> Finding:
    held = {"count": len(data), "grid": data.grid, "source": data.source}
    inputs = {index: data.permeability[index] for index in probes(len(data))}
    return check_recipe(SteadyRecipe, data.attributes, held, inputs)
