"""The kind `regularised`: its loss against plain sums, its weights merged and not, layers left out."""

from __future__ import annotations

import copy
import functools
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tracing_models import build_family, llama, tiny_model, workload_of
from training_cases import tiny_recipe

from offramp.errors import InputError, ModelError
from offramp.models.model import Model
from offramp.tracing.plan import plan_with_answers
from offramp.training.changed_weights import ChangedWeights, read_out, run_layers
from offramp.training.divergence import TrainingHead, leaving_shares
from offramp.training.exit_loss_weights import dropout_probabilities, exit_weights
from offramp.training.regularised import AHEAD_SHARE, RegularisedModel, original_states, tokens_ahead
from offramp.training.request import Regularisation

LAYERS = 4
LENGTHS = (24, 17, 21, 19, 15, 22)
EXITS = (2, 3)


@functools.cache
def a_model() -> Model:
    return tiny_model(llama(num_hidden_layers=LAYERS, tie_word_embeddings=True), head_scale=2.0)


def objective_of(seed: int = 0, batch: int = 40, **asked: Any) -> RegularisedModel:
    model = a_model()
    work = workload_of(lengths=LENGTHS)
    contexts = plan_with_answers(model, work, tokens=sum(LENGTHS), context=64, shown=False).contexts
    settings = {"lora": 3, "layer_dropout": 0.0, "curriculum": "all"} | asked
    recipe = tiny_recipe(model, kind="regularised", at=EXITS, seed=seed, **settings)
    object.__setattr__(recipe, "batch", batch)
    return RegularisedModel(model, recipe, contexts[:4], contexts[4:])


def moved(objective: RegularisedModel, size: float = 0.05) -> dict[str, torch.Tensor]:
    """Parameters some way from where training starts."""
    generator = torch.Generator().manual_seed(1)
    return {
        name: one + size * torch.randn(one.shape, generator=generator)
        for name, one in objective.initial()[0].items()
    }


def changed_copy(objective: RegularisedModel, parameters: dict[str, torch.Tensor]) -> Any:
    """The transformers model with the trained weights written into it."""
    hf = copy.deepcopy(objective.model.hf)
    with torch.no_grad():
        for name, weight in hf.named_parameters():
            if f"{name}.left" in parameters:
                weight += parameters[f"{name}.left"] @ parameters[f"{name}.right"]
            elif f"{name}.change" in parameters:
                weight += parameters[f"{name}.change"]
    return hf


def states_of(hf: Any, ids: torch.Tensor) -> list[torch.Tensor]:
    """After every layer [positions, hidden], by transformers' own hooks."""
    found: list[torch.Tensor] = []
    handles = [
        layer.register_forward_hook(
            lambda *of: found.append((of[2][0] if type(of[2]) is tuple else of[2])[0])
        )
        for layer in hf.model.layers
    ]
    with torch.no_grad():
        hf(input_ids=ids[None])
    for handle in handles:
        handle.remove()
    return found


def plain_loss(objective: RegularisedModel, parameters: dict[str, torch.Tensor]) -> float:
    """The sum of the docstring of `Regularisation`, token by token."""
    asked, batch, hf = objective.asked, objective.batch(0, 3), changed_copy(objective, parameters)
    rows: dict[int, list[dict[str, float]]] = {exit: [] for exit in (*EXITS, LAYERS)}
    for place in batch.places:
        context = objective.fit[place]
        ids = torch.tensor(context.ids)
        original = states_of(objective.model.hf, ids)[-1]
        states = states_of(hf, ids)
        known = [*context.ids, context.next_token]
        for exit in (*EXITS, LAYERS):
            for row in range(1, len(ids)):
                p = objective.model.hf.lm_head(objective.model.hf.model.norm(original[row])).softmax(-1)
                z = hf.lm_head(hf.model.norm(states[exit - 1][row])).log_softmax(-1)
                one = {"kl": float((p * (p.log() - z)).sum()), "text": -float(z[known[row + 1]])}
                for ahead in range(2, asked.ahead + 1):
                    if exit < LAYERS and row + ahead < len(known):
                        layer = torch.eye(len(states[0][0])) + parameters[f"ahead.{exit}.{ahead}"]
                        z = hf.lm_head(hf.model.norm(layer @ states[exit - 1][row])).log_softmax(-1)
                        one[f"ahead{ahead}"] = -float(z[known[row + ahead]])
                rows[exit].append(one)

    def mean(exit: int, name: str) -> float:
        return float(np.mean([one[name] for one in rows[exit] if name in one]))

    total = asked.keep * mean(LAYERS, "kl")
    for exit, weight in exit_weights(EXITS, LAYERS, asked.exit_scale).items():
        said = mean(exit, "kl" if asked.targets == "model" else "text")
        if exit < LAYERS and asked.ahead > 1:
            further = [mean(exit, f"ahead{ahead}") for ahead in range(2, asked.ahead + 1)]
            said += AHEAD_SHARE * float(np.mean(further))
        total += weight * said
    return total


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"targets": "text", "keep": 0.0},
        {"targets": "text", "keep": 2.5, "exit_scale": 0.3, "ahead": 3},
        {"lora": 0, "ahead": 2},
    ],
)
def test_the_loss_is_the_sum_of_its_terms(asked: dict[str, Any]) -> None:
    objective = objective_of(**asked)
    parameters = moved(objective, 0.02)
    head = TrainingHead(objective.model, "float32")
    with torch.no_grad():
        found = float(objective.losses_of(0, 3, head)(0, parameters))
        assert found == pytest.approx(plain_loss(objective, parameters), rel=1e-4)


def test_the_term_that_keeps_the_output_is_0_at_first_and_adds_its_weight_afterwards() -> None:
    head = TrainingHead(a_model(), "float32")

    def loss(keep: float, size: float) -> float:
        objective = objective_of(targets="text", keep=keep)
        parameters = moved(objective, size) if size else objective.initial()[0]
        with torch.no_grad():
            return float(objective.losses_of(0, 3, head)(0, parameters))

    assert loss(3.0, 0.0) == pytest.approx(loss(0.0, 0.0), abs=1e-5)
    kept = loss(1.0, 0.1) - loss(0.0, 0.1)
    assert kept > 0.01
    assert loss(3.0, 0.1) - loss(0.0, 0.1) == pytest.approx(3 * kept, rel=1e-3)


def test_low_rank_changes_merged_are_the_same_as_beside_the_weights() -> None:
    objective = objective_of()
    parameters, hf, ids = moved(objective), copy.deepcopy(a_model().hf), torch.arange(18)
    values = objective.weights.values(parameters)
    assert len(values) == 7 * LAYERS, "each matrix of the layers, and no norm, embedding or head"
    for name, module in hf.named_modules():
        if f"{name}.weight" in values:
            left, right = (parameters[f"{name}.weight.{side}"] for side in ("left", "right"))
            module.register_forward_hook(
                lambda of, given, output, left=left, right=right: (
                    output + F.linear(F.linear(given[0], right), left)
                )
            )
    beside = states_of(hf, ids)[-1]
    merged = objective.weights.run(values, lambda: run_layers(a_model().stack, ids, (LAYERS,)))[LAYERS]
    torch.testing.assert_close(merged, beside, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(beside, states_of(a_model().hf, ids)[-1], atol=1e-2)


def test_tied_weights_are_changed_in_both_places() -> None:
    objective = objective_of(lora=0)
    parameters, ids = moved(objective, 0.1), torch.arange(12)
    assert "lm_head.weight.change" not in parameters
    stack = objective.model.stack

    def logits() -> torch.Tensor:
        return read_out(stack, run_layers(stack, ids, (LAYERS,))[LAYERS])

    found = objective.weights.run(objective.weights.values(parameters), logits)
    with torch.no_grad():
        expected = changed_copy(objective, parameters)(input_ids=ids[None]).logits[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mamba2"])
def test_a_layer_that_is_left_out_hands_on_what_it_is_given(family: str) -> None:
    model = tiny_model(build_family(family))
    ids, last, found = torch.arange(9), model.layers, {}
    whole = run_layers(model.stack, ids, range(1, last + 1))
    model.stack.capture(ids[None], lambda layer, before, after: found.update({layer + 1: after[0]}))
    for layer, states in whole.items():
        torch.testing.assert_close(states, found[layer])
    some = run_layers(model.stack, ids, range(1, last + 1), (2,))
    assert torch.equal(some[2], some[1])
    assert torch.equal(some[1], whole[1])
    assert last == 2 or not torch.equal(some[last], whole[last])


def test_layers_are_left_out_as_often_as_they_are_to_be() -> None:
    objective = objective_of(layer_dropout=0.4, batch=1000)
    counts, draws = np.zeros(LAYERS), 0
    for seed in range(400):
        object.__setattr__(objective.recipe, "seed", seed)
        for left_out in objective.batch(2, 3).left_out:
            draws += 1
            counts[[layer - 1 for layer in left_out]] += 1
    expected = dropout_probabilities(LAYERS, 2, 3, 0.4)
    assert draws == 1600
    deviation = np.sqrt(expected * (1 - expected) / draws)
    assert (np.abs(counts / draws - expected) <= 4 * deviation).all()
    assert counts[0] == 0


def test_a_step_reads_whole_sequences_and_is_drawn_by_seed_and_step_alone() -> None:
    draws = [objective_of(seed, layer_dropout=0.4).batch(step, 10) for seed, step in ((0, 4), (0, 4), (0, 5))]
    assert draws[0] == draws[1] != draws[2]
    assert len(objective_of(batch=1).batch(0, 10).places) == 1, "one sequence at least"
    assert sorted(objective_of(batch=1000).batch(0, 10).places) == [0, 1, 2, 3]


def test_what_comes_further_ahead() -> None:
    context = objective_of().fit[1]
    known = [*context.ids, context.next_token]
    assert tokens_ahead(context, 1) == known[2:]
    assert tokens_ahead(context, 3) == [*known[4:], -100, -100]


def test_the_original_is_computed_once_and_again_where_it_does_not_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    objective, calls = objective_of(), []
    monkeypatch.setattr(
        "offramp.training.regularised.run_layers",
        lambda *given: calls.append(given) or run_layers(*given),
    )
    for most, expected in ((10**6, 1), (0, 2)):
        calls.clear()
        states = original_states(objective.model, objective.fit)
        states._left = most
        assert torch.equal(*states.of(1), *states.of(1))
        assert len(calls) == expected


def test_held_out_figures_are_those_of_the_models_themselves() -> None:
    objective = objective_of()
    parameters = moved(objective)
    found = objective.evaluate([parameters])
    hf = changed_copy(objective, parameters)
    z: dict[int, list[torch.Tensor]] = {exit: [] for exit in (*EXITS, LAYERS)}
    p, observed = [], []
    for context in objective.held_out.contexts:
        ids = torch.tensor(context.ids)
        states = states_of(hf, ids)
        for exit, rows in z.items():
            rows.append(hf.lm_head(hf.model.norm(states[exit - 1][1:])).log_softmax(-1))
        p.append(a_model().hf(input_ids=ids[None]).logits[0, 1:].log_softmax(-1))
        observed += [*context.ids[2:], context.next_token]
    log_p, by_exit = torch.cat(p).detach(), {exit: torch.cat(rows).detach() for exit, rows in z.items()}
    size = sum(len(f" {token}") for token in observed)
    for one, log_q in zip(found, by_exit.values(), strict=True):
        right = log_q.argmax(-1) == log_p.argmax(-1)
        own = log_q.argmax(-1) == by_exit[LAYERS].argmax(-1)
        nll = -log_q[torch.arange(len(observed)), torch.tensor(observed)]
        assert one.loss == pytest.approx(float((log_p.exp() * (log_p - log_q)).sum(-1).mean()), rel=1e-4)
        assert one.reference_agreement == pytest.approx(float(right.double().mean()))
        assert one.agreement == pytest.approx(float(own.double().mean()))
        assert one.nll == pytest.approx(float(nll.mean()), rel=1e-5)
        assert one.bits_per_byte == pytest.approx(float(nll.sum()) / math.log(2) / size, rel=1e-5)
    assert found[-1].agreement == 1.0 > (found[-1].reference_agreement or 0.0)
    weights = exit_weights(EXITS, LAYERS, 1.0).values()
    losses = [one.loss for one in found]
    total = sum(weight * loss for weight, loss in zip(weights, losses, strict=True)) + losses[-1]
    assert objective.judged(found) == pytest.approx([total])


def test_held_out_sequences_are_taken_until_there_are_enough_tokens() -> None:
    held_out = objective_of().held_out
    rows = [len(one.ids) - 1 for one in held_out.contexts]
    assert held_out._places(10**6) == [0, 1]
    (first,) = held_out._places(1)
    assert held_out._places(rows[first]) == [first]
    assert held_out._places(rows[first] + 1) == [0, 1]


def test_what_stays_may_be_wrong_too() -> None:
    """Five tokens, the surest first; of those that stay the last two are no longer the original's."""
    confidence = np.array([0.9, 0.8, 0.7, 0.6, 0.5], dtype=np.float32)
    agrees = np.array([True, True, False, True, False])
    stays = np.array([True, True, True, False, False])
    # Wrong if the first k leave: 2, 2, 2 of the first two and the two that stay; 3; 2; 2 + ... at k = 5: 2.
    assert leaving_shares(confidence, agrees, (0.9, 0.6, 0.4), stays) == (0.0, 1.0, 1.0)
    assert leaving_shares(confidence, agrees, (0.9, 0.8, 0.6)) == (0.4, 0.8, 1.0)


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"lora": -1}, "--lora"),
        ({"keep": math.nan}, "--keep"),
        ({"layer_dropout": 0.9}, "--layer-dropout"),
        ({"exit_scale": 0.0}, "--exit-scale"),
        ({"ahead": 9}, "--ahead"),
    ],
)
def test_what_cannot_be_is_refused(asked: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError) as error:
        Regularisation(**asked)
    assert named in error.value.where


def test_weights_that_cannot_be_trained_are_refused() -> None:
    model = tiny_model(llama())
    model.hf.hf_quantizer = object()
    with pytest.raises(ModelError, match="are quantised"):
        ChangedWeights.of(model, 0)
    with pytest.raises(ModelError, match="no matrix of more than 1000"):
        ChangedWeights.of(a_model(), 1000)
    identity = model.identity
    transformed = model.with_identity(type(identity)(**{**vars(identity), "transforms": ("int8",)}))
    with pytest.raises(ModelError, match="transformed"):
        ChangedWeights.of(transformed, 0)
