"""Answers of timings in words."""

from __future__ import annotations

import pytest

from offramp.decoding.measurement.results import Cluster, Contender, Counted, FloorCheck, Interval
from offramp.report.timing import (
    a_a_text,
    answer_sentence,
    contender_answer,
    counted_text,
    floor_text,
    stopped_text,
)

CLUSTERS = (Cluster(0, 0, 0.1, 4),)


def timed(answer: str, low: float | None = 0.99, high: float | None = 1.03, **changes: object) -> Contender:
    values = {"ratio": Interval(1.01, low, high), "resolution": None if low is None else 0.034, **changes}
    return Contender("a policy", "policy", answer=answer, clusters=CLUSTERS, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("contender", "words"),
    [
        (timed("faster"), "faster"),
        (timed("equivalent"), "equivalent within ± 5 %"),
        (timed("unresolved"), "unresolved at ± 3.4 %"),
        (timed("unresolved", None, None), "unresolved: one prompt has no interval"),
        (Contender("plain", "plain", ratio=Interval(0.9)), "in the pilot only"),
        (timed("defect"), "defect"),
        (Contender("a peer", "peer", left_out="it cannot"), "not timed: it cannot"),
    ],
)
def test_every_answer_says_what_it_stands_on(contender: Contender, words: str) -> None:
    assert contender_answer(contender, 0.05) == words


def test_the_answer_as_a_sentence() -> None:
    assert answer_sentence(timed("unresolved"), "generate()", 0.05) == (
        "unresolved at ± 3.4 %: 1.010 × (0.990 to 1.030 ×) the speed of generate()"
    )
    missing = Contender("a peer", "peer", left_out="it cannot")
    assert answer_sentence(missing, "generate()", 0.05) == "a peer was not timed: it cannot"


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
        (0.97, True, "97.0 % of the generated tokens of 8 prompts are the full model's choice: the policy's "
                     "certified floor agreement=0.95 is kept"),
        (0.78, True, "BELOW ITS FLOOR: 78.0 % of the generated tokens of 8 prompts are the full model's "
                     "choice, under the policy's certified floor agreement=0.95"),
        (0.78, False, "BELOW ITS FLOOR: 78.0 % of the generated tokens of 8 prompts are the full model's "
                      "choice, under the policy's not certified floor agreement=0.95"),
        (None, True, "the policy's certified floor agreement=0.95 was not judged here"),
    ],
)  # fmt: skip
def test_a_floor_that_is_missed_is_named_first(kept: float | None, certified: bool, words: str) -> None:
    check = FloorCheck("agreement=0.95", certified, 0.95, None if kept is None else Interval(kept))
    assert floor_text(check, 8) == words


def test_the_rest() -> None:
    assert stopped_text("answered", 61.4) == "every question was answered after 61 s"
    assert stopped_text("seconds", 120.0) == "the seconds were spent after 120 s"
    assert a_a_text(Interval(1.002, 0.99, 1.01)) == "1.002 (0.990 to 1.010 at 99 %)"
    assert a_a_text(Interval(1.0)) == "1.000"
