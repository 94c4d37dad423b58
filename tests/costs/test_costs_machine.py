"""Roofline machines: prices by hand, monotone in every parameter, and sane on a model everybody knows."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.costs.machine import Roofline
from offramp.costs.machine_registry import find_machine
from offramp.costs.probes import PROBES, ProbeSizes
from offramp.costs.token import TokenCosts, token_costs
from offramp.errors import InputError
from offramp.models.shape import LayerShape, ModelShape
from offramp.testing.contracts import check_machine, example_shape

ATTENTION = LayerShape("attention", 1000, 1000, 200, 20, 40, None, 0)
RECURRENT = LayerShape("recurrent", 800, 800, 0, 0, 0, None, 64)
SHAPE = ModelShape((ATTENTION, RECURRENT), 10, 100, 10, 1000, 2)
# 1,000 FLOPs or 100 bytes a second: everything is bound by memory at batch 1.
SLOW = Roofline("slow", "a slow machine", "made up", {"float32": 500.0, "bfloat16": 1000.0}, 100.0, 0.5, 3.0)
RATES = st.floats(1e6, 1e15)
TIMES = st.floats(0, 1e-3)


def prices(costs: TokenCosts) -> np.ndarray:
    scalars = [costs.head, costs.exit_head, costs.overhead, *costs.probes.values()]
    return np.concatenate([costs.layers, costs.key_value, scalars])


def test_prices_by_hand() -> None:
    costs = SLOW.token_costs(SHAPE, 11)
    attention = 2 * (1000 + 20 * 12 + 20) / 100 + 10 * 0.5
    recurrent = 2 * (800 + 2 * 64) / 100 + 8 * 0.5
    np.testing.assert_allclose(costs.layers, [attention, recurrent])
    np.testing.assert_allclose(costs.key_value, [2 * (200 + 20) / 100 + 3 * 0.5, recurrent])
    assert costs.head == costs.exit_head == 2 * 1010 / 100 + 2 * 0.5
    assert costs.probes["full head"] == pytest.approx((2 * 1010 + 8 * 100) / 100 + 4 * 0.5 + 3.0)
    # No bytes: the cosine's 60 FLOPs at 1,000 a second.
    assert costs.probes["cosine"] == pytest.approx(0.06 + 0.5 + 3.0)
    assert costs.overhead == 2 * 0.5 + 3.0
    assert (costs.unit, costs.batch) == ("seconds", 1)


def test_a_large_batch_is_bound_by_arithmetic() -> None:
    costs = SLOW.token_costs(SHAPE, 0, batch=64)
    assert costs.layers[0] == pytest.approx(64 * (2 * 1000 + 4 * 40) / 1000 + 10 * 0.5)
    assert costs.head == pytest.approx(64 * 2 * 1010 / 1000 + 2 * 0.5)


def test_the_type_of_the_weights_chooses_the_rate() -> None:
    wide = dataclasses.replace(SHAPE, element_bytes=4)
    costs = SLOW.token_costs(wide, 11, batch=64)
    assert costs.head == pytest.approx(64 * 2 * 1010 / 500 + 2 * 0.5)
    with pytest.raises(InputError, match="weights of 1 bytes"):
        SLOW.token_costs(dataclasses.replace(SHAPE, element_bytes=1), 11)


def test_quantised_weights_move_less_and_multiply_as_fast() -> None:
    layers = tuple(dataclasses.replace(layer, element_bytes=0.5) for layer in SHAPE.layers)
    quantised = dataclasses.replace(SHAPE, layers=layers)
    costs, plain = SLOW.token_costs(quantised, 11), SLOW.token_costs(SHAPE, 11)
    # Half a byte instead of two leaves 500 and 2 x 260 bytes, less time than 3,920 FLOPs at bfloat16's rate.
    np.testing.assert_allclose(costs.layers[0], max(1020 / 100, 3920 / 1000) + 10 * 0.5)
    assert costs.layers[0] < plain.layers[0]
    assert (costs.head, costs.overhead) == (plain.head, plain.overhead)
    many = [SLOW.token_costs(shape, 0, batch=64).layers[0] for shape in (quantised, SHAPE)]
    assert many[0] == many[1] == pytest.approx(64 * (2 * 1000 + 4 * 40) / 1000 + 10 * 0.5)


def test_a_lens_costs_a_kernel_and_its_product() -> None:
    plain, lens = SLOW.token_costs(SHAPE, 11), SLOW.token_costs(SHAPE, 11, lens=True)
    assert lens.exit_head - plain.exit_head == pytest.approx(2 * 10 * 11 / 100 + 0.5)
    low = SLOW.token_costs(SHAPE, 11, lens=True, sizes=ProbeSizes(lens_rank=3))
    assert low.exit_head - plain.exit_head == pytest.approx(2 * (2 * 10 * 3 + 10) / 100 + 2 * 0.5)
    for name, kind in PROBES.items():
        added = 2 * 10 * 11 / 100 + 0.5 if kind.reads_logits else 0.0
        assert lens.probes[name] - plain.probes[name] == pytest.approx(added)


@given(
    flops=RATES, memory=RATES, launch=TIMES, decision=TIMES, batch=st.integers(1, 64), factor=st.floats(1, 9)
)
def test_a_better_machine_is_never_slower(
    flops: float, memory: float, launch: float, decision: float, batch: int, factor: float
) -> None:
    base = Roofline("base", "", "", {"float32": flops, "bfloat16": flops}, memory, launch, decision)
    slow = prices(base.token_costs(SHAPE, 11, batch=batch))
    for better in (
        {"flops_per_second": {"float32": flops, "bfloat16": flops * factor}},
        {"bytes_per_second": memory * factor},
        {"launch_seconds": launch / factor},
        {"decision_seconds": decision / factor},
    ):
        other = dataclasses.replace(base, **better)
        assert (prices(other.token_costs(SHAPE, 11, batch=batch)) <= slow).all()


@given(batch=st.integers(1, 200), position=st.floats(0, 1e5), step=st.floats(0, 1e5))
def test_more_rows_and_longer_contexts_are_never_faster(batch: int, position: float, step: float) -> None:
    here = prices(SLOW.token_costs(SHAPE, position, batch=batch))
    assert (prices(SLOW.token_costs(SHAPE, position, batch=batch + 1)) >= here).all()
    assert (prices(SLOW.token_costs(SHAPE, position + step, batch=batch)) >= here).all()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"bytes_per_second": 0.0}, "bytes_per_second is 0.0"),
        ({"bytes_per_second": float("inf")}, "bytes_per_second is inf"),
        ({"flops_per_second": {"float32": 1.0}}, "bfloat16 is nan"),
        ({"launch_seconds": -1.0}, "launch_seconds is -1.0"),
        ({"decision_seconds": float("nan")}, "decision_seconds is nan"),
    ],
)
def test_constants_that_are_none_are_refused(change: dict[str, Any], what: str) -> None:
    with pytest.raises(InputError, match=what):
        dataclasses.replace(SLOW, **change)


def llama_8b() -> ModelShape:
    """Llama-3-8B in bfloat16: 32 layers of hidden size 4,096, 8 of 32 heads for K and V, 128,256 tokens."""
    attention = 2 * 4096 * 4096 + 2 * 4096 * 1024
    size = attention + 3 * 4096 * 14336 + 2 * 4096
    layer = LayerShape("attention", size, size, 2 * 4096 * 1024, 2048, 4096, None, 0)
    return ModelShape((layer,) * 32, 4096, 128_256, 4096, 128_256 * 4096, 2)


def test_an_8b_model_decodes_as_fast_as_known() -> None:
    # 15 GB of weights a token (the embedding is only looked up), at 3.35 TB/s no less than 4.5 ms; engines
    # with fused kernels report 5 to 8 ms a token.
    seconds = find_machine("h100").token_costs(llama_8b(), 500).plain
    assert 0.0045 < seconds < 0.008
    costs = find_machine("h100").token_costs(llama_8b(), 500)
    # A full-head probe costs about 2.4 layers of this model.
    assert costs.probes["full head"] / costs.layers[0] == pytest.approx(2.4, abs=0.3)


def test_the_contract_holds_for_a_machine_and_finds_broken_ones() -> None:
    assert check_machine(SLOW) is SLOW
    assert check_machine(SLOW, SHAPE, batches=(2, 3)) is SLOW

    class Broken(Roofline):
        change: Any = None

        def token_costs(self, *arguments: Any, **options: Any) -> TokenCosts:
            return self.change(super().token_costs(*arguments, **options))

    def broken(change: Any) -> Broken:
        machine = Broken(**SLOW.to_json())
        object.__setattr__(machine, "change", change)
        # What tells how it is broken is no part of its profile.
        object.__setattr__(machine, "to_json", SLOW.to_json)
        return machine

    for change, what in (
        ({"unit": "bytes"}, "prices are in bytes"),
        ({"layers": np.zeros(3)}, "one price per layer"),
        ({"layers": np.array([1.0, 2.0, np.nan, 1.0])}, "negative or not finite"),
        ({"head": -1.0}, "negative or not finite"),
        ({"probes": {"full head": 1.0}}, "no price for a probe of kind 'restricted head'"),
        ({"layers": np.zeros(4), "head": 0.0, "overhead": 0.0}, "takes no time"),
    ):
        machine = broken(lambda costs, change=change: dataclasses.replace(costs, **change))
        with pytest.raises(InputError) as error:
            check_machine(machine)
        assert what in str(error.value)
    falling = broken(lambda costs: dataclasses.replace(costs, layers=1.0 / costs.layers))
    with pytest.raises(InputError, match="a later position makes a part cheaper"):
        check_machine(falling)
    with pytest.raises(InputError, match="its source is not set"):
        check_machine(dataclasses.replace(SLOW, source=" "))


def test_a_machine_that_prices_what_is_none_breaks_the_contract() -> None:
    class Lenient(Roofline):
        def token_costs(self, shape: Any, position: float, *, batch: int = 1, **options: Any) -> TokenCosts:
            costs = super().token_costs(shape, position, batch=max(1, batch), **options)
            return dataclasses.replace(costs, batch=batch)

    with pytest.raises(InputError, match="it prices a batch of 0"):
        check_machine(Lenient(**SLOW.to_json()))


def test_every_built_in_machine_meets_the_contract() -> None:
    folder = Path(__file__).parents[2] / "src" / "offramp" / "costs" / "machines"
    names = sorted(path.stem for path in folder.glob("*.toml"))
    assert names == ["a100", "apple-m2", "cpu-2core", "h100", "l4", "rtx4090"]
    for name in names:
        machine = check_machine(find_machine(name), batches=(1, 4, 32))
        assert machine.name == name
        moved = token_costs(example_shape(), 3.0, "bytes").plain
        assert machine.token_costs(example_shape(), 3.0).plain >= moved / 4e12
