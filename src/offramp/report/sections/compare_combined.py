"""Accelerations together: for every model and workload what to use, and what each adds."""

from __future__ import annotations

from offramp.decoding.measurement.combined import CombineResult
from offramp.records.typed import from_json
from offramp.report.combined_words import advice, effect_sentences
from offramp.report.markup import bullets, disclosure, element, kind_chip, text
from offramp.report.sections.combined import (
    TITLE,
    circumstances,
    combination_table,
    contender_tables,
    speed_figure,
)
from offramp.studies.comparison.results import Comparison


def combined_section(comparison: Comparison) -> str:
    """Every measurement of combinations; nothing without one."""
    if not comparison.combined:
        return ""
    results = [from_json(CombineResult, value) for value in comparison.combined]
    content = (
        element("h2", f"{TITLE} " + kind_chip("measured"))
        + element("p", text(INTRODUCTION), class_="note")
        + "".join(measurement(result) for result in results)
    )
    return element("section", content, id_="combined", class_="part", aria_label=TITLE)


INTRODUCTION = (
    "Early exit beside quantisation, pruning and speculation, each alone and together, timed in turns on the "
    "same prompts. The product is what single gains would come to if none touched another."
)


def measurement(result: CombineResult) -> str:
    """One model on one workload: what to use, the chart, and the rest on request."""
    badge = element("span", "DEFECT", class_="decision does-not-pay") if result.defects else ""
    return (
        element("h3", text(f"{result.model} on {result.workload or 'the prompts'} ") + badge)
        + bullets(result.defects, "note reasons")
        + element("p", text(advice(result)), class_="answer")
        + bullets(effect_sentences(result), "said-list")
        + element("div", speed_figure(result), class_="beside decoded-charts")
        + disclosure("Speed and quality of every combination", combination_table(result))
        + element("p", text(circumstances(result)), class_="note")
        + disclosure("All contenders, and the machine's circumstances", contender_tables(result))
    )
