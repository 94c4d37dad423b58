"""The figures of what exits add: what is written is what the kept measurements say, and by a second way."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import results
from measured import (
    FITTED_ON,
    KEPT,
    Measured,
    Pair,
    credit_rows,
    credited,
    executed_summary,
    kept_measurements,
    loops,
    measured_share,
    pairs_of,
    slope_of,
)
from offramp.timing.results import Cluster, Contender
from offramp.tuning.predict import MEASURED_SHARE
from picture import Bar, Dot, forest, scatter
from results import outputs


def test_what_is_written_is_what_the_kept_measurements_say() -> None:
    wrong = [path for path, text in outputs().items() if path.read_text() != text]
    assert wrong == []


def test_another_measurement_would_be_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One ratio of one prompt is another by a hundredth: two tables and a page differ."""
    for path in KEPT.glob("*.json"):
        (tmp_path / path.name).write_text(path.read_text())
    changed = tmp_path / "smollm2-math.json"
    kept = json.loads(changed.read_text())
    contender = next(one for one in kept["decoded"]["bench"]["contenders"] if one["role"] == "policy")
    contender["clusters"][0]["log_ratio"] += 0.01
    changed.write_text(json.dumps(kept))
    before = {path: as_text for path, as_text in outputs().items() if path.name == "credits.csv"}
    monkeypatch.setattr(results, "kept_measurements", lambda: kept_measurements(tmp_path))
    assert {path: text for path, text in outputs().items() if path.name == "credits.csv"} != before


MARK = re.compile(r"<!-- added:([\w.-]+) -->(.*?)<!-- /added:\1 -->", re.DOTALL)
"""The computed parts of the page of results, by name."""


def test_no_figure_of_the_page_is_typed_by_hand() -> None:
    prose = MARK.sub("", results.PAGE.read_text()).replace("Qwen2.5", "")
    assert set(re.findall(r"\d\.\d+", prose)) <= {"1.05", "0.5", "1.5"}  # the worth, names of models


def test_the_headline_is_of_computed_figures() -> None:
    parts = dict(MARK.findall(results.PAGE.read_text()))
    headline = (results.ROOT / "README.md").read_text().partition("**What it adds**")[2].partition("\n\n")[0]
    intervals = re.findall(r"\d\.\d{3} to \d\.\d{3}", headline)
    assert intervals
    assert [shown for shown in intervals if shown not in "".join(parts.values())] == []
    rows = [line.split("|") for line in parts["stack-smollm2-math"].splitlines()[3:]]
    speeds = {row[1].strip(): float(row[2].split()[0]) for row in rows}
    beside = speeds["llama.cpp"] / speeds["**cut head + exits**"]
    assert f"is {beside:.1f} times as fast as exits" in headline


def slow_credit(measured: Measured, contender: Contender, floor: float) -> tuple[float, str]:
    """The least ratio of mean seconds over all without exits that keep the floor, prompt by prompt."""
    bench = measured.decoded.bench

    def seconds(of: Sequence[Cluster], prompts: Sequence[int]) -> float:
        over_plain = {cluster.prompt: math.exp(-cluster.log_ratio) for cluster in of}
        return float(np.mean([over_plain[prompt] for prompt in prompts]))

    speeds = {}
    for rival in bench.contenders:
        kept = rival.executed_agreement
        if rival.left_out or not (rival.role == "plain" or rival.full_depth):
            continue
        if kept is not None and kept.value is not None and kept.value < floor:
            continue
        if rival.name == bench.plain:
            prompts = [cluster.prompt for cluster in contender.clusters]
            speeds[rival.name] = 1.0 / seconds(contender.clusters, prompts)
        elif rival.clusters:
            shared = {cluster.prompt for cluster in rival.clusters}
            prompts = [cluster.prompt for cluster in contender.clusters if cluster.prompt in shared]
            speeds[rival.name] = seconds(rival.clusters, prompts) / seconds(contender.clusters, prompts)
    least = min(speeds, key=lambda name: speeds[name])
    return speeds[least], least


def test_credits_come_out_the_same_by_a_plain_loop() -> None:
    checked = 0
    for measured in kept_measurements():
        for row in credited(measured):
            if row.credit is None or row.contender is None:
                continue
            value, over = slow_credit(measured, row.contender, row.verdict.floor)
            assert row.credit.value == pytest.approx(value)
            assert row.credit.over == over
            checked += 1
    assert checked


def test_answers_follow_the_rule_from_what_was_certified_and_credited() -> None:
    for row in credit_rows(kept_measurements()):
        if row["verdict"] == "pays":
            assert row["certified"]
            assert row["low"] > 1.05
        if row["certified"] and row["high"] is not None and row["high"] < 1.05:
            assert row["verdict"] != "pays"


def test_a_loop_is_an_end_that_repeats_itself() -> None:
    assert loops([1, 2, 3, *[7, 8] * 6])
    assert loops([5] * 12)
    assert not loops([5] * 11)
    assert not loops([*range(12), 5])
    assert loops([1, 2, 3, 4] * 4)
    assert not loops([1, 2, 3, 4, 5] * 4)


def test_the_first_token_and_loops_are_left_out_by_hand(tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text(
        "policy,kv,document,tokens,wrong,first_is_wrong,loops\n"
        "p,recompute,a,11,2,0,0\n"
        "p,recompute,b,11,1,1,1\n"
        "p,propagate,c,11,9,0,0\n"
        "q,recompute,a,11,9,0,0\n"
    )
    found = executed_summary("p", "recompute", tmp_path)
    assert (found["decoded"], found["looping"]) == (2, 1)
    assert found["kept_after_first"] == pytest.approx(1 - (2 / 10 + 0 / 10) / 2)
    assert found["kept_without_loops"] == pytest.approx(9 / 11)


def test_predictions_are_shrunk_by_what_the_kept_pairs_say() -> None:
    pairs = [pair for pair in pairs_of(kept_measurements()) if pair.model == FITTED_ON]
    share = measured_share(pairs)
    assert (share.value, share.low, share.high) == pytest.approx(
        (MEASURED_SHARE.value, MEASURED_SHARE.low, MEASURED_SHARE.high), abs=0.005
    )


def test_a_share_and_a_slope_by_hand() -> None:
    """Shares 0.5, 1.0 and 0.9: mean 0.8, deviation 0.2646, t of two degrees of freedom 4.3027."""
    pairs = [Pair("m", 0.2, 0.1), Pair("m", 0.1, 0.1), Pair("m", 0.1, 0.09)]
    share = measured_share(pairs)
    reach = 4.30265 * math.sqrt(0.07) * math.sqrt(4 / 3)
    assert (share.value, share.low, share.high) == pytest.approx((0.8, 0.8 - reach, 0.8 + reach), abs=1e-5)
    assert slope_of(pairs) == pytest.approx((0.02 + 0.01 + 0.009) / 0.06)
    assert slope_of(pairs, 0.5) == pytest.approx(2 * 0.039 / 0.06)


def test_pictures_hold_every_row_and_point() -> None:
    bar = Bar("a, 95 %", 1.02, 0.98, 1.07, "too close to call")
    drawn = forest("title", [bar, replace(bar, name="b & c", answer="pays", value=1.2, low=1.1, high=9.0)])
    assert drawn.count("<circle") == 2
    assert "b &amp; c" in drawn
    assert "*" not in drawn
    marked = forest("title", [replace(bar, less=True), bar])
    assert (marked.count(" *</text>"), marked.count("* but keeps less than the floor")) == (1, 1)
    dots = [
        Dot("plain", 1.0, 0.0, exits=False),
        Dot("int8", 0.98, 0.2, exits=False),
        Dot("x", 0.96, 0.1, True),
    ]
    assert scatter("title", dots).count("<circle") == 3
