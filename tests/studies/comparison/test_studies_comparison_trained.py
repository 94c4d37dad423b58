"""What trained exits save beside the same model untrained, and when training is paid: by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from comparison_examples import answer, decided, models, row
from offramp.policies.grammar import parse_policy
from offramp.policies.rules.fixed import StaticExit
from offramp.scoring.estimate import Estimate
from offramp.studies.comparison.results import Place, Row, StrategyResult, TrainedSaving
from offramp.studies.comparison.savings import trained_savings
from offramp.studies.work.heads import Training
from offramp.tuning.floor import Floor
from offramp.tuning.tuned import Tuned

COST = Training("block", (20,), 16_000, 300, 600.0, rows=57_600)
POLICY = "static:exit=20"


def saving(speed: float, *, certified: bool = True, policy: str = POLICY, lacks: str = "") -> Tuned:
    """An executed answer at 95 %; one that lacks something is a replay bound that does not hold."""
    found = Estimate(speed, speed - 0.05, speed + 0.05)
    held = {} if lacks else {"holds": certified, "executed": True}
    return answer(found, "as told", policy=policy, lacks=lacks, **held)


def rows(trained: Tuned, *untrained: Tuned) -> list[Row]:
    """The first example's model on prose: untrained as often as that is given, and its exits trained."""
    described = models()[0]
    raw = [replace(row(described, "prose", 0), answers=(one,)) for one in untrained]
    of_trained = replace(row(described, "prose", 0, heads="block"), answers=(trained,), training=COST)
    verdicts = {(trained.floor, trained.machine): decided(trained)}
    return [*raw, replace(of_trained, verdicts=verdicts)]


def strategy(basis: str, policy: str, speed: float, seconds: float, answer: str = "") -> StrategyResult:
    """Of the trained row on this machine."""
    return StrategyResult(
        place=Place("gpt2", "prose", "block", "local"),
        family="x",
        policy=parse_policy(policy),
        kv="propagate",
        floor=Floor("agreement", 0.95),
        basis=basis,
        agreement=Estimate(0.96),
        skip_ratio=Estimate(0.2),
        net_speedup=Estimate(speed, speed - 0.1, speed + 0.1),
        seconds_per_token=seconds,
        answer=answer,
    )


PREDICTED = strategy("predicted", POLICY, 1.25, 0.04)
"""Plain decoding takes 0.05 s by it."""

PLAIN = strategy("measured", "never", 1.0, 0.05)


def timed(speed: float, credit: float | None = None) -> StrategyResult:
    """The policy by the stopwatch. credit: over the best decoder without exits, None: plain decoding."""
    found = strategy("measured", POLICY, speed, 0.05 / speed)
    return replace(found, credit=Estimate(speed if credit is None else credit))


def only(found: list[Row], *strategies: StrategyResult) -> TrainedSaving:
    (one,) = trained_savings(found, strategies)
    return one


def test_training_is_paid_back_by_what_it_saves_beyond_the_untrained_exits() -> None:
    alone = only(rows(saving(1.25)), PLAIN, timed(1.25))
    assert (alone.saved.value, alone.untrained) == (pytest.approx(0.2), None)
    assert (alone.saved.low, alone.saved.high) == (pytest.approx(1 - 1 / 1.15), pytest.approx(1 - 1 / 1.35))
    assert alone.plain_seconds == pytest.approx(0.05)
    assert alone.paid_back == pytest.approx(600.0 / (0.2 * 0.05))
    assert (alone.passed, alone.basis, alone.open) == ("executed", "measured", False)
    beside = only(rows(saving(1.25), saving(1 / 0.9), saving(1 / 0.95)), PLAIN, timed(1.25))
    assert beside.untrained == pytest.approx(0.1)  # the better of two
    assert beside.paid_back == pytest.approx(600.0 / (0.1 * 0.05))


def test_training_is_paid_back_by_its_credit_alone() -> None:
    """The cut head saves 12 % of plain decoding's time, and nobody has to train for that."""
    cut = only(rows(saving(1.25)), PLAIN, timed(1.25, credit=1.1))
    assert cut.saved.value == pytest.approx(0.2)
    assert cut.paid_back == pytest.approx(600.0 / ((0.2 - 0.12) * 0.05))
    assert only(rows(saving(1.25)), PLAIN, timed(1.25, credit=0.95)).paid_back is None
    for nothing in (PREDICTED, strategy("measured", POLICY, 1.25, 0.04)):  # the cut head took no turns
        found = only(rows(saving(1.25)), PLAIN, nothing)
        assert (found.saved.value, found.credit.value, found.paid_back) == (pytest.approx(0.2), None, None)


def test_what_untrained_exits_lose_is_not_saved_by_training() -> None:
    """Nobody would use them: plain decoding is there."""
    for untrained in (saving(0.8), saving(1.5, certified=False), saving(1.0, policy="never")):
        one = only(rows(saving(1.25), untrained), PLAIN, timed(1.25))
        assert one.untrained == 0.0
        assert one.paid_back == pytest.approx(600.0 / (0.2 * 0.05))


def test_training_that_saves_no_more_than_untrained_exits_is_never_paid_back() -> None:
    for trained, untrained in ((1.25, 1.25), (1.2, 1.25), (0.9, 0.8)):
        found = only(rows(saving(trained), saving(untrained)), PLAIN, timed(trained))
        assert (found.credit.value, found.paid_back) == (trained, None)


def test_the_stopwatch_counts_where_there_is_one() -> None:
    clocked = replace(timed(2.0), seconds_per_token=0.03)
    plain = strategy("measured", "never", 1.0, 0.06)
    one = only(rows(saving(1.25)), plain, clocked, PREDICTED)
    assert (one.basis, one.saved.value) == ("measured", pytest.approx(0.5))
    assert one.plain_seconds == pytest.approx(0.06)
    assert one.paid_back == pytest.approx(600.0 / (0.5 * 0.06))
    for none in (replace(clocked, defect=True), replace(clocked, policy=StaticExit(21))):
        assert only(rows(saving(1.25)), none, PREDICTED).basis == "predicted"


def test_nothing_certified_is_nothing_saved_and_too_few_documents_are_open() -> None:
    refused = only(rows(saving(1.25, certified=False), saving(1.1)), PREDICTED)
    assert (refused.policy, refused.passed, refused.saved.value) == ("never", "", None)
    assert refused.saved.undefined == "as told"
    assert (refused.paid_back, refused.open) == (None, False)
    for lacks in ("documents", "evidence"):
        assert only(rows(saving(1.0, lacks=lacks)), PREDICTED).open


def test_without_a_price_in_seconds_it_is_not_known_when_it_is_paid() -> None:
    one = only(rows(saving(1.25)), replace(PREDICTED, seconds_per_token=None))
    assert (one.plain_seconds, one.paid_back) == (None, None)
    assert one.saved.value == pytest.approx(0.2)
