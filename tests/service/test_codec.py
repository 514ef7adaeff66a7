"""Bytes to arrays and back, without the service around them."""

import contextlib
import gzip
import io
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Literal

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from service.codec import (
    MOST_NAMES,
    PIECE,
    array_from_lists,
    decode_json,
    decode_npy,
    decompress,
    encode_json,
    encode_npy,
    gzipped,
)
from service.errors import InvalidField, ServiceFault

NUMBERS = st.sampled_from(["f2", "f4", "f8", "i1", "i4", "i8", "u2", ">f4", ">i8"])


@settings(deadline=None)
@given(arrays.arrays(NUMBERS, arrays.array_shapes(max_dims=3, max_side=5)), st.sampled_from("CF"))
def test_npy_is_read_as_numpy_writes_it(array: np.ndarray, order: str) -> None:
    stream = io.BytesIO()
    np.save(stream, np.asarray(array, order=order))
    decoded = decode_npy("x", stream.getvalue())
    assert decoded.flags.c_contiguous
    assert decoded.dtype.isnative
    np.testing.assert_array_equal(decoded, array)


@settings(deadline=None)
@given(arrays.arrays(st.sampled_from(["f4", "f8"]), arrays.array_shapes(max_dims=3, max_side=5)))
def test_npy_is_written_as_numpy_writes_it(array: np.ndarray) -> None:
    stream = io.BytesIO()
    np.save(stream, array)
    assert encode_npy(array) == stream.getvalue()


@settings(deadline=None)
@given(st.binary(max_size=300), st.integers(0, 200))
def test_no_bytes_break_the_npy_reader(noise: bytes, place: int) -> None:
    good = encode_npy(np.ones((4, 4)))
    for body in (noise, good[:place] + noise + good[place + len(noise) :]):
        with contextlib.suppress(ServiceFault):
            decode_npy("x", body)


@settings(deadline=None)
@given(
    arrays.arrays(np.float32, arrays.array_shapes(max_dims=3), elements=st.floats(width=32, allow_nan=False))
)
def test_json_keeps_every_bit_of_a_float32(array: np.ndarray) -> None:
    array = np.where(np.isinf(array), np.float32(0), array)
    document = orjson.loads(encode_json({"x": array}))
    assert np.array_equal(array_from_lists("x", document["x"]).astype(np.float32), array)


@pytest.mark.parametrize(("coding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_one_whole_stream_is_read_within_the_limit(
    coding: Literal["gzip", "deflate"], compress: Callable[[bytes], bytes]
) -> None:
    packed = compress(b"x" * 100)
    assert decompress(packed, coding, 100) == b"x" * 100
    for body in (packed[:-1], packed + b"y", b"", b"x"):
        with pytest.raises(InvalidField):
            decompress(body, coding, 100)
    with pytest.raises(ServiceFault, match="99 bytes"):
        decompress(packed, coding, 99)


def test_what_is_compressed_is_read_again() -> None:
    assert decompress(gzipped(b"x" * 100), "gzip", 100) == b"x" * 100


@settings(deadline=None)
@given(st.recursive(st.booleans() | st.text('[]{}"\\\\ab') | st.integers(0, 9), st.lists, max_leaves=20))
def test_what_is_within_the_limits_is_parsed_as_it_is(value: object) -> None:
    body = orjson.dumps({"x": value})
    with contextlib.suppress(InvalidField):
        assert decode_json(body, most_lists=100) == {"x": value}


@pytest.mark.parametrize("string", ["[[[[[[[[[[", '\\"[[[[[[[[[[', "\\\\", '{"{{{{{{{{{{', "]]]]]]]]]]"])
def test_brackets_in_strings_do_not_count(string: str) -> None:
    document = {string: [[string]], "y": string}
    assert decode_json(orjson.dumps(document), most_lists=2) == document


def test_names_are_counted_before_they_are_read() -> None:
    named = {f"{n}": n for n in range(MOST_NAMES)}
    assert decode_json(orjson.dumps(named), most_lists=10) == named
    tracemalloc.start()
    try:
        for many in (named | {"more": 1}, {"nested": [{"a": 1}] * MOST_NAMES}):
            body = orjson.dumps(many)
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            with pytest.raises(InvalidField, match="4096 names"):
                decode_json(body, most_lists=10**6)
            assert tracemalloc.get_traced_memory()[1] < before + 2**16
    finally:
        tracemalloc.stop()


def test_lists_are_counted_and_their_depth_is_bounded() -> None:
    assert decode_json(b'{"x": [[], []]}', most_lists=3) == {"x": [[], []]}
    with pytest.raises(InvalidField, match="2 lists"):
        decode_json(b'{"x": [[], []]}', most_lists=2)
    with pytest.raises(InvalidField, match="3 deep"):
        decode_json(b'{"x": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", most_lists=100_000)


def test_deep_lists_have_a_rank_that_is_refused() -> None:
    deep: list[object] = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(InvalidField) as fault:
        array_from_lists("x", deep)
    assert fault.value.rule == "rank"


@pytest.mark.parametrize("shape", [(PIECE,), (2 * PIECE + 7,), (3, PIECE + 1), (2, 3, 5), (1, 1, 1)])
def test_lists_become_the_array_that_numpy_makes_of_them(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).normal(size=shape).round(3)
    values.flat[0], values.flat[-1] = 2**53, -7
    # whole numbers come as such
    lists = orjson.loads(orjson.dumps(values.tolist()).replace(b".0,", b",").replace(b".0]", b"]"))
    found = array_from_lists("x", lists)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize("wrong", [True, "1", None, [1.0], {}])
def test_a_long_row_is_looked_at_to_its_end(wrong: object) -> None:
    with pytest.raises(InvalidField) as fault:
        array_from_lists("x", [1.0] * (2 * PIECE) + [wrong])
    assert fault.value.index == (2 * PIECE,)


@pytest.mark.parametrize(
    "value",
    [
        [[1.0, True]],
        [[0.0, False]],
        [[1.0, "1"]],
        [[1.0, None]],
        [[1.0], [1.0, 2.0]],
        [[1.0], 1.0],
        [[[1.0]], [1.0]],
    ],
)
def test_what_only_looks_like_numbers_is_refused(value: object) -> None:
    with pytest.raises(InvalidField):
        array_from_lists("x", value)


@pytest.mark.parametrize(
    "value", [[[0, 1], [1, 0]], [[1.0, 0.0], [0.5, 10**300]], [[2**53 + 1, -1]], [[-0.0, 1e-320]]]
)
def test_numbers_of_all_sizes_are_read(value: list[list[float]]) -> None:
    np.testing.assert_array_equal(array_from_lists("x", value), np.array(value, dtype=np.float64))


def test_known_headers_are_not_confused() -> None:
    for shape in ((2, 3), (3, 2), (6,)):
        for dtype in ("f4", "f8", ">f4"):
            array = np.arange(6, dtype=dtype).reshape(shape)
            for buffer in (encode_npy(array), memoryview(encode_npy(array))):
                decoded = decode_npy("x", buffer)
                assert (decoded.shape, decoded.dtype) == (shape, array.dtype.newbyteorder("="))
                np.testing.assert_array_equal(decoded, array)
