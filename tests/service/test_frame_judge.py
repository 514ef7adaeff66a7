"""Frames are judged by what is known about them, and looked at where nothing is."""

from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from problems import EVOLUTION_PROBLEMS, Grid
from service.errors import InvalidField
from service.frame_judge import Computed, FrameJudge, Judged

PROBLEM = EVOLUTION_PROBLEMS["shallow_water"]
GRID = Grid((4, 6), (2.0, 3.0))
CARD = {"perturbation_l2_q90.frame_10": 0.1, "perturbation_l2_q90.frame_20": 0.3}
ROWS, FRAMES = 2, 4


def judge(dtype: Literal["float32", "float64"] = "float32", start: int = 0) -> FrameJudge:
    judged = Judged(PROBLEM, GRID, 0.5, CARD, 0, surrogate=True, single=False, dtype=dtype)
    still = np.zeros((ROWS, *GRID.shape))
    depth = still + 2.0
    # like no image of itself, of the same mass
    depth[:, 0, :2] += 0.5, -0.5
    return FrameJudge(judged, start, {"h": depth, "hu": still, "hv": still})


def fields() -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(0)
    h, hu, hv = rng.random((3, ROWS, FRAMES, *GRID.shape), np.float32)
    return {"h": h + 1, "hu": hu, "hv": hv}


def looked_at(frames: dict[str, NDArray[Any]]) -> NDArray[np.float64]:
    with np.errstate(all="ignore"):
        return np.stack(
            [
                PROBLEM.frame_invariants({name: values[row] for name, values in frames.items()}, GRID)
                for row in range(ROWS)
            ]
        )


def test_what_is_known_is_not_computed_again() -> None:
    frames = fields()
    known = np.arange(ROWS * FRAMES * 6, dtype=float).reshape(ROWS, FRAMES, 6)
    block = judge().block(Computed(frames, known), range(11, 15), every=1)
    assert [frame.step for frame in block.frames] == [11, 12, 13, 14]
    assert [frame.time for frame in block.frames] == [5.5, 6.0, 6.5, 7.0]
    for number, frame in enumerate(block.frames):
        *named, (name, defect) = frame.invariants.items()
        assert dict(named) == dict(zip(PROBLEM.invariant_names, known[:, number].T.tolist(), strict=True))
        # a mass of 2 m on 6 m^2 in the beginning
        assert (name, defect) == ("mass_defect", (known[:, number, 0] / 12.0 - 1).tolist())
        for field, values in frame.fields.items():
            assert np.shares_memory(values, frames[field])
        assert frame.error is not None
        assert frame.error.upper == pytest.approx(0.1 + 0.02 * (frame.step - 10))


def test_the_invariants_of_a_frame_are_not_where_the_block_was_computed() -> None:
    known = np.ones((ROWS, FRAMES, 6))
    block = judge().block(Computed(fields(), known), range(1, 5), every=1)
    known[...] = 7.0
    assert block.frames[0].invariants["mass"] == [1.0, 1.0]


@pytest.mark.parametrize("every", [1, 2, 3, 7])
def test_frames_that_nobody_has_looked_at_are_judged_alike(every: int) -> None:
    frames = fields()
    known = judge().block(Computed(frames, looked_at(frames)), range(5, 9), every)
    unknown = judge().block(Computed.of(frames, PROBLEM), range(5, 9), every)
    assert [frame.step for frame in unknown.frames] == [n for n in range(5, 9) if n % every == 0]
    assert unknown.fault is known.fault is None
    for one, other in zip(known.frames, unknown.frames, strict=True):
        assert one[:2] == other[:2]
        assert one.error == other.error
        for name, values in one.invariants.items():
            assert values == pytest.approx(other.invariants[name], rel=1e-13)
    for block in (known, unknown):
        for name, values in block.state.items():
            np.testing.assert_array_equal(values, frames[name][:, 3])
            assert not np.shares_memory(values, frames[name])


@pytest.mark.parametrize(
    ("field", "bad", "complaint"),
    [
        ("hu", np.nan, "hu is not finite in float32"),
        ("hv", np.inf, "hv is not finite in float32"),
        ("h", 0.0, r"h must exceed 0 m, got 0 at \(1, 2\)"),
    ],
)
@pytest.mark.parametrize("looked", [True, False])
def test_a_frame_that_is_none_ends_those_before_it(
    field: str, bad: float, complaint: str, looked: bool
) -> None:
    frames = fields()
    frames[field][1, 2, 1, 2] = bad
    computed = Computed(frames, looked_at(frames)) if looked else Computed.of(frames, PROBLEM)
    block = judge().block(computed, range(1, 5), every=1)
    assert [frame.step for frame in block.frames] == [1, 2]
    assert isinstance(block.fault, InvalidField)
    assert (block.fault.rule, block.fault.index) == ("diverged", (1,))
    with pytest.raises(InvalidField, match=rf"step 3: {complaint}"):
        raise block.fault
    # a frame that is not sent is nobody's
    assert judge().block(computed, range(1, 5), every=2).fault is None


def test_numbers_that_the_answer_cannot_hold_are_no_frame() -> None:
    frames = {name: values.astype(np.float64) for name, values in fields().items()}
    frames["hu"][0, 1, 0, 0] = 1e39
    block = judge("float32").block(Computed.of(frames, PROBLEM), range(1, 5), every=1)
    assert [frame.step for frame in block.frames] == [1]
    assert block.frames[0].fields["h"].dtype == np.float32
    # the state goes on as it is
    assert block.state["h"].dtype == np.float64
    assert judge("float64").block(Computed.of(frames, PROBLEM), range(1, 5), every=1).fault is None


def test_an_energy_that_overflows_is_a_number_of_the_answer() -> None:
    frames = {name: values.astype(np.float64) for name, values in fields().items()}
    frames["hu"][:, 1, 0, 0] = 1e200
    block = judge("float64").block(Computed(frames, looked_at(frames)), range(1, 5), every=1)
    assert block.fault is None
    assert block.frames[1].invariants["energy"] == [np.inf, np.inf]
    assert all(np.isfinite(block.frames[2].invariants["energy"]))


def test_a_symmetric_state_and_closed_walls_bound_errors_from_below() -> None:
    judged = Judged(PROBLEM, GRID, 0.5, CARD, 0, surrogate=True, single=False, dtype="float32", closed=True)
    still = np.zeros((ROWS, *GRID.shape))
    judge = FrameJudge(judged, 10, {"h": still + 2.0, "hu": still, "hv": still})
    assert not judge.quick
    frames = {name: np.repeat(field[:, None], FRAMES, 1) for name, field in (("hu", still), ("hv", still))}
    frames["h"] = frames["hu"] + 2.25
    frames["h"][:, 1, 0, 0] += 1.0
    even, lopsided = judge.block(Computed.of(frames, PROBLEM), range(11, 15), every=1).frames[:2]
    # a quarter of a meter too much, everywhere
    assert even.invariants["least_mean_error"] == pytest.approx([0.25] * ROWS)
    assert even.invariants["least_rms_error"] == [0.0] * ROWS
    # one cell of four that mirror it: it is 3/4 off their mean, the others 1/4
    cells = GRID.shape[0] * GRID.shape[1]
    expected = np.sqrt((0.75**2 + 3 * 0.25**2) / (3 * cells))
    assert lopsided.invariants["least_rms_error"] == pytest.approx([expected] * ROWS)
    assert lopsided.invariants["least_mean_error"] == pytest.approx([0.25 + 1.0 / cells] * ROWS)


def test_open_walls_and_a_lopsided_state_bound_nothing() -> None:
    block = judge().block(Computed.of(fields(), PROBLEM), range(11, 15), every=1)
    assert not {"least_mean_error", "least_rms_error"} & block.frames[0].invariants.keys()


def test_the_scores_of_a_block_go_with_its_frames() -> None:
    scores = (0.25, 0.995)
    block = judge().block(Computed.of(fields(), PROBLEM, scores), range(11, 15), every=2)
    assert [frame.ood_scores for frame in block.frames] == [scores, scores]
    assert judge().block(Computed.of(fields(), PROBLEM), range(11, 15), every=1).frames[0].ood_scores == ()
