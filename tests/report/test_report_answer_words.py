"""Numbers, token pieces, timings and HTML as text."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import UndefinedError
from markupsafe import Markup

from offramp.defaults import FEWEST_PROMPTS
from offramp.policies.cost_breakdown import Gain
from offramp.report.drawing import figure
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
from offramp.report.html import (
    Joined,
    bullets,
    environment,
    fragment,
    slug,
    stack,
    text,
)
from offramp.report.table import Cell, Column, Table, pairs
from offramp.report.timing import (
    a_a_text,
    answer_sentence,
    contender_answer,
    counted_text,
    floor_text,
    stopped_text,
)
from offramp.scoring.estimate import Estimate
from offramp.timing.results import Cluster, Contender, Counted, FloorCheck


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (decimal(-0.001), "0.00"),
        (decimal(float("nan")), "–"),
        (whole_percent(0.95), "95 %"),
        (whole_percent(0.995), "99.5 %"),
        (milliseconds(0.0583), "58.3 ms"),
        (duration(6.1e-6), "6.10 µs"),
        (duration(0.00041), "410 µs"),
        (duration(0.0009996), "1.00 ms"),
        (duration(1.25), "1.25 s"),
        (duration(0.0), "0.00 µs"),
        (duration(float("nan")), "–"),
        (faster(1.013), "1.3 % faster"),
        (faster(1.0), "no faster"),
        (gain_text(Gain(0.031, 0.019, -0.002)), "layers +3.1 %, head +1.9 %, probes −0.2 %"),
        (
            gain_text(Gain(0.0, -0.00004, 0.1234), 2),
            "layers 0.00 %, head 0.00 %, probes +12.34 %",
        ),
        (gain_text(None), ""),
        (counted(1, "document"), "1 document"),
        (counted(4096, "token"), "4,096 tokens"),
        (faster(0.97), "3.0 % slower"),
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


HOSTILE = "</script><img src=x onerror=alert(1)>\"'&"


def test_values_are_escaped_in_text_and_attributes():
    cell = Cell(
        HOSTILE, below=HOSTILE, code=HOSTILE, why=(HOSTILE,), facets=(HOSTILE, HOSTILE), wrong=HOSTILE
    )
    columns = (Column(HOSTILE, lambda row: row), Column(HOSTILE, lambda row: cell, facet="model", key="a"))
    table: Table[str] = Table(columns, caption=HOSTILE, groups=Column(HOSTILE, lambda row: row))
    made = [
        *(replace(table, **layout).html([HOSTILE]) for layout in ({}, {"style": "x"}, {"name": "x"})),
        figure(HOSTILE, HOSTILE, HOSTILE, HOSTILE, legend=HOSTILE),
        bullets([HOSTILE], "note"),
        stack(HOSTILE, HOSTILE),
    ]
    for html in made:
        assert "<img" not in html
        assert "&lt;img" in html


def test_pieces_that_are_html_already_stay():
    assert stack(Markup("<b>bold</b>"), "a < b") == "<b>bold</b><small>a &lt; b</small>"
    assert stack("alone", "", "") == "alone"


def test_a_number_stays_with_its_unit_in_text_and_not_in_attributes():
    html = pairs("at 95 % agreement").html([("a", "1.5 ms")])
    assert "1.5\u00a0ms" in html
    assert "<caption>at 95\u00a0% agreement</caption>" in html
    assert 'aria-label="at 95 % agreement"' in html


def test_a_value_that_is_not_given_is_an_error():
    with pytest.raises(UndefinedError):
        fragment("macros", "bullets")


def test_lines_of_a_template_are_joined():
    source = "<p>\n  one 5 % of\n  {{ a }} two\n</p>\n{% if a %}\n<i>x</i>\n{% endif %}\n{{ a }}\n{{ a }}\n"
    joined = Joined(environment()).preprocess(source, None)
    assert joined == "<p>one 5\u00a0% of {{ a }} two</p>{% if a %}<i>x</i>{% endif %}{{ a }}{{ a }}"


CLUSTERS = tuple(Cluster(0, place, 0.1, 4) for place in range(FEWEST_PROMPTS))


def timed(answer: str, low: float | None = 0.99, high: float | None = 1.03, **changes: object) -> Contender:
    values = {"ratio": Estimate(1.01, low, high), "resolution": None if low is None else 0.034, **changes}
    return Contender("a policy", "policy", answer=answer, clusters=CLUSTERS, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("contender", "words"),
    [
        (timed("faster"), "faster"),
        (timed("equivalent"), "equivalent within ± 5 %"),
        (timed("unresolved"), "unresolved at ± 3.4 %"),
        (replace(timed("unresolved"), clusters=CLUSTERS[:2]), "inconclusive: 2 of 6 prompts"),
        (timed("unresolved", None, None), "unresolved: one prompt has no interval"),
        (Contender("plain", "plain", ratio=Estimate(0.9)), "in the pilot only"),
        (timed("defect"), "defect"),
        (Contender("a peer", "peer", left_out="it cannot"), "not timed: it cannot"),
    ],
)
def test_every_answer_says_what_it_stands_on(contender: Contender, words: str) -> None:
    assert contender_answer(contender, 0.05) == words


def test_the_answer_as_a_sentence() -> None:
    assert answer_sentence(timed("unresolved"), "generate()", 0.05) == (
        "a policy is unresolved at ± 3.4 %: 1.010 × (0.990 to 1.030 ×) the speed of generate()"
    )
    missing = Contender("a peer", "peer", left_out="it cannot")
    assert answer_sentence(missing, "generate()", 0.05) == "a peer was not timed: it cannot"
    assert stopped_text("answered", 61.4) == "every question was answered after 61 s"
    assert a_a_text(Estimate(1.002, 0.99, 1.01)) == "1.002 (0.990 to 1.010 at 99 %)"
    assert a_a_text(Estimate(1.0)) == "1.000"


def test_what_was_counted_stands_beside_plain_decoding() -> None:
    own = timed("faster", counted=Counted(20.0, 1.4, 2.5, 6e8, 7e8))
    plain = timed("equivalent", counted=Counted(30.0, 1.0, 0.0, 1e9, 1e9))
    assert counted_text(own, plain) == (
        "20.0 of 30 layers, 1.4 heads and 2.5 probes; 60 % of the FLOPs and 70 % of the bytes of plain "
        "decoding"
    )
    assert counted_text(timed("faster"), plain) is None


@pytest.mark.parametrize(
    ("kept", "certified", "words"),
    [
        (0.97, True, ("97.0 % of the generated tokens", "certified floor agreement=0.95 is kept")),
        (0.78, True, ("BELOW ITS FLOOR: 78.0 %", "policy's certified floor agreement=0.95")),
        (0.78, False, ("BELOW ITS FLOOR: 78.0 %", "policy's not certified floor agreement=0.95")),
        (None, True, ("certified floor agreement=0.95 was not judged here",)),
    ],
)
def test_a_floor_that_is_missed_is_named_first(
    kept: float | None, certified: bool, words: tuple[str, ...]
) -> None:
    check = FloorCheck("agreement=0.95", certified, 0.95, None if kept is None else Estimate(kept))
    said = floor_text(check, 8)
    assert all(part in said for part in words)
    assert said.startswith(words[0]) or kept is None
