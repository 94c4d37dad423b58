"""Accelerations together: what each brings alone and with others, what to use, and the page that shows it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from offramp.defaults import FEWEST_PROMPTS
from offramp.files import write_text_atomically
from offramp.report.drawing import Key, drawn, legend
from offramp.report.formats import (
    counted,
    decimal,
    estimate_text,
    interval_text,
    limits_of,
    listed,
    milliseconds,
    percent,
    timed_text,
    whole_percent,
)
from offramp.report.html import fragment, policy_code, text
from offramp.report.plots import PlotRow, Point, RowPlot, Track
from offramp.report.sections.decoded import circumstances_table, contenders_table
from offramp.report.table import NOTHING, Cell, Column, Table
from offramp.report.timing import circumstances_text, contender_answer, with_interval
from offramp.scoring.estimate import Estimate
from offramp.studies.comparison.results import Comparison
from offramp.timing.results import PLAIN_NAME, Combination, CombineResult, Effect, prompts_short

CHANGE = 0.06
"""How far an interval may reach from 1 for a part that changes nothing."""

EFFECTS: dict[Effect | None, str] = {
    "get in each other's way": "In each other's way",
    "multiply": "They multiply",
    "help each other": "They help each other",
    None: "Not known well enough to say",
}


def advice(result: CombineResult) -> str:
    """What to use, in one sentence, from intervals and the floor of quality; that nothing pays is an answer.

    Of what is surely faster than plain decoding and keeps the floor, the fastest is taken, and every part
    that does not surely add to the others is left out of it.
    """
    if result.defects:
        return f"No advice: this measurement has a defect: {result.defects[0]}."
    if prompts_short(result.prompts) is not None:
        return (
            f"Inconclusive: {counted(result.prompts, 'prompt')} timed, and advice needs {FEWEST_PROMPTS}. "
            f"Next: give more --seconds, and --prompts {FEWEST_PROMPTS} or more."
        )
    timed = [
        combination
        for combination in result.combinations
        if combination.parts and combination.speedup is not None
    ]
    if not timed:
        return "No advice: none of these accelerations could be timed on this model."
    faster = [combination for combination in timed if surely_above(combination.speedup)]
    if not faster:
        best = max(timed, key=speed)
        return (
            f"Use plain decoding: nothing is surely faster, and the best of it, {best.name}, comes to "
            f"{times_plain(best.speedup)}."
        )
    good = [combination for combination in faster if keeps(combination, result.floor)]
    if not good:
        best = max(faster, key=lambda combination: kept_share(combination).value)
        return (
            f"Use plain decoding: everything that is faster changes the answers, and {best.name} "
            f"({times_plain(best.speedup)}), which changes them least, chooses {of_the_tokens(best)}, where "
            f"{whole_percent(result.floor)} were asked for."
        )
    best = _without_idle_parts(result, max(good, key=speed), good)
    return f"Use {_name(best)}, {times_plain(best.speedup)} at {of_the_tokens(best)}{_why(result, best)}."


def effect_sentences(result: CombineResult) -> list[str]:
    """What the interactions say, one sentence for each effect that there is, with its combinations.

    Nothing of a measurement with a defect, or of too few prompts for an answer.
    """
    sentences: list[str] = []
    if result.defects or prompts_short(result.prompts) is not None:
        return sentences
    for effect, words in EFFECTS.items():
        names = [
            f"{combination.name} ({_bracketed(combination.interaction)})"
            for combination in result.combinations
            if combination.interaction is not None and combination.effect == effect
        ]
        if names:
            sentences.append(f"{words}: {listed(names)} of the product of the single gains.")
    return sentences


def credit_sentences(result: CombineResult) -> list[str]:
    """What exits add, a sentence for each combination with them; nothing of what gives no advice."""
    if result.defects or prompts_short(result.prompts) is not None:
        return []
    return [
        f"What exits add in {name}: {timed_text(credit.estimate, decimal)} × the speed of "
        f"{credit.over}, the fastest without exits whose own tokens keep {whole_percent(result.floor)} "
        "agreement."
        for name, credit in result.credits.items()
    ]


def times_plain(speedup: Estimate[float] | None) -> str:
    """A speedup over plain decoding: "1.52 × (1.48 to 1.55)"."""
    if speedup is None:
        return "–"
    limits = limits_of(speedup, decimal)
    return f"{decimal(speedup.value)} ×{f' ({limits})' if limits else ''}"


def interval(ratio: Estimate[float] | None) -> str:
    """A ratio: "0.97 (0.95 to 0.99)", "–" without one."""
    return "–" if ratio is None else timed_text(ratio, decimal)


def of_the_tokens(combination: Combination) -> str:
    """ "97.8 % (96.9 to 98.5 %) of the full model's tokens"; of how few answers, without an interval."""
    share = kept_share(combination)
    of = f"{estimate_text(share, percent)} of the full model's tokens"
    assert combination.quality is not None  # or there was no share
    answers = counted(combination.quality.free_running.prompts, "answer")
    known = share.low is not None or combination.name == PLAIN_NAME
    return of if known else f"{of} ({answers}, too few for an interval)"


def kept_share(combination: Combination) -> Estimate[float]:
    """Share of the untransformed model's own tokens that it chooses too; none if that was not judged."""
    return Estimate(0.0) if combination.quality is None else combination.quality.forced_agreement


def keeps(combination: Combination, floor: float) -> bool:
    """Whether it chooses so many of the full model's tokens, by the lower limit where there is one."""
    share = kept_share(combination)
    return (share.value if share.low is None else share.low) >= floor


def surely_above(ratio: Estimate[float] | None, line: float = 1.0) -> bool:
    """Whether the whole interval lies above."""
    return ratio is not None and ratio.low is not None and ratio.low > line


def surely_below(ratio: Estimate[float] | None, line: float = 1.0) -> bool:
    """Whether the whole interval lies below."""
    return ratio is not None and ratio.high is not None and ratio.high < line


def speed(combination: Combination) -> float:
    """The speedup's value."""
    return 0.0 if combination.speedup is None else combination.speedup.value


def _without_idle_parts(result: CombineResult, best: Combination, good: list[Combination]) -> Combination:
    """The combination less the parts that do not surely add to the others, the idlest first."""
    for added in sorted(best.on_top, key=lambda added: added.speedup.value):
        rest = result.combination(*(part for part in best.parts if part != added.part))
        if not surely_above(added.speedup) and rest in good:
            assert rest is not None  # it is in the list
            return _without_idle_parts(result, rest, good)
    return best


def _name(combination: Combination) -> str:
    return f"{combination.name} alone" if len(combination.parts) == 1 else f"{combination.name} together"


def _why(result: CombineResult, best: Combination) -> str:
    """How the parts go together, and what further ones would do."""
    said = []
    if best.interaction is not None:
        effect = f"they {best.effect}" if best.effect else "whether they multiply is not known well enough"
        said.append(f"{effect} ({_bracketed(best.interaction)} of the product of their gains)")
    for name in result.accelerations:
        more = result.combination(*best.parts, name)
        added = next((one.speedup for one in more.on_top if one.part == name), None) if more else None
        if name not in best.parts and more is not None and added is not None:
            said.append(f"{name} on top {_effect_on_top(name, more, added, result.floor)}")
    return f": {', '.join(said)}" if said else ""


def _bracketed(ratio: Estimate[float] | None) -> str:
    """A ratio within brackets: "0.97, 0.95 to 0.99"."""
    return interval(ratio).replace(" (", ", ").removesuffix(")")


def _effect_on_top(name: str, more: Combination, added: Estimate[float], floor: float) -> str:
    plural = name.endswith("s")
    if surely_below(added):
        return f"{'cost' if plural else 'costs'} time ({_bracketed(added)})"
    if not surely_above(added):
        narrow = surely_below(added, 1.0 + CHANGE) and surely_above(added, 1.0 - CHANGE)
        verb = "change" if plural else "changes"
        return f"{verb} nothing{'' if narrow else ' that can be told'} ({_bracketed(added)})"
    if not keeps(more, floor):
        kept = percent(kept_share(more).value)
        return f"would add speed ({_bracketed(added)}) and keep only {kept} of the tokens"
    return f"{'add' if plural else 'adds'} little ({_bracketed(added)})"


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
    parts = [measurement(result) | {"name": place_of(result)} for result in comparison.combined]
    return fragment("combined", "section", INTRODUCTION, parts, "part")


INTRODUCTION = (
    "Early exit beside quantisation, pruning and speculation, each alone and together, timed in turns on the "
    "same prompts. The product is what single gains would come to if none touched another."
)


def place_of(result: CombineResult) -> str:
    """Where accelerations were measured together: "smollm2 on prose"."""
    return f"{result.model} on {result.workload or 'the prompts'}"


def measurement(result: CombineResult) -> dict[str, Any]:
    """One model on one workload: what to use, the plot, speed and quality, all that took turns."""
    apart = [f"Not combined: {sentence}." for sentence in result.excluded]
    apart += [f"{note[:1].upper()}{note[1:]}." for note in result.notes]
    everyone = [
        *result.others,
        *(combination.contender for combination in result.combinations if combination.parts),
    ]
    return {
        "name": f"On {result.workload or 'the prompts'}",
        "defects": result.defects,
        "advice": advice(result),
        "said": [*credit_sentences(result), *effect_sentences(result)],
        "figure": speed_figure(result),
        "combinations": combinations_table(result).html(
            sorted(result.combinations, key=lambda combination: len(combination.parts))
        ),
        "apart": apart,
        "circumstances": f"{circumstances_text(result)} Plain decoding is {result.plain}.",
        "contenders": contenders_table(result.worth, result.plain).html(everyone)
        + circumstances_table(result.circumstances),
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
        product_row(combination.name, row_text(combination), combination.speedup, combination.product)
        for combination in result.combinations
        if combination.parts and combination.speedup is not None
    ]
    if not rows:
        return Markup()
    plot = product_plot(rows)
    data = PRODUCTS.html(
        (combination for combination in result.combinations if combination.parts), caption=plot.title
    )
    keys = legend([Key("measured", 0), Key("product of the single gains", 1, 3)])
    return drawn(plot, data, legend=keys)


PRODUCTS: Table[Combination] = Table(
    (
        Column("Combination", lambda combination: combination.name),
        Column("Measured", lambda combination: interval(combination.speedup)),
        Column("Product", lambda combination: interval(combination.product)),
        Column("Of the product", lambda combination: interval(combination.interaction)),
    ),
    words=1,
)


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


def product_row(name: str, words: str, measured: Estimate[float], product: Estimate[float] | None) -> PlotRow:
    """Measured speed above the product of the single gains, which a single part has none of."""

    def track(speed: Estimate[float], what: str, colour: int, shape: int) -> Track:
        said = f"{name}, {what}: {decimal(speed.value)} ×"
        return Track((Point(speed, said, colour, shape),))

    tracks = [track(measured, "measured", 0, 0)]
    if product is not None:
        tracks.append(track(product, "product of single gains", 1, 3))
    return PlotRow(name, tuple(tracks), words)


def row_text(combination: Combination) -> str:
    """ "1.52 ×, product 1.61"."""
    measured = times_plain(combination.speedup).partition(" (")[0]
    return (
        measured
        if combination.product is None
        else f"{measured}, product {decimal(combination.product.value)}"
    )


BY_SIZE = {0: "Plain decoding", 1: "Alone"}
"""What combinations of so many parts are called; of more, "2 together"."""


def combinations_table(result: CombineResult) -> Table[Combination]:
    """Speed and quality of every combination, the plain decoder first."""
    return Table(
        (
            Column("Combination", _combination_cell),
            Column(
                "Time per token",
                lambda combination: with_interval(_seconds(combination), milliseconds),
                kind="measured",
            ),
            Column("Net speed", lambda combination: _speed_cell(combination, result.worth), kind="measured"),
            Column(
                "Of the product",
                lambda combination: with_interval(combination.interaction, decimal),
                kind="measured",
            ),
            Column("Agreement, full model's text", _agreement_cell, kind="measured"),
            Column(
                "Equal before it differs",
                lambda combination: (
                    None
                    if combination.quality is None
                    else estimate_text(combination.quality.shared, percent)
                ),
                kind="measured",
            ),
            Column(
                "Same answers",
                lambda combination: (
                    None
                    if combination.quality is None
                    else percent(combination.quality.free_running.sequence_match.value, 0)
                ),
                kind="measured",
            ),
            Column("NLL of its text", _nll_cell, kind="measured"),
        ),
        caption=f"Every combination on {counted(result.prompts, 'prompt')}; quality against the "
        "untransformed full model's greedy answers",
        groups=Column(
            "", lambda combination: BY_SIZE.get(len(combination.parts), f"{len(combination.parts)} together")
        ),
        style="decoded",
    )


SPEED = ("Combination", "Time per token", "Net speed")
TOGETHER = ("Combination", "Product", "Of the product")
QUALITY = ("Combination", "Agreement", "Equal", "Same answers", "NLL")
"""Columns that fit beside each other on a terminal."""


def _combination_cell(combination: Combination) -> Cell:
    codes = [policy_code(name) for name in (*combination.transforms, combination.policy) if name]
    return Cell(combination.name, html=text(combination.name) + Markup().join(codes))


def _is_timed(combination: Combination) -> bool:
    return combination.contender.seconds_per_token is not None and combination.speedup is not None


def _seconds(combination: Combination) -> Estimate[float] | None:
    return combination.contender.seconds_per_token if _is_timed(combination) else None


def _speed_cell(combination: Combination, worth: float) -> Cell:
    """Its speed and what that answers, or why it was not timed. worth: the gain that matters, as a share."""
    speed = combination.speedup
    if speed is None or not _is_timed(combination):
        return Cell(f"not timed: {combination.contender.left_out or 'no reason recorded'}")
    limits = interval_text(speed.low, speed.high)
    return Cell(f"{decimal(speed.value)} ×", below=(limits, contender_answer(combination.contender, worth)))


def _agreement_cell(combination: Combination) -> Cell:
    return with_interval(None if combination.quality is None else kept_share(combination), percent)


def _nll_cell(combination: Combination) -> Cell:
    if combination.quality is None:
        return Cell(NOTHING)
    nll = combination.quality.free_running.nll
    return Cell(decimal(nll.value, 3), below=interval_text(nll.low, nll.high))
