"""On which machine and at which batch size it would pay, and what would have to change for it to pay."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from offramp.report.answers import answers_at_main_floor, machines_sentence
from offramp.report.basis import LOCAL, machine_name
from offramp.report.formats import duration, estimate_text, percent, times, whole_percent
from offramp.report.html import Column, cards, fragment, pill, stack, stacked, styled, table, text
from offramp.report.run_result import WorkloadResult
from offramp.report.verdict_words import reference_line
from offramp.tuning.break_even import BreakEven
from offramp.tuning.ranking import MachineAnswer


def machines_section(workload: WorkloadResult) -> Markup:
    """The matrix machine x batch at the main floor; nothing without other machines."""
    if not workload.machines:
        return Markup()
    answers = answers_at_main_floor(workload.machines)
    floor, sentence = whole_percent(answers[0].floor), machines_sentence(workload.machines)
    sources = list(dict.fromkeys((answer.machine, answer.source) for answer in answers))
    caption = f"Would the best policy at {floor} agreement pay, by machine and batch size"
    return fragment(
        "run",
        "machines",
        sentence=f"{sentence[:1].upper()}{sentence[1:]}.",
        floor=floor,
        matrix=matrix(answers, [machine for machine, _ in sources], caption),
        sources=[f"{machine_name(machine)}: {source}" for machine, source in sources],
        answers=answer_table(workload.machines),
    )


def matrix(answers: Sequence[MachineAnswer], machines: Sequence[str], caption: str) -> Markup:
    """Rows are machines, columns batch sizes."""
    batches = sorted({answer.batch for answer in answers})
    found = {(answer.machine, answer.batch): answer for answer in answers}
    rows = []
    for place, machine in enumerate(machines, 1):
        cells = [found.get((machine, batch)) for batch in batches]
        name = "This machine" if machine == LOCAL else machine
        first = min(batch for batch in batches if (machine, batch) in found)
        plain = found[machine, first].plain_seconds_per_token
        said = f"plain, batch {first}: {plain_text(plain)}"
        rows.append([fragment("run", "machine_name", name, place, said), *map(answer_cell, cells)])
    columns = [Column("Machine"), *[Column(f"batch {batch}") for batch in batches]]
    return cards(columns, {"": rows}, caption=caption, style="machines")


def plain_text(seconds: float) -> str:
    """Time of a token of plain decoding."""
    return f"{duration(seconds)} per token"


def answer_cell(answer: MachineAnswer | None) -> Markup:
    """One decision with its net speed."""
    if answer is None:
        return text("not asked")
    if answer.policy == "never":
        return stack(pill(answer.decision), "best never to exit")
    return pill(answer.decision) + styled(stacked(answer.net_speedup, times), "speed")


def agreement_text(answer: MachineAnswer) -> str:
    """Agreement with the full model, and with the untransformed one where there is another."""
    reference = reference_line(answer.reference_agreement)
    return estimate_text(answer.agreement, percent) + (f"; {reference}" if reference else "")


def answer_table(answers: Sequence[MachineAnswer]) -> Markup:
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


def break_even_section(workload: WorkloadResult) -> Markup:
    """What would have to change, by itself, for each policy asked about to pay; nothing without any."""
    if not workload.break_even:
        return Markup()
    targets = sorted({lever.target for lever in workload.break_even})
    goal = " or ".join(f"{whole_percent(target - 1)} faster" for target in targets)
    names = ("If only this changed", "Today", "Turning point", "Against today", "In words")
    by_policy: dict[str, list[list[str]]] = {}
    for lever in workload.break_even:
        by_policy.setdefault(lever.policy, []).append(lever_row(lever))
    columns = [Column(name) for name in names]
    tables = [
        cards(columns, {"": rows}, caption=f"Policy: {policy}", style="levers")
        for policy, rows in by_policy.items()
    ]
    return fragment("run", "break_even", goal, tables)


def lever_row(lever: BreakEven) -> list[str]:
    """One lever."""
    needed = "none" if lever.needed is None else duration(lever.needed)
    return [
        f"one {lever.lever}" if lever.lever in ("probe", "layer") else f"the {lever.lever}",
        duration(lever.now),
        needed,
        factor_text(lever.factor),
        lever.sentence,
    ]


def factor_text(factor: float | None) -> str:
    """The turning point against today's price."""
    if not factor:
        return "–"
    return f"1/{1 / factor:.1f} of it" if factor < 1 else f"{factor:.1f} × as much"
