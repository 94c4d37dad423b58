"""What training exits cost, against the time that it saves, and when it is paid back: of runs, compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from markupsafe import Markup

from offramp.policies.figures import NEVER, PLAIN_DECODING
from offramp.report.drawing import drawn
from offramp.report.formats import (
    counted,
    decimal,
    estimate_text,
    listed,
    percent,
    percent_tick,
    times,
    whole_percent,
)
from offramp.report.html import Kind, fragment
from offramp.report.names import FLOOR, PLACE, distinct, floor_order, line_name, machine_shown
from offramp.report.plots import PlotRow, Point, RowPlot, Track
from offramp.report.run_result import Decoded, RunResult
from offramp.report.sections.potential import readings_sentence
from offramp.report.table import NOTHING, Cell, Column, Table, attributes, estimated
from offramp.scoring.estimate import Estimate
from offramp.studies.comparison.results import (
    NOT_TIMED,
    Comparison,
    Place,
    Row,
    TrainedSaving,
    estimate_saved,
    saved_without,
)
from offramp.studies.work.heads import Training
from offramp.tuning.break_even import tokens_to_pay_back
from offramp.tuning.floor import Floor
from offramp.tuning.verdict import Verdict

BOUGHT = "executed and certified"
PASSED = {"": NOTHING, "replayed": "by a replay bound", "executed": "certified"}
MOST_DRAWN = 24

Named = Callable[[TrainedSaving], str]
"""What sets a saving apart from others, in words."""


# What a run's trained exits save.


def bought(run: RunResult, training: Training) -> list[TrainedSaving]:
    """Every text and floor, from the verdicts that the page is about."""
    return [
        _bought(run, training, workload.name, verdict)
        for workload in run.workloads
        for verdict in workload.verdicts
    ]


def _bought(run: RunResult, training: Training, text: str, verdict: Verdict) -> TrainedSaving:
    speed = verdict.speed if verdict.certified and verdict.policy != PLAIN_DECODING else None
    place, floor = Place(run.model_name, text, "", verdict.basis), Floor("agreement", verdict.floor)
    if speed is None:
        nothing = Estimate(None, undefined="nothing faster is certified")
        return TrainedSaving(
            place,
            floor,
            training,
            NEVER,
            "",
            open=verdict.tried is not None,
            basis="predicted",
            saved=nothing,
        )
    saved = estimate_saved(Estimate(speed.value, speed.low, speed.high))
    decoded, plain = run.decoded(text), run.plain_seconds_per_token
    seconds = (decoded and decoded.plain_seconds) or (plain and plain.value) or None
    credit, tokens = _credit(decoded, verdict), None
    if seconds and credit.value is not None and saved.value is not None:
        without = saved_without(saved.value, credit.value)
        tokens = tokens_to_pay_back(training.seconds, seconds, saved.value, without)
    return TrainedSaving(
        place,
        floor,
        training,
        str(verdict.policy),
        "executed",
        open=False,
        basis=speed.how,
        saved=saved,
        credit=credit,
        paid_back=tokens,
        plain_seconds=seconds,
    )


def _credit(decoded: Decoded | None, verdict: Verdict) -> Estimate:
    """What the stopwatch credits the verdict's policy with, where all that needs no exits took turns."""
    if decoded is not None and not decoded.bench.untimed_rivals:
        for policy in decoded.policies:
            if (policy.policy, policy.kv) == (verdict.policy, verdict.kv):
                credit = decoded.bench.credit(policy.contender, verdict.floor)
                return NOT_TIMED if credit is None else Estimate(credit.value, credit.low, credit.high)
    return NOT_TIMED


# In words.


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


def answers(trained: Sequence[TrainedSaving], *, machines: bool = False) -> list[str]:
    """One sentence a floor: what it bought, and when training is paid back; failure is a result.

    Only what was executed counts. machines: whether they are named.
    """
    floors = sorted({one.floor for one in trained}, key=floor_order)
    return [_answer(floor, [one for one in trained if one.floor == floor], machines) for floor in floors]


def _answer(floor: Floor, trained: Sequence[TrainedSaving], machines: bool) -> str:
    def text(one: TrainedSaving) -> str:
        machine = f" ({machine_shown(one.place.machine)})" if machines else ""
        return f"{one.place.workload}{machine}"

    where = f"At {whole_percent(floor.value)}"
    gains = [one for one in trained if one.passed == "executed" and (one.saved.value or 0.0) > 0]
    if not gains and any(one.open or one.passed == "replayed" for one in trained):
        return f"{where} it is open what this training bought: no faster policy is {BOUGHT} yet."
    if not gains:
        return f"{where} this training bought nothing: no faster policy is {BOUGHT}."
    told = [f"{text(one)} {percent(one.saved.value or 0.0)}{_paid_back(one)}" for one in gains]
    rest = [text(one) for one in trained if one not in gains]
    nothing = f"; nothing on {listed(rest)}" if rest else ""
    return f"{where}, {BOUGHT}, it saves of plain decoding's time: {listed(told)}{nothing}."


def _paid_back(one: TrainedSaving) -> str:
    return (
        "" if one.paid_back is None else f" (paid back after {tokens_text(one.paid_back)} generated tokens)"
    )


def tokens_text(tokens: float) -> str:
    """A number of tokens in three digits: "12,300", "1.25 million"."""
    if tokens >= 1e6:
        return f"{decimal(tokens / 1e6)} million"
    digits = max(0, len(str(int(tokens))) - 3)
    return f"{round(tokens, -digits):,.0f}"


def _saved_text(one: TrainedSaving, *, short: bool = False) -> str:
    """What is saved, or that it is nothing, or nothing yet."""
    if one.saved.value is None:
        return "open" if one.open else "nothing"
    return percent(one.saved.value) if short else estimate_text(one.saved, percent)


def _paid(one: TrainedSaving) -> str:
    """After how many tokens training is paid back."""
    if one.paid_back is not None:
        return tokens_text(one.paid_back)
    return "never" if one.never else "not known"


# As columns.


def _saved_cell(one: TrainedSaving) -> Cell:
    known = one.saved.value is not None
    return estimated(one.saved, percent) if known else Cell(_saved_text(one), value=one.saved)


def _basis_cell(one: TrainedSaving) -> Cell:
    return Cell(NOTHING if one.saved.value is None else one.basis, value=one.basis)


def _passed_cell(one: TrainedSaving) -> Cell:
    shown = "open" if one.open and one.saved.value is None else PASSED[one.passed]
    return Cell(shown, value=one.passed)


def _credit_cell(one: TrainedSaving) -> Cell:
    credit = one.credit
    return Cell("not measured", value=credit) if credit.value is None else estimated(credit, times)


def _paid_cell(one: TrainedSaving) -> Cell:
    return Cell(NOTHING if one.saved.value is None else _paid(one), value=one.paid_back)


TRAININGS: Table[TrainedSaving] = Table(
    (
        *(column.over(lambda one: one.place) for column in PLACE),
        FLOOR.over(lambda one: one.floor),
        Column("Time saved", _saved_cell, percent, data=Estimate, key="saved_share_of_time", numeric=True),
        Column("Speed is", _basis_cell, data=str, key="basis"),
        Column("Floor is kept", _passed_cell, data=str, key="passed"),
        Column(
            "Saved untrained",
            lambda one: one.untrained,
            percent,
            data=float,
            key="untrained_saved_share_of_time",
            numeric=True,
        ),
        Column(
            "Speed over the best without exits",
            _credit_cell,
            times,
            data=Estimate,
            key="credit",
            numeric=True,
            kind="measured",
        ),
        Column("Paid back after tokens", _paid_cell, data=float, key="paid_back_after_tokens", numeric=True),
        Column(
            "Training took",
            lambda one: one.training.seconds,
            minutes,
            data=float,
            key="training_seconds",
            numeric=True,
        ),
        Column(
            "Tokens read",
            lambda one: one.training.tokens,
            tokens_text,
            data=int,
            key="tokens",
            numeric=True,
        ),
        Column(
            "Rows trained", lambda one: one.training.rows, tokens_text, data=int, key="rows", numeric=True
        ),
        *attributes(str, "training.kind"),
        Column("", lambda one: "+".join(map(str, one.training.exits)), data=str, key="exits"),
        *attributes(int, "training.steps"),
        *attributes(str, "policy"),
        Column("", lambda one: one.plain_seconds, data=float, key="plain_seconds_per_token"),
    ),
    caption="What trained exits save, and what they took",
    name="trainings",
)


# As a chart.


def saved_figure(trained: Sequence[TrainedSaving], title: str, note: str, named: Named) -> Markup:
    """Time saved, one row a place and floor, with what untrained exits save where that is known."""
    texts = distinct([one.place.workload for one in trained])
    plot = RowPlot(
        title=title,
        description=note,
        rows=[_row(one, named(one), texts.index(one.place.workload)) for one in trained],
        include=(0.0, 0.1),
        number=percent_tick,
        style="wide",
    )
    table: Table[TrainedSaving] = Table(
        (
            Column("Exits, text and floor", named),
            Column("Policy", lambda one: one.policy),
            *TRAININGS.only("Time saved", "Speed is", "Saved untrained").columns,
            Column("Paid back after tokens", _paid),
        ),
        caption=title,
        words=2,
    )
    known = {one.basis for one in trained if one.saved.value is not None}
    kind: Kind = "predicted" if known == {"predicted"} else "measured"
    return drawn(plot, table.html(trained), kind=kind)


def _row(one: TrainedSaving, name: str, colour: int) -> PlotRow:
    said, saved = f"{name}: {_saved_text(one)}", one.saved
    points = [Point(saved, said, colour)]
    if one.untrained is not None:
        points.insert(
            0, Point(Estimate(one.untrained), f"untrained: {percent(one.untrained)}", colour=colour, shape=4)
        )
    paid = "" if one.paid_back is None else f", paid in {_paid(one)}"
    # What nobody executed is drawn, and not said to be paid.
    shown = _saved_text(one, short=True) + (", replayed only" if one.passed == "replayed" else paid)
    return PlotRow(name, (Track(points=tuple(points)),), shown)


# As sections.


def training_section(run: RunResult) -> Markup:
    """The cost and what it bought; nothing where no exits were trained."""
    if run.training is None:
        return Markup()
    trained = sorted(bought(run, run.training), key=lambda one: floor_order(one.floor))
    note = (
        "Of the fastest plain decoder's time, saved at each floor on executed agreement, with its 95 % "
        "interval; 0 where nothing faster is certified."
    )
    chart = saved_figure(
        trained,
        "Time saved by the trained exits",
        note,
        lambda one: f"{one.place.workload} at {whole_percent(one.floor.value)}",
    )
    return fragment("run", "training", training_sentence(run.training), answers(trained), chart)


def trained_section(comparison: Comparison) -> Markup:
    """What each training took and bought, one chart and one table; nothing without trained exits."""
    if not any(row.training is not None for row in comparison.rows):
        return Markup()
    trained = sorted(comparison.trained, key=lambda one: floor_order(one.floor))
    note = (
        "Of the fastest plain decoder's time, saved at each floor, with its 95 % interval; hollow: the same "
        "model untrained; 0 where nothing faster keeps the floor."
    )
    chart = saved_figure(
        trained[:MOST_DRAWN],
        "Time saved by trained exits",
        note,
        lambda one: f"{one.place.heads} · {one.place.workload} at {whole_percent(one.floor.value)}",
    )
    return fragment(
        "comparison",
        "trained",
        groups=trained_groups(comparison),
        chart=chart if trained else Markup(),
        rows=TRAININGS.html(trained),
    )


def trained_groups(comparison: Comparison) -> list[tuple[str, list[str]]]:
    """Each training of each model by name, with what is said of it, one sentence after another."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in comparison.rows:
        if row.training is not None:
            groups.setdefault((row.model.shown, row.heads), []).append(row)
    return [
        (line_name(*key), [*_took(rows), *_answers_of(comparison.trained, key), *_read(rows)])
        for key, rows in groups.items()
    ]


def _took(rows: Sequence[Row]) -> list[str]:
    """What the training took, once for texts that share one."""
    said = {row.workload: training_sentence(row.training) for row in rows if row.training is not None}
    if len(set(said.values())) == 1:
        return [next(iter(said.values()))]
    return [f"For {workload}: {sentence}" for workload, sentence in said.items()]


def _answers_of(trained: Sequence[TrainedSaving], key: tuple[str, str]) -> list[str]:
    """A sentence a floor."""
    here = [one for one in trained if (one.place.model, one.place.heads) == key]
    several = len({one.place.machine for one in here}) > 1
    return answers(here, machines=several)


def _read(rows: Sequence[Row]) -> list[str]:
    """What the exits hold beside what the own head reads of them, where both were traced."""
    return [
        f"On {row.workload}: {readings_sentence(row.card.readings)}"
        for row in rows
        if row.card.readings is not None
    ]
