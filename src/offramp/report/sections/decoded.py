"""Decoded for real: ways to decode ranked, predicted beside measured, where a prediction was wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from offramp.decoding.measurement.results import BenchResult, Contender, Forecast
from offramp.policies.short_names import short_name
from offramp.report.formats import (
    NumberFormat,
    counted,
    decimal,
    duration,
    interval_text,
    milliseconds,
    moment,
    percent,
    plain_tick,
    times,
    whole_percent,
)
from offramp.report.html import Column, bullets, cards, figure, fragment, stack, table, text
from offramp.report.plot.drawing import SERIES_COUNT, Key, legend
from offramp.report.plot.rows import Bar, Point, Row, RowPlot, Track
from offramp.report.run_result import Decoded, RunResult, WorkloadResult
from offramp.report.timing import (
    DECISIONS,
    a_a_text,
    contender_answer,
    counts_sentence,
    error_sentence,
    limits_of,
    part_name,
    share_text,
    stopped_text,
)
from offramp.report.ways import Way, sample_text, ways_of
from offramp.scoring.estimate import Estimate
from offramp.studies.work.decode import DecodedChoice
from offramp.tuning.verdict import NEVER

COLUMNS = (
    Column("Way to decode"),
    Column("Over plain decoding", "measured"),
    Column("Time per token", "measured"),
    Column("Layers run per token"),
    Column("Kept, certified documents", "executed"),
    Column("Kept, timed prompts", "executed"),
)


def ranking_table(decoded: Decoded, workload: WorkloadResult | None) -> Markup:
    """Every way to decode that was timed, by speed; what is not shown to keep its floor comes last."""
    kept: list[list[str]] = []
    missed: list[list[str]] = []
    for one in ways_of(decoded, workload):
        if one.timed is not None:
            (missed if one.misses else kept).append(way_row(one, one.timed, decoded.bench))
    groups = {"": kept, "Not shown to keep the floor it was chosen for": missed}
    caption = f"Every way timed on {decoded.workload}, {sample_text(decoded)}, the fastest first"
    return cards(COLUMNS, groups, caption=caption, style="decoded")


def way_row(one: Way, timed: Contender, bench: BenchResult) -> list[str]:
    """One way to decode."""
    seconds, count = timed.seconds_per_token, timed.counted
    layers = timed.layers_per_token if count is None else count.layers
    judged = "–"
    if one.judged is not None:
        found = one.judged
        held = "not certified" if found.certified is None else f"certified ≥ {whole_percent(found.certified)}"
        judged = stack(share_text(found.kept), counted(found.documents, "document"), held)
    head = text(one.name)
    if one.policy is not None:
        floor = "" if one.floor is None else f", for {whole_percent(one.floor)}"
        kv = "" if one.kv is None else f" · {one.kv}"
        head = fragment("run", "policy", f"{one.name}{kv}{floor}", one.policy)
    return [
        head,
        net_speed(timed, bench.worth, bench.plain),
        "–" if seconds is None else with_interval(seconds, milliseconds),
        "–" if layers is None else decimal(layers, 1),
        judged,
        "–" if one.on_prompts is None else with_interval(one.on_prompts, percent),
    ]


def net_speed(timed: Contender, worth: float, plain: str) -> Markup:
    """The ratio to plain decoding with its interval, and its answer. plain: what all are held against."""
    if timed.ratio is None:
        return text("–")
    if timed.name == plain:
        return stack(times(1.0), "what the others are held against")
    return stack(with_interval(timed.ratio, times), contender_answer(timed, worth))


def with_interval(interval: Estimate[float], number: NumberFormat) -> Markup:
    """A figure with its interval below it."""
    return stack(number(interval.value), limits_of(interval, number))


def contender_rows_table(contenders: Sequence[Contender], caption: str, worth: float) -> Markup:
    """Contenders as rows. worth: the gain that matters, as a share."""
    header = [
        "Contender",
        "Role",
        "ms per token",
        "Net speed",
        "Answer",
        "First token",
        "Layers per token",
        "Heads per token",
        "Same output",
    ]
    return table(header, [contender_row(one, worth) for one in contenders], caption=caption, numeric_from=2)


def circumstances_table(circumstances: Mapping[str, Any]) -> Markup:
    """The machine, the versions, the fingerprints."""
    values = [[name.replace("_", " "), shown(value)] for name, value in circumstances.items()]
    return table(["Circumstance", "Value"], values, caption="Circumstances", numeric_from=9)


def contender_row(contender: Contender, worth: float) -> list[str]:
    """One contender."""
    if contender.left_out is not None or contender.seconds_per_token is None:
        return [
            contender.name,
            contender.role,
            f"left out: {contender.left_out or 'no reason recorded'}",
            *[""] * 6,
        ]
    seconds, first = contender.seconds_per_token, contender.first_token_seconds
    limits = interval_text(seconds.low, seconds.high, lambda value: decimal(1000 * value, 1))
    count = contender.counted
    layers = contender.layers_per_token if count is None else count.layers
    return [
        contender.name,
        contender.role,
        decimal(1000 * seconds.value, 2) + (f" ({limits})" if limits else ""),
        "–" if contender.ratio is None else times(contender.ratio.value),
        contender_answer(contender, worth),
        "–" if first is None else duration(first),
        "–" if layers is None else decimal(layers, 2),
        "–" if count is None else decimal(count.heads, 2),
        "–" if contender.same_output is None else percent(contender.same_output, 0),
    ]


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
    return (
        f"{'One policy' if count == 1 else f'{count} policies'} generated text here, and the layers they "
        "skipped were not executed. All contenders of a text took turns on the same prompts: whole ones, or "
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
        "circumstances": circumstances(decoded),
        "around": bullets(bench.notes, "note") + circumstances_table(bench.circumstances),
    }


def left_out(decoded: Decoded) -> list[str]:
    """Ways that were to take part and did not, with the reason; that a measurement has a defect."""
    found = [
        f"Not timed: {short_name(one.name)}: {one.left_out}."
        for one in decoded.bench.contenders
        if one.left_out is not None
    ]
    return [*found, *([] if decoded.sound else ["This measurement has a defect; it changes no verdict."])]


def sentences(decoded: Decoded) -> list[str]:
    """The chosen policy's prediction held against the stopwatch, and whether predictions count here."""
    found = []
    chosen = decoded.chosen
    if chosen is not None and chosen.forecast is not None:
        found.append(f"The chosen policy: {error_sentence(chosen.forecast)}")
    verdict = decoded.prediction_counts
    if verdict is not None:
        found.append(counts_sentence(verdict))
    return found


def beside_figure(decoded: Decoded) -> Markup:
    """Predicted beside measured seconds per token, with plain decoding as the reference."""
    plain = decoded.plain_seconds
    shown = [(p, p.forecast) for p in decoded.policies if p.forecast is not None and p.policy != NEVER]
    if plain is None or not shown:
        return Markup()
    plot = beside_plot(shown, 1000 * plain)
    data = table(
        ["Policy", "Predicted", "Measured", "Layers skipped, predicted", "measured", "Replayed agreement"],
        [
            [
                label_of(policy),
                "none" if forecast.predicted is None else milliseconds(forecast.predicted),
                milliseconds(forecast.measured.value),
                "none" if forecast.predicted_skip is None else percent(forecast.predicted_skip),
                percent(forecast.measured_skip),
                "none" if forecast.predicted_agreement is None else percent(forecast.predicted_agreement),
            ]
            for policy, forecast in shown
        ],
        caption="Predicted and measured, per token",
    )
    return figure(plot.title, plot.description, plot.svg(), data)


def label_of(policy: DecodedChoice) -> str:
    """A decoded policy as the label of a row: what it is, and how keys and values are repaired."""
    return f"{short_name(policy.policy)} · {policy.kv}"


def beside_plot(shown: Sequence[tuple[DecodedChoice, Forecast]], plain: float) -> RowPlot:
    """A row a policy in milliseconds per token; left of plain decoding's is faster."""
    note = (
        "Disc and band: measured time per new token with its 95 % interval. Diamond: predicted before. In "
        "the tinted part a policy is faster than the fastest plain decoder of this measurement."
    )
    return RowPlot(
        title="Predicted beside measured",
        description=note,
        rows=[beside_row(policy, forecast) for policy, forecast in shown],
        rule=(plain, f"plain decoding {decimal(plain, 1)} ms"),
        better="left",
        unit="ms per token",
        number="{:g}".format,
        ticks=6,
        style="wide",
    )


def beside_row(policy: DecodedChoice, forecast: Forecast) -> Row:
    """The way from the prediction to the measurement, in milliseconds per token."""
    name, measured = label_of(policy), forecast.measured
    low, high = (None if end is None else 1000 * end for end in (measured.low, measured.high))
    said = f"{name}, measured: {decimal(1000 * measured.value, 2)} ms"
    points = [Point(1000 * measured.value, said, low, high)]
    if forecast.predicted is not None:
        said = f"{name}, predicted: {decimal(1000 * forecast.predicted, 2)} ms"
        points.append(Point(1000 * forecast.predicted, said, colour=1, shape=3))
    return Row(name, (Track(tuple(points)),), beside_text(forecast))


def beside_text(forecast: Forecast) -> str:
    """ "61.4 ms, predicted 60.1"."""
    measured = milliseconds(forecast.measured.value)
    if forecast.predicted is None:
        return measured
    return f"{measured}, predicted {decimal(1000 * forecast.predicted, 1)}"


def circumstances(decoded: Decoded) -> str:
    """What was run, when, and how equal the plain decoder came out to itself."""
    bench = decoded.bench
    return (
        f"Measured {moment(decoded.measured_on)}: {counted(bench.prompts, 'prompt')}, {bench.new_tokens} "
        f"new tokens, {counted(bench.rounds, 'round')}, in turns of a few tokens; "
        f"{stopped_text(bench.stopped, bench.seconds_spent)}. The plain decoder against itself came out at "
        f"{a_a_text(bench.a_a)}."
    )


def error_figure(decoded: Decoded) -> Markup:
    """Error by part for every policy whose parts were timed; nothing without any."""
    shown = [(p, p.forecast) for p in decoded.policies if p.forecast is not None and p.forecast.parts]
    if not shown:
        return Markup()
    plot = error_plot(shown)
    keys = {
        name: colour for policy, forecast in shown for name, error, colour in error_parts(forecast) if error
    }
    patches = legend([Key(name, colour, None) for name, colour in keys.items()])
    return figure(plot.title, plot.description, plot.svg(), error_table(shown), legend=patches)


def error_plot(shown: list[tuple[DecodedChoice, Forecast]]) -> RowPlot:
    """A row a policy, in milliseconds per token: too dear to the right, too cheap to the left."""
    note = (
        "Right of the dashed line a part was predicted too dear, left of it too cheap. Parts are timed "
        "by a stopwatch within the loop, in a run apart, given the exits that were taken; the diamond is the "
        "whole error, so parts and whole need not add up exactly."
    )
    return RowPlot(
        title="Where the prediction was wrong",
        description=note,
        rows=[error_row(policy, forecast) for policy, forecast in shown],
        rule=(0.0, "predicted rightly"),
        unit="predicted less measured, ms per token",
        number=plain_tick,
        ticks=6,
        style="wide",
    )


def error_row(policy: DecodedChoice, forecast: Forecast) -> Row:
    """One policy's parts as bars around nothing, and a diamond for its whole error."""
    name = label_of(policy)
    bars, below, above = [], 0.0, 0.0
    for part, error, colour in error_parts(forecast):
        start = above if error > 0 else below
        above, below = (above + error, below) if error > 0 else (above, below + error)
        bars.append(Bar(start, start + error, f"{part}: {decimal(error, 2)} ms", colour))
    if forecast.predicted is None:
        return Row(name, (Track(bars=tuple(bars)),), "no prediction")
    total = 1000 * (forecast.predicted - forecast.measured.value)
    whole = Point(total, f"{name}, whole error: {decimal(total, 2)} ms", colour=None, shape=3)
    words = f"{'+' if total > 0 else ''}{decimal(total, 2)} ms"
    return Row(name, (Track((whole,), tuple(bars)),), words)


def error_parts(forecast: Forecast) -> list[tuple[str, float, int]]:
    """Name, error in milliseconds per token (predicted less measured) and colour of every part."""
    parts = [
        (part_name(part.part), 1000 * (part.priced - part.measured), colour_of(part.part))
        for part in forecast.parts
    ]
    if forecast.trace_error is not None:
        parts.append((ELSEWHERE, 1000 * forecast.trace_error, ELSEWHERE_COLOUR))
    return parts


def colour_of(part: str) -> int:
    """The colour of a part; a part that a plug-in names gets one too."""
    return COLOURS.get(part, len(part) % SERIES_COUNT)


def error_table(shown: list[tuple[DecodedChoice, Forecast]]) -> Markup:
    """Every part of every policy: priced beside measured."""
    rows = []
    for policy, forecast in shown:
        name = label_of(policy)
        for part in forecast.parts:
            error = f"{decimal(1000 * (part.priced - part.measured), 2)} ms"
            cells = [milliseconds(part.priced), milliseconds(part.measured), error]
            rows.append([name, part_name(part.part), *cells])
        if forecast.predicted is not None and forecast.trace_error is not None:
            moved = f"{decimal(1000 * forecast.trace_error, 2)} ms"
            cells = [milliseconds(forecast.predicted), milliseconds(forecast.priced), moved]
            rows.append([name, ELSEWHERE, *cells])
    header = ["Policy", "Part", "Predicted", "Measured", "Error"]
    caption = (
        "Time per token by part, priced and measured; last, by the exits of the trace and by the policy's own"
    )
    return table(header, rows, caption=caption, numeric_from=2)
