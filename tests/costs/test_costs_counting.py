from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.costs.counting import (
    depth_fractions,
    head_bytes,
    head_flops,
    key_value_bytes,
    key_value_flops,
    layer_bytes,
    layer_flops,
    probe_bytes,
    probe_flops,
)
from offramp.costs.token import token_costs, token_prices
from offramp.errors import InputError
from offramp.models.shape import LayerShape, ModelShape

FULL = LayerShape("attention", 1000, 1000, 200, 20, 40, None, 0)
WINDOWED = LayerShape("attention", 1000, 1000, 200, 20, 40, 8, 0)
EXPERTS = LayerShape("attention", 9000, 1500, 200, 20, 40, None, 0)
RECURRENT = LayerShape("recurrent", 800, 800, 0, 0, 0, None, 64)
SHAPE = ModelShape((FULL, WINDOWED, EXPERTS, RECURRENT), 10, 100, 10, 1000, 2)


def test_layer_flops_by_hand() -> None:
    # Position 11 attends to 12 positions, 8 within the window.
    expected = [
        2 * 1000 + 4 * 40 * 12,
        2 * 1000 + 4 * 40 * 8,
        2 * 1500 + 4 * 40 * 12,
        2 * 800 + 5 * 64,
    ]
    np.testing.assert_array_equal(layer_flops(SHAPE, 11), expected)


def test_layer_bytes_by_hand() -> None:
    # Weights, K,V of the attended positions read, this token's written; a state is read and written.
    expected = [
        2 * (1000 + 20 * 12 + 20),
        2 * (1000 + 20 * 8 + 20),
        2 * (1500 + 20 * 12 + 20),
        2 * (800 + 2 * 64),
    ]
    np.testing.assert_array_equal(layer_bytes(SHAPE, 11), expected)


def test_head_probe_and_repair_by_hand() -> None:
    assert head_flops(SHAPE) == 2 * 1010
    assert head_bytes(SHAPE) == 2 * 1010
    assert probe_flops(SHAPE) == 2 * 1010 + 6 * 100
    assert probe_bytes(SHAPE) == 2 * 1010 + 8 * 100
    np.testing.assert_array_equal(key_value_flops(SHAPE, 11), [400, 400, 400, layer_flops(SHAPE, 11)[3]])
    np.testing.assert_array_equal(key_value_bytes(SHAPE, 11), [440, 440, 440, layer_bytes(SHAPE, 11)[3]])


def test_depth_fractions_are_shares_of_the_layers_alone() -> None:
    flops = layer_flops(SHAPE, 3)
    x = depth_fractions(SHAPE, np.array([1, 3, 4]), 3)
    np.testing.assert_allclose(x, [flops[0] / flops.sum(), flops[:3].sum() / flops.sum(), 1.0])
    bigger_head = ModelShape(SHAPE.layers, 10, 10_000, 10, 100_000, 2)
    np.testing.assert_array_equal(depth_fractions(bigger_head, np.array([1, 3, 4]), 3), x)


@given(position=st.floats(0, 1e6), step=st.floats(0, 1e6))
def test_costs_never_fall_with_position(position: float, step: float) -> None:
    for count in (layer_flops, layer_bytes):
        assert (count(SHAPE, position + step) >= count(SHAPE, position)).all()


def test_token_costs_hold_the_counts_in_their_unit() -> None:
    prices = token_prices(SHAPE, 11)
    np.testing.assert_array_equal(prices.bytes.layers, layer_bytes(SHAPE, 11))
    np.testing.assert_array_equal(prices.flops.layers, layer_flops(SHAPE, 11))
    np.testing.assert_array_equal(prices.bytes.key_value, key_value_bytes(SHAPE, 11))
    np.testing.assert_array_equal(prices.flops.key_value, key_value_flops(SHAPE, 11))
    assert (prices.bytes.head, prices.bytes.probe) == (head_bytes(SHAPE), probe_bytes(SHAPE))
    assert (prices.flops.head, prices.flops.probe) == (head_flops(SHAPE), probe_flops(SHAPE))
    assert (prices.bytes.unit, prices.flops.unit) == ("bytes", "flops")


def test_leaving_early_pays_the_layers_run_and_the_repair_of_the_others() -> None:
    costs = token_costs(SHAPE, 11, "bytes")
    layers, repair = costs.layers, costs.key_value
    expected = [layers[: exit + 1].sum() + repair[exit + 1 :].sum() for exit in range(4)]
    np.testing.assert_allclose(costs.until_exit, expected)
    assert costs.plain == pytest.approx(layers.sum() + costs.head)


@pytest.mark.parametrize("state_elements", [64, 0])  # 0: a state that could not be measured
def test_skipping_a_recurrent_layer_saves_nothing(state_elements: int) -> None:
    layer = dataclasses.replace(RECURRENT, state_elements=state_elements)
    recurrent = ModelShape((layer,) * 3, 10, 100, 10, 1000, 2)
    until_exit = token_costs(recurrent, 5, "bytes").until_exit
    assert until_exit[0] == until_exit[1] == until_exit[2]


@pytest.mark.parametrize("position", [-1.0, float("nan"), float("inf")])
def test_a_position_that_is_none_is_refused(position: float) -> None:
    for count in (layer_flops, layer_bytes, key_value_flops, key_value_bytes):
        with pytest.raises(InputError, match="no position"):
            count(SHAPE, position)


def test_an_unknown_unit_is_refused() -> None:
    with pytest.raises(InputError, match="no unit 'seconds'"):
        token_costs(SHAPE, 0, "seconds")


@pytest.mark.parametrize("exit", [0, 5])
def test_an_exit_outside_the_model_is_refused(exit: int) -> None:
    with pytest.raises(InputError, match=f"exit {exit} is outside"):
        depth_fractions(SHAPE, np.array([1, exit]), 0)
