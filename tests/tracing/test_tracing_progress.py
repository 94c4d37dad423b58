"""Progress where there is no terminal: lines now and then, with the speed of this run and the time left."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from offramp.tracing import progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_tokens_are_said_now_and_then(clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    with progress.token_bar("prose", 5000, shown=True, done=1000) as advance:
        clock.now += progress.SECONDS_BETWEEN_LINES - 1
        advance(500)  # too soon after the first line
        clock.now += 6
        advance(500)
        advance(500)  # too soon again
    assert capsys.readouterr().err.splitlines() == [
        "- prose: 1,000/5,000 tokens",
        "- prose: 2,000/5,000 tokens, 50 tokens/s, about 60 s left",
    ]


def test_what_has_no_unit_has_no_speed(clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    lines = progress.Lines("timing")
    clock.now += 20
    lines.show(0, 10)  # nothing is done, so nothing can be said of the time that is left
    lines.show(4, 10)
    assert capsys.readouterr().err.splitlines() == ["- timing: 4/10, about 30 s left"]


def test_nothing_is_said_if_nothing_is_to_be_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.token_bar("prose", 10, shown=False) as advance:
        advance(10)
    assert capsys.readouterr().err == ""
