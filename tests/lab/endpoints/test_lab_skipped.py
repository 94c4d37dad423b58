"""Layers skipped at 95 % agreement: the threshold that a scan would find, layers that really did not run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import offramp
from offramp.decoding.execution.execution import execute
from offramp.decoding.options import DecodingOptions
from offramp.lab.endpoints import skipped
from offramp.lab.endpoints.documents import openings_of, works_of
from offramp.lab.endpoints.skipped import AGREEMENT, VALUES, Point, find_skipped, skipped_layers
from offramp.lab.text.folder import LabText
from offramp.models.model import Model

NEW = 8

shares = st.floats(0.0, 1.0, allow_nan=False)
ten_shares = st.lists(shares, min_size=len(VALUES), max_size=len(VALUES))


def executed(agreement: list[float], skips: list[float]) -> tuple[skipped.Skipped, int]:
    """What bisection finds where the thresholds do this, and how often it decodes."""
    asked: list[float] = []

    def execute_at(value: float) -> Point:
        asked.append(value)
        place = VALUES.index(value)
        return Point(value, agreement[place], skips[place], skips[place] / 2)

    return find_skipped(execute_at, 32), len(asked)


@given(ten_shares, ten_shares)
@settings(max_examples=200, deadline=None)
def test_bisection_finds_what_a_scan_of_all_thresholds_finds(rising: list[float], skips: list[float]) -> None:
    agreement, skips = sorted(rising), sorted(skips, reverse=True)
    found, asked = executed(agreement, skips)
    assert asked <= 4
    assert found.above == pytest.approx(found.share / 2)
    assert found.monotone
    if agreement[-1] < AGREEMENT:
        assert found.share == 0.0
    elif agreement[0] >= AGREEMENT:
        assert (found.share, found.bound) == (skips[0], True)
    else:
        above = next(place for place, one in enumerate(agreement) if one >= AGREEMENT)
        around = slice(above - 1, above + 1)
        assert found.share == pytest.approx(np.interp(AGREEMENT, agreement[around], skips[around]))
        assert not found.bound


def test_agreement_that_falls_with_the_threshold_is_said() -> None:
    agreement = [0.2, 0.9, 0.5, 0.5, 0.8, 0.8, 0.9, 0.97, 0.98, 0.99]
    found, _ = executed(agreement, [0.5] * 10)
    assert found.monotone  # of those that it looked at: 0.9, 0.99, 0.98
    agreement[4], agreement[7] = 0.94, 0.93
    assert not executed(agreement, [0.5] * 10)[0].monotone


class Plain:
    """Decoding written down: each layer runs on all states that it was ever given, the newest one's kept.

    A token that has left gives the layers above the state with which it left, and they do not run for it.
    """

    def __init__(self, model: Model, value: float) -> None:
        self.hf: Any = model.hf
        self.value, self.ran = value, 0
        self.given: list[list[Tensor]] = [[] for _ in self.hf.model.layers]

    def layer(self, place: int) -> Tensor:
        """The newest position's state after a layer, from all that it was given: [hidden]."""
        states = torch.stack(self.given[place])[None]
        turned = self.hf.model.rotary_emb(states, torch.arange(states.shape[1])[None])
        return self.hf.model.layers[place](states, position_embeddings=turned)[0, -1]

    def probabilities(self, state: Tensor) -> Tensor:
        return self.hf.lm_head(self.hf.model.norm(state)).softmax(-1)

    def token(self, id: int, *, whole: bool) -> tuple[int, int]:
        """Feed one; what is said next, and after how many layers."""
        state, left, layers = self.hf.model.embed_tokens(torch.tensor(id)), 0, len(self.given)
        for place in range(layers):
            self.given[place].append(state)
            if left:
                continue
            state = self.layer(place)
            self.ran += not whole
            sure = place + 1 < layers and float(self.probabilities(state).max()) >= self.value
            left = place + 1 if sure and not whole else 0
        return int(self.probabilities(state).argmax()), left or layers

    def answer(self, prompt: tuple[int, ...], new: int) -> list[int]:
        said = [self.token(id, whole=True)[0] for id in prompt][-1:]
        while len(said) < new:
            said.append(self.token(said[-1], whole=False)[0])
        return said


@torch.no_grad()
def plainly(model: Model, prompts: list[tuple[int, ...]], value: float) -> Point:
    """The point of a threshold, prompt by prompt and token by token."""
    ran = agreeing = 0
    for prompt in prompts:
        decoder = Plain(model, value)
        answer = decoder.answer(prompt, NEW)
        logits = model.hf(torch.tensor([[*prompt, *answer]])).logits[0]
        agreeing += sum(
            int(logits[len(prompt) - 1 + place].argmax()) == token for place, token in enumerate(answer)
        )
        ran += decoder.ran
    fed = len(prompts) * (NEW - 1) * len(model.stack)
    return Point(value, agreeing / (len(prompts) * NEW), 1 - ran / fed, 1 - ran / fed)


@pytest.fixture(scope="module")
def model(endpoint_model: Path) -> Model:
    return offramp.load_model(endpoint_model)


def test_what_is_skipped_did_not_run(
    model: Model, endpoint_text: LabText, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = (0.05, 0.1, 0.15, 0.2, 0.3, 0.9)
    monkeypatch.setattr(skipped, "VALUES", values)
    openings = openings_of(model, works_of(endpoint_text, "report", ["prose", "code"]), 8, 5)
    ran = {"counting": True, "rows": 0}

    class Uncounted(skipped.Judge):
        def __call__(self, pairs: Any) -> Any:
            ran["counting"] = False
            found = super().__call__(pairs)
            ran["counting"] = True
            return found

    def count(layer: Any, given: Any, output: Any) -> None:
        ran["rows"] += ran["counting"] * output.shape[0] * output.shape[1]

    monkeypatch.setattr(skipped, "Judge", Uncounted)
    skipped_layers(model, openings, NEW)  # what the engine tries once is not counted
    hooks = [layer.register_forward_hook(count) for layer in model.stack.layers]
    found = skipped_layers(model, openings, NEW)
    for hook in hooks:
        hook.remove()
    prompts = sum(len(one.ids) for one in openings) * len(hooks) * len(found.points)
    fed = len(openings) * (NEW - 1) * len(hooks)
    assert ran["rows"] - prompts == round(sum(1 - one.skipped for one in found.points) * fed)

    expected = [plainly(model, [one.ids for one in openings], one.value) for one in found.points]
    for one, other in zip(found.points, expected, strict=True):
        assert one.agreement == pytest.approx(other.agreement)
        assert one.skipped == pytest.approx(other.skipped)
        assert one.above == pytest.approx(other.above)
    assert found.prompts == 5
    assert len({one.skipped for one in expected}) > 1  # thresholds that differ in what they skip
    assert min(one.agreement for one in expected) < AGREEMENT


def test_an_end_token_is_a_token_like_others(
    model: Model, endpoint_text: LabText, monkeypatch: pytest.MonkeyPatch
) -> None:
    openings = openings_of(model, works_of(endpoint_text, "report", ["code"]), 12, 3)
    ending = replace(model, eos_token_ids=tuple(range(model.shape.vocabulary_size)))
    options = DecodingOptions.read(None, new_tokens=5)
    ended = execute(ending, openings, options, skipped.Judge(model), rows=3)
    assert {len(one.answer) for one in ended} == {1}
    lengths: set[int] = set()

    class Lengths(skipped.Judge):
        def __call__(self, pairs: Any) -> Any:
            lengths.update(len(answer) for _, answer in pairs)
            return super().__call__(pairs)

    monkeypatch.setattr(skipped, "Judge", Lengths)
    skipped_layers(ending, openings, 5)
    assert lengths == {5}
