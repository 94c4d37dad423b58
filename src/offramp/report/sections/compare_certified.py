"""What the tuner answered at every floor: the certified policy and its speed, or why there is none."""

from __future__ import annotations

from offramp.report.cells import decision_pill
from offramp.report.comparison_answers import NEVER, NOT_CERTIFIABLE, Answer, answers_of
from offramp.report.comparison_headline import lacking, passed_how
from offramp.report.comparison_words import distinct, floor_order, floor_shown, heads_name, machine_shown
from offramp.report.data_table import NOTHING, DataCell, DataColumn, DataTable, estimate_cell, facet_cell
from offramp.report.formats import counted, percent, times
from offramp.report.markup import bullets, element, policy_code, text
from offramp.studies.comparison.results import Comparison

COLUMNS = (
    DataColumn("model", "Model", facet="model"),
    DataColumn("workload", "Workload", facet="workload"),
    DataColumn("heads", "Exit heads", facet="heads"),
    DataColumn("machine", "Machine", facet="machine"),
    DataColumn("floor", "Floor", facet="floor"),
    DataColumn("answer", "Verdict"),
    DataColumn("speed", "Net speed", numeric=True, kind="predicted"),
    DataColumn("measured", "Net speed", numeric=True, kind="measured"),
    DataColumn("policy", "Policy, and what the tuner says"),
)


def certified_section(comparison: Comparison) -> str:
    """Every answer of the tuner; nothing if nothing was tuned."""
    answers = answers_of(comparison)
    if not answers:
        return ""
    ranked = sorted(answers, key=lambda answer: (not answer.exits, -(answer.saving.net_speedup.value or 0.0)))
    table = DataTable(
        "certified",
        "Answers of the tuner, the fastest first",
        COLUMNS,
        [_row(one) for one in ranked],
        "answer",
    )
    content = (
        element("h2", "What was held against a floor")
        + bullets(by_floor(answers), "said-list")
        + table.html()
    )
    return element(
        "section", content, id_="certified", class_="part", aria_label="What was held against a floor"
    )


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
    policy = "" if saving.policy == NEVER else policy_code(saving.policy)
    return [
        facet_cell(row.model.shown),
        facet_cell(row.workload),
        facet_cell(heads_name(row.heads)),
        facet_cell(machine_shown(saving.machine)),
        facet_cell(floor_shown(saving.floor)),
        DataCell(decision_pill(answer.decision)),
        estimate_cell(saving.net_speedup, times) if saving.certified else DataCell(NOTHING),
        DataCell(NOTHING) if measured is None else estimate_cell(measured.net_speedup, times),
        DataCell(policy + element("p", text(saving.answer)) + _missed(answer) + _how(answer)),
    ]


def _missed(answer: Answer) -> str:
    """What a policy kept of its floor when it was decoded, if less; "" else."""
    if answer.measured is None or not answer.missed:
        return ""
    kept = percent(answer.measured.agreement.value or 0.0)
    said = f"Decoded, it kept {kept} of the full model's tokens: less than the floor."
    return element("p", text(said), class_="invalid")


def _how(answer: Answer) -> str:
    """Whether a policy that passed did so by decoding."""
    return element("p", text(f"Passed: {passed_how(answer)}.")) if answer.exits else ""
