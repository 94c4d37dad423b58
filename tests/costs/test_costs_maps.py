"""What K,V maps cost, counted by hand and against the products themselves."""

from __future__ import annotations

import numpy as np
import pytest

from offramp.costs.machine import MAP_LAUNCHES, Roofline
from offramp.costs.machine_registry import find_machine
from offramp.costs.probes import ProbeSizes, map_bytes, map_flops, timed_map_layers
from offramp.costs.token import add_costs, token_costs
from offramp.heads.parts import ExitMaps, map_elements
from policy_traces import make_shape

SHAPE = make_shape(6, element_bytes=2)
MAPS = ((1, None), (2, 3), (4, 3))


def test_by_hand() -> None:
    """Hidden size 10: D of 10 x 10 and a bias of 10 for each layer; or one V of 10 x 3, U of 10 x 3 each."""
    assert map_flops(SHAPE, 4, None) == 2 * 4 * (100 + 10)
    assert map_flops(SHAPE, 4, 3, batch=5) == 5 * 2 * (30 + 4 * (30 + 10))
    # Maps are float32 whatever the model's weights are, and read once for the whole batch.
    assert map_bytes(SHAPE, 4, None) == 4 * 4 * 110
    assert map_bytes(SHAPE, 4, 3) == 4 * (30 + 4 * 40)
    assert timed_map_layers(SHAPE) == 3


@pytest.mark.parametrize("rank", [None, 3])
def test_bytes_are_those_of_the_arrays_that_a_product_reads(rank: int | None) -> None:
    """But for the centre, one hidden state."""
    layers, none = 4, np.zeros((rank or 1, 4))
    whole = {"change": np.zeros((layers, 10, 10), np.float32)}
    low = {"inward": np.zeros((3, 10), np.float32), "outward": np.zeros((layers, 10, 3), np.float32)}
    maps = ExitMaps(
        centre=np.zeros(10, np.float32),
        bias=np.zeros((layers, 10), np.float32),
        explained=none,
        penalty=0.0,
        **(whole if rank is None else low),
    )
    assert map_bytes(SHAPE, layers, rank) == maps.bytes - maps.centre.nbytes
    assert map_bytes(SHAPE, layers, rank) == 4 * map_elements(10, layers, rank)


@pytest.mark.parametrize("unit", ["bytes", "flops"])
def test_maps_are_added_to_the_repair_of_tokens_that_leave_there(unit: str) -> None:
    plain = token_costs(SHAPE, 7, unit, batch=2)
    mapped = token_costs(SHAPE, 7, unit, batch=2, sizes=ProbeSizes(kv_maps=MAPS))
    count = map_bytes if unit == "bytes" else map_flops
    expected = np.zeros(6)
    for exit, rank in MAPS:
        deeper = 6 - 1 - exit
        expected[exit - 1] = count(SHAPE, deeper, rank) * (1 if unit == "bytes" else 2)
        assert mapped.maps[exit] == expected[exit - 1]
    np.testing.assert_allclose(mapped.until_exit - plain.until_exit, expected)
    assert mapped.plain == plain.plain
    both = add_costs(mapped, mapped)
    assert both.maps == {exit: 2 * price for exit, price in mapped.maps.items()}


def test_a_machine_of_peak_rates_prices_maps() -> None:
    machine = find_machine("h100")
    assert isinstance(machine, Roofline)
    costs = machine.token_costs(SHAPE, 7, sizes=ProbeSizes(kv_maps=MAPS))
    for exit, rank in MAPS:
        launches = MAP_LAUNCHES + (rank is not None)
        busy = map_bytes(SHAPE, 5 - exit, rank) / machine.bytes_per_second
        assert costs.maps[exit] == pytest.approx(busy + launches * machine.launch_seconds)
    assert machine.token_costs(SHAPE, 7).maps == {}
