"""Executions against a naive loop: one prompt at a time, one whole forward of the full model per token."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from execution_cases import (
    POLICY,
    agreeable_llama,
    best_tokens,
    build_family,
    decoded_alone,
    llama,
    openings_of,
    options_of,
    tiny_model,
)

import offramp
from offramp.decoding import judging
from offramp.decoding.execution.execution import ROWS_TOGETHER, execute, rows_together
from offramp.decoding.judging import Judge, judge
from offramp.errors import InputError, PolicyError
from offramp.models.model import Model

NEW = 12


@pytest.mark.parametrize("kv", ["propagate", "recompute", "speculate"])
@pytest.mark.parametrize("lengths", [(9,) * 11, (5, 12, 7, 9, 5)])
def test_losses_are_those_of_the_naive_loop(kv: str, lengths: tuple[int, ...]) -> None:
    model, options, openings = agreeable_llama(), options_of(kv=kv), openings_of(*lengths)
    rows = rows_together(model, options, max(lengths) + NEW)
    assert rows == (1 if kv == "speculate" else ROWS_TOGETHER)
    found = execute(model, openings, replace(options, new_tokens=NEW), Judge(model), rows=rows)
    lost = []
    for opening, one in zip(openings, found, strict=True):
        alone = decoded_alone(model, opening, options, NEW)
        assert (one.document, one.prompt) == (opening.document, opening.ids)
        assert one.answer == tuple(alone.tokens)
        assert one.exits == tuple(alone.exits)
        layers = alone.layers_executed - alone.prompt_layers
        # Rows that wait together all run as deep as the deepest, which is counted.
        assert one.layers_executed >= layers if kv == "recompute" else one.layers_executed == layers
        agrees = np.equal(best_tokens(model, opening.ids, alone.tokens), alone.tokens)
        assert one.agrees == tuple(agrees)
        assert one.loss == pytest.approx(1 - agrees[1:].mean())
        lost.append(one.loss)
    assert (max(lost) > 0.0) == (kv != "speculate")
    assert len({exit for one in found for exit in one.exits}) > 2


def test_a_policy_that_never_leaves_loses_nothing() -> None:
    model = agreeable_llama()
    found = execute(model, openings_of(6, 6, 6), options_of("never", new_tokens=NEW), Judge(model), rows=3)
    assert [one.loss for one in found] == [0.0, 0.0, 0.0]
    assert all(one.layers_executed == 4 * (NEW - 1) for one in found)


def test_an_end_token_ends_an_answer() -> None:
    free = agreeable_llama()
    openings, options = openings_of(9, 9, 9, 9), options_of()
    answers = [decoded_alone(free, opening, options, NEW).tokens for opening in openings]
    ends = answers[0][4]
    model = agreeable_llama(eos=ends)
    found = execute(model, openings, replace(options, new_tokens=NEW), Judge(model), rows=4)
    for answer, one in zip(answers, found, strict=True):
        expected = answer[: answer.index(ends) + 1] if ends in answer else answer
        assert list(one.answer) == expected
    assert len(found[0].answer) < NEW


def test_rows_are_decoded_one_by_one_where_a_family_cannot_leave_apart() -> None:
    model = tiny_model(build_family("mamba"), name="mamba")
    options = options_of("static:exit=1")
    assert rows_together(model, options, 40) == 1
    found = execute(model, openings_of(6, 8), replace(options, new_tokens=5), Judge(model), rows=1)
    assert len(found) == 2
    # What is refused for one prompt is refused before anything runs.
    with pytest.raises(PolicyError, match="oracle"):
        rows_together(model, options_of("oracle:which=saturation"), 40)
    with pytest.raises(PolicyError, match="go deeper"):
        rows_together(agreeable_llama(), options_of(POLICY, kv="monotone"), 40)


def test_documents_that_fit_in_memory_are_decoded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    from offramp.decoding.execution import execution

    model = agreeable_llama()
    each = execution.key_value_bytes(model) * 40
    monkeypatch.setattr(execution, "free_bytes", lambda device: 2 * 3 * each)
    assert rows_together(model, options_of(), 40) == 3
    monkeypatch.setattr(execution, "free_bytes", lambda device: 0)
    assert rows_together(model, options_of(), 40) == 1


def test_the_models_own_generation_config_changes_nothing() -> None:
    model = agreeable_llama()
    openings, options = openings_of(9, 9), options_of()
    before = execute(model, openings, replace(options, new_tokens=NEW), Judge(model), rows=2)
    config = model.hf.generation_config
    config.repetition_penalty = 5.0
    try:
        assert execute(model, openings, replace(options, new_tokens=NEW), Judge(model), rows=2) == before
        assert model.hf.generation_config.repetition_penalty == 5.0
    finally:
        config.repetition_penalty = None


def test_a_broken_answer_is_wholly_lost() -> None:
    model = tiny_model(llama(), name="breaks", head_scale=3.0)
    openings = openings_of(5, 5)
    first = decoded_alone(model, openings[0], options_of("never"), 3).tokens
    with torch.no_grad():
        # What the first answer says second cannot be embedded.
        model.hf.get_input_embeddings().weight[first[1]] = float("inf")
    with pytest.warns(RuntimeWarning, match="not finite"):
        found = execute(model, openings, options_of("never", new_tokens=6), Judge(model), rows=1)
    assert found[0].problem is not None
    assert found[0].loss == 1.0
    assert len(found[0].answer) < 6


@pytest.mark.parametrize(
    ("family", "together"),
    [("llama", True), ("mamba", True), ("mixtral", True), ("gemma2", True), ("gemma3n_text", False)],
)
def test_several_answers_are_judged_as_one_by_one(family: str, together: bool) -> None:
    model = tiny_model(build_family(family), name=family)
    openings, answers = openings_of(6, 9, 4, vocabulary=40), openings_of(5, 2, 6, vocabulary=40)
    pairs = [(one.ids, other.ids) for one, other in zip(openings, answers, strict=True)]
    at_once = Judge(model)
    for some in (pairs, [(openings[0].ids, answers[0].ids)] * 2):
        for found, pair in zip(at_once(some), some, strict=True):
            alone = judge(model, *pair)
            assert found.chosen.tolist() == alone.chosen.tolist()
            np.testing.assert_allclose(found.gap, alone.gap, atol=1e-4)
            np.testing.assert_allclose(found.logprob, alone.logprob, atol=1e-4)
    assert at_once._exact == {True: together, False: together}
    assert len(at_once(pairs[:1])) == 1
    with pytest.raises(InputError, match="at least one token"):
        at_once([((), (1,)), ((2,), (1,))])


def test_whether_filling_up_is_exact_is_tried_on_a_row_that_is_filled_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a family whose rows change when they are filled up, the longest answer does not show it."""
    states_of = judging.last_states

    def shifted(model: Model, ids: torch.Tensor) -> torch.Tensor:
        filled = ids[:, -1] == ids[:, -2]
        return torch.where(filled[:, None, None], states_of(model, ids) + 1.0, states_of(model, ids))

    monkeypatch.setattr(judging, "last_states", shifted)
    model = tiny_model(llama())
    at_once = Judge(model)
    pairs = [((3, 4, 5, 6), (7, 8, 9)), ((10, 11), (12, 13))]
    for found, pair in zip(at_once(pairs), pairs, strict=True):
        np.testing.assert_allclose(found.gap, judge(model, *pair).gap, atol=1e-4)


def test_prompts_are_a_tensor_or_refused() -> None:
    model = tiny_model(llama())
    listed = offramp.execute(model, [[5, 6, 7]], "static:exit=2", new_tokens=3)
    (found,) = offramp.execute(model, torch.tensor([[5, 6, 7]]), "static:exit=2", new_tokens=3)
    assert (found, found.prompt) == (listed[0], (5, 6, 7))
    assert {type(token) for token in found.prompt} == {int}
    with pytest.raises(InputError, match="there are no prompts"):
        offramp.execute(model, [], "static:exit=2")
