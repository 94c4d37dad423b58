import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from offramp.scoring.components import first_match, saturation, skip_ratio


def test_by_hand():
    agreement = np.array([[0, 1, 0, 1], [1, 1, 1, 1], [0, 0, 0, 1], [1, 0, 1, 1]], dtype=bool)
    assert first_match(agreement).tolist() == [1, 0, 3, 0]
    assert saturation(agreement).tolist() == [3, 0, 3, 2]
    # Exits 2, 5, 8, 10 of 10 layers.
    exits = np.array([2, 5, 8, 10])
    np.testing.assert_allclose(skip_ratio(saturation(agreement), exits, 10), [0.0, 0.8, 0.0, 0.2])


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 6).flatmap(lambda exits: arrays(bool, st.tuples(st.integers(1, 8), st.just(exits)))))
def test_equal_a_plain_loop(agreement):
    agreement[:, -1] = True
    for row, first, settled in zip(agreement, first_match(agreement), saturation(agreement), strict=True):
        assert first == next(i for i, agrees in enumerate(row) if agrees)
        assert settled == next(i for i in range(len(row)) if all(row[i:]))
        assert first <= settled
