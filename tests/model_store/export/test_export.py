"""``mno export`` as a user meets it."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch

import mno
from model_store import LoadedVersion, builtin_store
from model_store.export.check import LIMIT, check
from model_store.export.errors import CannotExport, Disagrees
from model_store.export.program import NOT_SAVABLE, load
from model_store.export.signature import Sides
from model_store.export.story import whole_or_absent, write
from operators import OperatorConfig, Surrogate
from operators.axial_mno import AxialMnoConfig
from operators.diffusion_reaction_mno import DiffusionReactionMnoConfig
from operators.feed_forward import FeedForwardConfig
from operators.heads.pointwise import PointwiseConfig
from operators.heads.spectral import SpectralConfig
from operators.mixers.s6 import S6Config
from operators.neural_operator import EvolutionNeuralOperatorConfig, SteadyNeuralOperatorConfig
from operators.one_shot import OneShotConfig
from operators.presets import PRESETS, Task
from operators.shallow_water_mno import ShallowWaterMnoConfig
from operators.trunks.stack import StackConfig

Publish = Callable[[OperatorConfig, str], LoadedVersion]
STACK = StackConfig(
    channels=8,
    mixers=(S6Config(states=2, ratio=1.0, plan="axial"),),
    feed_forward=FeedForwardConfig(hidden=8),
)
SPECTRAL = SpectralConfig(channels=4, modes=3, layers=1, hidden=8)
TINY = SteadyNeuralOperatorConfig(
    trunk=STACK.model_copy(update={"mixers": (S6Config(states=2, ratio=1.0),)}),
    head=PointwiseConfig(layers=0),
)
EXTENT = (2.0, 1.0)


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    code = mno.run(["export", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def tiny(publish: Publish) -> LoadedVersion:
    return publish(TINY, "darcy")


@pytest.fixture
def url(tiny: LoadedVersion, tmp_path: Path) -> str:  # noqa: ARG001
    """A store with one version."""
    return str(tmp_path / "store")


def test_a_file_answers_as_the_surrogate_does(
    tiny: LoadedVersion, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "exported" / "tiny.onnx"
    code, out, err = run(capsys, "tiny@1", path, "--store", url)
    assert (code, err) == (0, "")
    assert out.startswith(f"tiny@1 is {path}: differs from PyTorch by ")
    assert [each.name for each in path.parent.iterdir()] == ["tiny.onnx"]

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [(each.name, each.shape) for each in session.get_inputs()] == [
        ("permeability", ["batch", "y", "x"]),
        ("source", ["batch"]),
    ]
    assert [(each.name, each.shape) for each in session.get_outputs()] == [("pressure", ["batch", "y", "x"])]
    assert isinstance(tiny.surrogate, Surrogate)
    for batch, ny, nx in ((1, 16, 16), (5, 7, 30)):
        permeability, source = 1e-3 * torch.rand(batch, ny, nx).exp(), 2.0 + torch.rand(batch)
        given = {"permeability": permeability.numpy(), "source": source.numpy()}
        (found,) = session.run(None, given)
        expected = tiny.surrogate(permeability[:, None], source, EXTENT)[:, 0]
        assert (torch.from_numpy(found) - expected).norm() <= LIMIT * expected.norm()

    about = session.get_modelmeta().custom_metadata_map
    assert (about["mno.model"], about["mno.version"], about["mno.problem"]) == ("tiny", "1", "darcy")
    assert json.loads(about["mno.fields"])["outputs"] == {"pressure": "Pa"}
    assert json.loads(about["mno.extent_m"]) == list(EXTENT)
    assert about["mno.weights_sha256"] == tiny.card.files["weights.safetensors"].sha256
    functions = {(each.domain, each.name) for each in onnx.load(path).functions}
    assert ("mno", "SelectiveScan") in functions


def test_a_program_answers_as_the_surrogate_does(
    tiny: LoadedVersion, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tiny.pt2"
    assert run(capsys, "tiny", path, "--store", url)[0] == 0
    program, about = load(path)
    assert about["mno.form"] == "torch.export"
    permeability, source = torch.rand(3, 9, 14).exp(), torch.ones(3)
    assert isinstance(tiny.surrogate, Surrogate)
    expected = tiny.surrogate(permeability[:, None], source, EXTENT)[:, 0]
    torch.testing.assert_close(program(permeability, source), expected, rtol=1e-4, atol=1e-6)


def test_a_program_needs_no_extra(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # this is how Python marks a module that is not there
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, _, err = run(capsys, "tiny", tmp_path / "tiny.onnx", "--store", url)
    assert (code, list(tmp_path.glob("*.onnx"))) == (2, [])
    assert err == (
        'mno: onnxruntime is not installed; ONNX needs `pip install "mno[export]"`, OUT.pt2 does not\n'
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["wave", "out.onnx"], "expected one of the models ['darcy', 'diffusion_reaction', 'shallow_water',"),
        (["tiny@7", "out.onnx"], "expected a version among [1]"),
        (["tiny", "out.pt"], "expected OUT.onnx or OUT.pt2 (a program of torch.export), got 'out.pt'"),
        (["tiny", "out"], "expected OUT.onnx or OUT.pt2"),
    ],
)
def test_refusals(
    url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *arguments, "--store", url)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_file_that_disagrees_is_found(tiny: LoadedVersion) -> None:
    def answer(by: float) -> list[float]:
        def file(permeability: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
            assert isinstance(tiny.surrogate, Surrogate)
            return by * tiny.surrogate(permeability[:, None], source, EXTENT)[:, 0]

        return check(file, tiny, [(1, 8, 8), (2, 8, 12)])

    assert max(answer(1.0)) < 1e-6
    assert max(answer(1.00009)) == pytest.approx(9e-5, rel=0.1)
    with pytest.raises(Disagrees, match="differ by at most"):
        answer(1.001)
    with pytest.raises(Disagrees):
        answer(float("nan"))


def test_a_failed_export_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "out.onnx"

    def interrupted() -> None:
        with whole_or_absent(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []
    path.write_text("of yesterday")
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [each.read_text() for each in tmp_path.iterdir()] == ["of yesterday"]
    with whole_or_absent(path) as temporary:
        temporary.write_text("whole")
    assert [each.read_text() for each in tmp_path.iterdir()] == ["whole"]


def test_sides_of_an_operator() -> None:
    sides = Sides.of(AxialMnoConfig())
    assert (sides.multiple, sides.least) == (16, 32)
    assert [sides.beyond(cells) for cells in (0, 31, 32, 100)] == [32, 32, 48, 112]
    assert str(sides) == "multiples of 16, at least 32"
    assert str(Sides.of(TINY)) == "at least 4"


SMALL = {"channels": 8, "inner_channels": 8, "states": 2, "rank": 1, "blocks": 1}
OTHERS: dict[str, tuple[OperatorConfig, str]] = {
    "axial": (AxialMnoConfig(**SMALL, intervals=4), "darcy"),
    "shallow_water": (ShallowWaterMnoConfig(**SMALL, frames=2), "waves"),
    "diffusion_reaction": (DiffusionReactionMnoConfig(**SMALL, frames=2), "waves"),
    "generic": (OneShotConfig(**SMALL, fields=2, walls="outflow", reference_spacing=0.1, frames=2), "waves"),
    "history": (
        EvolutionNeuralOperatorConfig(
            fields=2, walls="outflow", history=3, frames=4, predicts="increments", trunk=STACK, head=SPECTRAL
        ),
        "waves",
    ),
}


def in_turn(*case: str, quick: bool) -> Any:
    """A case that CI runs, or one that takes too long for it."""
    return pytest.param(*case, marks=pytest.mark.slow if quick else pytest.mark.long)


# each part is in one of those that CI runs
IN_CI = {("axial", "onnx"), ("shallow_water", "onnx"), ("generic", "pt2"), ("history", "onnx")}


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        in_turn(name, suffix, quick=(name, suffix) in IN_CI)
        for name, (config, _) in OTHERS.items()
        for suffix in ("onnx", "pt2")
        if suffix == "onnx" or config.kind not in NOT_SAVABLE
    ],
)
def test_other_operators(name: str, suffix: str, publish: Publish, tmp_path: Path) -> None:
    assert "differs" in write(publish(*OTHERS[name]), tmp_path / f"{name}.{suffix}")


@pytest.mark.parametrize("name", [name for name, (config, _) in OTHERS.items() if config.kind in NOT_SAVABLE])
def test_a_program_that_cannot_be_saved_is_refused_at_once(
    name: str, publish: Publish, tmp_path: Path
) -> None:
    version = publish(*OTHERS[name])
    with pytest.raises(CannotExport, match=f"got {version.card.operator.kind} of .*; export it as ONNX"):
        write(version, tmp_path / "out.pt2")
    assert not (tmp_path / "out.pt2").exists()


# an ablation has the parts of others
@pytest.mark.parametrize(
    "name",
    [
        in_turn(name, quick=name in ("mamba_gnot", "galerkin", "unet"))
        for name in PRESETS
        if not name.endswith(("_softmax", "_c4"))
    ],
)
def test_presets(
    name: str, publish: Publish, small_preset: Callable[[str, Task], OperatorConfig], tmp_path: Path
) -> None:
    assert "differs" in write(publish(small_preset(name, Task()), "darcy"), tmp_path / f"{name}.onnx")


@pytest.mark.long
@pytest.mark.parametrize("name", ["darcy", "shallow_water", "diffusion_reaction"])
def test_built_in_models(name: str, tmp_path: Path) -> None:
    assert "differs" in write(builtin_store().load(name, 1), tmp_path / f"{name}.onnx")
