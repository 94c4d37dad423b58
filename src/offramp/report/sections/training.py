"""What training the exits cost, against the time that it saves at every floor, and when that is paid back."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from offramp.policies.figures import PLAIN_DECODING
from offramp.report.formats import counted, decimal, listed, percent, percent_tick, value_text, whole_percent
from offramp.report.html import Kind, fragment
from offramp.report.plot.drawing import drawn
from offramp.report.plot.rows import Point, Row, RowPlot, Track
from offramp.report.run_result import Decoded, RunResult
from offramp.report.table import Column, Table
from offramp.studies.comparison.results import saved_without, share_saved
from offramp.studies.work.heads import Training
from offramp.tuning.break_even import tokens_to_pay_back
from offramp.tuning.verdict import Verdict


@dataclass(frozen=True)
class Bought:
    """What trained exits give on one text at one floor.

    saved: share of the fastest plain decoder's time that is saved, with its interval; None where nothing
    faster is certified. open: whether a candidate may yet be. credit: measured speed over the best decoder
    without exits, None where that was not timed beside it. tokens: generated tokens after which training is
    paid back over that decoder, None if never, or if that is not known.
    """

    text: str
    floor: float
    policy: str
    how: str
    saved: float | None
    low: float | None
    high: float | None
    tokens: float | None
    open: bool = False
    credit: float | None = None

    @property
    def never(self) -> bool:
        """Whether training is never paid back; else, without tokens, nobody knows."""
        return self.tokens is None and (self.saved is None or self.credit is not None)


def bought(run: RunResult, training: Training) -> list[Bought]:
    """Every text and floor, from the verdicts that the page is about."""
    return [
        _bought(run, training, workload.name, verdict)
        for workload in run.workloads
        for verdict in workload.verdicts
    ]


def _bought(run: RunResult, training: Training, text: str, verdict: Verdict) -> Bought:
    speed = verdict.speed if verdict.certified and verdict.policy != PLAIN_DECODING else None
    if speed is None:
        return Bought(text, verdict.floor, "never", "", None, None, None, None, verdict.tried is not None)
    # The slower limit of the speed is the lower one of what is saved.
    saved = share_saved(speed.value)
    low, high = (None if limit is None else share_saved(limit) for limit in (speed.low, speed.high))
    decoded = run.decoded(text)
    plain = run.plain_seconds_per_token
    seconds = (decoded and decoded.plain_seconds) or (plain and plain.value)
    credit, tokens = _credit(decoded, verdict), None
    if seconds and credit is not None:
        tokens = tokens_to_pay_back(training.seconds, seconds, saved, saved_without(saved, credit))
    return Bought(
        text, verdict.floor, str(verdict.policy), speed.how, saved, low, high, tokens, credit=credit
    )


def _credit(decoded: Decoded | None, verdict: Verdict) -> float | None:
    """What the stopwatch credits the verdict's policy with, where all that needs no exits took turns."""
    if decoded is None or decoded.bench.untimed_rivals:
        return None
    for policy in decoded.policies:
        if (policy.policy, policy.kv) == (verdict.policy, verdict.kv):
            found = decoded.bench.credit(policy.contender, verdict.floor)
            return None if found is None else found.value
    return None


BOUGHT = "executed and certified"


def training_section(run: RunResult) -> Markup:
    """The cost and what it bought; nothing where no exits were trained."""
    if run.training is None:
        return Markup()
    found = bought(run, run.training)
    return fragment("run", "training", training_sentence(run.training), answers(found), bought_figure(found))


def training_sentence(training: Training) -> str:
    """What was trained, on how much, for how long."""
    exits = listed([str(exit) for exit in training.exits])
    return (
        f"Exits of the kind {training.kind} at {'layer' if len(training.exits) == 1 else 'layers'} {exits} "
        f"were trained on {training.tokens:,} tokens for {counted(training.steps, 'step')}: "
        f"{minutes(training.seconds)} with all that belongs to it{_before(training)}."
    )


def _before(training: Training) -> str:
    """What of it was spent on what the last training began from."""
    if not training.seconds_before:
        return ""
    return (
        f", {minutes(training.seconds_before)} of which for the trained model or exits that it began from "
        f"({training.tokens_before:,} tokens)"
    )


def minutes(seconds: float) -> str:
    """A long time: "12 minutes", "1.5 hours", "40 seconds"."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def answers(found: list[Bought]) -> list[str]:
    """One sentence a floor: what it bought, and when training is paid back; failure is a result."""
    return [_answer(floor, _at(found, floor)) for floor in _floors(found)]


def _floors(found: list[Bought]) -> list[float]:
    return sorted({one.floor for one in found}, reverse=True)


def _answer(floor: float, found: list[Bought]) -> str:
    where = f"At {whole_percent(floor)}"
    gains = [one for one in found if one.saved is not None and one.saved > 0]
    if not gains and any(one.open for one in found):
        return f"{where} it is open what this training bought: no faster policy is {BOUGHT} yet."
    if not gains:
        return f"{where} this training bought nothing: no faster policy is {BOUGHT}."
    told = [f"{one.text} {percent(one.saved or 0.0)}{_paid_back(one)}" for one in gains]
    rest = [one.text for one in found if one not in gains]
    nothing = f"; nothing on {listed(rest)}" if rest else ""
    return f"{where}, {BOUGHT}, it saves of plain decoding's time: {listed(told)}{nothing}."


def _paid_back(one: Bought) -> str:
    return "" if one.tokens is None else f" (paid back after {tokens_text(one.tokens)} generated tokens)"


def tokens_text(tokens: float) -> str:
    """A number of tokens in three digits: "12,300", "1.25 million"."""
    if tokens >= 1e6:
        return f"{decimal(tokens / 1e6)} million"
    digits = max(0, len(str(int(tokens))) - 3)
    return f"{round(tokens, -digits):,.0f}"


def bought_figure(found: list[Bought]) -> Markup:
    """Time saved, one row a text and floor: the chart to hand on."""
    note = (
        "Of the fastest plain decoder's time, saved at each floor on executed agreement, with its 95 % "
        "interval; 0 where nothing faster is certified."
    )
    plot = RowPlot(
        title="Time saved by the trained exits",
        description=note,
        rows=[_row(one, place) for floor in _floors(found) for place, one in enumerate(_at(found, floor))],
        include=(0.0, 0.1),
        number=percent_tick,
        style="wide",
    )
    kinds = {one.how for one in found if one.how}
    kind: Kind = "predicted" if kinds == {"predicted"} else "measured"
    return drawn(plot, BOUGHT_TABLE.html(found), kind=kind)


BOUGHT_TABLE: Table[Bought] = Table(
    (
        Column("Text", lambda one: one.text),
        Column("Floor", lambda one: whole_percent(one.floor)),
        Column("Policy", lambda one: one.policy),
        Column(
            "Time saved",
            lambda one: (
                nothing_text(one) if one.saved is None else value_text(one.saved, one.low, one.high, percent)
            ),
        ),
        Column("Speed is", lambda one: one.how or None),
        Column("Paid back after tokens", lambda one: paid_text(one)),
    ),
    caption="What trained exits save, executed and certified",
    words=1,
)


def paid_text(one: Bought) -> str:
    """After how many tokens training is paid back."""
    if one.tokens is not None:
        return tokens_text(one.tokens)
    return "never" if one.never else "not known"


def nothing_text(one: Bought) -> str:
    """Where nothing is certified: nothing, or nothing yet."""
    return "open" if one.open else "nothing"


def _at(found: list[Bought], floor: float) -> list[Bought]:
    return [one for one in found if one.floor == floor]


def _row(one: Bought, place: int) -> Row:
    """One text at one floor; its colour is the text's."""
    if one.saved is None:
        said = nothing_text(one)
    else:
        back = "" if one.tokens is None else f"; paid back in {tokens_text(one.tokens)} tokens"
        said = f"{percent(one.saved)}{back}"
    point = Point(one.saved or 0.0, f"{one.text}: {said}", one.low, one.high, place, place)
    return Row(f"{one.text} at {whole_percent(one.floor)}", (Track(points=(point,)),), said)
