"""What trained exits save beside the same model untrained, and after how many tokens they are paid back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from offramp.scoring.estimate import Estimate
from offramp.studies.comparison.content import DEFECT
from offramp.studies.comparison.results import (
    NOT_TIMED,
    Basis,
    Row,
    Saving,
    Strategy,
    TrainedSaving,
    saved_without,
    share_saved,
)
from offramp.tuning.break_even import tokens_to_pay_back
from offramp.tuning.verdict import NEVER

Place = tuple[str, str, str, str]
"""Model as shown, workload, heads, machine."""


def trained_savings(rows: Sequence[Row], strategies: Sequence[Strategy]) -> Iterator[TrainedSaving]:
    """Every answer of the tuner on rows whose exits are trained, each beside the same model untrained."""
    clock = _Clock(strategies)
    for row in rows:
        if row.training is None:
            continue
        for saving in row.savings:
            saved, basis = clock.saved(row, saving)
            plain, untrained = clock.plain_seconds(row, saving), _untrained(rows, clock, row, saving)
            credit, paid_back = clock.credit(row, saving), None
            if saved.value is not None and plain is not None and credit.value is not None:
                # What the best decoder without exits saves of plain decoding's time was had without training.
                without = max(saved_without(saved.value, credit.value), untrained or 0.0)
                paid_back = tokens_to_pay_back(row.training.seconds, plain, saved.value, without)
            yield TrainedSaving(
                model=row.model.shown,
                workload=row.workload,
                heads=row.heads,
                floor=saving.floor,
                machine=saving.machine,
                training=row.training,
                policy=NEVER if saved.value is None else saving.policy,
                passed="" if saved.value is None else "executed" if saving.executed else "replayed",
                open=saving.lacks in ("documents", "time"),
                basis=basis,
                saved=saved,
                untrained=untrained,
                plain_seconds=plain,
                paid_back=paid_back,
                credit=credit,
            )


def _untrained(rows: Iterable[Row], clock: _Clock, row: Row, saving: Saving) -> float | None:
    """The share that the same model saves there at best without training, 0 where nothing faster keeps the
    floor; None where it was not tried.
    """
    shares = [
        clock.saved(other, one)[0].value
        for other in rows
        if other.training is None and (other.model.shown, other.workload) == (row.model.shown, row.workload)
        for one in other.savings
        if (one.floor, one.machine) == (saving.floor, saving.machine)
    ]
    return max(0.0, *(share or 0.0 for share in shares)) if shares else None


class _Clock:
    """What strategies say of time: policies by the stopwatch, and the seconds of plain decoding."""

    def __init__(self, strategies: Sequence[Strategy]) -> None:
        self._timed: dict[tuple[Place, str, str], Strategy] = {}
        self._plain: dict[Place, float] = {}
        # What was timed comes last, and counts where there is both.
        for one in sorted(strategies, key=lambda one: one.basis == "measured"):
            speed, place = one.net_speedup, (one.model, one.workload, one.heads, one.machine)
            if speed.value is None or one.answer.startswith(DEFECT):
                continue
            if one.basis == "measured":
                self._timed[place, one.policy, one.kv] = one
            if one.seconds_per_token is not None and (one.basis == "predicted" or one.policy == NEVER):
                self._plain[place] = one.seconds_per_token * speed.value

    def saved(self, row: Row, saving: Saving) -> tuple[Estimate, Basis]:
        """The share of plain decoding's time that an answer saves, undefined unless it keeps its floor."""
        if not saving.certified or saving.policy == NEVER:
            return Estimate(None, undefined=saving.answer), "predicted"
        timed = self._timed.get((_place(row, saving), saving.policy, saving.kv))
        speed = saving.net_speedup if timed is None else timed.net_speedup
        # The slower limit of the speed is the lower one of what is saved.
        value, low, high = (
            None if limit is None else share_saved(limit) for limit in (speed.value, speed.low, speed.high)
        )
        found = Estimate(value, low, high, undefined=speed.undefined, no_interval=speed.no_interval)
        return found, "predicted" if timed is None else "measured"

    def credit(self, row: Row, saving: Saving) -> Estimate:
        """The measured credit of an answer's policy, undefined unless it keeps its floor."""
        timed = self._timed.get((_place(row, saving), saving.policy, saving.kv))
        return NOT_TIMED if timed is None or not saving.certified else timed.credit

    def plain_seconds(self, row: Row, saving: Saving) -> float | None:
        """Of one token of plain decoding, None where that is not known."""
        return self._plain.get(_place(row, saving))


def _place(row: Row, saving: Saving) -> Place:
    return row.model.shown, row.workload, row.heads, saving.machine
