"""Two readings of the same tokens: worked by hand, against slow draws, with identical heads, and refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_heads import random_heads
from scoring_traces import facts_trace
from tracing_models import tiny_llama, workload_of

import offramp
from offramp.errors import InputError
from offramp.files import sha256_of_text
from offramp.heads.exit_heads import ExitHeads
from offramp.scoring.card import ScoreCard
from offramp.scoring.estimate import document_bootstrap
from offramp.scoring.scoring import are_two_readings, compare_readings, score
from offramp.tracing.trace import Trace
from offramp.tracing.tracer import trace

DOCUMENTS, LENGTH, LAYERS = 24, 4, 4
DOCUMENT = np.repeat(np.arange(DOCUMENTS), LENGTH)
LENS = {"lens": True, "output": False}


def reading(agreement: Any, kl: Any, heads: dict[str, Any] | None = None, **request: Any) -> Trace:
    """A trace with these facts [tokens, exits]; exit L agrees."""
    found = facts_trace({"agreement": agreement, "kl_to_final": kl}, document=DOCUMENT)
    asked = {"model": {"fingerprint": "m"}, "workload": {"fingerprint": "w"}, "heads": heads, **request}
    return found.of_request(asked, found.documents)


def repeated(rows: list[list[float]]) -> np.ndarray:
    """The same rows for the tokens of each document."""
    return np.tile(np.array(rows), (DOCUMENTS, 1))


RAW = reading(
    repeated([[0, 1, 0, 1], [0, 0, 1, 1], [0, 1, 1, 1], [0, 0, 0, 1]]),
    np.log(2) * repeated([[2, 1, 0.5, 0]] * LENGTH),
)
FITTED = reading(
    repeated([[1, 1, 1, 1], [0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 1, 1]]),
    np.log(2) * repeated([[0.5, 0.5, 0.5, 0]] * LENGTH),
    LENS,
)


def test_by_hand() -> None:
    """Layers of equal size: x = 1/4 ... 1, ceiling 3/4; R_0 = ln 2."""
    found = score(FITTED, beside=RAW).readings
    assert found is not None
    assert found.ceiling == pytest.approx(0.75)
    assert found.raw.representation.value == pytest.approx((0 + 0.5 + 0.5) / 4)
    assert found.fitted.representation.value == pytest.approx((0.5 + 0.5 + 1) / 4)
    assert found.closed.value == pytest.approx((0.5 - 0.25) / (0.75 - 0.25))
    assert found.raw.increment.value == pytest.approx(1 - (1 + 1 + 1 + 0.5) / 4)
    assert found.fitted.increment.value == pytest.approx(1 - (1 + 0.5 + 0.5 + 0.5) / 4)
    assert found.gained.increment.value == pytest.approx(0.25)
    assert (found.documents, found.left_out, found.through) == (DOCUMENTS, 0, "a linear lens")


def test_the_cards_own_figures_stay_those_of_its_trace() -> None:
    for one, other in ((RAW, FITTED), (FITTED, RAW)):
        card, alone = score(one, beside=other), score(one)
        assert replace(card, readings=None).to_json() == alone.to_json()
    assert card.read_through == "a linear lens"
    assert score(RAW).read_through == "the model's own norm and head"
    assert score(RAW, beside=FITTED).readings == card.readings
    assert ScoreCard.from_json(json.loads(json.dumps(card.to_json()))).readings == card.readings
    old = {key: value for key, value in card.to_json().items() if key not in ("readings", "read_through")}
    assert ScoreCard.from_json(old).readings is None


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_the_share_closed_is_drawn_over_the_same_documents(seed: int) -> None:
    generator = np.random.default_rng(seed)
    sides = [generator.random((len(DOCUMENT), LAYERS)) < share for share in (0.3, 0.5)]
    for agreement in sides:
        agreement[:, -1] = True
    kl = np.abs(generator.normal(size=(len(DOCUMENT), LAYERS))) * [1, 1, 1, 0]
    found = compare_readings(reading(sides[0], kl), reading(sides[1], kl, LENS), draws=60, seed=seed)
    order = sorted(range(DOCUMENTS), key=lambda place: sha256_of_text(RAW.documents[place].id))
    shares = []
    for weights in document_bootstrap(DOCUMENTS, draws=60, seed=seed).weights:
        tokens = np.concatenate(
            [np.flatnonzero(order[place] == DOCUMENT).repeat(int(w)) for place, w in enumerate(weights)]
        )
        raw, fitted = (agreement[tokens, :-1].mean(axis=0).sum() / 4 for agreement in sides)
        shares.append((fitted - raw) / (0.75 - raw))
    assert found.closed.value == pytest.approx(shares[0])
    assert (found.closed.low, found.closed.high) == pytest.approx(np.percentile(shares[1:], [2.5, 97.5]))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_heads_that_change_nothing_gain_nothing(seed: int) -> None:
    generator = np.random.default_rng(seed)
    agreement = generator.random((len(DOCUMENT), LAYERS)) < 0.5
    agreement[:, -1] = True
    kl = np.abs(generator.normal(size=(len(DOCUMENT), LAYERS))) * [1, 1, 1, 0]
    found = compare_readings(reading(agreement, kl), reading(agreement, kl, LENS), draws=60)
    assert found.raw == found.fitted
    for gained in (found.gained.representation, found.gained.increment, found.closed):
        assert (gained.value, gained.low, gained.high) == (0.0, 0.0, 0.0)


def test_documents_that_fitting_saw_are_left_out() -> None:
    """On the half that it saw, the lens is always right."""
    agreement = np.array(FITTED.agreement)
    agreement[DOCUMENT % 2 == 0] = True
    kl = np.array(FITTED.fact("kl_to_final"))
    seen = [document.id for document in RAW.documents[::2]]
    fitted = reading(agreement, kl, {**LENS, "documents": {"w": seen}})
    card = score(fitted, beside=RAW)
    assert card.readings is not None
    assert (card.readings.documents, card.readings.left_out) == (DOCUMENTS // 2, DOCUMENTS // 2)
    assert card.readings.closed.value == pytest.approx(0.5)
    assert card.representation.value > card.readings.fitted.representation.value  # type: ignore[operator]
    assert any("fitted on 12 of the 24 documents" in note for note in card.notes)
    every = reading(agreement, kl, {**LENS, "documents": {"w": [one.id for one in RAW.documents]}})
    assert not are_two_readings(RAW, every)
    with pytest.raises(InputError, match="fitted on every document"):
        compare_readings(RAW, every)


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (RAW, "one read by the model's own head"),
        (reading(FITTED.agreement, FITTED.fact("kl_to_final"), LENS, model={"fingerprint": "n"}), "models"),
        (reading(FITTED.agreement, FITTED.fact("kl_to_final"), LENS, workload={}), "workloads"),
        (None, "exits"),
    ],
)
def test_what_is_no_other_reading_is_refused(other: Trace | None, why: str) -> None:
    if other is None:
        few = facts_trace(
            {"agreement": np.ones((len(DOCUMENT), 2), bool), "kl_to_final": np.zeros((len(DOCUMENT), 2))},
            document=DOCUMENT,
            exits=[2, 4],
        )
        other = few.of_request({**FITTED.request}, few.documents)
    assert not are_two_readings(RAW, other)
    with pytest.raises(InputError, match=why):
        score(RAW, beside=other)


def test_other_tokens_are_refused() -> None:
    other = reading(FITTED.agreement, FITTED.fact("kl_to_final"), LENS)
    other.next_token = other.next_token + 1
    with pytest.raises(InputError, match=r"not of the same tokens \(next_token differs\)"):
        score(RAW, beside=other)


def test_nothing_is_left_to_close_at_the_ceiling() -> None:
    best = np.ones((len(DOCUMENT), LAYERS), dtype=bool)
    kl = np.zeros((len(DOCUMENT), LAYERS))
    found = compare_readings(reading(best, kl), reading(FITTED.agreement, kl, LENS))
    assert found.closed.value is None
    assert "nothing is left to close" in (found.closed.undefined or "")
    # A lens may read less.
    assert found.gained.representation.value < 0  # type: ignore[operator]


def unchanged(heads: ExitHeads) -> ExitHeads:
    """The same with a lens I h + 0, and a network that adds 0."""
    assert heads.lens is not None
    assert heads.mlp is not None
    identity = np.zeros_like(heads.lens.weight) + np.eye(heads.lens.weight.shape[-1], dtype=np.float32)
    lens = replace(heads.lens, weight=identity, bias=np.zeros_like(heads.lens.bias))
    return replace(heads, lens=lens, mlp=replace(heads.mlp, down=np.zeros_like(heads.mlp.down)))


def test_a_tiny_model_read_through_an_identity_and_through_others() -> None:
    model = tiny_llama()
    work, exits = workload_of(lengths=[9] * 22), list(range(1, model.layers))
    given = random_heads(model, exits, mlp_units=5, facts=())
    raw = trace(model, work, tokens=176, document_tokens=8, progress=False)
    same = trace(model, work, tokens=176, document_tokens=8, heads=unchanged(given), progress=False)
    found = score(same, beside=raw).readings
    assert found is not None
    assert found.raw == found.fitted
    assert (found.closed.value, found.closed.low, found.closed.high) == (0.0, 0.0, 0.0)
    assert found.through == "a linear lens and a network of 5 units"
    trained = replace(given, provenance={"trained": {"kind": "block"}})
    other = trace(model, work, tokens=176, document_tokens=8, heads=trained, progress=False)
    found = score(raw, beside=other).readings
    assert found is not None
    assert found.through == "a trained linear lens and a network of 5 units"
    widths = np.diff(score(raw).curves.depth_fraction)
    before, after = (one.agreement.mean(axis=0)[:-1] @ widths for one in (raw, other))
    assert found.closed.value == pytest.approx((after - before) / (widths.sum() - before))
    assert found.closed.value != 0.0


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (None, "value cannot be None"),
        ({}, "not the JSON of a score card"),
        ({"representation": "x"}, "not the JSON of a score card"),
        ({"representation": {"value": 0.5, "low": "x"}}, "not the JSON of a score card"),
        ({"curves": []}, "not the JSON of a score card"),
        ({"eas_variants": 5}, "not the JSON of a score card"),
    ],
)
def test_what_is_no_card_is_named(change: dict[str, Any] | None, what: str) -> None:
    whole = json.loads(json.dumps(score(RAW).to_json()))
    with pytest.raises(InputError, match=what):
        ScoreCard.from_json({**whole, **change} if change else change)  # type: ignore[arg-type]


def test_a_card_read_back_has_the_variants_of_its_file() -> None:
    card = ScoreCard.from_json(json.loads(json.dumps(score(RAW).to_json())))
    first = card.eas_variants[0]
    assert card.eas(first.similarity, first.alpha) == first
    with pytest.raises(InputError, match=r"no variant of 'logit' and alpha 0\.123"):
        card.eas("logit", 0.123)


@pytest.mark.parametrize("function", [offramp.score, offramp.drawn_figures])
def test_a_seed_is_0_or_more(function: Any) -> None:
    with pytest.raises(InputError, match="seed must be at least 0, not -1"):
        function(RAW, seed=-1)
