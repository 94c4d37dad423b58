"""Decoded for real: ways to decode ranked, predicted beside measured, where a prediction was wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from markupsafe import Markup

from offramp.kit.numbers import shown_size
from offramp.policies.figures import PLAIN_DECODING
from offramp.policies.short_names import short_name
from offramp.report.drawing import SERIES_COUNT, Key, drawn, legend
from offramp.report.formats import (
    counted,
    decimal,
    duration,
    estimate_text,
    milliseconds,
    percent,
    plain_tick,
    times,
    whole_percent,
)
from offramp.report.html import bullets, fragment
from offramp.report.plots import Bar, PlotRow, Point, RowPlot, Track
from offramp.report.run_result import Decoded, RunResult, WorkloadResult
from offramp.report.table import NOTHING, Cell, Column, Shown, Table, pairs
from offramp.report.timing import (
    DECISIONS,
    Way,
    circumstances_text,
    contender_answer,
    counts_sentence,
    error_sentence,
    part_name,
    ways_of,
    with_interval,
)
from offramp.scoring.estimate import Estimate
from offramp.studies.work.decode import DecodedChoice
from offramp.timing.results import BenchResult, Contender, Forecast


def ranking_table(decoded: Decoded, workload: WorkloadResult | None) -> Markup:
    """Every way to decode that was timed, by speed; what is not shown to keep its floor comes last."""
    ways = [one for one in ways_of(decoded, workload) if one.timed is not None]
    bench = decoded.bench
    sample = f"{counted(bench.prompts, 'prompt')} of {counted(bench.new_tokens, 'new token')}"
    caption = f"Every way timed on {decoded.workload}, {sample}, the fastest first"
    return timed_table(bench).html(sorted(ways, key=lambda way: way.misses), caption=caption)


def timed_table(bench: BenchResult) -> Table[Way]:
    """Ways to decode that took turns in a measurement, those that miss their floor apart."""
    return Table(
        (
            Column("Way to decode", _way_cell),
            Column("Over plain decoding", lambda way: _net_speed(way, bench), kind="measured"),
            Column(
                "Time per token",
                lambda way: with_interval(way.timed.seconds_per_token if way.timed else None, milliseconds),
                kind="measured",
            ),
            Column("Layers run per token", _layers, lambda layers: decimal(layers, 1)),
            Column("Kept, certified documents", _judged_cell, kind="executed"),
            Column(
                "Kept, timed prompts", lambda way: with_interval(way.on_prompts, percent), kind="executed"
            ),
        ),
        groups=Column("", lambda way: MISSED if way.misses else ""),
        style="decoded",
    )


MISSED = "Not shown to keep the floor it was chosen for"


def _way_cell(way: Way) -> Cell:
    if way.policy is None:
        return Cell(way.name)
    floor = "" if way.floor is None else f", for {whole_percent(way.floor)}"
    kv = "" if way.kv is None else f" · {way.kv}"
    return Cell(f"{way.name}{kv}{floor}", code=str(way.policy))


def _net_speed(way: Way, bench: BenchResult) -> Cell:
    """The ratio to plain decoding with its interval, and its answer."""
    timed = way.timed
    if timed is None or timed.ratio is None:
        return Cell(NOTHING)
    if timed.name == bench.plain:
        return Cell(times(1.0), below="what the others are held against")
    return with_interval(timed.ratio, times, contender_answer(timed, bench.worth))


def _layers(way: Way) -> float | None:
    return None if way.timed is None else _layers_of(way.timed)


def _judged_cell(way: Way) -> Cell:
    judged = way.judged
    if judged is None:
        return Cell(NOTHING)
    held = "not certified" if judged.certified is None else f"certified ≥ {whole_percent(judged.certified)}"
    return Cell(estimate_text(judged.kept, percent), below=(counted(judged.documents, "document"), held))


def contenders_table(worth: float, plain: str) -> Table[Contender]:
    """Everything that took turns. worth: the gain that matters, as a share. plain: what is held against."""
    return Table(
        (
            Column("Contender", lambda contender: contender.name),
            Column("Role", lambda contender: contender.role),
            Column("Time per token", _time_cell),
            Column(f"Speed over {plain}", _timed(lambda timed: with_interval(timed.ratio, times))),
            Column("Answer", _timed(lambda timed: contender_answer(timed, worth))),
            Column("First token", _timed(lambda timed: timed.first_token_seconds), duration),
            Column(
                "Tokens a second", _timed(lambda timed: timed.tokens_per_second), partial(decimal, digits=1)
            ),
            Column("Peak memory", _timed(lambda timed: timed.peak_memory_bytes), shown_size),
            Column("Layers ran / said", _timed(_layers_text)),
            Column(
                "Heads per token",
                _timed(lambda timed: timed.counted.heads if timed.counted else None),
                decimal,
            ),
            Column("Same output", _timed(lambda timed: timed.same_output), partial(percent, digits=0)),
            Column("Agreement", _timed(lambda timed: with_interval(timed.executed_agreement, percent))),
        ),
        caption="Everything that took turns",
        words=2,
    )


SPEED = ("Contender", "Time per token", "Speed over", "Answer")
COUNTS = ("Contender", "Layers ran / said", "Same output", "Agreement")
RATES = ("Contender", "Tokens a second", "First token", "Peak memory")
"""Columns of contenders that fit beside each other on a terminal."""


def _is_left_out(contender: Contender) -> bool:
    return contender.left_out is not None or contender.seconds_per_token is None


def _timed(of: Callable[[Contender], Shown]) -> Callable[[Contender], Shown]:
    """A figure of what was timed; nothing of what was left out."""
    return lambda contender: Cell() if _is_left_out(contender) else of(contender)


def _time_cell(contender: Contender) -> Cell:
    if _is_left_out(contender):
        return Cell(f"left out: {contender.left_out or 'no reason recorded'}")
    return with_interval(contender.seconds_per_token, duration)


def _layers_of(contender: Contender) -> float | None:
    """Layers that ran for a token: counted, else as the decoder says."""
    return contender.layers_per_token if contender.counted is None else contender.counted.layers


def _layers_text(contender: Contender) -> str | None:
    """Layers of a token that ran, and those that the decoder says it ran."""
    ran, said = contender.layers_per_token, contender.claimed_layers_per_token
    if ran is None:
        return None
    return decimal(ran, 1) + ("" if said is None else f" / {decimal(said, 1)}")


CIRCUMSTANCES = pairs("Circumstances", "Circumstance", "Value")


def circumstances_table(circumstances: Mapping[str, Any]) -> Markup:
    """The machine, the versions, the fingerprints."""
    return CIRCUMSTANCES.html((name.replace("_", " "), shown(value)) for name, value in circumstances.items())


def shown(value: object) -> str:
    """A circumstance as text; nested ones as name and value."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {shown(item)}" for name, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(shown(item) for item in value)
    return "none" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


COLOURS = {"layers": 0, "probes": 1, "heads": 2, "K,V repair": 3, "overhead": 5}
ELSEWHERE = "exits taken elsewhere than on the trace"
ELSEWHERE_COLOUR = 4


def decoded_section(run: RunResult) -> Markup:
    """Every measurement of the run; what was not decoded says why. Nothing if decoding was not tried yet."""
    if not run.decoding and not run.not_decoded:
        return Markup()
    by_name = {workload.name: workload for workload in run.workloads}
    workloads = [workload_block(one, by_name.get(one.workload)) for one in run.decoding]
    # The caveats above have them with their texts; here each stands once.
    defects = list(dict.fromkeys(defect for decoded in run.decoding for defect in decoded.bench.defects))
    reasons = [f"{name} was not decoded: {why}." for name, why in run.not_decoded.items()]
    return fragment("run", "decoded", introduction(run), defects, workloads, reasons)


def introduction(run: RunResult) -> str:
    """What was done, and what the words mean."""
    if not run.decoding:
        return "Nothing was decoded with layers skipped, so every speed on this page is a prediction."
    count = sum(len(decoded.policies) for decoded in run.decoding)
    said = "One policy generated text here, and the layers that it skipped were not executed. "
    if count > 1:
        said = f"{count} policies generated text here, and the layers that they skipped were not executed. "
    return said + (
        "All contenders of a text took turns on the same prompts: whole ones, or "
        "starts of documents, that neither fitting nor tuning saw, where there are any. The prediction was "
        "made from the trace and from a hardware profile that was measured before and has timed no policy."
    )


def workload_block(decoded: Decoded, workload: WorkloadResult | None = None) -> dict[str, Any]:
    """One workload: the answer in a word, every way to decode, predictions beside it, circumstances."""
    bench = decoded.bench
    return {
        "name": decoded.workload,
        "badge": contender_answer(bench.main, bench.worth),
        "style": DECISIONS[bench.answer],
        "said": sentences(decoded),
        "ranking": ranking_table(decoded, workload),
        "left_out": left_out(decoded),
        "figures": beside_figure(decoded) + error_figure(decoded),
        "circumstances": circumstances_text(bench),
        "around": bullets(bench.notes, "note") + circumstances_table(bench.circumstances),
    }


def left_out(decoded: Decoded) -> list[str]:
    """Ways that were to take part and did not, with the reason; that a measurement has a defect."""
    lines = [
        f"Not timed: {short_name(contender.name)}: {contender.left_out}."
        for contender in decoded.bench.contenders
        if contender.left_out is not None
    ]
    return [*lines, *([] if decoded.sound else ["This measurement has a defect; it changes no verdict."])]


def sentences(decoded: Decoded) -> list[str]:
    """The chosen policy's prediction held against the stopwatch, whether predictions count here, and how
    likely its text is."""
    lines = []
    main = decoded.main
    if main is not None and main.forecast is not None:
        lines.append(f"The chosen policy: {error_sentence(main.forecast)}")
    verdict = decoded.prediction_counts
    if verdict is not None:
        lines.append(counts_sentence(verdict))
    if main is not None and main.free_running is not None:
        written, own = main.free_running.nll.value, main.free_running.plain_nll.value
        lines.append(
            f"To the full model a token that the policy writes has {decimal(written, 2)} nats, and "
            f"one of its own {decimal(own, 2)}."
        )
    return lines


def beside_figure(decoded: Decoded) -> Markup:
    """Predicted beside measured seconds per token, with plain decoding as the reference."""
    plain = decoded.plain_seconds
    exiting = [policy for policy in decoded.policies if policy.policy != PLAIN_DECODING]
    shown = [(policy, policy.forecast) for policy in exiting if policy.forecast is not None]
    if plain is None or not shown:
        return Markup()
    plot = beside_plot(shown, 1000 * plain)
    return drawn(plot, BESIDE.html(shown))


Forecasted = tuple[DecodedChoice, Forecast]
"""A policy that was decoded, with what was predicted of it."""

BESIDE: Table[Forecasted] = Table(
    (
        Column("Policy", lambda row: label_of(row[0])),
        Column("Predicted", lambda row: row[1].predicted, milliseconds),
        Column("Measured", lambda row: milliseconds(row[1].measured.value)),
        Column("Layers skipped, predicted", lambda row: row[1].predicted_skip, percent),
        Column("measured", lambda row: percent(row[1].measured_skip)),
        Column("Replayed agreement", lambda row: row[1].predicted_agreement, percent),
    ),
    caption="Predicted and measured, per token",
    words=1,
)


def label_of(policy: DecodedChoice) -> str:
    """A decoded policy as the label of a row: what it is, and how keys and values are repaired."""
    return f"{short_name(policy.policy)} · {policy.kv}"


def beside_plot(shown: Sequence[Forecasted], plain: float) -> RowPlot:
    """A row a policy in milliseconds per token; left of plain decoding's is faster."""
    return RowPlot(
        title="Predicted beside measured",
        description="Disc and band: measured time per new token with its 95 % interval. Diamond: predicted "
        "before. In the tinted part a policy is faster than the fastest plain decoder of this measurement.",
        rows=[beside_row(label_of(policy), forecast) for policy, forecast in shown],
        rule=(plain, f"plain decoding {decimal(plain, 1)} ms"),
        better="left",
        unit="ms per token",
        number="{:g}".format,
        ticks=6,
        style="wide",
    )


def beside_row(name: str, forecast: Forecast) -> PlotRow:
    """The way from the prediction to the measurement, in milliseconds per token."""
    measured, predicted = forecast.measured.scaled(1000), forecast.predicted
    words = milliseconds(forecast.measured.value)
    said = f"{name}, measured: {decimal(measured.value)} ms"
    points = [Point(measured, said)]
    if predicted is not None:
        said = f"{name}, predicted: {decimal(1000 * predicted)} ms"
        points.append(Point(Estimate(1000 * predicted), said, colour=1, shape=3))
        words = f"{words}, predicted {decimal(1000 * predicted, 1)}"
    return PlotRow(name, (Track(tuple(points)),), words)


@dataclass(frozen=True)
class PartOfTime:
    """A part of a policy's time per token, in seconds: as predicted and as it came out."""

    policy: DecodedChoice
    name: str
    predicted: float
    measured: float
    colour: int

    @property
    def error(self) -> float:
        """Milliseconds by which it was predicted too dear."""
        return 1000 * (self.predicted - self.measured)


def parts_of(policy: DecodedChoice, forecast: Forecast) -> list[PartOfTime]:
    """Every part that was timed; last what exits elsewhere than on the trace change."""
    parts = [
        PartOfTime(
            policy,
            part_name(part.part),
            part.priced,
            part.measured,
            # One that a plug-in names gets a colour too.
            COLOURS.get(part.part, len(part.part) % SERIES_COUNT),
        )
        for part in forecast.parts
    ]
    if forecast.predicted is not None and forecast.trace_error is not None:
        parts.append(PartOfTime(policy, ELSEWHERE, forecast.predicted, forecast.priced, ELSEWHERE_COLOUR))
    return parts


ERRORS: Table[PartOfTime] = Table(
    (
        Column("Policy", lambda part: label_of(part.policy)),
        Column("Part", lambda part: part.name),
        Column("Predicted", lambda part: milliseconds(part.predicted)),
        Column("Measured", lambda part: milliseconds(part.measured)),
        Column("Error", lambda part: f"{decimal(part.error)} ms"),
    ),
    caption="Time per token by part, priced and measured; last, by the exits of the trace and by the "
    "policy's own",
    words=2,
)


def error_figure(decoded: Decoded) -> Markup:
    """Error by part for every policy whose parts were timed; nothing without any."""
    shown = [(p, p.forecast) for p in decoded.policies if p.forecast is not None and p.forecast.parts]
    if not shown:
        return Markup()
    parts = [part for policy, forecast in shown for part in parts_of(policy, forecast)]
    keys = dict.fromkeys((part.name, part.colour) for part in parts if part.error)
    patches = legend([Key(name, colour, None) for name, colour in keys])
    return drawn(error_plot(shown), ERRORS.html(parts), legend=patches)


def error_plot(shown: Sequence[Forecasted]) -> RowPlot:
    """A row a policy, in milliseconds per token: too dear to the right, too cheap to the left."""
    return RowPlot(
        title="Where the prediction was wrong",
        description="Right of the dashed line a part was predicted too dear, left of it too cheap. Parts are "
        "timed by a stopwatch within the loop, in a run apart, given the exits that were taken; the diamond "
        "is the whole error, so parts and whole need not add up exactly.",
        rows=[error_row(policy, forecast) for policy, forecast in shown],
        rule=(0.0, "predicted rightly"),
        unit="predicted less measured, ms per token",
        number=plain_tick,
        ticks=6,
        style="wide",
    )


def error_row(policy: DecodedChoice, forecast: Forecast) -> PlotRow:
    """One policy's parts as bars around nothing, and a diamond for its whole error."""
    name = label_of(policy)
    bars, below, above = [], 0.0, 0.0
    for part in parts_of(policy, forecast):
        start = above if part.error > 0 else below
        above, below = (above + part.error, below) if part.error > 0 else (above, below + part.error)
        bars.append(Bar(start, start + part.error, f"{part.name}: {decimal(part.error)} ms", part.colour))
    if forecast.predicted is None:
        return PlotRow(name, (Track(bars=tuple(bars)),), "no prediction")
    total = 1000 * (forecast.predicted - forecast.measured.value)
    whole = Point(Estimate(total), f"{name}, whole error: {decimal(total)} ms", colour=None, shape=3)
    return PlotRow(name, (Track((whole,), tuple(bars)),), f"{'+' if total > 0 else ''}{decimal(total)} ms")
