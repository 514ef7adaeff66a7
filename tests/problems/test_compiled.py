import numpy as np

from problems.compiled import compiled


def test_works_where_nothing_can_be_cached():
    """For a function without a file, as in a read-only package and home, numba has no place."""
    namespace = {}
    exec("def double(x):\n    return x + x", namespace)
    assert compiled()(namespace["double"])(21.0) == 42.0


def test_sums_and_nan_keep_their_meaning():
    @compiled()
    def total(x):
        result = 0.0
        for i in range(x.size):
            result += x[i]
        return result

    assert total(np.arange(100.0)) == 4950.0
    assert np.isnan(total(np.array([1.0, np.nan])))
