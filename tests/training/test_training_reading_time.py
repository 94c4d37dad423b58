"""How many tokens are read in some minutes, and that a training keeps to what its minutes allow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fitting_cases import texts
from tracing_models import tiny_llama

from offramp.errors import InputError
from offramp.training import lens_and_block, loop
from offramp.training.lens_and_block import FEWEST_TOKENS, SOLVED_EXIT, SOLVED_LAYER, SUMMED, ReadingTime
from offramp.training.train import TrainedExits, train_exits


def reading(pace: float, *, maps: bool = False, classifiers: bool = False) -> ReadingTime:
    return ReadingTime(pace, 2, 0.25, (0.3 * pace, 0.0) if maps else None, classifiers)


@pytest.mark.parametrize(
    ("pace", "maps", "classifiers", "affordable"),
    [
        (0.001, False, False, 60_000),  # all of them take 60 s, and half of 3 minutes are 90
        (0.002, False, False, 44_544),  # 90 s / 2 ms = 45,000, less what is over a multiple of 512
        (0.002, True, False, 19_456),  # 90 s / (2 ms x 2.3)
        (0.002, True, True, 15_360),  # a quarter of the tokens is read out besides, each 2.3 times as long
        (0.01, False, True, 5_632),
        (0.002, False, True, 35_328),  # 4,096 tokens are read out besides, at most
    ],
)
def test_as_many_tokens_are_read_as_half_of_the_minutes_allow(
    pace: float, maps: bool, classifiers: bool, affordable: int
) -> None:
    found = reading(pace, maps=maps, classifiers=classifiers)
    assert found.affordable(60_000, minutes=3.0) == affordable
    assert found.all(affordable) <= 90.0
    assert affordable == 60_000 or found.all(affordable + 512) > 90.0


def test_minutes_that_allow_too_little_text_are_refused_with_how_many_it_takes() -> None:
    slow = reading(0.1)
    with pytest.raises(InputError, match="1 minutes are too few") as refused:
        slow.affordable(60_000, minutes=1.0)
    needed = next(word for word in refused.value.fix.split() if word[0].isdigit())
    assert slow.affordable(60_000, minutes=float(needed)) >= FEWEST_TOKENS


def test_solving_maps_is_part_of_the_minutes_however_few_tokens_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_llama()
    monkeypatch.setattr(lens_and_block, "product_time", lambda size, device: 0.01)
    exit = model.layers - 2  # one layer between it and L
    summing, solving = lens_and_block.maps_time(model, [exit])
    assert summing == pytest.approx(0.01 * SUMMED / model.shape.hidden_size)
    assert solving == pytest.approx(0.01 * (SOLVED_LAYER + SOLVED_EXIT))
    solved = ReadingTime(0.001, 2, 0.25, (0.0, 60.0), classifiers=False)
    assert solved.afterwards(1000) == pytest.approx(61.0)
    assert solved.affordable(60_000, minutes=3.0) == 14_848  # 30 s of 90 are left, read twice
    with pytest.raises(InputError, match="2 minutes are too few"):
        solved.affordable(60_000, minutes=2.0)


def trained(folder: Path, **options: Any) -> TrainedExits:
    quick = {"classifiers": False, "kv_maps": False, "progress": False, "precision": "float32"}
    asked = {**quick, "tokens": 4000, **options}
    return train_exits(tiny_llama(), texts(600), at="1,2", output=folder, **asked)


class _Ended(Exception):
    """Stops a training after its states are written."""


def test_what_the_minutes_do_not_allow_is_not_read_and_what_was_read_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*arguments: object) -> None:
        raise _Ended

    # Half of 12 s: 3,072 of the tokens at this pace.
    monkeypatch.setattr(lens_and_block, "pace_of", lambda *arguments: 6.0 / 3100)
    monkeypatch.setattr(loop.TrainingLoop, "_pilot", lambda self, progress: 0.5)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "read_checkpoint", killed)
        with pytest.raises(_Ended):
            trained(tmp_path, minutes=0.2)
    # As if another took its time.
    monkeypatch.setattr(lens_and_block, "pace_of", lambda *arguments: 6.0 / 2000)
    record = trained(tmp_path, minutes=0.2).record
    assert record.rows.allowed == 3072
    assert 1536 < record.rows.tokens <= 3072
    assert trained(tmp_path / "steps", steps=2).record.rows.allowed is None


def test_steps_get_what_reading_and_its_end_leave_of_the_minutes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    afterwards = [0.0, 6.0, 60.0]
    monkeypatch.setattr(ReadingTime, "afterwards", lambda self, tokens: afterwards[0])
    monkeypatch.setattr(ReadingTime, "affordable", lambda self, tokens, minutes: tokens)
    monkeypatch.setattr(loop.TrainingLoop, "_pilot", lambda self, progress: 0.5)
    few: dict[str, Any] = {"minutes": 0.5, "tokens": 2000}
    alone = trained(tmp_path / "alone", **few).record.settings.steps
    afterwards.pop(0)
    assert trained(tmp_path / "beside", **few).record.settings.steps <= alone - 6
    afterwards.pop(0)
    with pytest.raises(InputError, match=r"0\.5 minutes are too few: reading the text, and what goes with"):
        trained(tmp_path / "less", **few)
