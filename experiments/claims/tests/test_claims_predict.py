"""Predicting a saving from a score: nothing below 12 bases, and intervals that hold what they promise."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from claims_tables import FLOOR, MACHINE, Line, tables_of
from hypothesis import given, settings
from hypothesis import strategies as st

from common import BASES_NEEDED, SAVED, fit_line
from offramp import InputError
from predict import cells_of, predict


def cells(points: Iterable[tuple[str, float, float]], score: str = "composite") -> pd.DataFrame:
    """Cells of base, score and saving."""
    return pd.DataFrame(points, columns=["base", score, SAVED])


def world(
    generator: np.random.Generator, bases: int, variants: int = 1, noise: str = "normal"
) -> pd.DataFrame:
    """Savings that rise with the score, with an error of the base's own and one of each variant."""
    points = []
    for base in range(bases):
        own = generator.standard_t(2) if noise == "heavy" else generator.standard_normal()
        for _ in range(variants):
            score = float(generator.uniform(0.1, 0.6))
            saving = 0.4 * score + 0.03 * own + 0.01 * float(generator.standard_normal())
            points.append((f"base {base}", score, min(saving, 1.0)))
    return cells(points)


@pytest.mark.parametrize("bases", [1, 5, 11])
def test_with_few_bases_nothing_is_claimed(bases: int) -> None:
    message = f"not predictable: {bases} independently trained models, 12 needed"
    with pytest.raises(InputError, match=message):
        predict(world(np.random.default_rng(0), bases, variants=4), "composite", 0.3)


def test_a_higher_level_needs_more_bases() -> None:
    known = world(np.random.default_rng(0), 18)
    assert predict(known, "composite", 0.3, level=0.9)["bases"] == 18
    with pytest.raises(InputError, match="18 independently trained models, 19 needed"):
        predict(known, "composite", 0.3, level=0.95)


def test_a_perfect_line_gives_an_exact_prediction() -> None:
    found = predict(cells((f"b{n}", n / 20, 0.1 + n / 40) for n in range(12)), "composite", 0.25)
    assert [found[name] for name in ("saving", "low", "high")] == pytest.approx([0.225] * 3)
    assert found["without_score_high"] - found["without_score_low"] > 0.2
    assert (found["bases"], found["cells"], found["outside"]) == (12, 12, False)


def test_an_interval_worked_by_hand() -> None:
    """Eleven bases at 0.2 and one at 0.5, all of one score: medians stay 0.2, the largest error is 0.3."""
    found = predict(cells((f"b{n}", 0.3, 0.2 if n else 0.5) for n in range(12)), "composite", 0.3)
    assert [found[name] for name in ("saving", "low", "high")] == pytest.approx([0.2, -0.1, 0.5])
    assert (found["without_score_low"], found["without_score_high"]) == (found["low"], found["high"])


def test_a_base_is_judged_by_the_worst_of_its_variants() -> None:
    points = [(f"b{n}", 0.3, 0.2) for n in range(12)] + [("b0", 0.3, 0.2)] * 5
    assert predict(cells(points), "composite", 0.3)["high"] == pytest.approx(0.2)
    found = predict(cells([*points, ("b0", 0.3, 0.6)]), "composite", 0.3)
    assert found["high"] == pytest.approx(0.6)
    assert (found["bases"], found["cells"]) == (12, 18)


def test_a_slope_against_the_meaning_of_the_score_is_none() -> None:
    falling = [(f"b{n}", n / 20, 0.5 - n / 40) for n in range(12)]
    median = np.median([saving for *_, saving in falling])
    assert predict(cells(falling), "composite", 0.3)["saving"] == pytest.approx(median)
    assert predict(cells(falling, "mean_kl"), "mean_kl", 0.2)["saving"] == pytest.approx(0.4)


def test_a_score_beyond_the_cells_is_pointed_out_and_no_saving_exceeds_one() -> None:
    found = predict(world(np.random.default_rng(1), 12), "composite", 9.0)
    assert found["outside"]
    assert found["saving"] == found["high"] == 1.0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.floats(-1, 1, width=32)), min_size=2, max_size=20))
def test_the_line_is_theil_sens(points: list[tuple[int, float]]) -> None:
    scores, savings = np.array(points, dtype=np.float64).T
    slopes = [
        (savings[j] - savings[i]) / (scores[j] - scores[i])
        for i in range(len(points))
        for j in range(i)
        if scores[i] != scores[j]
    ]
    slope = max(float(np.median(slopes)), 0.0) if slopes else 0.0
    assert fit_line(scores, savings) == pytest.approx((slope, float(np.median(savings - slope * scores))))


def test_new_models_fall_within_the_interval() -> None:
    """At level 0.9, 100 simulated worlds: a coverage below 0.81 has a chance of less than 1 %."""
    generator, runs, held = np.random.default_rng(7), 100, 0
    for _ in range(runs):
        drawn = world(generator, BASES_NEEDED + 1, 3, noise="heavy")
        new = drawn.iloc[-1]
        found = predict(drawn[drawn["base"] != new["base"]], "composite", new["composite"])
        held += found["low"] <= new[SAVED] <= found["high"]
    assert held / runs >= 0.81


def test_what_cannot_be_used_is_refused() -> None:
    known = world(np.random.default_rng(0), 12)
    with pytest.raises(InputError, match="the model's composite is nan"):
        predict(known, "composite", math.nan)
    with pytest.raises(InputError, match="no share"):
        predict(known, "composite", 0.3, level=1.0)


def test_cells_are_of_one_floor_and_machine(tmp_path: Path) -> None:
    lines = [
        Line(f"m{n}", scores={"composite": n / 10}, saved={"predicted": 0.1, "measured": 0.2}) for n in (1, 2)
    ]
    leaderboard, savings = tables_of(lines)
    savings = pd.concat([savings, savings.assign(floor="agreement=0.9")])
    for name, table in (("leaderboard", leaderboard), ("savings", savings)):
        table.drop(columns="shown").to_parquet(tmp_path / f"{name}.parquet")
    found = cells_of(tmp_path, FLOOR, None)
    assert found[["composite", SAVED, "machine"]].to_numpy().tolist() == [
        [0.1, 0.1, MACHINE],
        [0.2, 0.1, MACHINE],
    ]
    with pytest.raises(InputError, match=r"floors are: agreement=0.9, agreement=0.95"):
        cells_of(tmp_path, None, None)
    with pytest.raises(InputError, match="machines are: h100"):
        cells_of(tmp_path, FLOOR, "h10")
    with pytest.raises(InputError, match="no table savings"):
        cells_of(tmp_path / "elsewhere", None, None)
