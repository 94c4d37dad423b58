"""What would have to change for early exit to pay: one lever at a time."""

from __future__ import annotations

from offramp.report.formats import duration, whole_percent
from offramp.report.markup import Column, element, kind_chip, text, wide_table
from offramp.report.run_result import WorkloadResult
from offramp.tuning.break_even import BreakEven


def break_even_section(workload: WorkloadResult) -> str:
    """The levers of every policy asked about; nothing without any."""
    if not workload.break_even:
        return ""
    targets = sorted({lever.target for lever in workload.break_even})
    goal = " or ".join(f"{whole_percent(target - 1)} faster" for target in targets)
    note = (
        "The price of one part of a decoding step at which the policy would decode "
        f"{goal} than plain decoding, everything else as it is today."
    )
    columns = [
        Column("If only this changed"),
        Column("Today"),
        Column("Turning point"),
        Column("Against today"),
        Column("In words"),
    ]
    policies = list(dict.fromkeys(lever.policy for lever in workload.break_even))
    content = ""
    for policy in policies:
        rows = [lever_row(lever) for lever in workload.break_even if lever.policy == policy]
        caption = f"Policy: {policy}"
        content += wide_table(columns, [("", rows)], caption=caption, style="levers")
    return (
        element("h3", "What would have to change for it to pay " + kind_chip("predicted"))
        + element("p", text(note), class_="note")
        + content
    )


def lever_row(lever: BreakEven) -> list[str]:
    """One lever."""
    needed = "none" if lever.needed is None else duration(lever.needed)
    return [
        text(f"one {lever.lever}" if lever.lever in ("probe", "layer") else f"the {lever.lever}"),
        text(duration(lever.now)),
        text(needed),
        text(factor_text(lever.factor)),
        text(lever.sentence),
    ]


def factor_text(factor: float | None) -> str:
    """The turning point against today's price."""
    if not factor:
        return "–"
    return f"1/{1 / factor:.1f} of it" if factor < 1 else f"{factor:.1f} × as much"
