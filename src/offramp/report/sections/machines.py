"""Machines side by side: on which, and at which batch size, it would pay."""

from __future__ import annotations

from collections.abc import Sequence

from offramp.report.answers import answers_at_main_floor, machines_sentence
from offramp.report.basis import LOCAL, machine_name
from offramp.report.cells import decision_pill, stacked
from offramp.report.formats import duration, estimate_text, percent, times, whole_percent
from offramp.report.markup import Column, disclosure, element, kind_chip, small, table, text, wide_table
from offramp.report.run_result import WorkloadResult
from offramp.report.untransformed import reference_line
from offramp.tuning.results import MachineAnswer


def machines_section(workload: WorkloadResult) -> str:
    """The matrix machine x batch at the main floor; nothing without other machines."""
    if not workload.machines:
        return ""
    answers = answers_at_main_floor(workload.machines)
    floor = whole_percent(answers[0].floor)
    sentence = machines_sentence(workload.machines)
    sources = list(dict.fromkeys((answer.machine, answer.source) for answer in answers))
    caption = f"Would the best policy at {floor} agreement pay, by machine and batch size"
    note = (
        f"On each machine and batch size the policy is searched anew at {floor} agreement and judged on "
        "documents that the search did not see. In a batch, a step stops early only when all its "
        "sequences may (lockstep)."
    )
    return (
        element("h3", "On which machine it would pay " + kind_chip("predicted"))
        + element("p", text(sentence[:1].upper() + sentence[1:] + "."), class_="answer")
        + element("p", text(note), class_="note")
        + matrix(answers, [machine for machine, _ in sources], caption)
        + element(
            "ol", "".join(element("li", text(f"{machine_name(m)}: {s}")) for m, s in sources), class_="note"
        )
        + disclosure("All floors and policies as a table", answer_table(workload.machines))
    )


def matrix(answers: Sequence[MachineAnswer], machines: Sequence[str], caption: str) -> str:
    """Rows are machines, columns batch sizes."""
    batches = sorted({answer.batch for answer in answers})
    found = {(answer.machine, answer.batch): answer for answer in answers}
    rows = []
    for place, machine in enumerate(machines, 1):
        cells = [found.get((machine, batch)) for batch in batches]
        heading = text("This machine" if machine == LOCAL else machine) + element("sup", str(place))
        first = min(batch for batch in batches if (machine, batch) in found)
        plain = found[machine, first].plain_seconds_per_token
        said = f"plain, batch {first}: {plain_text(plain)}"
        rows.append([heading + small(said), *map(answer_cell, cells)])
    columns = [Column("Machine"), *[Column(f"batch {batch}") for batch in batches]]
    return wide_table(columns, [("", rows)], caption=caption, style="machines")


def plain_text(seconds: float) -> str:
    """Time of a token of plain decoding."""
    return f"{duration(seconds)} per token"


def answer_cell(answer: MachineAnswer | None) -> str:
    """One decision with its net speed."""
    if answer is None:
        return "not asked"
    pill = decision_pill(answer.decision)
    if answer.policy == "never":
        return pill + small("best never to exit")
    return pill + element("span", stacked(answer.net_speedup, times), class_="speed")


def agreement_text(answer: MachineAnswer) -> str:
    """Agreement with the full model, and with the untransformed one where there is another."""
    reference = reference_line(answer.reference_agreement)
    return estimate_text(answer.agreement, percent) + (f"; {reference}" if reference else "")


def answer_table(answers: Sequence[MachineAnswer]) -> str:
    """Every answer as a row."""
    rows = [
        [
            machine_name(answer.machine),
            str(answer.batch),
            whole_percent(answer.floor),
            answer.decision,
            estimate_text(answer.net_speedup, times),
            agreement_text(answer),
            plain_text(answer.plain_seconds_per_token),
            answer.policy,
        ]
        for answer in answers
    ]
    header = ["Machine", "Batch", "Keep", "Verdict", "Net speed", "Agreement", "Plain decoding", "Policy"]
    return table(header, rows, caption="Every machine, batch size and floor")
