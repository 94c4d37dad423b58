from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from quantised_cases import needs_int8
from strategy_cases import llama, tiny_model
from torch import Tensor, nn

import offramp
from offramp.decoding.engine import build, products
from offramp.decoding.engine.build import engine_of
from offramp.decoding.engine.engine import Meter
from offramp.decoding.engine.products import few_rows_are_faster, wide_linears
from offramp.decoding.engine.sequences import Sequences
from offramp.decoding.strategies.speculate import AdaptiveLength, draft_length_of
from offramp.models.model import Model
from offramp.models.transforms.quantised_layers import find_kernel, quantise_linears

HIDDEN, LAYERS = 512, 3


@pytest.fixture(scope="module")
def model() -> Model:
    """With products that are large enough, and taken to be faster the other way."""
    found = tiny_model(llama(num_hidden_layers=LAYERS, hidden_size=HIDDEN, intermediate_size=HIDDEN))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "few_rows_are_faster", lambda layers: True)
        engine_of(found)
    return found


def states_after(model: Model, rows: int, *, own: bool) -> Tensor:
    """States after all layers of `rows` positions that follow a prompt."""
    engine = engine_of(model)
    assert all(engine.linears)
    sequences = Sequences(
        dataclasses.replace(engine, linears=()) if own else engine, torch.arange(1, 9)[None], None, Meter()
    )
    inputs = sequences.inputs(0, 8)
    sequences.run(inputs.hidden, inputs, 0, LAYERS)
    sequences.feed(torch.arange(9, 9 + rows)[None])
    inputs = sequences.inputs(8, 8 + rows)
    return sequences.run(inputs.hidden, inputs, 0, LAYERS)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5])
def test_few_rows_are_the_same_states_but_for_rounding(model: Model, rows: int) -> None:
    found, expected = (states_after(model, rows, own=own) for own in (False, True))
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
    if rows not in products.ROWS:
        assert torch.equal(found, expected)


def test_hooks_see_every_product_and_nothing_stays_replaced(model: Model) -> None:
    engine, seen = engine_of(model), []
    linears = [one for layer in engine.linears for one in layer]
    handles = [one.register_forward_hook(lambda module, *_: seen.append(module)) for one in linears]
    states_after(model, 2, own=False)
    for handle in handles:
        handle.remove()
    assert seen == linears * 2  # the prompt's, and the two rows'
    assert not any("forward" in vars(one) for one in linears)
    with pytest.raises(RuntimeError, match="shape"):
        broken(linears)
    assert not any("forward" in vars(one) for one in linears)
    with products.few_rows([linears], 2):  # gradients are wanted: the model's own product
        assert "forward" not in vars(linears[0])


@torch.no_grad()
def test_what_others_have_put_in_a_products_place_stays() -> None:
    linear = nn.Linear(8, 8)
    with products.few_rows([[linear]], 2):
        first = linear.forward
        with products.few_rows([[linear]], 2):  # as another thread's
            assert linear.forward is first
        assert linear.forward is first
        linear.forward = own = lambda states: states  # type: ignore[method-assign]
    assert linear.forward is own
    with products.few_rows([[linear]], 2):
        assert linear.forward is own
    assert linear.forward is own


def test_without_a_product_that_takes_it_drafts_do_not_count_on_it(model: Model) -> None:
    engine, policy = engine_of(model), offramp.parse_policy("static:exit=1")
    none = dataclasses.replace(engine, linears=())
    moved = dataclasses.replace(engine, linears=((),) * LAYERS)  # to an accelerator, since it was tried
    found, expected, fast = (draft_length_of("auto", one, policy) for one in (moved, none, engine))
    assert isinstance(found, AdaptiveLength)
    assert isinstance(expected, AdaptiveLength)
    assert isinstance(fast, AdaptiveLength)
    assert found.best(0.7) == expected.best(0.7) < fast.best(0.7)


@torch.no_grad()
def broken(linears: list[nn.Linear]) -> None:
    """Fails while products are replaced."""
    with products.few_rows([linears], 2):
        assert "forward" in vars(linears[0])
        linears[0](torch.ones(2, HIDDEN + 1))


@pytest.mark.parametrize("kv", ["recompute", "speculate"])
def test_exact_strategies_still_say_what_the_full_model_says(model: Model, kv: str) -> None:
    policy = offramp.parse_policy("threshold:signal=max_prob,value=0.001,exits=1+2")
    found = offramp.generate(model, "3 5 7 11", policy=policy, kv=kv, max_new_tokens=12)
    assert min(found.exits) < LAYERS
    forced = offramp.generate(
        model, "3 5 7 11", policy=policy, kv="recompute", max_new_tokens=12, force_tokens=list(found.tokens)
    )
    plain = offramp.generate(model, "3 5 7 11", max_new_tokens=12)
    if kv == "speculate":
        assert list(found.tokens) == list(plain.tokens)
    else:
        assert list(forced.exits) == list(found.exits)


def test_only_plain_products_that_are_worth_it() -> None:
    class Other(nn.Linear):
        """A layer that may compute something else."""

    wide = nn.Linear(600, 600)
    replaced = nn.Linear(600, 600)
    replaced.forward = lambda states: states  # type: ignore[method-assign]
    layer = nn.ModuleList([wide, nn.Linear(8, 8), Other(600, 600), replaced, nn.Linear(600, 600).bfloat16()])
    assert wide_linears([layer]) == (wide,)
    compiled = nn.Sequential(nn.Linear(600, 600))
    assert len(wide_linears([compiled])) == 1
    compiled.compile()
    assert wide_linears([compiled]) == ()
    assert wide_linears([torch.compile(nn.Sequential(nn.Linear(600, 600)))]) == ()
    assert not few_rows_are_faster([nn.Linear(8, 8)])


@needs_int8
def test_quantised_weights_keep_their_own_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """They say that they are float32, and have no product with themselves on the left."""
    quantised = nn.Sequential(nn.Linear(608, 608), nn.Linear(608, 608, bias=False)).requires_grad_(False)
    quantise_linears(quantised, find_kernel(8, None, "cpu"), None, list(quantised))
    assert quantised[0].weight.dtype == torch.float32
    assert wide_linears([quantised]) == ()
    assert not few_rows_are_faster([quantised])
    monkeypatch.setattr(products, "SMALLEST", 1)
    head = SimpleNamespace(readout_kind="fast", head_weight=quantised[0].weight, head_bias=None)
    assert not products.transposed_is_faster(cast(Any, head))


@pytest.mark.parametrize(("own", "other", "faster"), [(1.3, 1.0, True), (1.2, 1.0, False)])
def test_only_what_is_clearly_faster(
    own: float, other: float, faster: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter([own, other])
    monkeypatch.setattr(products, "median_seconds", lambda product: (product(), next(seconds))[1])
    assert few_rows_are_faster([nn.Linear(600, 600)]) is faster
