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
    speed = verdict.speed_of_tokens if verdict.certified and verdict.policy != PLAIN_DECODING else None
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
                return NOT_TIMED if credit is None else credit.estimate
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
    floors = sorted({saving.floor for saving in trained}, key=floor_order)
    return [
        _answer(floor, [saving for saving in trained if saving.floor == floor], machines) for floor in floors
    ]


def _answer(floor: Floor, trained: Sequence[TrainedSaving], machines: bool) -> str:
    def text(saving: TrainedSaving) -> str:
        machine = f" ({machine_shown(saving.place.machine)})" if machines else ""
        return f"{saving.place.workload}{machine}"

    where = f"At {whole_percent(floor.value)}"
    gains = [saving for saving in trained if saving.passed == "executed" and (saving.saved.value or 0.0) > 0]
    if not gains and any(saving.open or saving.passed == "replayed" for saving in trained):
        return f"{where} it is open what this training bought: no faster policy is {BOUGHT} yet."
    if not gains:
        return f"{where} this training bought nothing: no faster policy is {BOUGHT}."
    told = [f"{text(saving)} {percent(saving.saved.value or 0.0)}{_paid_back(saving)}" for saving in gains]
    rest = [text(saving) for saving in trained if saving not in gains]
    nothing = f"; nothing on {listed(rest)}" if rest else ""
    return f"{where}, {BOUGHT}, it saves of plain decoding's time: {listed(told)}{nothing}."


def _paid_back(saving: TrainedSaving) -> str:
    return (
        ""
        if saving.paid_back is None
        else f" (paid back after {tokens_text(saving.paid_back)} generated tokens)"
    )


def tokens_text(tokens: float) -> str:
    """A number of tokens in three digits: "12,300", "1.25 million"."""
    if tokens >= 1e6:
        return f"{decimal(tokens / 1e6)} million"
    digits = max(0, len(str(int(tokens))) - 3)
    return f"{round(tokens, -digits):,.0f}"


def _saved_text(saving: TrainedSaving, *, short: bool = False) -> str:
    """What is saved, or that it is nothing, or nothing yet."""
    if saving.saved.value is None:
        return "open" if saving.open else "nothing"
    return percent(saving.saved.value) if short else estimate_text(saving.saved, percent)


def _paid(saving: TrainedSaving) -> str:
    """After how many tokens training is paid back."""
    if saving.paid_back is not None:
        return tokens_text(saving.paid_back)
    return "never" if saving.never else "not known"


# As columns.


def _saved_cell(saving: TrainedSaving) -> Cell:
    known = saving.saved.value is not None
    return estimated(saving.saved, percent) if known else Cell(_saved_text(saving), value=saving.saved)


def _basis_cell(saving: TrainedSaving) -> Cell:
    return Cell(NOTHING if saving.saved.value is None else saving.basis, value=saving.basis)


def _passed_cell(saving: TrainedSaving) -> Cell:
    shown = "open" if saving.open and saving.saved.value is None else PASSED[saving.passed]
    return Cell(shown, value=saving.passed)


def _credit_cell(saving: TrainedSaving) -> Cell:
    credit = saving.credit
    return Cell("not measured", value=credit) if credit.value is None else estimated(credit, times)


def _paid_cell(saving: TrainedSaving) -> Cell:
    return Cell(NOTHING if saving.saved.value is None else _paid(saving), value=saving.paid_back)


TRAININGS: Table[TrainedSaving] = Table(
    (
        *(column.over(lambda saving: saving.place) for column in PLACE),
        FLOOR.over(lambda saving: saving.floor),
        Column("Time saved", _saved_cell, percent, data=Estimate, key="saved_share_of_time", numeric=True),
        Column("Speed is", _basis_cell, data=str, key="basis"),
        Column("Floor is kept", _passed_cell, data=str, key="passed"),
        Column(
            "Saved untrained",
            lambda saving: saving.untrained,
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
            lambda saving: saving.training.seconds,
            minutes,
            data=float,
            key="training_seconds",
            numeric=True,
        ),
        Column(
            "Tokens read",
            lambda saving: saving.training.tokens,
            tokens_text,
            data=int,
            key="tokens",
            numeric=True,
        ),
        Column(
            "Rows trained",
            lambda saving: saving.training.rows,
            tokens_text,
            data=int,
            key="rows",
            numeric=True,
        ),
        *attributes(str, "training.kind"),
        Column("", lambda saving: "+".join(map(str, saving.training.exits)), data=str, key="exits"),
        *attributes(int, "training.steps"),
        *attributes(str, "policy"),
        Column("", lambda saving: saving.plain_seconds, data=float, key="plain_seconds_per_token"),
    ),
    caption="What trained exits save, and what they took",
    name="trainings",
)


# As a chart.


def saved_figure(trained: Sequence[TrainedSaving], title: str, note: str, named: Named) -> Markup:
    """Time saved, one row a place and floor, with what untrained exits save where that is known."""
    texts = distinct([saving.place.workload for saving in trained])
    plot = RowPlot(
        title=title,
        description=note,
        rows=[_row(saving, named(saving), texts.index(saving.place.workload)) for saving in trained],
        include=(0.0, 0.1),
        number=percent_tick,
        style="wide",
    )
    table: Table[TrainedSaving] = Table(
        (
            Column("Exits, text and floor", named),
            Column("Policy", lambda saving: saving.policy),
            *TRAININGS.only("Time saved", "Speed is", "Saved untrained").columns,
            Column("Paid back after tokens", _paid),
        ),
        caption=title,
        words=2,
    )
    known = {saving.basis for saving in trained if saving.saved.value is not None}
    kind: Kind = "predicted" if known == {"predicted"} else "measured"
    return drawn(plot, table.html(trained), kind=kind)


def _row(saving: TrainedSaving, name: str, colour: int) -> PlotRow:
    said, saved = f"{name}: {_saved_text(saving)}", saving.saved
    points = [Point(saved, said, colour)]
    if saving.untrained is not None:
        points.insert(
            0,
            Point(
                Estimate(saving.untrained), f"untrained: {percent(saving.untrained)}", colour=colour, shape=4
            ),
        )
    paid = "" if saving.paid_back is None else f", paid in {_paid(saving)}"
    # What nobody executed is drawn, and not said to be paid.
    shown = _saved_text(saving, short=True) + (", replayed only" if saving.passed == "replayed" else paid)
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
        lambda saving: f"{saving.place.workload} at {whole_percent(saving.floor.value)}",
    )
    return fragment("run", "training", training_sentence(run.training), answers(trained), chart)


def trained_section(comparison: Comparison) -> Markup:
    """What each training took and bought, one chart and one table; nothing without trained exits."""
    if not any(row.training is not None for row in comparison.rows):
        return Markup()
    trained = sorted(comparison.trained, key=lambda saving: floor_order(saving.floor))
    note = (
        "Of the fastest plain decoder's time, saved at each floor, with its 95 % interval; hollow: the same "
        "model untrained; 0 where nothing faster keeps the floor."
    )
    chart = saved_figure(
        trained[:MOST_DRAWN],
        "Time saved by trained exits",
        note,
        lambda saving: (
            f"{saving.place.heads} · {saving.place.workload} at {whole_percent(saving.floor.value)}"
        ),
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
    here = [saving for saving in trained if (saving.place.model, saving.place.heads) == key]
    several = len({saving.place.machine for saving in here}) > 1
    return answers(here, machines=several)


def _read(rows: Sequence[Row]) -> list[str]:
    """What the exits hold beside what the own head reads of them, where both were traced."""
    return [
        f"On {row.workload}: {readings_sentence(row.card.readings)}"
        for row in rows
        if row.card.readings is not None
    ]
