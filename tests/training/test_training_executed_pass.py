"""The executed pass: its forward is a rerun's, its gradient that of decoding one token at a time."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from map_cases import heads_with, random_maps
from strategy_cases import agreeable, build_windowed, engine_of, ids_of, llama, tiny_model
from torch import Tensor
from tracing_models import workload_of

import offramp
from offramp.decoding.engine.engine import Engine
from offramp.decoding.rerun.parallel import Carried
from offramp.decoding.rerun.trace_sequences import traced_sequences
from offramp.heads.parts import ExitMaps
from offramp.models.calls import continued, first_tensor, with_hidden
from offramp.models.model import Model
from offramp.training.executed_pass import Started, mapped_inputs, places_of, run_executed

LAYERS = 5
EXITS = (2, 3)
LENGTH = 9
STAYS = LAYERS
EXITS_TAKEN = ((5, 2, 5, 3, 5, 2, 2, 5, 5), (5, 5, 3, 2, 5, 5, 5, 2, 5))
"""Of two sequences: where each token leaves."""


@functools.cache
def a_model() -> Model:
    return tiny_model(llama(num_hidden_layers=LAYERS), head_scale=3.0, change=agreeable)


def leaf_maps(model: Model, *, rank: int | None, dtype: torch.dtype) -> dict[int, dict[str, Tensor]]:
    """Random maps of EXITS as leaves: "centre", "bias", and "inward" and "outward" or "change"."""
    maps = random_maps(model.shape.hidden_size, model.layers, EXITS, rank=rank).maps
    names = ("centre", "bias", "inward", "outward", "change")
    return {
        exit: {
            name: torch.from_numpy(array).to(dtype).requires_grad_()
            for name in names
            if (array := getattr(one, name)) is not None
        }
        for exit, one in maps.items()
    }


def prepared(leaves: Mapping[str, Tensor]) -> ExitMaps:
    return ExitMaps(**leaves, explained=np.zeros((1, 1)), penalty=0.0)


def executed_logits(
    decoder: tuple[Model, Engine],
    leaves: Mapping[int, Mapping[str, Tensor]],
    ids: Tensor,
    taken: Tensor,
    started: Any = None,
) -> Tensor:
    """Logits after L [batch, positions, vocabulary] by the pass that is under test."""
    model, engine = decoder
    after = mapped_inputs(model.layers, {exit: prepared(one) for exit, one in leaves.items()})
    hidden = run_executed(engine, ids, EXITS, lambda exit, _: places_of(taken == exit), after, started)
    assert model.stack.head is not None
    assert model.stack.logit_scaling is not None
    return model.stack.logit_scaling.apply(model.stack.head(model.stack.tail_forward(hidden)))


def decoded_logits(
    decoder: tuple[Model, Engine], leaves: Mapping[int, Mapping[str, Tensor]], ids: Tensor, taken: Tensor
) -> Tensor:
    """The same one token at a time, by transformers' own forward with a cache: the slow plain reference.

    A hook puts in the place of each skipped layer's output what the token's map says, one layer at a time, so
    that the next layer's K and V come from there.
    """
    model, rows = decoder[0], []
    for row, exits in zip(ids, taken.tolist(), strict=True):
        cache: dict[str, Any] = {}
        logits = []
        for position, exit in enumerate(exits):
            with hooks_of(model, leaves, exit):
                output = model.hf(row[None, position : position + 1], **cache)
            cache = continued(output)
            logits.append(output.logits[0, 0])
        rows.append(torch.stack(logits))
    return torch.stack(rows)


class hooks_of:
    """While it lasts, a token leaves at an exit."""

    def __init__(self, model: Model, leaves: Mapping[int, Mapping[str, Tensor]], exit: int) -> None:
        self.model, self.leaves, self.exit = model, leaves, exit

    def __enter__(self) -> None:
        left: list[Tensor] = []

        def replace(layer: int, output: Any) -> Any:
            if layer == self.exit < self.model.layers:
                left.append(first_tensor(output))
            if not self.exit < layer < self.model.layers:
                return None
            own, place, hidden = self.leaves[self.exit], layer - self.exit - 1, left[0]
            whole = "change" in own
            change = own["change"][place] if whole else own["outward"][place] @ own["inward"]
            return with_hidden(output, hidden + (hidden - own["centre"]) @ change.T + own["bias"][place])

        self.handles = [
            layer.register_forward_hook(lambda _m, _a, output, number=number: replace(number, output))
            for number, layer in enumerate(self.model.stack.layers, start=1)
        ]

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()


@functools.cache
def in_float64(family: str = "llama") -> tuple[Model, Engine]:
    """A model whose weights were made wider after its engine was: gradients are held to many digits."""
    hf = llama(num_hidden_layers=LAYERS) if family == "llama" else build_windowed(family)
    model = tiny_model(hf, head_scale=3.0)
    engine = engine_of(model)
    model.hf.double().requires_grad_(False)
    return model, engine


def loss_of(logits: Tensor, taken: Tensor) -> Tensor:
    """Some function of all logits of the tokens that stay."""
    staying = logits[taken == STAYS].log_softmax(-1)
    weights = torch.linspace(-1.0, 1.0, staying.numel(), dtype=staying.dtype).view_as(staying)
    return (staying * weights).sum()


@pytest.mark.parametrize("rank", [3, None])
def test_the_gradient_is_that_of_one_token_at_a_time(rank: int | None) -> None:
    decoder, taken = in_float64(), torch.tensor(EXITS_TAKEN)
    model, ids = decoder[0], ids_of(decoder[0].hf, LENGTH, 2)
    leaves = leaf_maps(model, rank=rank, dtype=torch.float64)
    tensors = [tensor for one in leaves.values() for tensor in one.values()]
    found, expected = (
        torch.autograd.grad(loss_of(logits(decoder, leaves, ids, taken), taken), tensors)
        for logits in (executed_logits, decoded_logits)
    )
    for here, there in zip(found, expected, strict=True):
        assert there.abs().max() > 1e-3
        torch.testing.assert_close(here, there, rtol=1e-6, atol=1e-6 * float(there.abs().max()))


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_the_logits_are_those_of_one_token_at_a_time(family: str) -> None:
    decoder = in_float64(family)
    model = decoder[0]
    taken = torch.tensor(EXITS_TAKEN).clamp(max=model.layers)
    ids = ids_of(model.hf, LENGTH, 2)
    leaves = leaf_maps(model, rank=3, dtype=torch.float64)
    found = executed_logits(decoder, leaves, ids, taken)[taken == model.layers]
    expected = decoded_logits(decoder, leaves, ids, taken)[taken == model.layers]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    alone = model.hf(input_ids=ids).logits[taken == model.layers]
    assert (found - alone).abs().max() > 1e-2  # else tokens that left would not be seen


def test_it_may_start_from_states_of_the_first_exit() -> None:
    decoder, taken = in_float64(), torch.tensor(EXITS_TAKEN)
    model, ids = decoder[0], ids_of(decoder[0].hf, LENGTH, 2)
    leaves = leaf_maps(model, rank=3, dtype=torch.float64)
    kept: dict[int, Tensor] = {}
    model.stack.capture(ids, lambda layer, before, after: kept.setdefault(layer + 1, after))
    found = executed_logits(decoder, leaves, ids, taken, Started(EXITS[0], kept[EXITS[0]]))
    expected = executed_logits(decoder, leaves, ids, taken)
    torch.testing.assert_close(found[taken == STAYS], expected[taken == STAYS], rtol=1e-9, atol=1e-9)


def test_a_rerun_of_the_same_leaving_tokens_says_the_same() -> None:
    model = a_model()
    maps = random_maps(model.shape.hidden_size, model.layers, EXITS, scale=0.5)
    heads = heads_with(maps, model)
    trace = offramp.trace(model, workload_of(lengths=(30, 21)), tokens=51, context=64, progress=False)
    policy = "threshold:signal=max_prob,value=0.4,exits=2+3"
    found = offramp.rerun(model, trace, policy, "mapped", heads=heads)
    after = mapped_inputs(
        model.layers,
        {exit: one.on(torch.device("cpu")) for exit, one in maps.maps.items()},
    )
    assert {2, 3, LAYERS} <= set(found.exits.tolist())
    with model.evaluating():
        for sequence in traced_sequences(model, trace):
            taken = torch.from_numpy(found.exits[sequence.rows])[None]
            leaving = functools.partial(lambda taken, exit, _: places_of(taken == exit), taken)
            hidden = run_executed(engine_of(model), torch.tensor([sequence.ids]), EXITS, leaving, after)
            stays = found.exits[sequence.rows] == LAYERS
            top1 = model.stack.readout(hidden)[0].argmax(-1).numpy()
            assert top1[stays].tolist() == found.top1[sequence.rows][stays].tolist()
    assert (~found.agrees[found.exits == LAYERS]).any()  # else exact K and V would do as well


def test_a_token_that_leaves_at_the_last_exit_gives_the_last_layer_its_own_state() -> None:
    after = mapped_inputs(LAYERS, {})
    hidden = torch.randn(2, 1, 3)
    carried = Carried(after)
    carried.leave(LAYERS - 1, torch.tensor([0, 2]), hidden)
    states = carried.put_back(LAYERS - 1, torch.zeros(1, 3, 3))
    assert torch.equal(states[0, [0, 2]], hidden[:, 0])
