"""Counts the floating-point operations of a forward pass, alike on every device and with every scan backend.

Counted are products of matrices, convolutions, attention, Fourier transforms and selective scans.
Activations, norms, softmaxes and other elementwise operations are not: of a network they are some for each
number, and take their time from memory rather than from arithmetic. Those inside a scan are.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

# the operations of one call, from its arguments and its result, ``out_val``
Formula = Callable[..., int]


def count_flops(function: Callable[..., object], *inputs: object) -> int:
    """The operations of ``function(*inputs)``, without those of a pass back.

    A scan counts where the operation ``mno::selective_scan`` does it, so with all backends but ``reference``,
    which only short float64 sequences use: count in float32.
    """
    # not from the top: it imports Triton, which reads its environment once
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False, custom_mapping=_formulas())
    # in inference mode a scan goes past its operation
    with torch.inference_mode(False), torch.no_grad(), counter:
        function(*inputs)
    return int(counter.get_total_flops())


def _formulas() -> dict[Any, Formula]:
    """Operation -> formula, of those that PyTorch does not count, or counts as if they were real."""
    aten = torch.ops.aten
    products = (aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.mv, aten.addmv, aten.dot)
    formulas: dict[Any, Formula] = dict.fromkeys(products, _product)
    formulas |= {
        aten._fft_c2c: _complex_transform,
        aten._fft_r2c: _transform_of_real,
        aten._fft_c2r: _transform_to_real,
        aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        torch.ops.mno.selective_scan: _scan,
    }
    for formula in formulas.values():
        # the counter then gives it tensors, which know whether they are complex, and not their shapes
        formula._get_raw = True  # type: ignore[attr-defined]
    return formulas


def _product(*args: Any, out_val: Tensor, **_: Any) -> int:
    """A multiplication and an addition for each number of the result and each term of its sum.

    Of complex numbers the multiplication takes six real operations, and the addition two.
    """
    left, _right = [each for each in args if isinstance(each, Tensor)][-2:]
    return (8 if out_val.is_complex() else 2) * out_val.numel() * left.shape[-1]


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    """Both products, ``q k^T`` and the weights with the values; the softmax between them is not counted."""
    pairs = query.shape[:-1].numel() * key.shape[-2]
    return 2 * pairs * (query.shape[-1] + value.shape[-1])


def _complex_transform(fields: Tensor, dims: Sequence[int], *_: Any, **__: Any) -> int:
    """``5 N log2 N`` for each transform over N numbers, as of Cooley and Tukey's with radix 2."""
    return round(5 * _n_log_n(fields, dims))


def _transform_of_real(fields: Tensor, dims: Sequence[int], *_: Any, **__: Any) -> int:
    """Half of what N complex numbers take."""
    return round(2.5 * _n_log_n(fields, dims))


def _transform_to_real(_: Tensor, dims: Sequence[int], *__: Any, out_val: Tensor, **___: Any) -> int:
    """Half of what N complex numbers take, N being those of the result."""
    return round(2.5 * _n_log_n(out_val, dims))


def _n_log_n(fields: Tensor, dims: Sequence[int]) -> float:
    """``N log2 N`` for each of the transforms that run over ``dims``."""
    return fields.numel() * math.log2(math.prod(fields.shape[dim] for dim in dims))


def _scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    _B: Tensor,
    _C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    *_: Any,
    **__: Any,
) -> int:
    """All arithmetic of a selective scan, token by token as ``operators.scan.scan.Scan`` writes it.

    For each sample, token, channel and direction, an exponential, a logarithm or a quotient counted as one::

        7 a state   exp(dt A): 2      h <- decay * h + (dt x) * B: 3      y <- y + C * h: 2
        1           dt x
        1           dt + dt_bias, if there is a bias
        3           softplus, log(1 + exp(dt)), if the step sizes take it
        2           y + D x, if there is a D

    and for each sample, token and channel one addition for each direction after the first, and 4 for the gate
    ``y z / (1 + exp(-z))``, if there is one. Where the tokens lie in memory and what is kept for a pass back
    costs nothing here, nor does what a backend computes twice.
    """
    directions, _channels, states = A.shape
    of_direction = 7 * states + 1 + (dt_bias is not None) + 3 * dt_softplus + 2 * (D is not None)
    return dt.numel() * of_direction + x.numel() * (directions - 1 + 4 * (z is not None))
