"""What a batch gives: the layout of an answer, known to whoever makes room for it before it is computed."""

from __future__ import annotations

import numpy as np

from problems import EVOLUTION_PROBLEMS, PROBLEMS
from service.workers.worker import (
    BOUND_FIELDS,
    CERTIFIED_FIELDS,
    GRADIENT,
    GRADIENT_ERROR,
    INVARIANTS,
    QUANTITIES,
    TANGENT,
    Bucket,
)

__all__ = ["outputs_of"]

Layout = dict[str, tuple[tuple[int, ...], np.dtype[np.generic]]]

DOUBLE = np.dtype(np.float64)


def outputs_of(bucket: Bucket) -> Layout:
    """Shape of a row and dtype of everything that a batch gives, by name.

    ========== ===================================================================================
    solve      the problem's outputs [y x], in the bucket's dtype
    advance    the problem's outputs [frame y x], in the bucket's dtype; of a version the ``invariants`` of
               the frames [frame invariant], float64
    bound      ``lower upper l2_estimate steps contrast jump roughness`` [], float64
    certify    the same, and ``l2_lower l2_upper max_lower max_upper floor`` []
    refine     the problem's outputs [y x], and what ``certify`` gives; float64
    vjp        ``gradient.<input>`` [y x], ``gradient.<parameter>`` []
    jvp        ``tangent.<output>`` [y x]; of a problem that evolves those of the ``chosen`` frames
               [chosen y x]
    adjoint    ``gradient.<input>`` [direction y x], ``gradient.<parameter>`` and ``error`` [direction],
               float64
    tangent    ``tangent.<output>`` [direction y x], ``error`` [direction], float64
    quantities ``quantities`` [quantity 2], value and half-width, float64
    ========== ===================================================================================
    """
    match bucket.task:
        case "bound":
            return _numbers(BOUND_FIELDS)
        case "certify":
            return _numbers(CERTIFIED_FIELDS)
        case "refine":
            return _solution(bucket) | _numbers(CERTIFIED_FIELDS)
        case "advance":
            return _frames(bucket)
        case "vjp":
            return _gradients(bucket, (), np.dtype(bucket.dtype))
        case "jvp":
            many = (len(bucket.chosen),) if bucket.problem in EVOLUTION_PROBLEMS else ()
            return _tangents(bucket, many, np.dtype(bucket.dtype))
        case "adjoint":
            each = (bucket.directions,)
            return _gradients(bucket, each, DOUBLE) | {GRADIENT_ERROR: (each, DOUBLE)}
        case "tangent":
            each = (bucket.directions,)
            return _tangents(bucket, each, DOUBLE) | {GRADIENT_ERROR: (each, DOUBLE)}
        case "quantities":
            return {QUANTITIES: ((bucket.directions, 2), DOUBLE)}
        case "solve":
            return _solution(bucket)


def _numbers(names: tuple[str, ...]) -> Layout:
    return dict.fromkeys(names, ((), DOUBLE))


def _solution(bucket: Bucket) -> Layout:
    field = (bucket.grid.shape, np.dtype(bucket.dtype))
    return {spec.name: field for spec in PROBLEMS[bucket.problem].outputs}


def _frames(bucket: Bucket) -> Layout:
    field = ((bucket.frames, *bucket.grid.shape), np.dtype(bucket.dtype))
    outputs: Layout = {spec.name: field for spec in PROBLEMS[bucket.problem].outputs}
    if bucket.version is not None:
        names = EVOLUTION_PROBLEMS[bucket.problem].invariant_names
        outputs[INVARIANTS] = ((bucket.frames, len(names)), DOUBLE)
    return outputs


def _gradients(bucket: Bucket, many: tuple[int, ...], dtype: np.dtype[np.generic]) -> Layout:
    problem, field = PROBLEMS[bucket.problem], ((*many, *bucket.grid.shape), dtype)
    gradients: Layout = {f"{GRADIENT}{spec.name}": field for spec in problem.inputs}
    return gradients | {f"{GRADIENT}{spec.name}": (many, dtype) for spec in problem.parameters}


def _tangents(bucket: Bucket, many: tuple[int, ...], dtype: np.dtype[np.generic]) -> Layout:
    field = ((*many, *bucket.grid.shape), dtype)
    return {f"{TANGENT}{spec.name}": field for spec in PROBLEMS[bucket.problem].outputs}
