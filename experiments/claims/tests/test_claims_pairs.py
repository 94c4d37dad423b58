"""Paired differences: against draws made by hand, against the score card, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from offramp.scoring.paired import BITS_PER_BYTE, Paired, PairedFigure, paired_differences, two_sided
from scipy.stats import t
from scoring_traces import facts_trace, logits_trace

from offramp.errors import InputError
from offramp.files import sha256_of_text
from offramp.scoring.estimate import document_bootstrap
from offramp.scoring.scoring import drawn_figures, score
from offramp.tracing.trace import Trace

DOCUMENTS, LENGTH, EXITS = 24, 9, 4


def random_trace(seed: int, documents: int = DOCUMENTS) -> Trace:
    generator = np.random.default_rng(seed)
    document = np.repeat(np.arange(documents), LENGTH)
    logits = generator.normal(size=(len(document), EXITS, 5))
    logits[:, 1:] += 1.5 * np.cumsum(logits[:, :-1], axis=1)
    return logits_trace(logits, document=document, seed=seed)


@pytest.fixture(scope="module")
def pair() -> tuple[Trace, Trace]:
    return random_trace(1), random_trace(2)


@pytest.fixture(scope="module")
def paired(pair: tuple[Trace, Trace]) -> Paired:
    return paired_differences(*pair, draws=200, seed=3)


def figure_of(paired: Paired, name: str) -> PairedFigure:
    return next(one for one in paired.figures if one.figure == name)


def test_drawn_figures_are_what_the_card_shows(pair: tuple[Trace, Trace]) -> None:
    card = score(pair[0], draws=200, seed=3)
    bootstrap, figures = drawn_figures(pair[0], draws=200, seed=3)
    eas = {f"eas_{one.similarity}": one.score for one in card.eas_variants}
    for name, figure in figures.items():
        if name == "nll":
            assert figure.values is not None
            assert figure.values[0] == card.curves.values["nll"][-1]
        else:
            assert figure.estimate(bootstrap) == (eas[name] if name in eas else getattr(card, name)), name


def test_differences_are_the_cards_differences(pair: tuple[Trace, Trace], paired: Paired) -> None:
    cards = [score(trace, draws=200, seed=3) for trace in pair]
    assert paired.documents == DOCUMENTS
    names = [one.figure for one in paired.figures]
    assert names == [
        *("representation", "increment", "calibration", "composite"),
        *("first_match_skip", "saturation_skip", "eas_logit", "eas_centred_logit", "eas_hidden"),
    ]
    for name in names[:6]:
        found = figure_of(paired, name)
        first, second = (getattr(card, name).value for card in cards)
        assert (found.first, found.second) == (first, second)
        assert found.difference.value == pytest.approx(second - first)
        assert found.difference.low <= found.difference.value <= found.difference.high


def test_draws_take_the_same_documents_of_both(pair: tuple[Trace, Trace], paired: Paired) -> None:
    """Representation quality by hand: documents drawn one by one, in the order of the ids' SHA-256."""
    ids = [document.id for document in pair[0].documents]
    order = sorted(range(DOCUMENTS), key=lambda place: sha256_of_text(ids[place]))
    weights = document_bootstrap(DOCUMENTS, draws=200, seed=3).weights[1:].astype(int)
    differences = []
    for drawn in weights:
        areas = []
        for trace in pair:
            rows = [
                row
                for place, times in zip(order, drawn, strict=True)
                for row in np.flatnonzero(trace.document == place).tolist() * times
            ]
            areas.append(trace.agreement[rows][:, :-1].mean(axis=0).sum() / EXITS)
        differences.append(areas[1] - areas[0])
    found = figure_of(paired, "representation")
    low, high = np.percentile(differences, [2.5, 97.5])
    assert (found.difference.low, found.difference.high) == (pytest.approx(low), pytest.approx(high))
    rarer = min(sum(one <= 1e-12 for one in differences), sum(one >= -1e-12 for one in differences))
    ratio = found.difference.value / np.std(differences) * math.sqrt((DOCUMENTS - 1) / DOCUMENTS)
    expected = max(2 * (1 + rarer) / 201, 2 * t.sf(abs(ratio), DOCUMENTS - 1))
    assert found.p_value == pytest.approx(min(1.0, expected))


def test_turning_the_pair_round_turns_the_difference(pair: tuple[Trace, Trace], paired: Paired) -> None:
    for one, other in zip(
        paired.figures, paired_differences(*pair[::-1], draws=200, seed=3).figures, strict=True
    ):
        assert one.difference.value == -other.difference.value
        assert one.difference.low == pytest.approx(-other.difference.high)
        assert one.p_value == other.p_value


def test_only_documents_that_both_have_are_compared(pair: tuple[Trace, Trace]) -> None:
    """Each lacks a document of the other: what is left is the pair of the common ones."""
    first, second = (
        pair[0].subset(np.array([place for place in range(DOCUMENTS) if place != 3])),
        pair[1].subset(np.array([place for place in range(DOCUMENTS) if place != 5])),
    )
    common = np.array([place for place in range(DOCUMENTS) if place not in (3, 5)])
    found = paired_differences(first, second, draws=50)
    expected = paired_differences(pair[0].subset(common), pair[1].subset(common), draws=50)
    assert found == expected
    assert found.documents == DOCUMENTS - 2


def uneven_pair(lengths: tuple[int, int], seed: int = 5) -> tuple[Trace, Trace]:
    """Traces of equally many tokens: 24 common documents, whose first 12 have other lengths on each side.

    One document more on each side, which the other lacks, makes up the total.
    """
    traces = []
    for side, length in enumerate(lengths):
        more = DOCUMENTS + side
        rest = 12 * (max(lengths) - length) + 1
        rows = np.repeat(np.append(np.arange(DOCUMENTS), more), [length] * 12 + [LENGTH] * 12 + [rest])
        logits = np.random.default_rng(seed + side).normal(size=(len(rows), EXITS, 5))
        logits[:, 1:] += 1.5 * np.cumsum(logits[:, :-1], axis=1)
        traces.append(logits_trace(logits, document=rows, seed=seed + side))
    return traces[0], traces[1]


def test_figures_with_r_0_have_no_difference_where_common_documents_hold_other_token_counts() -> None:
    first, second = uneven_pair((LENGTH, 4))
    assert first.token_count == second.token_count
    found = paired_differences(first, second, draws=50)
    assert found.documents == DOCUMENTS
    for one in found.figures:
        assert one.first is not None
        assert one.second is not None
        if one.figure in ("increment", "composite"):
            assert one.difference.value is None
            assert one.p_value is None
            assert one.difference.undefined == (
                "the common documents hold 216 and 156 tokens, and R_0 depends on how many"
            )
        else:
            assert one.difference.value == pytest.approx(one.second - one.first)
            assert one.difference.undefined is None
            assert one.p_value is not None


def test_common_documents_with_equally_many_tokens_lose_no_difference() -> None:
    """The documents that only one side has go; every figure of what is left is compared."""
    found = paired_differences(*uneven_pair((4, 4)), draws=50)
    assert found.documents == DOCUMENTS
    for one in found.figures:
        assert one.difference.value is not None, one.figure
        assert one.p_value is not None


def test_bits_per_byte_by_hand(pair: tuple[Trace, Trace]) -> None:
    sizes = [{one.id: 30 + 2 * place for place, one in enumerate(pair[0].documents)} for _ in pair]
    sizes[1] = {name: size + 3 for name, size in sizes[1].items()}
    found = paired_differences(*pair, draws=50, text_bytes=(sizes[0], sizes[1]))
    bits = figure_of(found, BITS_PER_BYTE)
    for value, trace, size in zip((bits.first, bits.second), pair, sizes, strict=True):
        nats = trace.fact("nll")[:, -1].astype(np.float64).sum()
        assert value == pytest.approx(nats / math.log(2) / sum(size.values()))
    assert bits.difference.low is not None
    own = random_trace(2)
    own.generated[-1] = True  # answers of its own are no text that both share
    answers = paired_differences(pair[0], own, draws=50, text_bytes=(sizes[0], sizes[1]))
    assert BITS_PER_BYTE not in {one.figure for one in answers.figures}
    with pytest.raises(InputError, match="how many bytes the document"):
        paired_differences(*pair, draws=50, text_bytes=(sizes[0], {}))


def test_too_few_documents_have_neither_interval_nor_p_value() -> None:
    found = paired_differences(random_trace(1, 19), random_trace(2, 19))
    for one in found.figures:
        assert one.difference.value is not None
        assert one.difference.low is None
        assert one.p_value is None
        assert "19 documents" in str(one.difference.no_interval)


def test_an_undefined_side_leaves_the_difference_undefined(pair: tuple[Trace, Trace]) -> None:
    document = np.repeat(np.arange(DOCUMENTS), LENGTH)
    flat = facts_trace({"agreement": np.ones((len(document), EXITS))}, document=document)
    found = figure_of(paired_differences(pair[0], flat, draws=50), "calibration")
    assert found.first is not None
    assert found.second is None
    assert found.difference.value is None
    assert "one class" in str(found.difference.undefined)


def test_other_token_counts_and_other_workloads_are_refused(pair: tuple[Trace, Trace]) -> None:
    with pytest.raises(InputError, match="216 and 207 tokens"):
        paired_differences(pair[0], pair[1].subset(np.arange(DOCUMENTS - 1)))
    other = random_trace(2)
    other.provenance["request"] = {"workload": {"fingerprint": "w2"}}
    with pytest.raises(InputError, match="different workloads"):
        paired_differences(pair[0], other)


def test_traces_without_a_common_document_are_refused(pair: tuple[Trace, Trace]) -> None:
    halves = [np.arange(0, DOCUMENTS, 2), np.arange(1, DOCUMENTS, 2)]
    with pytest.raises(InputError, match="no document in common"):
        paired_differences(pair[0].subset(halves[0]), pair[1].subset(halves[1]))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-5, 5), min_size=1, max_size=60))
def test_the_p_value_is_never_below_the_share_of_the_rarer_sign(drawn: list[int]) -> None:
    draws = np.array(drawn, dtype=np.float64)
    values = np.concatenate([[draws.mean()], draws])
    found = two_sided(values, 20)
    below, above = sum(draw <= 0 for draw in drawn), sum(draw >= 0 for draw in drawn)
    assert min(1.0, 2 * (1 + min(below, above)) / (1 + len(drawn))) <= found + 1e-12
    assert found == two_sided(-values, 20) == two_sided(np.append(values, np.nan), 20)
    assert 0 < found <= 1


def test_a_difference_without_spread_counts_draws_alone() -> None:
    assert two_sided(np.full(100, 0.25), 20) == pytest.approx(2 / 100)
    assert two_sided(np.zeros(100), 20) == 1.0


def test_p_values_err_at_their_rate_in_the_tails_that_holm_asks_for() -> None:
    """The smallest p-value of 20 differences is held against 0.0025; counted draws alone err at 0.01."""
    generator = np.random.default_rng(0)
    documents, tables, level = 20, 6000, 0.0025
    weights = document_bootstrap(documents, draws=4000, seed=0).weights / documents
    p_values = np.concatenate(
        [
            [two_sided(values, documents) for values in (weights @ part).T]
            for part in np.split(generator.normal(size=(documents, tables)), 20, axis=1)
        ]
    )
    error = 3 * math.sqrt(level * (1 - level) / tables)
    assert level / 5 < (p_values <= level).mean() < level + error
