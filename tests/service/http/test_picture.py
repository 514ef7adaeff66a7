"""Fields as pictures, drawn and served."""

import asyncio
import io
import sys

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from service.errors import NotAvailableYet
from service.http import picture
from service.http.picture import Pictures, Subject, draw

SOLVE = "/v1/problems/darcy/solve"
PNG = {"Accept": "image/png"}


def pixels(data: bytes) -> NDArray[np.float64]:
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"), dtype=np.float64)


def field_of(image: NDArray[np.float64]) -> NDArray[np.float64]:
    """The part of a picture that shows the field: what is within the dark frame on the left."""
    dark = image.sum(axis=2) < 60
    rows = np.flatnonzero(dark.mean(axis=1) > 0.5)
    columns = np.flatnonzero(dark[rows[0] : rows[-1], : int(0.84 * image.shape[1])].mean(axis=0) > 0.95)
    return image[rows[0] + 2 : rows[-1] - 1, columns[0] + 2 : columns[-1] - 1]


def test_y_points_upwards_and_axes_are_equal() -> None:
    values = np.zeros((16, 32))
    values[12:, :8] = 1.0  # large y, small x: red; the rest is white
    values[0, -1] = -1.0
    shown = field_of(pixels(draw(Subject(values, "hu", "m^2/s", extent=(1.0, 2.0)))))
    height, width = shown.shape[:2]
    assert width == pytest.approx(2 * height, rel=0.02)
    upper_left, lower_left, upper_right = shown[5, 5], shown[-5, 5], shown[5, -5]
    assert upper_left[0] > 80 > upper_left[1:].max()
    assert min(lower_left.min(), upper_right.min()) > 200


@pytest.mark.parametrize(
    ("values", "colors"),
    [
        (np.linspace(1, 2, 64).reshape(8, 8), picture.COLORS),
        (np.geomspace(1, 1e6, 64).reshape(8, 8), picture.COLORS),
        (np.linspace(-1, 2, 64).reshape(8, 8), picture.SIGNED_COLORS),
        (np.full((8, 8), np.nan), picture.COLORS),
        (np.zeros((8, 8)), picture.COLORS),
    ],
)
def test_the_colors_fit_the_numbers(values: NDArray[np.float64], colors: str) -> None:
    chosen, scale = picture._scale(values)
    assert chosen == colors
    assert len(draw(Subject(values, "h", "m"))) > 1000
    if colors == picture.SIGNED_COLORS:
        assert scale.vmin == -scale.vmax


def test_the_service_answers_with_a_picture(http: httpx.Client, permeability: NDArray[np.float32]) -> None:
    answer = http.post(SOLVE, json={"permeability": permeability[0].tolist()}, headers=PNG)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    assert answer.headers["Mno-Model"] == "darcy@1"
    assert '"upper"' in answer.headers["Mno-Error-Estimate"]
    image = pixels(answer.content)
    assert image.shape[0] > 400
    assert image.shape[1] > 400


def test_a_batch_has_no_picture(http: httpx.Client, permeability: NDArray[np.float32]) -> None:
    answer = http.post(SOLVE, json={"permeability": permeability.tolist()}, headers=PNG)
    assert (answer.status_code, answer.json()["rule"]) == (422, "rank")


async def _draw_without_matplotlib() -> None:
    await Pictures().draw(Subject(np.zeros((2, 2)), "h", "m"))


def test_a_service_without_matplotlib_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    # what an import system looks at first: None means that there is no such module
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(NotAvailableYet, match="pip install matplotlib"):
        asyncio.run(_draw_without_matplotlib())
