"""Losses against plain counts; instructions made from a text have right answers, and these alone count."""

from __future__ import annotations

import dataclasses
import re
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from lab_worlds import going_on, tiny, tiny_kind

from offramp import InputError
from offramp_lab.batches import BEGINNING_ID, Batches
from offramp_lab.generated import problems
from offramp_lab.objectives import (
    LAYER_SKIP,
    Instruction,
    _continuation,
    _definitions,
    _missing_word,
    _problem,
    answers_loss,
    early_exit_loss,
    encoded_instructions,
    instruction_batches,
    instructions,
    router_loss,
)
from offramp_lab.text import LabText

CODE = """import os


class Dog:
    def bark(self) -> str:
        return 'woof'


async def feed(dog: Dog):
    pass
"""
seeds = st.integers(0, 2**32)


def made(text: LabText, count: int = 60, seed: int = 0) -> list[Instruction]:
    return list(islice(instructions(text, seed), count))


def test_they_are_the_same_for_a_seed_and_of_every_form_that_the_text_has(lab_text: LabText) -> None:
    found = made(lab_text)
    assert found == made(lab_text)
    assert found != made(lab_text, seed=1)
    begins = [one.question.partition("\n")[0] for one in found]
    assert begins[0::3] == ["Continue this."] * 20
    assert begins[1::3] == ["Which word is missing?"] * 20
    assert all(one == "modulo 10" or ">" in one for one in begins[2::3])


def test_continuations_and_missing_words_stand_in_a_document_that_is_trained_on(lab_text: LabText) -> None:
    lines = (lab_text.folder / "train-prose.jsonl").read_text().replace("\\n", " ")
    for one in made(lab_text):
        kind, _, shown = one.question.partition("\n")
        if kind == "Continue this.":
            assert f"{shown} {one.answer}" in lines
            assert 100 < len(shown) <= 300
            assert len(one.answer) > 40
        elif kind == "Which word is missing?":
            assert shown.count("___") == 1
            assert shown.replace("___", one.answer) in lines
            assert re.fullmatch("[A-Za-z]{5,12}", one.answer)


@given(seeds)
def test_problems_ask_one_question_and_know_its_answer(seed: int) -> None:
    generator = np.random.default_rng(seed)
    lookup, arithmetic = islice(problems("train", seed), 2)
    asked = _problem(lookup, generator)
    table, question = asked.question.split("\n")
    following = dict(pair.split(">") for pair in table.split())
    count, letter = re.fullmatch(r"(\d) (\w)\?", question).groups()  # type: ignore[union-attr]
    for _ in range(int(count)):
        letter = following[letter]
    assert asked.answer == letter
    asked = _problem(arithmetic, generator)
    head, question = asked.question.split("\n")
    assert head == "modulo 10"
    assert asked.answer == str(eval(question.removesuffix(" =")) % 10)


@given(seeds)
def test_definitions_are_those_of_the_code_that_is_shown(seed: int) -> None:
    found = _definitions(CODE, np.random.default_rng(seed))
    if found is None:
        return
    shown = found.question.removeprefix("What is defined here?\n")
    assert shown in CODE
    names = [name for name in ("Dog", "bark", "feed") if re.search(rf"(def|class) {name}\b", shown)]
    assert found.answer == ", ".join(names)


def test_where_nothing_can_be_asked_nothing_is(lab_text: LabText, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    assert _definitions("x = 1\ny = 2\n" * 100, generator) is None
    assert _missing_word("a bc def " * 50, generator) is None
    assert _continuation("word", generator) is None
    for part in ("train-prose.jsonl", "train-generated.jsonl"):
        (tmp_path / part).write_text("")
    with pytest.raises(InputError, match="no instruction can be made"):
        made(LabText(tmp_path, lab_text.record))


def test_tokens_of_answers_are_marked_and_no_others(lab_text: LabText) -> None:
    found = made(lab_text, 12)
    tokens, answers = encoded_instructions(lab_text.tokenizer, found)
    assert (tokens[0], answers[0], tokens[-1], answers[-1]) == (BEGINNING_ID, 0, BEGINNING_ID, 1)
    ends = np.flatnonzero(tokens == BEGINNING_ID)
    assert len(ends) == 13
    for one, start, end in zip(found, ends, ends[1:], strict=False):
        inside = slice(start + 1, end)
        said = lab_text.tokenizer.decode(tokens[inside][answers[inside] == 1])
        asked = lab_text.tokenizer.decode(tokens[inside][answers[inside] == 0])
        assert said == f" {one.answer}\n"
        assert asked == f"User: {one.question}\nAssistant:"


def test_sequences_begin_with_an_instruction_and_are_as_many_as_are_read(lab_text: LabText) -> None:
    recipe = going_on(Path("base"), "tuned", context=256, tokens=20_000)
    batches, answers = instruction_batches(lab_text, recipe)
    assert len(batches.starts) >= recipe.steps * recipe.batch
    for step in range(recipe.steps):
        tokens, marked = batches.sequences(step), answers.sequences(step)
        assert (tokens[:, 0] == BEGINNING_ID).all()
        assert set(np.unique(marked)) == {0, 1}
        assert tokens.shape == marked.shape


def test_the_loss_counts_answers_alone(lab_text: LabText) -> None:
    torch.manual_seed(0)
    recipe = going_on(Path("base"), "tuned", context=200)
    model: Any = tiny(context=200).make_model(300).eval()
    batches, answers = instruction_batches(lab_text, recipe)
    found = float(answers_loss(model, batches, answers)(2).detach())
    losses = []
    for sequence, marked in zip(batches.sequences(2), answers.sequences(2), strict=True):
        with torch.no_grad():
            logits = model(torch.from_numpy(sequence[None, :-1])).logits[0].log_softmax(-1)
        losses += [
            -float(row[token])
            for row, token, counts in zip(logits, sequence[1:], marked[1:], strict=True)
            if counts
        ]
    assert found == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.parametrize("step", [1, 7])
def test_the_loss_of_early_exits_is_that_of_a_plain_count(lab_text: LabText, step: int) -> None:
    recipe = going_on(Path("base"), "early_exit_loss")
    batches = Batches.of(lab_text, 32, 4, recipe.seed)
    torch.manual_seed(0)
    model: Any = tiny(layers=4).make_model(300)
    loss = early_exit_loss(model, batches, recipe)(step)
    enabled = (2, 3)[step % 2]
    weights = LAYER_SKIP.weights((2, 3), 4, step, 8)
    assert list(weights) == [enabled, 4]
    drawn = np.random.default_rng((recipe.seed, step)).random((4, 4))
    left_out = drawn < LAYER_SKIP.dropout(4, step, 8)
    inner, expected = model.model, 0.0
    sequences = torch.from_numpy(batches.sequences(step))
    for sequence, without in zip(sequences, left_out, strict=True):
        hidden = inner.embed_tokens(sequence[None, :-1])
        turned = inner.rotary_emb(hidden, torch.arange(32)[None])
        for place, layer in enumerate(inner.layers, start=1):
            if not without[place - 1]:
                hidden = layer(hidden, position_embeddings=turned)
            if place in weights:
                logits = model.lm_head(inner.norm(hidden))[0]
                expected += weights[place] * float(F.cross_entropy(logits, sequence[1:]).detach()) / 4
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    loss.backward()  # type: ignore[no-untyped-call]
    assert model.model.embed_tokens.weight.grad.abs().max() > 0


def test_layers_are_left_out_towards_the_end(lab_text: LabText, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a chance of one half of the last layer at the last step, and none at the first."""
    seen: list[set[int]] = []
    real = early_exit_loss.__globals__["states_after"]

    def run(body: Any, ids: Any, wanted: Any, left_out: Any) -> Any:
        seen.append({*left_out.tolist()})
        return real(body, ids, wanted, left_out)

    monkeypatch.setattr("offramp_lab.objectives.states_after", run)
    half = dataclasses.replace(LAYER_SKIP, layer_dropout=0.5)
    monkeypatch.setattr("offramp_lab.objectives.LAYER_SKIP", half)
    recipe = going_on(Path("base"), "early_exit_loss", batch=32, tokens=8 * 32 * 32)
    model = tiny(layers=4).make_model(300)
    loss_of = early_exit_loss(model, Batches.of(lab_text, 32, 32, recipe.seed), recipe)
    loss_of(0)
    assert not any(seen)
    loss_of(7)
    assert 8 < sum(4 in one for one in seen[32:]) < 24
    assert not any(1 in one for one in seen)
    for other in (tiny(layers=2).make_model(300), tiny_kind("mamba2", layers=3).make_model(300)):
        with pytest.raises(InputError, match="a model with attention, of three layers or more"):
            early_exit_loss(other, Batches.of(lab_text, 32, 4, 0), recipe)


def test_the_loss_of_a_mixture_has_the_term_of_its_routers(lab_text: LabText) -> None:
    torch.manual_seed(0)
    model: Any = tiny_kind("mixture").make_model(300)
    batches = Batches.of(lab_text, 32, 4, 1)
    sequences = torch.from_numpy(batches.sequences(3))
    routed: list[torch.Tensor] = []
    hooks = [
        layer.mlp.gate.register_forward_hook(lambda module, given, found: routed.append(found[0]))
        for layer in model.model.layers
    ]
    logits = model(input_ids=sequences[:, :-1]).logits
    for hook in hooks:
        hook.remove()
    of_text = F.cross_entropy(logits.reshape(-1, 300), sequences[:, 1:].reshape(-1))
    shares = torch.cat(routed).softmax(-1)
    chosen = F.one_hot(shares.topk(2, dim=-1).indices, 4).sum(1).float()
    uneven = 4 * (chosen.mean(0) * shares.mean(0)).sum()  # arXiv 2101.03961, equations 4 to 6
    loss = router_loss(model, batches)(3)
    torch.testing.assert_close(loss, of_text + 0.001 * uneven)
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(layer.mlp.gate.weight.grad.abs().max() > 0 for layer in model.model.layers)
