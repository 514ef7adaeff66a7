"""The functions that travel in a file, in a stock runtime, against references in float64."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor

from model_store.export.functions import FUNCTIONS, OPSET
from model_store.export.operations import selective_scan_by_lines
from operators.scan import Direction, selective_scan

GRID = (5, 7)


def run(name: str, *inputs: Tensor) -> Tensor:
    """A function alone in ONNX Runtime, with all sizes open."""
    function = FUNCTIONS[name]
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(name, list(function.input), list(function.output), domain="mno")],
        "alone",
        [info(key, 1, [None] * tensor.ndim) for key, tensor in zip(function.input, inputs, strict=True)],
        [info(function.output[0], 1, [None] * inputs[-1].ndim)],
    )
    opsets = [onnx.helper.make_opsetid("", OPSET), onnx.helper.make_opsetid("mno", 1)]
    model = onnx.helper.make_model(graph, functions=[function], opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    fed = {key: tensor.float().numpy() for key, tensor in zip(function.input, inputs, strict=True)}
    return torch.from_numpy(session.run(None, fed)[0])


def scan_inputs(directions: int, batch: int = 2, channels: int = 3, states: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(directions)
    tokens = GRID[0] * GRID[1]

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return {
        "x": normal(batch, tokens, channels),
        "dt": normal(batch, directions, tokens, channels) - 1.0,
        "A": -normal(directions, channels, states).exp(),
        "B": normal(batch, directions, tokens, states),
        "C": normal(batch, directions, tokens, states),
        "D": normal(directions, channels),
        "z": normal(batch, tokens, channels),
        "dt_bias": normal(directions, channels),
    }


DIRECTIONS = [(direction,) for direction in Direction] + [tuple(Direction)]


@pytest.mark.parametrize("absent", [(), ("D",), ("z",), ("dt_bias",), ("D", "z", "dt_bias")])
@pytest.mark.parametrize("directions", DIRECTIONS, ids=lambda each: "-".join(d.name for d in each))
def test_every_direction_is_a_scan_of_lines(
    directions: tuple[Direction, ...], absent: tuple[str, ...]
) -> None:
    inputs = {key: None if key in absent else value for key, value in scan_inputs(len(directions)).items()}
    expected = selective_scan(**inputs, directions=directions, grid=GRID, backend="reference")  # type: ignore[arg-type]
    found, checkpoint, last = selective_scan_by_lines(
        *inputs.values(),
        True,
        directions,
        GRID,  # type: ignore[arg-type]
    )
    torch.testing.assert_close(found, expected)
    # the shapes that the graph of the operation has for what nobody reads
    states = torch.ops.mno.selective_scan(*inputs.values(), True, list(directions), list(GRID), False)
    assert (checkpoint.shape, last.shape) == (states[1].shape, states[2].shape)


def test_steps_may_be_given_without_softplus() -> None:
    inputs = scan_inputs(2)
    inputs["dt"] = inputs["dt"].exp()
    order = (Direction.REVERSE, Direction.COLUMN_MAJOR)
    expected = selective_scan(**inputs, dt_softplus=False, directions=order, grid=GRID, backend="reference")
    torch.testing.assert_close(selective_scan_by_lines(*inputs.values(), False, order, GRID)[0], expected)


@pytest.mark.parametrize(
    ("batch", "directions", "lines", "steps"), [(1, 1, 1, 1), (2, 1, 1, 65), (3, 2, 4, 6), (1, 4, 2, 17)]
)
def test_scan_in_the_runtime(batch: int, directions: int, lines: int, steps: int) -> None:
    generator = torch.Generator().manual_seed(steps)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    size = (batch, directions, lines, steps)
    x, dt, A = normal(*size, 3), normal(*size, 3).exp(), -normal(directions, 3, 5).exp()
    B, C = normal(*size, 5), normal(*size, 5)
    found = run("SelectiveScan", x, dt, A, B, C)
    for k in range(directions):
        for line in range(lines):
            expected = selective_scan(
                x[:, k, line],
                dt[:, k, line][:, None],
                A[k][None],
                B[:, k, line][:, None],
                C[:, k, line][:, None],
                dt_softplus=False,
                backend="reference",
            )
            torch.testing.assert_close(found[:, k, line].double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("batch", "lines", "nodes"), [(1, 1, 1), (2, 1, 4), (3, 5, 2), (2, 4, 6)])
def test_elimination_in_the_runtime(batch: int, lines: int, nodes: int) -> None:
    generator = torch.Generator().manual_seed(nodes)
    matrix = torch.randn(batch, lines, nodes, lines, nodes, generator=generator, dtype=torch.float64)
    line = torch.arange(lines)
    matrix *= ((line[:, None] - line).abs() <= 1)[:, None, :, None]
    # a zero where a pivot would be taken without looking
    matrix[:, 0, 0, 0, 0] = 0.0 if nodes > 1 else 1.0
    load = torch.randn(batch, lines, nodes, generator=generator, dtype=torch.float64)
    whole = matrix.reshape(batch, lines * nodes, lines * nodes)
    expected = np.linalg.solve(whole.numpy(), load.flatten(1).numpy()[..., None]).reshape(load.shape)
    found = run("SolveLines", matrix, load)
    torch.testing.assert_close(found.double(), torch.from_numpy(expected), rtol=1e-3, atol=1e-3)
