"""One policy's replay in words: the facts that a terminal and a notebook show, and the notebook's page."""

from __future__ import annotations

import itertools
from dataclasses import replace

from markupsafe import Markup

from offramp.policies.cost_breakdown import CostBreakdown, Line
from offramp.policies.replay import ReplayResult
from offramp.report.formats import counted, decimal, duration, gain_text, percent, times
from offramp.report.html import fragment, policy_code
from offramp.report.passage import left_figure
from offramp.report.table import Column, Table, pairs

ORACLE = "This is an oracle, at 100 % agreement: it looks at what no decoder knows before it decides."
LEAVE = "tokens leave"


def replay_facts(result: ReplayResult) -> dict[str, str]:
    """Every figure of a replay, by what it is."""
    shares = [
        f"{percent(count / result.tokens)} at exit {layer}" for layer, count in result.tokens_by_exit.items()
    ]
    reference = result.reference_agreement
    facts = {
        LEAVE: ", ".join(shares),
        "agreement with the full model": percent(result.agreement),
        **({} if reference is None else {"agreement with the original one": percent(reference)}),
        "layers skipped": percent(result.skip_ratio),
        "K and V of skipped layers": result.kv,
        f"predicted speed ({result.basis})": times(result.predicted_speedup),
        "saved of plain decoding": gain_text(result.gain),
        "predicted speed (FLOPs)": times(result.predicted_speedup_flops),
        "speed if probes were free": times(result.speedup_without_probes),
        "probes' share of the cost": percent(result.probe_share),
        "probes per token": decimal(result.probes_per_token),
        "NLL increase": f"{decimal(result.nll_increase, 4)} nats",
        "KL to the full model": f"{decimal(result.kl, 4)} nats",
    }
    if result.seconds_per_token is not None and result.plain_seconds_per_token is not None:
        facts["predicted time per token"] = (
            f"{duration(result.seconds_per_token)}, full model {duration(result.plain_seconds_per_token)}"
        )
    return facts


FACTS = pairs("The replay in figures", "Figure", "Value")


def charges(breakdown: CostBreakdown) -> list[Line]:
    """The lines that cost something; their sum is the total. Layers that run equally often, each at a price
    of its own, are one line with the mean of their prices; so are exits that are asked equally often."""
    alike = itertools.groupby(
        (line for line in breakdown.lines if line.total),
        key=lambda line: (line.part, line.probe, line.rows, line.count),
    )
    return [_together(list(lines)) for _, lines in alike]


def _together(lines: list[Line]) -> Line:
    first, count = lines[0], sum(line.count for line in lines)
    if len(lines) == 1:
        return first
    places = tuple(place for line in lines for place in line.places)
    return replace(first, places=places, count=count, price=sum(line.total for line in lines) / count)


def charges_table(breakdown: CostBreakdown) -> Table[Line]:
    """What a policy is charged, line by line."""
    unit = breakdown.unit

    def share(line: Line) -> str:
        return percent(line.total / breakdown.plain)

    return Table(
        (
            Column("What", lambda line: f"{line.part}, {line.probe}" if line.probe else line.part),
            Column("Where", lambda line: line.where),
            Column("Rows", lambda line: line.rows),
            Column("Times", lambda line: f"{line.count:,}"),
            Column("Each", lambda line: amount(line.price, unit)),
            Column("Sum", lambda line: amount(line.total, unit)),
            Column("Of the full model's cost", share, on="page"),
        ),
        caption=f"What the policy is charged, in {unit}",
        words=2,
    )


def total_text(breakdown: CostBreakdown) -> str:
    """The sum of what is charged beside what the full model costs."""
    total, plain = (amount(value, breakdown.unit) for value in (breakdown.total, breakdown.plain))
    return f"{total} in all, the full model {plain}: a speed of {times(breakdown.speedup)}"


COUNTED = {"bytes": "B", "flops": "FLOP"}
PREFIXES = (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3), ("", 1.0))


def amount(value: float, unit: str) -> str:
    """Bytes, FLOPs or seconds in the unit that suits their size, three digits: "56.6 MB", "6.1 µs"."""
    if unit == "seconds":
        return duration(value)
    prefix, scale = next(((name, size) for name, size in PREFIXES if value >= 0.9995 * size), PREFIXES[-1])
    shown = value / scale
    digits = 0 if shown >= 99.95 or not prefix else 1 if shown >= 9.995 else 2
    return f"{decimal(shown, digits)} {prefix}{COUNTED[unit]}"


def replay_section(result: ReplayResult) -> Markup:
    """A replay as a part of a page: its figures, where tokens leave, what is charged, and its notes."""
    tokens = counted(result.tokens, "token")
    note = f"{tokens} of the trace by the layer after which the policy lets them leave."
    facts = {name: value for name, value in replay_facts(result).items() if name != LEAVE}  # those are drawn
    return fragment(
        "notebook",
        "replay",
        policy=policy_code(str(result.policy)),
        over=f"{tokens}, batch {result.batch}{f' in {result.batching}' if result.batch > 1 else ''}",
        facts=FACTS.html(facts.items()),
        leave=left_figure(result.exits, layers_of(result), note, "replayed"),
        charged=charges_table(result.breakdown).html(charges(result.breakdown)),
        notes=[*([] if result.reachable else [ORACLE]), *result.notes],
    )


def layers_of(result: ReplayResult) -> int:
    """L: the last layer that the full model is charged for."""
    return max(place for line in result.breakdown.plain_lines for place in line.places)
