"""The kind `executed`: what it trains, on which tokens, and that it helps; the model is left as it is."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from map_cases import heads_with, random_maps
from strategy_cases import agreeable, llama, tiny_model
from tracing_models import workload_of
from training_cases import tiny_recipe

from offramp.heads.exit_heads import ExitHeads
from offramp.models.model import Model
from offramp.tracing.plan import plan_with_answers
from offramp.training.divergence import TrainingHead
from offramp.training.executed_maps import ExecutedMaps
from offramp.training.executed_pass import TrainableMaps, places_of

LAYERS = 5
LENGTHS = (40, 33, 21, 40, 17, 28)
SCALE = 0.8
"""Of random maps: so bad that tokens that stay suffer."""


@functools.cache
def a_model() -> Model:
    return tiny_model(llama(num_hidden_layers=LAYERS), head_scale=3.0, change=agreeable)


def the_heads(exits: tuple[int, ...] = (2,), rank: int | None = 3) -> ExitHeads:
    model = a_model()
    return heads_with(random_maps(model.shape.hidden_size, LAYERS, exits, rank=rank, scale=SCALE), model)


def maps_of(
    exits: tuple[int, ...] = (2,), *, rank: int | None = 3, leave: float = 0.3, seed: int = 0
) -> ExecutedMaps:
    model = a_model()
    work = workload_of(lengths=LENGTHS)
    contexts = plan_with_answers(model, work, tokens=sum(LENGTHS), context=64, shown=False).contexts
    recipe = tiny_recipe(model, kind="executed", at=exits, leave=leave, seed=seed)
    return ExecutedMaps(model, the_heads(exits, rank), recipe, contexts[:4], contexts[4:])


def trained(maps: ExecutedMaps, steps: int, rate: float = 0.05) -> dict[str, torch.Tensor]:
    head = TrainingHead(maps.model, "float32")
    changes = {name: one.requires_grad_() for name, one in maps.initial()[0].items()}
    optimiser = torch.optim.Adam(changes.values(), lr=rate)
    for step in range(steps):
        optimiser.zero_grad()
        maps.losses_of(step, steps, head)(0, changes).backward()
        optimiser.step()
    return {name: one.detach() for name, one in changes.items()}


@pytest.mark.parametrize(("exits", "rank"), [((2,), 3), ((2,), None), ((1, 3), 3)])
def test_tokens_that_stay_learn_to_read_the_maps(exits: tuple[int, ...], rank: int | None) -> None:
    maps = maps_of(exits, rank=rank)
    before = maps.evaluate(maps.initial())[0]
    after = maps.evaluate([trained(maps, 40)])[0]
    assert after.loss < 0.9 * before.loss
    assert after.leaving == before.leaving or len(exits) > 1


def test_nothing_of_the_model_changes() -> None:
    model, ids = a_model(), torch.arange(3, 23)[None]
    before = model.hf(ids).logits.clone()
    weights = {name: one.clone() for name, one in model.hf.state_dict().items()}
    model.hf.requires_grad_(False)
    trained(maps_of(), 3)
    assert torch.equal(model.hf(ids).logits, before)
    assert all(torch.equal(one, weights[name]) for name, one in model.hf.state_dict().items())
    assert all(one.grad is None for one in model.hf.parameters())


@pytest.mark.parametrize("exits", [(2,), (1, 3)])
def test_as_many_leave_as_are_told_to(exits: tuple[int, ...]) -> None:
    maps = maps_of(exits, leave=0.4)
    texts = maps.fit.take(range(4))
    _, stays = maps.run(maps.initial()[0], texts)
    asked = int(texts.may_leave.sum())
    assert 1 - int(stays.sum()) / asked == pytest.approx(0.4, abs=0.02)
    assert not stays[:, 0].any()
    assert not texts.may_leave[:, 0].any()
    assert asked == sum(len(one.ids) - 1 for one in maps.fit.contexts)


def test_they_leave_where_a_policy_lets_them() -> None:
    maps = maps_of()
    texts = maps.fit.take([2, 0])
    _, stays = maps.run(maps.initial()[0], texts)
    probabilities = a_model().stack.readout(texts.hidden).softmax(-1).max(-1).values
    expected = texts.may_leave & (probabilities < maps.thresholds[2])
    clear = (probabilities - maps.thresholds[2]).abs() > 1e-6  # it is a token's own, but for the last digits
    assert maps.signal == "max_prob"
    assert torch.equal(stays & clear, expected & clear)
    assert int((~clear).sum()) <= 1


def test_figures_are_those_of_the_tokens_that_stay() -> None:
    maps = maps_of()
    found = maps.evaluate(maps.initial())[0]
    losses, agrees, asked = [], [], 0
    for place in range(len(maps.held_out)):
        texts = maps.held_out.take([place])
        hidden, stays = maps.run(maps.initial()[0], texts)
        ours, full = (a_model().stack.readout(one)[stays].double() for one in (hidden, texts.final))
        p = full.softmax(-1)
        losses.append((p * (full.log_softmax(-1) - ours.log_softmax(-1))).sum(-1))
        agrees.append(ours.argmax(-1) == full.argmax(-1))
        asked += int(texts.may_leave.sum())
    assert found.loss == pytest.approx(float(torch.cat(losses).mean()), rel=1e-4)
    assert found.agreement == pytest.approx(float(torch.cat(agrees).double().mean()))
    assert found.leaving[0] == pytest.approx(1 - len(torch.cat(agrees)) / asked)
    assert found.loss > 1e-3


def test_a_step_is_drawn_by_seed_and_step_alone() -> None:
    head = TrainingHead(a_model(), "float32")
    runs = []
    for seed in (0, 0, 1):
        maps = maps_of(seed=seed)
        runs.append([float(maps.losses_of(step, 6, head)(0, maps.initial()[0])) for step in range(6)])
    assert runs[0] == runs[1] != runs[2]
    assert len({round(loss, 5) for loss in runs[0]}) > 1


def test_sequences_that_are_not_kept_are_computed_again() -> None:
    maps = maps_of()
    kept = maps.fit.take([1, 2])
    maps.fit.states._kept.clear()
    maps.fit.states._left = 0
    again = maps.fit.take([1, 2])
    assert not maps.fit.states._kept
    for name in ("ids", "may_leave", "hidden", "final", "signal"):
        assert torch.equal(getattr(kept, name), getattr(again, name))


def test_changes_of_zero_are_the_maps_as_they_were() -> None:
    for rank in (3, None):
        maps = the_heads(rank=rank).kv_maps
        assert maps is not None
        one = TrainableMaps.of(maps.maps[2], torch.device("cpu"))
        again = one.trained(one.initial())
        for name in ("bias", "centre", "inward", "outward", "change"):
            before, after = getattr(maps.maps[2], name), getattr(again, name)
            assert before is after is None or np.array_equal(before, after)


def test_places_are_numbered_through() -> None:
    left = torch.tensor([[False, True], [True, False]])
    assert places_of(left).tolist() == [1, 2]
