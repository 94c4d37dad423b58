"""Layers skipped at 95 % agreement: the threshold that a scan would find, layers that really did not run."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import offramp
from offramp import InputError, Model
from offramp_lab import endpoints
from offramp_lab.endpoints import (
    CANDIDATES,
    ENDPOINTS,
    LOWER,
    MEASURABLE,
    OF_REPLICATION,
    REGISTERED,
    THRESHOLDS,
    Asked,
    Point,
    Sizes,
    Skipped,
    find_skipped,
    halved_calibration,
    measure,
    prompts_of,
    skipped_layers,
    works_of,
)
from offramp_lab.given import measure_given
from offramp_lab.text import LabText

NEW = 8

shares = st.floats(0.0, 1.0, allow_nan=False)
ten_shares = st.lists(shares, min_size=len(THRESHOLDS), max_size=len(THRESHOLDS))


def executed(agreement: list[float], skips: list[float], asked: Asked = REGISTERED) -> tuple[Skipped, int]:
    """What bisection finds where the thresholds do this, and how often it decodes."""
    tried: list[float] = []

    def execute_at(value: float) -> Point:
        tried.append(value)
        place = asked.thresholds.index(value)
        return Point(value, agreement[place], skips[place], skips[place] / 2)

    return find_skipped(execute_at, asked), len(tried)


@given(ten_shares, ten_shares, st.sampled_from([0.8, 0.9, 0.95]))
@settings(max_examples=200, deadline=None)
def test_bisection_finds_what_a_scan_of_all_thresholds_finds(
    rising: list[float], skips: list[float], kept: float
) -> None:
    agreement, skips = sorted(rising), sorted(skips, reverse=True)
    found, asked = executed(agreement, skips, Asked(kept))
    assert asked <= 4
    assert found.above == pytest.approx(found.share / 2)
    assert found.monotone
    if agreement[-1] < kept:
        assert found.share == 0.0
    elif agreement[0] >= kept:
        assert (found.share, found.bound) == (skips[0], True)
    else:
        above = next(place for place, one in enumerate(agreement) if one >= kept)
        around = slice(above - 1, above + 1)
        assert found.share == pytest.approx(np.interp(kept, agreement[around], skips[around]))
        assert not found.bound


def test_the_replication_asks_for_less_agreement_and_leaves_early_exits_out() -> None:
    assert {name: asked.agreement for name, asked in OF_REPLICATION.items()} == {
        "skipped_third_80": 0.8,
        "skipped_third_90": 0.9,
    }
    for asked in OF_REPLICATION.values():
        assert (asked.exits(6), asked.exits(12), asked.exits(7)) == (
            "2+3+4+5",
            "4+5+6+7+8+9+10+11",
            "3+4+5+6",
        )
        agreement = [0.4 + 0.04 * place for place in range(len(LOWER))]
        found, _ = executed(agreement, [0.6 - 0.04 * place for place in range(len(LOWER))], asked)
        assert found.share == pytest.approx(1.0 - asked.agreement)  # what is skipped and agreement make 1
    assert REGISTERED.exits(6) == "all"


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
def model(lab_model: Path) -> Model:
    return offramp.load_model(lab_model)


def test_what_is_skipped_did_not_run(model: Model, lab_text: LabText) -> None:
    asked = Asked(thresholds=(0.05, 0.1, 0.15, 0.2, 0.3, 0.9))
    prompts = prompts_of(model, lab_text, ["prose", "code"], Sizes(prompts=6, prompt_tokens=8))
    assert len(prompts) == 6
    found = skipped_layers(model, prompts, NEW, asked=asked)
    expected = [plainly(model, prompts, one.value) for one in found.points]
    for one, other in zip(found.points, expected, strict=True):
        assert one.agreement == pytest.approx(other.agreement)
        assert one.skipped == pytest.approx(other.skipped)
        assert one.above == pytest.approx(other.above)
    assert len({one.skipped for one in expected}) > 1  # thresholds that differ in what they skip
    assert min(one.agreement for one in expected) < asked.agreement


def test_an_end_token_is_a_token_like_others(
    model: Model, lab_text: LabText, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = prompts_of(model, lab_text, ["code"], Sizes(prompts=3, prompt_tokens=12))
    ending = replace(model, eos_token_ids=tuple(range(300)))
    assert {len(one.answer) for one in offramp.execute(ending, prompts, None, new_tokens=5)} == {1}
    lengths: list[int] = []

    def execute(*arguments: Any, **keywords: Any) -> Any:
        rows = offramp.execute(*arguments, **keywords)
        lengths.extend(len(row.answer) for row in rows)
        return rows

    monkeypatch.setattr(endpoints, "execute", execute)
    skipped_layers(ending, prompts, 5)
    assert {*lengths} == {5}


def test_works_are_read_in_turns_in_the_order_of_a_hash(model: Model, lab_text: LabText) -> None:
    works = works_of(lab_text, "report", ["prose", "code"]).documents
    assert [one.id.partition(":")[0] for one in works[:4]] == ["report-prose", "report-code"] * 2
    assert {one.id for one in works} == {
        one.id for kind in ("prose", "code") for one in lab_text.documents("report", kind)
    }
    with pytest.raises(InputError, match="no reasoning in its report part"):
        works_of(lab_text, "report", ["reasoning"])
    with pytest.raises(InputError, match="no report work of code has 100000 tokens"):
        prompts_of(model, lab_text, ["code"], Sizes(prompt_tokens=100_000))


def test_calibration_is_that_of_a_plain_count(model: Model, lab_text: LabText) -> None:
    traced = offramp.trace(
        model, works_of(lab_text, "report", ["prose", "code"]), 600, context=64, progress=False
    )
    ids = [document.id for document in traced.documents]
    used = sorted(
        {*traced.document.tolist()}, key=lambda place: hashlib.sha256(ids[place].encode()).hexdigest()
    )
    for half, found in zip((used[::2], used[1::2]), halved_calibration(traced), strict=True):
        rows, errors = np.isin(traced.document, half), []
        for place in range(2):  # exits below the last
            sure, agrees = traced.max_prob[rows][:, place], traced.agreement[rows][:, place]
            bins = np.minimum((sure * 15).astype(int), 14)
            gaps = [
                abs(sure[bins == one].mean() - agrees[bins == one].mean()) * (bins == one).mean()
                for one in {*bins}
            ]
            errors.append(sum(gaps))
        assert found == pytest.approx(np.mean(errors), rel=1e-4)


SMALL = Sizes(
    prompts=4, prompt_tokens=12, new_tokens=6, traced=256, lens_tokens=1024, lens_steps=4, context=64
)


def test_every_endpoint_is_measured_the_same_twice(lab_model: Path, lab_text: LabText) -> None:
    first, second = (measure(lab_model, lab_text, sizes=SMALL) for _ in range(2))
    assert first.values == second.values
    scores = {f"score_{name}" for name in CANDIDATES}
    names = {*ENDPOINTS, *scores, "oracle_saturation", "calibration_first", "calibration_second"} - {"scores"}
    assert {*first.values} == names
    assert {name for name, value in first.values.items() if value is None} == {*first.untold}
    assert {*first.executed} == {"skipped", "skipped_lens", "skipped_code"}
    assert {"lens", "trace"} < {*first.seconds}
    replicated = measure(lab_model, lab_text, endpoints=[*OF_REPLICATION], sizes=SMALL)
    assert [*replicated.values] == [*OF_REPLICATION] == [*MEASURABLE[len(ENDPOINTS) :]]
    # Of three layers a third is one: exits 1 and 2, so that less agreement leaves as many out or more.
    assert replicated.values["skipped_third_80"] >= replicated.values["skipped_third_90"]
    assert replicated.executed["skipped_third_80"].points[-1].value in LOWER
    with pytest.raises(InputError, match="there is no endpoint 'skiped'"):
        measure(lab_model, lab_text, endpoints=["skiped"])


def test_a_model_of_another_tokenizer_has_no_required_depth(tiny_model: Path, lab_text: LabText) -> None:
    found = measure(tiny_model, lab_text, endpoints=["representation", "required_depth"], sizes=SMALL)
    assert found.untold == {"required_depth": "the model has another tokenizer than the text"}
    assert 0 <= (found.values["representation"] or -1) <= 1


def test_models_that_are_given_stand_beside_each_other(
    tiny_model: Path, tmp_path: Path, lab_text: LabText
) -> None:
    shutil.copytree(lab_text.folder, tmp_path / "out" / "text")
    (tmp_path / "models.toml").write_text(
        'endpoints = ["representation"]\n'
        f'[[models]]\nname = "tiny"\nsource = "{tiny_model}"\nfamily = "Llama"\n'
        '[[models]]\nname = "gone"\nsource = "nowhere/at-all"\n'
    )
    page = measure_given(tmp_path / "models.toml", tmp_path / "out").read_text(encoding="utf-8")
    table = pd.read_csv(tmp_path / "out" / "tables" / "models.csv")
    assert table[["model", "base", "family"]].to_numpy().tolist() == [["tiny", "tiny", "Llama"]]
    assert "gone: " in page
    assert "Whether a score tells savings was not measured" in page
