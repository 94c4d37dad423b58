"""Numbers and token pieces as text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.policies.cost_breakdown import Gain
from offramp.report.formats import (
    counted,
    decimal,
    duration,
    estimate_text,
    faster,
    gain_text,
    interval_text,
    listed,
    milliseconds,
    percent,
    visible_piece,
    whole_percent,
)
from offramp.report.html import slug, text
from offramp.scoring.estimate import Estimate


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (decimal(-0.001), "0.00"),
        (decimal(-1.5, 1), "−1.5"),
        (decimal(float("nan")), "–"),
        (percent(0.0132), "1.3 %"),
        (whole_percent(0.95), "95 %"),
        (whole_percent(0.995), "99.5 %"),
        (milliseconds(0.0583), "58.3 ms"),
        (duration(6.1e-6), "6.10 µs"),
        (duration(0.00041), "410 µs"),
        (duration(0.0009996), "1.00 ms"),
        (duration(0.0583), "58.3 ms"),
        (duration(1.25), "1.25 s"),
        (duration(0.0), "0.00 µs"),
        (duration(float("nan")), "–"),
        (faster(1.013), "1.3 % faster"),
        (faster(0.97), "3.0 % slower"),
        (faster(1.0), "no faster"),
        (gain_text(Gain(0.031, 0.019, -0.002)), "layers +3.1 %, head +1.9 %, probes −0.2 %"),
        (
            gain_text({"layers": 0.0, "head": -0.00004, "probes": 0.1234}, 2),
            "layers 0.00 %, head 0.00 %, probes +12.34 %",
        ),
        (gain_text(None), ""),
        (counted(1, "document"), "1 document"),
        (counted(4096, "token"), "4,096 tokens"),
        (listed(["a"]), "a"),
        (listed(["a", "b", "c"]), "a, b and c"),
        (interval_text(0.01, 0.02, percent), "1.0 to 2.0 %"),
        (interval_text(0.01, 0.02), "0.01 to 0.02"),
        (interval_text(None, 0.02), ""),
        (slug("txt:My Notes.txt"), "txt-my-notes-txt"),
        (slug("…"), "workload"),
        (text("5 % & <b>"), "5\u00a0% &amp; &lt;b&gt;"),
    ],
)
def test_texts(found, expected):
    assert found == expected


def test_an_undefined_estimate_gives_its_reason_and_no_number():
    assert estimate_text(Estimate(None, undefined="one document")) == "undefined: one document"
    assert estimate_text(Estimate(0.5, 0.4, 0.6)) == "0.50 (0.40 to 0.60)"
    assert estimate_text(Estimate(0.5, no_interval="biased")) == "0.50"


@pytest.mark.parametrize(
    ("piece", "shown"),
    [
        (" the", "·the"),
        ("", "∅"),
        ("   ", "···"),
        ("\n\t", "⏎⇥"),
        ("a b ", "a b·"),
        ("\x00", "⟨0000⟩"),
        ("\u202e", "⟨202E⟩"),
        ("é", "é"),
    ],
)
def test_visible_piece(piece, shown):
    assert visible_piece(piece) == shown


@given(st.text())
def test_every_piece_shows_something_printable(piece):
    shown = visible_piece(piece)
    assert shown
    assert shown.isprintable()
