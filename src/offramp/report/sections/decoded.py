"""Decoded for real: predicted beside measured, and where the prediction was wrong."""

from __future__ import annotations

from collections.abc import Sequence

from offramp.decoding.bench.results import Forecast
from offramp.report.decoded import Decoded, DecodedPolicy
from offramp.report.forecasts import counts_sentence, error_sentence, prediction_verdict, short_name
from offramp.report.formats import counted, decimal, interval_text, milliseconds, moment
from offramp.report.markup import bullets, disclosure, element, figure, kind_chip, table, text
from offramp.report.plot.rows import Point, Row, RowPlot, Track
from offramp.report.run_result import RunResult
from offramp.report.sections.decoded_tables import contender_tables, policy_table
from offramp.report.sections.error_parts import error_figure
from offramp.report.timing_words import (
    DECISIONS,
    contender_answer,
    ratio_text,
    stopped_text,
    twins_text,
)


def decoded_section(run: RunResult) -> str:
    """Every measurement of the run; what was not decoded says why. Nothing if decoding was not tried yet."""
    if not run.decoding and not run.not_decoded:
        return ""
    chips = f"{kind_chip('measured')} {kind_chip('predicted')} {kind_chip('replayed')}"
    content = element("h2", "Decoded for real " + chips) + element(
        "p", text(introduction(run)), class_="note"
    )
    content += "".join(workload_block(decoded) for decoded in run.decoding)
    reasons = [f"{name} was not decoded: {why}." for name, why in run.not_decoded.items()]
    content += "".join(element("p", text(why), class_="reason") for why in reasons)
    return element("section", content, id_="decoded", aria_label="Decoded for real")


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


def workload_block(decoded: Decoded) -> str:
    """One workload: the answer, in a word and in words, chart, table, error by part, contenders."""
    bench = decoded.bench
    answer = contender_answer(bench.main, bench.worth)
    badge = element("span", text(answer), class_=f"decision {DECISIONS[bench.answer]}")
    heading = element("h3", text(f"On {decoded.workload} ") + badge)
    figures = element("div", beside_figure(decoded) + error_figure(decoded), class_="beside decoded-charts")
    return (
        heading
        + bullets(bench.defects, "note reasons")
        + element("p", text(answer_of(decoded)), class_="answer")
        + element("ul", "".join(element("li", text(line)) for line in sentences(decoded)), class_="said-list")
        + figures
        + policy_table(decoded)
        + element("p", text(circumstances(decoded)), class_="note")
        + disclosure("All contenders, and the machine's circumstances", contender_tables(decoded))
    )


def answer_of(decoded: Decoded) -> str:
    """The chosen policy's measured speed, in one sentence."""
    chosen, plain = decoded.chosen, decoded.plain_seconds
    if chosen is None or plain is None:
        return "No policy was chosen for this text."
    timed = decoded.timed(chosen)
    if timed.seconds_per_token is None or timed.ratio is None:
        return f"The policy chosen for this text was not timed: {timed.left_out or 'no reason recorded'}."
    sentence = (
        f"{chosen.why[:1].upper()}{chosen.why[1:]}: {milliseconds(timed.seconds_per_token.value)} per token "
        f"where plain decoding ({decoded.bench.plain}) took {milliseconds(plain)}, a net speed of "
        f"{ratio_text(timed.ratio)}: {contender_answer(timed, decoded.bench.worth)}."
    )
    if not decoded.sound:
        sentence += " This measurement has a defect; it changes no verdict."
    return sentence


def sentences(decoded: Decoded) -> list[str]:
    """The chosen policy's prediction held against the stopwatch, and whether predictions count here."""
    found = []
    chosen = decoded.chosen
    if chosen is not None and chosen.forecast is not None:
        found.append(f"The chosen policy: {error_sentence(chosen.forecast)}")
    verdict = prediction_verdict(decoded)
    if verdict is not None:
        found.append(counts_sentence(verdict))
    return found


def beside_figure(decoded: Decoded) -> str:
    """Predicted beside measured seconds per token, with plain decoding as the reference."""
    plain = decoded.plain_seconds
    shown = [(p, p.forecast) for p in decoded.policies if p.forecast is not None]
    if plain is None or not shown:
        return ""
    plot = beside_plot(shown, 1000 * plain)
    data = table(
        ["Policy", "K,V", "Predicted", "Measured", "95 % interval", "Plain decoding"],
        [
            [
                policy.policy,
                policy.kv,
                "none" if forecast.predicted is None else milliseconds(forecast.predicted),
                milliseconds(forecast.measured.value),
                interval_text(forecast.measured.low, forecast.measured.high, milliseconds) or "none",
                milliseconds(forecast.fastest_plain),
            ]
            for policy, forecast in shown
        ],
        caption="Predicted and measured time per token",
        numeric_from=2,
    )
    return figure(plot.title, plot.description, plot.svg(), data)


def beside_plot(shown: Sequence[tuple[DecodedPolicy, Forecast]], plain: float) -> RowPlot:
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


def beside_row(policy: DecodedPolicy, forecast: Forecast) -> Row:
    """The way from the prediction to the measurement, in milliseconds per token."""
    name, measured = short_name(policy), forecast.measured
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
        f"{twins_text(bench.a_a)}."
    )
