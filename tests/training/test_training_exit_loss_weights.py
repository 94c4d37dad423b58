"""LayerSkip's schedules against the paper's formulas, worked by hand."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest

from offramp.training.exit_loss_weights import (
    Curriculum,
    dropout_probabilities,
    enabled_exits,
    exit_scale,
    exit_weights,
    fewest_steps,
)


def test_layers_are_left_out_as_the_paper_has_it() -> None:
    """p = S(t) D(l) p_max, D(l) = exp(l ln 2 / (L - 1)) - 1, S(t) = exp(t ln 2 / (T - 1)) - 1."""
    found = dropout_probabilities(5, 6, 11, 0.2)
    time = math.sqrt(2.0) - 1.0  # t / (T - 1) would be 0.6; at 5 of 10 it is a half
    half = dropout_probabilities(5, 5, 11, 0.2)
    by_depth = [2 ** (layer / 4) - 1 for layer in range(5)]
    np.testing.assert_allclose(half, [0.2 * time * one for one in by_depth])
    np.testing.assert_allclose(found, [0.2 * (2**0.6 - 1) * one for one in by_depth])
    assert found[0] == 0.0, "the first layer is never left out"
    np.testing.assert_allclose(dropout_probabilities(5, 10, 11, 0.2)[-1], 0.2)
    assert not dropout_probabilities(5, 0, 11, 0.2).any()
    assert not dropout_probabilities(5, 10, 11, 0.0).any()


def test_deeper_exits_weigh_more() -> None:
    """Of 4 layers, scale 0.5: e(l) = 0.5 * (0 + 1 + .. + l) = 0, 0.5, 1.5 and 3 + 0.5 * (0 + 1 + 2) = 4.5."""
    assert [exit_scale(exit, 4, 0.5) for exit in (1, 2, 3, 4)] == [0.0, 0.5, 1.5, 4.5]
    assert exit_weights((2, 3), 4, 0.5) == {2: 0.5 / 6.5, 3: 1.5 / 6.5, 4: 4.5 / 6.5}
    assert sum(exit_weights((1, 3), 4, 1.0).values()) == pytest.approx(1.0)


def test_curricula() -> None:
    exits = (2, 5, 6)
    turns = [enabled_exits(exits, 8, step, 100, "rotational") for step in range(4)]
    assert turns == [(2,), (5,), (6,), (2,)]
    assert enabled_exits(exits, 8, 0, 100, "all") == exits
    # A layer every T / 2L = 6.25 steps, from the last: exit 6 is two layers below L, exit 2 six.
    gradual = {step: enabled_exits(exits, 8, step, 100, "gradual") for step in (12, 13, 18, 19, 37, 38)}
    assert gradual == {12: (), 13: (6,), 18: (6,), 19: (5, 6), 37: (5, 6), 38: exits}


@pytest.mark.parametrize("curriculum", get_args(Curriculum))
@pytest.mark.parametrize("exits", [(2,), (7,), (2, 5, 6), tuple(range(2, 8))])
def test_fewest_steps_are_those_that_enable_every_exit(
    exits: tuple[int, ...], curriculum: Curriculum
) -> None:
    def all_enabled(steps: int) -> bool:
        seen = [enabled_exits(exits, 8, step, steps, curriculum) for step in range(steps)]
        return {exit for some in seen for exit in some} == {*exits}

    fewest = fewest_steps(exits, curriculum)
    assert [all_enabled(steps) for steps in range(1, 9)] == [steps >= fewest for steps in range(1, 9)]
