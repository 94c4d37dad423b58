"""What the tuner answered at every floor: the certified policy and its speed, or why there is none."""

from __future__ import annotations

from markupsafe import Markup

from offramp.report.comparison_answers import NEVER, NOT_CERTIFIABLE, Answer, answers_of
from offramp.report.comparison_headline import lacking, passed_how
from offramp.report.comparison_words import distinct, floor_order, floor_shown, machine_shown
from offramp.report.data_table import (
    NOTHING,
    PLACE_COLUMNS,
    DataCell,
    DataColumn,
    DataTable,
    estimate_cell,
    facet_cell,
    place_cells,
)
from offramp.report.formats import counted, percent, times
from offramp.report.html import fragment, paragraph, pill, policy_code
from offramp.studies.comparison.results import Comparison

COLUMNS = (
    *PLACE_COLUMNS,
    DataColumn("machine", "Machine", facet="machine"),
    DataColumn("floor", "Floor", facet="floor"),
    DataColumn("answer", "Verdict"),
    DataColumn("speed", "Net speed", numeric=True, kind="predicted"),
    DataColumn("measured", "Net speed", numeric=True, kind="measured"),
    DataColumn("policy", "Policy, and what the tuner says"),
)


def certified_section(comparison: Comparison) -> Markup:
    """Every answer of the tuner; nothing if nothing was tuned."""
    answers = answers_of(comparison)
    if not answers:
        return Markup()
    ranked = sorted(answers, key=lambda answer: (not answer.exits, -(answer.saving.net_speedup.value or 0.0)))
    caption = "Answers of the tuner, the fastest first"
    found = DataTable("certified", caption, COLUMNS, [_row(one) for one in ranked], "answer")
    return fragment("comparison", "certified", by_floor(answers), found.html())


def by_floor(answers: list[Answer]) -> list[str]:
    """How many answers at each floor exit, pay, or are not certifiable, and why."""
    said = []
    for floor in sorted(distinct([answer.saving.floor for answer in answers]), key=floor_order):
        here = [answer for answer in answers if answer.saving.floor == floor]
        exits = sum(answer.exits for answer in here)
        pays = sum(answer.decision == "pays" for answer in here)
        unknown = [answer for answer in here if answer.decision == NOT_CERTIFIABLE]
        tail = f" {len(unknown)} not certifiable: {lacking(unknown)}." if unknown else ""
        has = (
            f"{exits} of {counted(len(here), 'answer')} {'is' if exits == 1 else 'are'} a policy that exits "
            f"early, and {pays or 'none'} of these surely {'pays' if pays == 1 else 'pay'}."
            if exits
            else f"no policy that exits early passed, in {counted(len(here), 'answer')}."
        )
        said.append(f"{floor_shown(floor)}: {has}{tail}")
    return said


def _row(answer: Answer) -> list[DataCell]:
    row, saving, measured = answer.row, answer.saving, answer.measured
    policy = Markup() if saving.policy == NEVER else policy_code(saving.policy)
    return [
        *place_cells(row.model.shown, row.workload, row.heads),
        facet_cell(machine_shown(saving.machine)),
        facet_cell(floor_shown(saving.floor)),
        DataCell(pill(answer.decision)),
        estimate_cell(saving.net_speedup, times) if saving.certified else DataCell(NOTHING),
        DataCell(NOTHING) if measured is None else estimate_cell(measured.net_speedup, times),
        DataCell(policy + paragraph(saving.answer) + _missed(answer) + _how(answer)),
    ]


def _missed(answer: Answer) -> Markup:
    """What a policy kept of its floor when it was decoded, if less."""
    if answer.measured is None or not answer.missed:
        return Markup()
    kept = percent(answer.measured.agreement.value or 0.0)
    said = f"Decoded, it kept {kept} of the full model's tokens: less than the floor."
    return paragraph(said, "invalid")


def _how(answer: Answer) -> Markup:
    """Whether a policy that passed did so by decoding."""
    return paragraph(f"Passed: {passed_how(answer)}.") if answer.exits else Markup()
