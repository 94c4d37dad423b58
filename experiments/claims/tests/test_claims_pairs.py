"""Matched pairs: against draws made by hand, against the score card, what is refused, and from folders."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t
from scoring_traces import facts_trace, logits_trace

import offramp
from offramp import InputError, Trace
from offramp.scoring.estimate import document_bootstrap
from pairs import paired_differences, pairs, two_sided

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
def paired(pair: tuple[Trace, Trace]) -> pd.DataFrame:
    return differences(*pair, draws=200, seed=3)


def differences(first: Trace, second: Trace, **options: object) -> pd.DataFrame:
    """By figure."""
    return pd.DataFrame(paired_differences(first, second, **options)).set_index("figure")  # type: ignore[arg-type]


def test_differences_are_the_cards_differences(pair: tuple[Trace, Trace], paired: pd.DataFrame) -> None:
    cards = [offramp.score(trace, draws=200, seed=3) for trace in pair]
    assert (paired["documents"] == DOCUMENTS).all()
    assert list(paired.index) == [
        *("representation", "increment", "calibration", "composite"),
        *("first_match_skip", "saturation_skip", "eas_logit", "eas_centred_logit", "eas_hidden"),
    ]
    for name, found in paired.iloc[:6].iterrows():
        first, second = (getattr(card, str(name)).value for card in cards)
        assert (found["first_value"], found["second_value"]) == (first, second)
        assert found["difference"] == pytest.approx(second - first)
        assert found["difference_low"] <= found["difference"] <= found["difference_high"]


def test_draws_take_the_same_documents_of_both(pair: tuple[Trace, Trace], paired: pd.DataFrame) -> None:
    """Representation quality by hand: documents drawn one by one, in the order of the ids' SHA-256."""
    ids = [document.id for document in pair[0].documents]
    order = sorted(range(DOCUMENTS), key=lambda place: hashlib.sha256(ids[place].encode()).hexdigest())
    weights = document_bootstrap(DOCUMENTS, draws=200, seed=3).weights[1:].astype(int)
    drawn_differences = []
    for drawn in weights:
        areas = []
        for trace in pair:
            rows = [
                row
                for place, times in zip(order, drawn, strict=True)
                for row in np.flatnonzero(trace.document == place).tolist() * times
            ]
            areas.append(trace.agreement[rows][:, :-1].mean(axis=0).sum() / EXITS)
        drawn_differences.append(areas[1] - areas[0])
    found = paired.loc["representation"]
    limits = (found["difference_low"], found["difference_high"])
    assert limits == pytest.approx(tuple(np.percentile(drawn_differences, [2.5, 97.5])))
    rarer = min(
        sum(one <= 1e-12 for one in drawn_differences), sum(one >= -1e-12 for one in drawn_differences)
    )
    ratio = found["difference"] / np.std(drawn_differences) * math.sqrt((DOCUMENTS - 1) / DOCUMENTS)
    expected = max(2 * (1 + rarer) / 201, 2 * t.sf(abs(ratio), DOCUMENTS - 1))
    assert found["p_value"] == pytest.approx(min(1.0, expected))


def test_turning_the_pair_round_turns_the_difference(pair: tuple[Trace, Trace], paired: pd.DataFrame) -> None:
    turned = differences(*pair[::-1], draws=200, seed=3)
    assert (paired["difference"] == -turned["difference"]).all()
    assert paired["difference_low"].tolist() == pytest.approx((-turned["difference_high"]).tolist())
    assert (paired["p_value"] == turned["p_value"]).all()


def test_only_documents_that_both_have_are_compared(pair: tuple[Trace, Trace]) -> None:
    """Each lacks a document of the other: what is left is the pair of the common ones."""
    first, second = (
        pair[0].subset(np.array([place for place in range(DOCUMENTS) if place != 3])),
        pair[1].subset(np.array([place for place in range(DOCUMENTS) if place != 5])),
    )
    common = np.array([place for place in range(DOCUMENTS) if place not in (3, 5)])
    found = differences(first, second, draws=50)
    pd.testing.assert_frame_equal(
        found, differences(pair[0].subset(common), pair[1].subset(common), draws=50)
    )
    assert (found["documents"] == DOCUMENTS - 2).all()


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
    found = differences(first, second, draws=50)
    assert (found["documents"] == DOCUMENTS).all()
    assert found[["first_value", "second_value"]].notna().all(axis=None)
    undefined = found.loc[["increment", "composite"]]
    assert undefined[["difference", "p_value"]].isna().all(axis=None)
    assert (undefined["why"] == "216 and 156 tokens, on which R_0 depends").all()
    others = found.drop(index=undefined.index)
    expected = others["second_value"] - others["first_value"]
    assert others["difference"].tolist() == pytest.approx(expected.tolist())
    assert others["p_value"].notna().all()
    assert (others["why"] == "").all()


def test_common_documents_with_equally_many_tokens_lose_no_difference() -> None:
    """The documents that only one side has go; every figure of what is left is compared."""
    found = differences(*uneven_pair((4, 4)), draws=50)
    assert (found["documents"] == DOCUMENTS).all()
    assert found[["difference", "p_value"]].notna().all(axis=None)


def test_bits_per_byte_by_hand(pair: tuple[Trace, Trace]) -> None:
    sizes = [{one.id: 30 + 2 * place for place, one in enumerate(pair[0].documents)} for _ in pair]
    sizes[1] = {name: size + 3 for name, size in sizes[1].items()}
    found = differences(*pair, draws=50, text_bytes=(sizes[0], sizes[1])).loc["bits_per_byte"]
    for value, trace, size in zip(found[["first_value", "second_value"]], pair, sizes, strict=True):
        nats = trace.fact("nll")[:, -1].astype(np.float64).sum()
        assert value == pytest.approx(nats / math.log(2) / sum(size.values()))
    assert found["difference_low"] < found["difference"] < found["difference_high"]
    own = random_trace(2)
    own.generated = own.generated.copy()
    own.generated[-1] = True  # answers of its own are no text that both share
    assert "bits_per_byte" not in differences(pair[0], own, draws=50, text_bytes=(sizes[0], sizes[1])).index


def test_draws_of_bits_per_byte_are_those_of_the_same_documents(pair: tuple[Trace, Trace]) -> None:
    """With one byte a token they are NLL per token over ln 2, whose draws the library gives."""
    sizes = {one.id: LENGTH for one in pair[0].documents}
    found = differences(*pair, draws=50, text_bytes=(sizes, sizes)).loc["bits_per_byte"]
    (bootstrap, first), (_, second) = (offramp.drawn_figures(trace, draws=50) for trace in pair)
    assert first["nll"].values is not None
    assert second["nll"].values is not None
    expected = bootstrap.estimate((second["nll"].values - first["nll"].values) / math.log(2))
    limits = (found["difference"], found["difference_low"], found["difference_high"])
    assert limits == pytest.approx((expected.value, expected.low, expected.high))


def test_too_few_documents_have_neither_interval_nor_p_value() -> None:
    found = differences(random_trace(1, 19), random_trace(2, 19))
    assert found["difference"].notna().all()
    assert found[["difference_low", "p_value"]].isna().all(axis=None)
    assert found["why"].str.contains("19 documents").all()


def test_an_undefined_side_leaves_the_difference_undefined(pair: tuple[Trace, Trace]) -> None:
    document = np.repeat(np.arange(DOCUMENTS), LENGTH)
    flat = facts_trace({"agreement": np.ones((len(document), EXITS))}, document=document)
    found = differences(pair[0], flat, draws=50).loc["calibration"]
    assert found[["first_value", "second_value", "difference"]].isna().tolist() == [False, True, True]
    assert "one class" in found["why"]


def test_traces_that_are_not_of_the_same_text_are_refused(pair: tuple[Trace, Trace]) -> None:
    with pytest.raises(InputError, match="216 and 207 tokens"):
        differences(pair[0], pair[1].subset(np.arange(DOCUMENTS - 1)))
    other = random_trace(2)
    other.provenance["request"] = {"workload": {"fingerprint": "w2"}}
    halves = [np.arange(0, DOCUMENTS, 2), np.arange(1, DOCUMENTS, 2)]
    for first, second in ((pair[0], other), (pair[0].subset(halves[0]), pair[1].subset(halves[1]))):
        with pytest.raises(InputError, match="not of the same text"):
            differences(first, second)


def test_pairs_are_found_by_name_on_every_text_that_both_have(
    pair: tuple[Trace, Trace], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two models on one text, one of which has another text, too; p-values are adjusted over all."""
    traces = {"a": pair[0], "b": pair[1], "c": random_trace(7)}
    places = [("a", "prose"), ("b", "prose"), ("c", "prose"), ("a", "code")]
    rows = [
        SimpleNamespace(
            model=SimpleNamespace(shown=name), workload=text, heads="", trace_folder=f"/{name}/trace"
        )
        for name, text in places
    ]
    monkeypatch.setattr(offramp, "compare", lambda folders: SimpleNamespace(rows=rows))
    monkeypatch.setattr(Trace, "load", lambda path: traces[Path(path).parent.name])
    asked = [{"kind": "k", "first": "a", "second": "b"}, {"kind": "k", "first": "a", "second": "c"}]
    table = pairs([Path("x")], asked, draws=200)
    assert table[["second", "workload"]].drop_duplicates().to_numpy().tolist() == [
        ["b", "prose"],
        ["c", "prose"],
    ]
    alone = differences(*pair, draws=200).reset_index()
    pd.testing.assert_frame_equal(table[table["second"] == "b"][list(alone.columns)], alone)
    smallest = table["p_value"].min()
    at = table["p_value"] == smallest
    assert table.loc[at, "p_value_after_holm"].iloc[0] == pytest.approx(min(1.0, smallest * len(table)))
    with pytest.raises(InputError, match=r"a and d have no workload[\s\S]*choose two of: a, b, c"):
        pairs([Path("x")], [{"kind": "k", "first": "a", "second": "d"}])
    with pytest.raises(InputError, match="a is paired with itself"):
        pairs([Path("x")], [{"kind": "k", "first": "a", "second": "a"}])


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
