"""Predicting a saving from a score: nothing below 12 bases, and intervals that hold what they promise."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.errors import InputError
from offramp.tuning.from_scores import BASES_NEEDED, ScoreCell, fit_line, predict_from_score, read_cells


def cell(
    base: str, score: float, saving: float, *, model: str = "", floor: str = "agreement=0.99"
) -> ScoreCell:
    return ScoreCell(model or base, base, {"composite": score}, saving, floor, "h100")


def world(
    generator: np.random.Generator, bases: int, variants: int = 1, noise: str = "normal"
) -> list[ScoreCell]:
    """Savings that rise with the score, with an error of the base's own and one of each variant."""
    cells = []
    for base in range(bases):
        own = generator.standard_t(2) if noise == "heavy" else generator.standard_normal()
        for variant in range(variants):
            score = float(generator.uniform(0.1, 0.6))
            saving = 0.4 * score + 0.03 * own + 0.01 * float(generator.standard_normal())
            cells.append(cell(f"base {base}", score, min(saving, 1.0), model=f"{base}.{variant}"))
    return cells


@pytest.mark.parametrize("bases", [1, 5, 11])
def test_with_few_bases_nothing_is_claimed(bases: int) -> None:
    cells = world(np.random.default_rng(0), bases, variants=4)
    with pytest.raises(InputError) as caught:
        predict_from_score(cells, 0.3)
    assert caught.value.what == f"not predictable: {bases} independently trained models, 12 needed"
    assert caught.value.exit_code == 2


def test_a_higher_level_needs_more_bases() -> None:
    cells = world(np.random.default_rng(0), 18)
    assert predict_from_score(cells, 0.3, level=0.9).bases == 18
    with pytest.raises(InputError, match="18 independently trained models, 19 needed"):
        predict_from_score(cells, 0.3, level=0.95)
    assert predict_from_score(world(np.random.default_rng(0), 19), 0.3, level=0.95).level == 0.95


def test_a_perfect_line_gives_an_exact_prediction() -> None:
    cells = [cell(f"b{place}", place / 20, 0.1 + place / 40) for place in range(12)]
    found = predict_from_score(cells, 0.25)
    assert found.saving == pytest.approx(0.1 + 0.125)
    assert (found.low, found.high) == pytest.approx((found.saving, found.saving))
    assert found.without_score[1] - found.without_score[0] > 0.2
    assert (found.bases, found.cells, found.floor, found.machine) == (12, 12, "agreement=0.99", "h100")
    assert len(found.notes) == 1


def test_an_interval_worked_by_hand() -> None:
    # Eleven bases at 0.2 and one at 0.5, all of one score: medians stay 0.2, the largest error is 0.3.
    cells = [cell(f"b{place}", 0.3, 0.2 if place else 0.5) for place in range(12)]
    found = predict_from_score(cells, 0.3)
    assert (found.saving, found.low, found.high) == pytest.approx((0.2, -0.1, 0.5))
    assert any("says nothing here" in note for note in found.notes)


def test_a_base_is_judged_by_the_worst_of_its_variants() -> None:
    cells = [cell(f"b{place}", 0.3, 0.2) for place in range(12)]
    variants = [cell("b0", 0.3, 0.2, model=f"b0 {number}") for number in range(5)]
    assert predict_from_score([*cells, *variants], 0.3).high == pytest.approx(0.2)
    found = predict_from_score([*cells, *variants, cell("b0", 0.3, 0.6, model="odd")], 0.3)
    assert found.high == pytest.approx(0.6)
    assert (found.bases, found.cells) == (12, 18)


def test_a_slope_against_the_meaning_of_the_score_is_none() -> None:
    falling = [cell(f"b{place}", place / 20, 0.5 - place / 40) for place in range(12)]
    assert predict_from_score(falling, 0.3).saving == pytest.approx(
        np.median([one.saving for one in falling])
    )
    as_kl = [
        ScoreCell(
            one.model, one.base, {"mean_kl": one.scores["composite"]}, one.saving, one.floor, one.machine
        )
        for one in falling
    ]
    assert predict_from_score(as_kl, 0.2, "mean_kl").saving == pytest.approx(0.4)


def test_a_score_beyond_the_cells_is_pointed_out() -> None:
    found = predict_from_score(world(np.random.default_rng(1), 12), 0.9)
    assert any("lies outside those of the cells" in note for note in found.notes)
    assert found.high <= 1.0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.floats(-1, 1, width=32)), min_size=2, max_size=20))
def test_the_line_is_theil_sens(points: list[tuple[int, float]]) -> None:
    scores = np.array([score for score, _ in points], dtype=np.float64)
    savings = np.array([saving for _, saving in points], dtype=np.float64)
    slopes = [
        (savings[j] - savings[i]) / (scores[j] - scores[i])
        for i in range(len(points))
        for j in range(i)
        if scores[i] != scores[j]
    ]
    slope = max(float(np.median(slopes)), 0.0) if slopes else 0.0
    line = fit_line(scores, savings)
    assert line.slope == pytest.approx(slope)
    assert line.intercept == pytest.approx(float(np.median(savings - slope * scores)))


def test_new_models_fall_within_the_interval() -> None:
    """At level 0.9, 400 simulated worlds: a coverage below 0.86 has a chance of less than 1 %."""
    generator = np.random.default_rng(7)
    runs, held = 400, 0
    for _ in range(runs):
        *known, new = world(generator, BASES_NEEDED + 1, 3, noise="heavy")
        cells = [one for one in known if one.base != new.base]
        found = predict_from_score(cells, new.scores["composite"])
        held += bool(found.low <= new.saving <= found.high)
    assert held / runs >= 0.86


def test_what_cannot_be_used_is_refused() -> None:
    cells = world(np.random.default_rng(0), 12)
    mixed = [*cells, cell("other", 0.2, 0.1, floor="agreement=0.9")]
    with pytest.raises(InputError, match=r"2 floors: agreement=0.9, agreement=0.99"):
        predict_from_score(mixed, 0.3)
    assert predict_from_score(mixed, 0.3, floor="agreement=0.99").cells == 12
    with pytest.raises(InputError, match=r"no cell has the machine 'h10'[\s\S]*did you mean 'h100'"):
        predict_from_score(cells, 0.3, machine="h10")
    with pytest.raises(InputError, match=r"no cell has the score 'composit'[\s\S]*did you mean 'composite'"):
        predict_from_score(cells, 0.3, "composit")
    with pytest.raises(InputError, match="the model's composite is nan"):
        predict_from_score(cells, math.nan)
    with pytest.raises(InputError, match="no share"):
        predict_from_score(cells, 0.3, level=1.0)
    with pytest.raises(InputError, match="no cells"):
        predict_from_score([], 0.3)


def record(**changes: object) -> dict[str, object]:
    whole = {
        "model": "m",
        "base": "b",
        "scores": {"composite": 0.4, "calibration": None},
        "saving": 0.1,
        "floor": "agreement=0.99",
        "machine": "h100",
    }
    return {key: value for key, value in (whole | changes).items() if value is not ...}


def test_cells_are_read_from_a_list_or_from_lines(tmp_path: Path) -> None:
    as_list, as_lines = tmp_path / "cells.json", tmp_path / "cells.jsonl"
    as_list.write_text(json.dumps([record(), record(model="n")], indent=1))
    as_lines.write_text(json.dumps(record()) + "\n\n" + json.dumps(record(model="n")) + "\n")
    cells = read_cells(as_list)
    assert cells == read_cells(as_lines)
    assert [one.model for one in cells] == ["m", "n"]
    assert cells[0].scores == {"composite": 0.4}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        ("", "holds no cells"),
        ("[]", "holds no cells"),
        ("[1", "not JSON"),
        ("{", r"not JSON[\s\S]*line 1"),
        ("3", "it holds a number, not an object"),
        (json.dumps(record(base=...)), "base: Field required"),
        (json.dumps(record(base="")), "base: String should"),
        (json.dumps(record(machine=3)), "machine: Input should be a valid string"),
        (json.dumps(record(scores=[1])), "scores: Input should be a valid dictionary"),
        (json.dumps(record(scores={"composite": "high"})), r"scores\.composite: .*valid number"),
        (json.dumps(record(saving=True)), "saving: .*valid number"),
        (json.dumps(record()).replace("0.1", "NaN"), "it holds NaN"),
        (json.dumps([record(), record(saving=8.0)]), r"saving: .*less than or equal to 1[\s\S]*cell 2"),
    ],
)
def test_a_file_that_holds_something_else_is_refused(
    tmp_path: Path, content: str | bytes | None, message: str
) -> None:
    path = tmp_path / "cells.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message) as caught:
        read_cells(path)
    assert str(path) in str(caught.value)


def test_twelve_is_what_the_default_level_would_take_anyway() -> None:
    assert math.ceil(0.9 / 0.1) <= BASES_NEEDED
