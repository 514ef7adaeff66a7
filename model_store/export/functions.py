"""What ONNX has no operator for, as functions that travel in the file: the scan, and a banded elimination.

A runtime inlines them and needs to know nothing; one with a kernel of that name and domain runs the kernel.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import onnx
import onnx.parser
import torch
from onnxscript import values

from model_store.export.operations import scan_lines, solve_lines

DOMAIN: Final = "mno"
OPSET: Final = 20

# x, dt [batch direction line step channel], A [direction channel state], B, C [batch direction line step
# state]: h[t] = exp(dt[t] A) h[t-1] + dt[t] x[t] B[t], y[t] = C[t] . h[t]
_SELECTIVE_SCAN: Final = """
<domain: "mno", opset_import: ["" : 20]>
SelectiveScan (x, dt, A, B, C) => (y)
{
    last = Constant <value_ints = [-1]> ()
    behind_line = Constant <value_ints = [1]> ()
    before_last = Constant <value_ints = [-2]> ()
    each_line = Unsqueeze (A, behind_line)
    steps = Unsqueeze (dt, last)
    weighted = Mul (dt, x)
    given = Unsqueeze (weighted, last)
    written = Unsqueeze (B, before_last)
    read = Unsqueeze (C, last)
    lines = Shape <start = 0, end = 3> (x)
    sizes = Shape <start = 1, end = 3> (A)
    state_shape = Concat <axis = 0> (lines, sizes)
    nothing = ConstantOfShape (state_shape)
    state, columns = Scan <num_scan_inputs = 4, scan_input_axes = [3, 3, 3, 3], scan_output_axes = [3],
        body = one_step (float[b,k,s,c,n] h, float[b,k,s,c,m] step, float[b,k,s,c,m] value,
                         float[b,k,s,m,n] write, float[b,k,s,n,m] out)
            => (float[b,k,s,c,n] next, float[b,k,s,c,m] answer)
        {
            exponent = Mul (step, each_line)
            decay = Exp (exponent)
            kept = Mul (decay, h)
            added = Mul (value, write)
            next = Add (kept, added)
            answer = MatMul (next, out)
        }> (nothing, steps, given, written, read)
    y = Squeeze (columns, last)
}
"""

# matrix [batch line node line node], load [batch line node], where a line couples with itself and its
# neighbors: block elimination, in which a line is eliminated by Gauss and Jordan with the largest
# pivots of the columns
_SOLVE_LINES: Final = """
<domain: "mno", opset_import: ["" : 20]>
SolveLines (matrix, load) => (x)
{
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    none = Constant <value_float = 0.0> ()
    below = Constant <value_float = -1.0> ()
    first = Constant <value_ints = [0]> ()
    second = Constant <value_ints = [1]> ()
    third = Constant <value_ints = [2]> ()
    sizes = Shape (load)
    batch = Gather (sizes, first)
    lines = Gather (sizes, one)
    nodes = Gather (sizes, third)
    node_count = Squeeze (nodes, first)
    line = Range (zero, lines, one)
    node = Range (zero, node_count, one)
    after_node = Add (nodes, second)
    last_line = Sub (lines, one)
    answers_shape = Concat <axis = 0> (batch, nodes, after_node)
    no_answers = ConstantOfShape (answers_shape)
    all_columns = Add (nodes, after_node)
    final_answers, answers = Scan <num_scan_inputs = 2, scan_input_axes = [0, 1],
        body = one_line (float[b,n,a] before, int64 i, float[b,n] right)
            => (float[b,n,a] after, float[b,n,a] answer)
        {
            row = Gather <axis = 1> (matrix, i)
            previous_line = Sub (i, one)
            previous = Max (previous_line, zero)
            next_line = Add (i, one)
            next = Min (next_line, last_line)
            own = Gather <axis = 2> (row, i)
            ahead = Gather <axis = 2> (row, next)
            behind = Gather <axis = 2> (row, previous)
            known = MatMul (behind, before)
            known_own = Slice (known, first, nodes, third)
            known_right = Slice (known, nodes, after_node, third)
            own_left = Sub (own, known_own)
            right_column = Unsqueeze (right, third)
            right_left = Sub (right_column, known_right)
            system = Concat <axis = 2> (own_left, ahead, right_left)
            solved = Scan <num_scan_inputs = 1,
                body = one_pivot (float[b,n,c] w, int64 k) => (float[b,n,c] eliminated)
                {
                    column = Gather <axis = 2> (w, k)
                    size = Abs (column)
                    done = Less (node, k)
                    candidates = Where (done, below, size)
                    best = ArgMax <axis = 1, keepdims = 1> (candidates)
                    is_best = Equal (node, best)
                    is_k = Equal (node, k)
                    best_rows = Unsqueeze (is_best, third)
                    k_rows = Unsqueeze (is_k, second)
                    best_weights = Cast <to = 1> (is_best)
                    best_line = Unsqueeze (best_weights, second)
                    best_row = MatMul (best_line, w)
                    k_row_flat = Gather <axis = 1> (w, k)
                    k_row = Unsqueeze (k_row_flat, second)
                    swapped = Where (best_rows, k_row, w)
                    pivot_flat = Gather <axis = 2> (best_row, k)
                    pivot = Unsqueeze (pivot_flat, third)
                    unit = Div (best_row, pivot)
                    factor_flat = Gather <axis = 2> (swapped, k)
                    factor = Unsqueeze (factor_flat, third)
                    taken = Mul (factor, unit)
                    others = Sub (swapped, taken)
                    eliminated = Where (k_rows, unit, others)
                }> (system, node)
            after = Slice (solved, nodes, all_columns, third)
            answer = Identity (after)
        }> (no_answers, line, load)
    column_shape = Concat <axis = 0> (batch, nodes, second)
    no_column = ConstantOfShape (column_shape)
    first_column, x = Scan <num_scan_inputs = 1, scan_input_directions = [1], scan_output_directions = [1],
        scan_output_axes = [1],
        body = one_line_back (float[b,n,m] behind_it, float[b,n,a] known_line)
            => (float[b,n,m] column, float[b,n] flat)
        {
            coupling = Slice (known_line, first, nodes, third)
            own_part = Slice (known_line, nodes, after_node, third)
            coupled = MatMul (coupling, behind_it)
            column = Sub (own_part, coupled)
            flat = Squeeze (column, third)
        }> (no_column, answers)
}
"""

FUNCTIONS: Final = {
    function.name: function
    for function in (onnx.parser.parse_function(text) for text in (_SELECTIVE_SCAN, _SOLVE_LINES))
}


def _registered(name: str, inputs: tuple[str, ...], output: str) -> values.Op:
    """The operator by which a graph calls a function; onnxscript wants its schema known."""
    tensor = onnx.defs.OpSchema.FormalParameter
    if not onnx.defs.has(name, DOMAIN):
        onnx.defs.register_schema(
            onnx.defs.OpSchema(
                name,
                DOMAIN,
                1,
                inputs=[tensor(each, "T") for each in inputs],
                outputs=[tensor(output, "T")],
                type_constraints=[("T", ["tensor(float)"], "")],
            )
        )
    registered: values.Op = values.Opset(DOMAIN, 1)[name]
    return registered


def translations() -> Mapping[Callable[..., Any], Callable[..., Any]]:
    """Operation -> what writes its node."""
    scan, solve = (
        _registered(name, tuple(function.input), function.output[0]) for name, function in FUNCTIONS.items()
    )

    def scan_node(x: Any, dt: Any, A: Any, B: Any, C: Any) -> Any:
        return scan(x, dt, A, B, C)

    def solve_node(matrix: Any, load: Any) -> Any:
        return solve(matrix, load)

    def square_root(number: Any) -> Any:
        return values.Opset("", OPSET).Sqrt(number)

    # the exporter knows the other operations on sizes
    size_root: Callable[..., Any] = torch._sym_sqrt  # type: ignore[attr-defined]
    return {scan_lines: scan_node, solve_lines: solve_node, size_root: square_root}
