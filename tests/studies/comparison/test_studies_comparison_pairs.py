"""Matched pairs: intervals that cover at their rate, adjusted together, and pairs that were asked for.

That p-values err at theirs is held where they are made, in `tests/scoring/test_scoring_paired.py`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from comparison_traces import bare_row, easy_documents, synthetic_trace

from offramp.errors import InputError
from offramp.scoring.paired import BITS_PER_BYTE, paired_differences
from offramp.studies.comparison import pairs
from offramp.studies.comparison.pairs import ASKED, adjusted, asked_pairs
from offramp.studies.work.text_size import TextSize, write_text_sizes
from offramp.tracing.trace import Trace

DOCUMENTS, LENGTH, EXITS = 40, 6, 3


def correlated_pair(seed: int, *, gain: float) -> tuple[Trace, Trace]:
    """Two models on documents that are easy or hard for both; the second agrees `gain` more often on all."""
    generator = np.random.default_rng(seed)
    ease = np.repeat(generator.beta(1.0, 1.0, DOCUMENTS), LENGTH)[:, None]
    first, second = (
        synthetic_trace(
            generator.random((DOCUMENTS * LENGTH, EXITS)) < shift + 0.6 * ease,
            length=LENGTH,
            seed=seed,
        )
        for shift in (0.1, 0.1 + gain)
    )
    return first, second


def test_intervals_cover_at_their_rate() -> None:
    """Representation quality: the true difference is the gain at two of three equal steps of depth."""
    runs, gain = 120, 0.06
    covered = 0
    for seed in range(runs):
        figures = paired_differences(*correlated_pair(seed, gain=gain), draws=120, seed=seed).figures
        (found,) = (one.difference for one in figures if one.figure == "representation")
        covered += found.low <= gain * 2 / 3 <= found.high
    error = 3 * np.sqrt(0.05 * 0.95 / runs)
    assert 0.95 - error <= covered / runs
    assert covered < runs  # intervals that are too wide would always cover


def row_of(trace: Trace, name: str, folder: Path | None, workload: str = "prose"):
    return bare_row(name, workload, tokens=trace.token_count, trace_folder=folder and str(folder))


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Rows of two models on two workloads whose traces `Trace.load` finds; the text sizes of one workload."""
    traces, rows = {}, []
    for place, name in enumerate(("one", "other")):
        for workload in ("prose", "code"):
            generator = np.random.default_rng(place)
            agrees = easy_documents(generator, 0.3 + 0.2 * place, documents=30, length=LENGTH)
            folder = tmp_path / name / workload / "trace"
            traces[str(folder)] = synthetic_trace(agrees, length=LENGTH, workload=workload, model=name)
            folder.parent.mkdir(parents=True)
            if workload == "prose":
                sizes = {one.id: TextSize(20, 20, LENGTH) for one in traces[str(folder)].documents}
                write_text_sizes(folder.parent, sizes)
            rows.append(row_of(traces[str(folder)], name, folder, workload))
    monkeypatch.setattr(pairs.Trace, "load", traces.__getitem__)
    return rows, traces


def test_asked_pairs_are_differences_on_every_workload_of_both(stored) -> None:
    rows, traces = stored
    found = list(asked_pairs(rows, [("one", "other")], draws=100))
    assert {pair.workload for pair in found} == {"prose", "code"}
    assert {pair.kind for pair in found} == {ASKED}
    sides = [traces[row.trace_folder] for row in rows if row.workload == "code"]
    expected = {one.figure: one for one in paired_differences(*sides, draws=100).figures}
    for pair in found:
        if pair.workload == "code":
            one = expected[pair.figure]
            assert (pair.first, pair.second, pair.documents) == ("one", "other", 30)
            assert (pair.first_value, pair.second_value) == (one.first, one.second)
            assert (pair.difference, pair.p_value) == (one.difference, one.p_value)
    bits = {pair.workload for pair in found if pair.figure == BITS_PER_BYTE}
    assert bits == {"prose"}


def test_all_differences_of_the_table_are_adjusted_together(stored) -> None:
    rows, _ = stored
    found = adjusted(list(asked_pairs(rows, [("one", "other")], draws=400)))
    known = [pair for pair in found if pair.p_value is not None]
    smallest = min(known, key=lambda pair: pair.p_value)
    assert smallest.adjusted == pytest.approx(min(1.0, smallest.p_value * len(known)))
    undefined = replace(found[0], p_value=None)
    assert adjusted([undefined, smallest])[0].adjusted is None
    assert adjusted([undefined, smallest])[1].adjusted == smallest.p_value


def test_pairs_of_no_model_of_no_common_text_and_without_traces_are_refused(stored) -> None:
    rows, _ = stored
    with pytest.raises(InputError, match="no model is called 'nobody'"):
        list(asked_pairs(rows, [("one", "nobody")]))
    with pytest.raises(InputError, match="one and other have no workload and heads in common"):
        list(asked_pairs([rows[0], rows[3]], [("one", "other")]))
    bare = replace(rows[0], trace_folder=None)
    with pytest.raises(InputError, match="the trace of one on prose is not kept"):
        list(asked_pairs([bare, rows[2]], [("one", "other")]))
