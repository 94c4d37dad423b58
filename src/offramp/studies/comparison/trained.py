"""What trained exits save beside the same model untrained, and after how many tokens they are paid back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from offramp.policies.figures import NEVER
from offramp.policies.policy import ExitPolicy
from offramp.scoring.estimate import Estimate
from offramp.studies.comparison.results import (
    NOT_TIMED,
    Basis,
    Passed,
    Place,
    Row,
    Strategy,
    TrainedSaving,
    estimate_saved,
    saved_without,
)
from offramp.tuning.break_even import tokens_to_pay_back
from offramp.tuning.tuned import Tuned
from offramp.tuning.verdict import OPEN


def trained_savings(rows: Sequence[Row], strategies: Sequence[Strategy]) -> Iterator[TrainedSaving]:
    """Every answer of the tuner on rows whose exits are trained, each beside the same model untrained."""
    clock = _Clock(strategies)
    for row in rows:
        if row.training is None:
            continue
        for answer in row.answers:
            place = row.on(answer.machine)
            saved, basis = clock.saved(place, answer)
            plain, untrained = clock.plain_seconds.get(place), _untrained(rows, clock, row, answer)
            passed: Passed = "executed" if answer.certificate.executed else "replayed"
            credit, paid_back = clock.credit(place, answer), None
            if saved.value is not None and plain is not None and credit.value is not None:
                # What the best decoder without exits saves of plain decoding's time was had without training.
                without = max(saved_without(saved.value, credit.value), untrained or 0.0)
                paid_back = tokens_to_pay_back(row.training.seconds, plain, saved.value, without)
            yield TrainedSaving(
                place=place,
                floor=answer.floor,
                training=row.training,
                policy=NEVER if saved.value is None else str(answer.policy),
                passed="" if saved.value is None else passed,
                open=saved.value is None and row.verdicts[answer.floor, answer.machine].decision in OPEN,
                basis=basis,
                saved=saved,
                credit=credit,
                paid_back=paid_back,
                untrained=untrained,
                plain_seconds=plain,
            )


def _untrained(rows: Iterable[Row], clock: _Clock, row: Row, answer: Tuned) -> float | None:
    """The share that the same model saves there at best without training, 0 where nothing faster keeps the
    floor; None where it was not tried.
    """
    shares = [
        clock.saved(other.on(untrained.machine), untrained)[0].value
        for other in rows
        if other.training is None and (other.model.shown, other.workload) == (row.model.shown, row.workload)
        for untrained in other.answers
        if (untrained.floor, untrained.machine) == (answer.floor, answer.machine)
    ]
    return max(0.0, *(share or 0.0 for share in shares)) if shares else None


class _Clock:
    """What strategies say of time: policies by the stopwatch, and the seconds of plain decoding."""

    def __init__(self, strategies: Sequence[Strategy]) -> None:
        self._timed: dict[tuple[Place, ExitPolicy, str], Strategy] = {}
        self.plain_seconds: dict[Place, float] = {}
        """Of one token of plain decoding, where that is known."""
        # What was timed comes last, and counts where there is both.
        for strategy in sorted(strategies, key=lambda strategy: strategy.basis == "measured"):
            speed, place = strategy.net_speedup, strategy.place
            if speed.value is None or strategy.defect:
                continue
            if strategy.basis == "measured":
                self._timed[place, strategy.policy, strategy.kv] = strategy
            if strategy.seconds_per_token is not None and (strategy.basis == "predicted" or strategy.plain):
                self.plain_seconds[place] = strategy.seconds_per_token * speed.value

    def saved(self, place: Place, answer: Tuned) -> tuple[Estimate, Basis]:
        """The share of plain decoding's time that an answer saves, undefined unless it keeps its floor."""
        if not answer.certificate.holds or answer.plain:
            return Estimate(None, undefined=answer.answer), "predicted"
        timed = self._timed.get((place, answer.policy, answer.kv))
        if timed is None:
            return estimate_saved(answer.net_speedup), "predicted"
        return estimate_saved(timed.net_speedup), "measured"

    def credit(self, place: Place, answer: Tuned) -> Estimate:
        """The measured credit of an answer's policy, undefined unless it keeps its floor."""
        timed = self._timed.get((place, answer.policy, answer.kv))
        return NOT_TIMED if timed is None or not answer.certificate.holds else timed.credit
