"""Beside other accelerations: what each brings alone and together, at what quality, and what to use."""

from __future__ import annotations

from collections.abc import Sequence

from offramp.decoding.bench.combined import Combination, CombineResult
from offramp.decoding.bench.results import Interval
from offramp.report.combined_words import (
    advice,
    effect_sentences,
    interval,
    kept_share,
    shared_text,
    times_plain,
)
from offramp.report.formats import counted, decimal, interval_text, milliseconds, moment, percent
from offramp.report.markup import (
    Column,
    bullets,
    disclosure,
    element,
    figure,
    kind_chip,
    policy_code,
    small,
    table,
    text,
    wide_table,
)
from offramp.report.plot.drawing import Key, legend
from offramp.report.plot.rows import Point, RowPlot, Track
from offramp.report.plot.rows import Row as PlotRow
from offramp.report.sections.decoded_tables import circumstances_table, contender_rows_table
from offramp.report.timing_words import contender_answer, stopped_text, twins_text

TITLE = "Beside other accelerations"


def combined_section(result: CombineResult | None) -> str:
    """One measurement of combinations; nothing without one."""
    if result is None:
        return ""
    badge = element("span", "DEFECT", class_="decision does-not-pay") if result.defects else ""
    content = (
        element("h2", f"{TITLE} " + kind_chip("measured"))
        + element("p", text(introduction(result)), class_="note")
        + element("h3", text(f"On {result.workload or 'the prompts'} ") + badge)
        + bullets(result.defects, "note reasons")
        + element("p", text(advice(result)), class_="answer")
        + bullets(effect_sentences(result), "said-list")
        + element("div", speed_figure(result), class_="beside decoded-charts")
        + combination_table(result)
        + _apart(result)
        + element("p", text(circumstances(result)), class_="note")
        + disclosure("All contenders, and the machine's circumstances", contender_tables(result))
    )
    return element("section", content, id_="combined", aria_label=TITLE)


def introduction(result: CombineResult) -> str:
    """What was done, and how to read it."""
    names = ", ".join(result.accelerations.values())
    return (
        f"{result.model} was decoded with each of {names}, alone and together with the others, all in turns "
        "on the same prompts. The product is what the single gains would come to if none touched another; "
        "below it they get in each other's way. Quality is held against the untransformed full model's own "
        "greedy answers."
    )


def speed_figure(result: CombineResult) -> str:
    """Measured speed beside the product of the single gains."""
    rows = [
        product_row(one.name, row_text(one), one.speedup, one.product)
        for one in result.combinations
        if one.parts and one.speedup is not None
    ]
    if not rows:
        return ""
    plot = product_plot(rows)
    data = table(
        ["Combination", "Measured", "Product", "Of the product"],
        [
            [one.name, interval(one.speedup), interval(one.product), interval(one.interaction)]
            for one in result.combinations
            if one.parts
        ],
        caption=plot.title,
    )
    keys = legend([Key("measured", 0), Key("product of the single gains", 1, 3)])
    return figure(plot.title, plot.description, plot.svg(), data, legend=keys)


def product_plot(rows: Sequence[PlotRow]) -> RowPlot:
    """The rows on one axis of speed; right of 1 is faster than plain decoding."""
    note = (
        "Disc: measured speed over plain decoding of the untransformed model, with its 95 % interval. "
        "Diamond: the product of the parts' single gains. The tinted part is faster than plain decoding."
    )
    return RowPlot(
        title="Measured beside the product of the single gains",
        description=note,
        rows=rows,
        rule=(1.0, "plain decoding"),
        better="right",
        unit="× the speed of plain decoding",
        number="{:g}".format,
        ticks=6,
        style="wide",
    )


def product_row(name: str, words: str, measured: Interval, product: Interval | None) -> PlotRow:
    """Measured speed above the product of the single gains, which a single part has none of."""

    def track(found: Interval, what: str, colour: int, shape: int) -> Track:
        said = f"{name}, {what}: {decimal(found.value)} ×"
        return Track((Point(found.value, said, found.low, found.high, colour, shape),))

    tracks = [track(measured, "measured", 0, 0)]
    if product is not None:
        tracks.append(track(product, "product of single gains", 1, 3))
    return PlotRow(name, tuple(tracks), words)


def row_text(one: Combination) -> str:
    """ "1.52 ×, product 1.61"."""
    measured = times_plain(one.speedup).partition(" (")[0]
    return measured if one.product is None else f"{measured}, product {decimal(one.product.value)}"


def combination_table(result: CombineResult) -> str:
    """Speed and quality of every combination, the plain decoder first."""
    columns = [
        Column("Combination"),
        Column("Time per token", "measured"),
        Column("Net speed", "measured"),
        Column("Of the product", "measured"),
        Column("Agreement, full model's text", "measured"),
        Column("Equal before it differs", "measured"),
        Column("Same answers", "measured"),
        Column("NLL of its text", "measured"),
    ]
    by_size: dict[int, list[list[str]]] = {}
    for one in result.combinations:
        by_size.setdefault(len(one.parts), []).append(combination_row(one, result.worth))
    names = {0: "Plain decoding", 1: "Alone"}
    groups = [(names.get(size, f"{size} together"), rows) for size, rows in sorted(by_size.items())]
    caption = (
        f"Every combination on {counted(result.prompts, 'prompt')}; quality against the untransformed full "
        "model's greedy answers"
    )
    return wide_table(columns, groups, caption=caption, style="decoded")


def combination_row(one: Combination, worth: float) -> list[str]:
    """One combination. worth: the gain that matters, as a share."""
    head = text(one.name) + "".join(policy_code(name) for name in (*one.transforms, one.policy) if name)
    seconds, quality = one.contender.seconds_per_token, one.quality
    if seconds is None or one.speedup is None:
        return [head, *["–"] * 6, text(f"not timed: {one.contender.left_out or 'no reason recorded'}")]
    cells = [
        text(milliseconds(seconds.value)) + small(interval_text(seconds.low, seconds.high, milliseconds)),
        text(f"{decimal(one.speedup.value)} ×")
        + small(interval_text(one.speedup.low, one.speedup.high))
        + small(contender_answer(one.contender, worth)),
        "–"
        if one.interaction is None
        else text(decimal(one.interaction.value))
        + small(interval_text(one.interaction.low, one.interaction.high)),
    ]
    if quality is None:
        return [head, *cells, *["–"] * 4]
    share, answers = kept_share(one), quality.free_running
    return [
        head,
        *cells,
        text(percent(share.value)) + small(interval_text(share.low, share.high, percent)),
        text(shared_text(quality)),
        text(percent(answers.sequence_match.value, 0)),
        text(decimal(answers.nll.value, 3)) + small(interval_text(answers.nll.low, answers.nll.high)),
    ]


def _apart(result: CombineResult) -> str:
    """What is not combined, and notes."""
    lines = [f"Not combined: {sentence}." for sentence in result.excluded]
    lines += [f"{note[:1].upper()}{note[1:]}." for note in result.notes]
    return bullets(lines, "note")


def contender_tables(result: CombineResult) -> str:
    """Every contender as a row, and the circumstances."""
    everyone = [*result.others, *(one.contender for one in result.combinations if one.parts)]
    return contender_rows_table(everyone, "Everything that took turns", result.worth) + circumstances_table(
        result.circumstances
    )


def circumstances(result: CombineResult) -> str:
    """What was run, when, and how equal the plain decoder came out to itself."""
    return (
        f"Measured {moment(result.circumstances['date'])}: {counted(result.prompts, 'prompt')}, "
        f"{result.new_tokens} new tokens, {counted(result.rounds, 'round')}, in turns of a few tokens; "
        f"{stopped_text(result.stopped, result.seconds_spent)}. The plain decoder against itself came out at "
        f"{twins_text(result.a_a)}. Plain decoding is {result.plain}."
    )
