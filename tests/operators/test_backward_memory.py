"""The memory kept for a pass back against sizes by hand."""

import torch
from torch import Tensor, nn

from operators.backward_memory import held_for_backward
from operators.scan import Direction, selective_scan

FLOAT = 4


def test_a_network_holds_what_its_layers_read() -> None:
    network = nn.Sequential(nn.Linear(3, 5), nn.GELU(), nn.Linear(5, 2))
    # the input, what GELU reads, and what the last layer reads, of 4 samples
    expected = FLOAT * 4 * (3 + 5 + 5)
    assert held_for_backward(network, torch.ones(4, 3), weights=network.parameters()) == expected


def test_weights_that_are_not_named_count() -> None:
    network = nn.Sequential(nn.Linear(3, 5), nn.GELU(), nn.Linear(5, 2))
    # the first layer's is needed by nothing: no gradient is asked of the input
    assert held_for_backward(network, torch.ones(4, 3)) == FLOAT * (4 * (3 + 5 + 5) + 5 * 2)


def test_buffers_are_weights() -> None:
    buffer, given = torch.ones(7), torch.ones(7, requires_grad=True)
    assert held_for_backward(lambda x: x * buffer, given) == FLOAT * 7
    assert held_for_backward(lambda x: x * buffer, given, weights=[buffer]) == 0


def test_views_of_the_same_memory_count_once_and_whole() -> None:
    def halves_multiplied(x: Tensor) -> Tensor:
        doubled = 2 * x
        return doubled[:3] * doubled[3:6]

    assert held_for_backward(halves_multiplied, torch.ones(8, requires_grad=True)) == FLOAT * 8


def test_what_was_thrown_away_is_not_held() -> None:
    def careless(x: Tensor) -> Tensor:
        x.sin()
        return x.exp()

    given = torch.ones(8, requires_grad=True)
    # the sine would hold what it was taken of, the exponential holds itself
    assert held_for_backward(careless, given) == FLOAT * 8
    assert held_for_backward(lambda x: (x.sin(), x.exp()), given) == FLOAT * 2 * 8


def test_nothing_is_held_without_a_gradient() -> None:
    with torch.no_grad():
        assert held_for_backward(nn.Linear(3, 5), torch.ones(4, 3)) == 0


def test_the_states_of_a_scan_are_held() -> None:
    batch, tokens, channels, states = 2, 100, 3, 5
    x, z = torch.ones(batch, tokens, channels), torch.ones(batch, tokens, channels)
    dt = torch.ones(batch, 2, tokens, channels, requires_grad=True)
    A = -torch.ones(2, channels, states)
    B, C = torch.ones(batch, 2, tokens, states), torch.ones(batch, 2, tokens, states)

    def scan(*inputs: Tensor) -> Tensor:
        directions = (Direction.FORWARD, Direction.REVERSE)
        return selective_scan(*inputs, A, B, C, z=z, directions=directions)

    inputs = x.numel() + z.numel() + dt.numel() + B.numel() + C.numel()
    # a state after 32, 64 and 96 tokens, in each direction
    checkpoints = batch * 2 * 3 * states * channels
    assert held_for_backward(scan, x, dt, weights=[A]) == FLOAT * (inputs + checkpoints)
