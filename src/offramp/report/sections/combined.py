"""Beside other accelerations: what each brings alone and together, at what quality, and what to use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from offramp.decoding.measurement.combined import Combination, CombineResult
from offramp.decoding.measurement.results import Interval
from offramp.files import write_text_atomically
from offramp.records.typed import from_json
from offramp.report.combined_words import (
    advice,
    effect_sentences,
    interval,
    kept_share,
    shared_text,
    times_plain,
)
from offramp.report.formats import counted, decimal, interval_text, milliseconds, moment, percent
from offramp.report.html import Column, cards, figure, fragment, policy_code, stack, table, text
from offramp.report.plot.drawing import Key, legend
from offramp.report.plot.rows import Point, RowPlot, Track
from offramp.report.plot.rows import Row as PlotRow
from offramp.report.sections.decoded_tables import circumstances_table, contender_rows_table, with_interval
from offramp.report.timing_words import contender_answer, stopped_text, twins_text
from offramp.studies.comparison.results import Comparison


def combined_section(result: CombineResult | None) -> Markup:
    """One measurement of combinations; nothing without one."""
    if result is None:
        return Markup()
    names = ", ".join(result.accelerations.values())
    introduction = (
        f"{result.model} was decoded with each of {names}, alone and together with the others, all in turns "
        "on the same prompts. The product is what the single gains would come to if none touched another; "
        "below it they get in each other's way. Quality is held against the untransformed full model's own "
        "greedy answers."
    )
    return fragment("combined", "section", introduction, [measurement(result)])


def combined_sections(comparison: Comparison) -> Markup:
    """Every measurement of combinations of a comparison, the long tables on request; nothing without one."""
    if not comparison.combined:
        return Markup()
    results = [from_json(CombineResult, value) for value in comparison.combined]
    found = [measurement(result) | {"name": _place(result)} for result in results]
    return fragment("combined", "section", INTRODUCTION, found, "part")


INTRODUCTION = (
    "Early exit beside quantisation, pruning and speculation, each alone and together, timed in turns on the "
    "same prompts. The product is what single gains would come to if none touched another."
)


def _place(result: CombineResult) -> str:
    return f"{result.model} on {result.workload or 'the prompts'}"


def measurement(result: CombineResult) -> dict[str, Any]:
    """One model on one workload: what to use, the plot, speed and quality, all that took turns."""
    apart = [f"Not combined: {sentence}." for sentence in result.excluded]
    apart += [f"{note[:1].upper()}{note[1:]}." for note in result.notes]
    return {
        "name": f"On {result.workload or 'the prompts'}",
        "defects": result.defects,
        "advice": advice(result),
        "said": effect_sentences(result),
        "figure": speed_figure(result),
        "combinations": combination_table(result),
        "apart": apart,
        "circumstances": circumstances(result),
        "contenders": contender_tables(result),
    }


def write_combined_page(result: CombineResult, path: Path) -> Path:
    """Write a page of its own in one step and return its path. Raises OfframpError if the disk is full."""
    write_text_atomically(path, render_combined(result))
    return path


def render_combined(result: CombineResult) -> str:
    """The page as HTML; the same result gives the same bytes."""
    return fragment("combined", "page", f"Do the gains add up on {result.model}?", combined_section(result))


def speed_figure(result: CombineResult) -> Markup:
    """Measured speed beside the product of the single gains."""
    rows = [
        product_row(one.name, row_text(one), one.speedup, one.product)
        for one in result.combinations
        if one.parts and one.speedup is not None
    ]
    if not rows:
        return Markup()
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


def combination_table(result: CombineResult) -> Markup:
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
    groups = {names.get(size, f"{size} together"): rows for size, rows in sorted(by_size.items())}
    caption = (
        f"Every combination on {counted(result.prompts, 'prompt')}; quality against the untransformed full "
        "model's greedy answers"
    )
    return cards(columns, groups, caption=caption, style="decoded")


def combination_row(one: Combination, worth: float) -> list[str]:
    """One combination. worth: the gain that matters, as a share."""
    codes = [policy_code(name) for name in (*one.transforms, one.policy) if name]
    head = text(one.name) + Markup().join(codes)
    seconds, quality = one.contender.seconds_per_token, one.quality
    if seconds is None or one.speedup is None:
        return [head, *["–"] * 6, f"not timed: {one.contender.left_out or 'no reason recorded'}"]
    cells = [
        with_interval(seconds, milliseconds),
        stack(
            f"{decimal(one.speedup.value)} ×",
            interval_text(one.speedup.low, one.speedup.high),
            contender_answer(one.contender, worth),
        ),
        "–" if one.interaction is None else with_interval(one.interaction, decimal),
    ]
    if quality is None:
        return [head, *cells, *["–"] * 4]
    share, answers = kept_share(one), quality.free_running
    return [
        head,
        *cells,
        with_interval(share, percent),
        shared_text(quality),
        percent(answers.sequence_match.value, 0),
        stack(decimal(answers.nll.value, 3), interval_text(answers.nll.low, answers.nll.high)),
    ]


def contender_tables(result: CombineResult) -> Markup:
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
