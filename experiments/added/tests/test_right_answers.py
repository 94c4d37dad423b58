"""What agreement costs in right answers: the interval covers the difference, the table is what was kept."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from measured import KEPT
from right_answers import accuracy_markdown, answered, paired_difference


def outcomes(both: int, gained: int, lost: int, neither: int) -> tuple[list[int], list[int]]:
    """Right or wrong for two decoders: (1, 1) so often, (1, 0), (0, 1), (0, 0)."""
    new = [1] * (both + gained) + [0] * (lost + neither)
    return new, [1] * both + [0] * gained + [1] * lost + [0] * neither


def test_a_difference_is_the_one_of_the_literature() -> None:
    """The worked example of Newcombe's paper (36, 12, 2, 0 of 50): 0.20 (0.057 to 0.340)."""
    found = paired_difference(*outcomes(36, 12, 2, 0))
    assert found.value == pytest.approx(0.20)
    assert (found.low, found.high) == (pytest.approx(0.0569, abs=5e-4), pytest.approx(0.3404, abs=5e-4))


@pytest.mark.parametrize(("both", "gained", "lost"), [(0.4, 0.03, 0.05), (0.6, 0.01, 0.01), (0.1, 0.1, 0.2)])
def test_an_interval_covers_the_true_difference(both: float, gained: float, lost: float) -> None:
    draws = np.random.default_rng(0).multinomial(300, [both, gained, lost, 1 - both - gained - lost], 400)
    kept = 0
    for counts in draws:
        found = paired_difference(*outcomes(*counts.tolist()))
        assert found.low is not None
        assert found.high is not None
        kept += found.low <= gained - lost <= found.high
    assert 0.92 <= kept / len(draws) <= 0.995


def test_decoders_that_differ_nowhere_can_still_differ() -> None:
    found = paired_difference(*outcomes(40, 0, 0, 60))
    assert found.value == 0.0
    assert found.low is not None
    assert found.low < 0.0 < (found.high or 0.0)


def test_the_kept_answers_are_paired_by_question(tmp_path: Path) -> None:
    kept = [
        answers
        for path in sorted((KEPT / "accuracy").glob("*.json"))
        for answers in json.loads(path.read_text())
    ]
    rows = list(answered(KEPT / "accuracy"))
    assert [row.questions for row in rows] == [len(answers["answers"]) for answers in kept]
    kept = json.loads(next((KEPT / "accuracy").glob("*.json")).read_text())
    kept[1]["questions"] = kept[1]["questions"][::-1]
    (tmp_path / "smollm2-cities.json").write_text(json.dumps(kept))
    with pytest.raises(ValueError, match="other questions"):
        accuracy_markdown(list(answered(tmp_path)))
