"""The tuned policy and its certificate in plain words, one card a floor, and the Pareto front."""

from __future__ import annotations

from typing import Any

import numpy as np
from markupsafe import Markup

from offramp.report.formats import (
    counted,
    estimate_text,
    gain_text,
    percent,
    percent_tick,
    times,
    whole_percent,
)
from offramp.report.html import figure, fragment, policy_code, table
from offramp.report.plot.drawing import nice_range
from offramp.report.plot.plot import Axis, Plot, Rule, Series
from offramp.report.run_result import WorkloadResult
from offramp.report.sections.verdict import ANSWER_TOKENS
from offramp.report.summary import spread
from offramp.report.verdict_words import (
    certificate_sentence,
    cost_text,
    floor_words,
    machine_name,
    method_name,
    risk_text,
    status,
)
from offramp.tuning.floor import Floor
from offramp.tuning.pricing import BYTES
from offramp.tuning.tuned import FrontPoint, Tuned

STATUS_STYLES = {
    "certified": "pays",
    "not certifiable": "does-not-pay",
    "not certified": "does-not-pay",
    "nothing to certify": "does-not-pay",
}
ROLES = {
    "heads": "fitting heads",
    "search": "searching",
    "certify": "the test",
    "report": "the report",
}


TABLE_POINTS = 40

WIDEST = 2.5
"""Losses are drawn up to so many times the boldest floor's: nobody chooses a policy far beyond it."""


def tuned_section(workload: WorkloadResult) -> Markup:
    """One card for every floor tried, then the candidates; nothing if nothing was tuned."""
    if not workload.tuned:
        return Markup()
    executed = any(tuned.certificate.executed for tuned in workload.tuned)
    cards = [tuned_card(tuned) for tuned in workload.tuned]
    return fragment("run", "tuned", "measured" if executed else "replayed", cards, front_figures(workload))


def tuned_card(tuned: Tuned) -> dict[str, Any]:
    """One floor: what is certified, for which policy, at what speed, resting on what."""
    state, floor = status(tuned), tuned.floor
    left = floor.value**ANSWER_TOKENS
    return {
        "keep": f"Keep {floor_words(floor)}",
        "state": state,
        "style": f"decision {STATUS_STYLES.get(state, '')}".strip(),
        "sentence": certificate_sentence(tuned),
        "left": percent(left, 0 if left > 0.1 else 1) if floor.clip is None else "",
        "floor": f"{floor.value:g}",
        "tokens": ANSWER_TOKENS,
        "policy": "" if tuned.policy_text == "never" else policy_code(tuned.policy_text),
        "facts": facts(tuned),
        "small_print": small_print(tuned),
    }


def facts(tuned: Tuned) -> list[tuple[str, str]]:
    """What the certificate rests on, and the speed of what it certifies."""
    certificate, floor = tuned.certificate, tuned.floor
    found = [("method", method_name(certificate.method))]
    if certificate.delta is not None:
        found.append(("chance that it is wrong (δ)", whole_percent(certificate.delta)))
    needed = f"{certificate.documents_needed:,} needed at least"
    found.append(("documents to test on", f"{certificate.documents:,}{certificate.of_tokens} ({needed})"))
    if certificate.stopped_after is not None:
        found.append(("settled after", counted(certificate.stopped_after, "document")))
    if tuned.executed_agreement is not None:
        found.append(("executed agreement", estimate_text(tuned.executed_agreement, percent)))
    if tuned.executed_reference_agreement is not None:
        kept = estimate_text(tuned.executed_reference_agreement, percent)
        found.append(("executed agreement with the original model", kept))
    found.append(("largest loss allowed", risk_text(floor, floor.risk)))
    if certificate.empirical_risk is not None:
        found.append(("loss on those documents", risk_text(floor, certificate.empirical_risk)))
    if certificate.risk_bound is not None:
        found.append(("largest loss not ruled out", risk_text(floor, certificate.risk_bound)))
    if certificate.tested:
        found.append(("candidates tested, passed", f"{certificate.tested:,}, {certificate.passed:,}"))
    return found if tuned.policy_text == "never" else found + speed_facts(tuned)


def speed_facts(tuned: Tuned) -> list[tuple[str, str]]:
    """What the chosen policy would do on documents that neither search nor certificate saw."""
    machine = tuned.machine
    in_bytes = machine == BYTES
    where = "bytes moved" if in_bytes else machine_name(machine)

    def cost(value: float) -> str:
        return cost_text(machine, value)

    found = [
        (f"net speed, {where}, batch {tuned.batch}", estimate_text(tuned.net_speedup, times)),
        (
            f"{'moved' if in_bytes else 'time'} per token, predicted",
            estimate_text(tuned.seconds_per_token, cost),
        ),
        ("plain decoding there", cost(tuned.plain_seconds_per_token)),
        ("probes' share of it", percent(tuned.probe_share)),
        *([("saved of plain decoding", gain_text(tuned.gain))] if tuned.gain is not None else []),
        ("layers skipped", estimate_text(tuned.skip_ratio, percent)),
    ]
    if tuned.floor.kind == "agreement":
        found.append(("agreement on unseen documents", estimate_text(tuned.quality, percent)))
    if tuned.reference_agreement is not None:
        found.append(("agreement with the original model", estimate_text(tuned.reference_agreement, percent)))
    return found


def small_print(tuned: Tuned) -> list[str]:
    """The guarantee word for word, the assumption, and which documents did what."""
    certificate = tuned.certificate
    roles = [
        f"{counted(count, 'document')} for {ROLES.get(role, role)}" for role, count in tuned.documents.items()
    ]
    return [
        f"The tuner's answer: {tuned.answer}",
        f"{'Certificate' if certificate.executed else 'Replay bound'}: {certificate.guarantee}",
        f"Assumed: {certificate.assumption}",
        *([f"Disjoint sets: {', '.join(roles)}"] if roles else []),
        f"Keys and values of skipped layers: {tuned.kv}",
    ]


def front_figures(workload: WorkloadResult) -> list[Markup]:
    """A chart of the candidates for each kind of floor, machine and batch size."""
    groups: dict[tuple[str, str, int], list[Tuned]] = {}
    for tuned in workload.tuned:
        if tuned.front:
            groups.setdefault((tuned.floor.kind, tuned.machine, tuned.batch), []).append(tuned)
    return [front_figure(group) for group in groups.values()]


def loss_of(floor: Floor, risk: float) -> float:
    """A risk in the unit that is drawn: share of tokens, or nats."""
    return risk if floor.clip is None else risk * floor.clip


def front_figure(group: list[Tuned]) -> Markup:
    """The Pareto front: how much time a loss buys, with the floors and the chosen policies marked."""
    first = group[0]
    widest = WIDEST * max(tuned.floor.risk for tuned in group)
    series = front_lines(group, widest)
    fronts = list(dict.fromkeys(tuned.front for tuned in group))
    rules = [Rule("x", loss_of(t.floor, t.floor.risk), floor_mark(t.floor)) for t in group]
    losses = [*[float(x) for line in series for x in line.x], *[rule.value for rule in rules]]
    x_range = nice_range(losses, include=(0.0,)) or (0.0, 1.0)
    note = (
        "Every candidate that no other beats in both loss and cost, on the documents searched; "
        f"{machine_name(first.machine)}, batch {first.batch}. Down is cheaper, left is closer to the full "
        "model. What is right of a floor's line is not allowed; much bolder candidates are in the table only."
    )
    loss, cost = (
        Axis("share of tokens changed", x_range, percent_tick, ticks=6)
        if shares(first)
        else Axis("loss, nats per token", x_range, "{:.3g}".format, ticks=6),
        Axis(
            "moved per token, MB" if first.machine == BYTES else "time per token, ms", None, "{:.4g}".format
        ),
    )
    plot = Plot(
        title="What a loss buys",
        description=note,
        x=loss,
        y=cost,
        series=tuple(series),
        rules=(
            *rules,
            Rule("y", drawn_cost(first, first.plain_seconds_per_token), "plain decoding", "below"),
        ),
    )
    data = front_table(fronts, first)
    return figure("What a loss buys", note, plot.svg(), data, legend=plot.legend(), kind="predicted")


def floor_mark(floor: Floor) -> str:
    """A floor in as few signs as its line has room for."""
    return whole_percent(floor.value) if floor.clip is None else f"{floor.value:g}"


def drawn_cost(tuned: Tuned, cost: float) -> float:
    """A token's cost as drawn: milliseconds, or megabytes moved."""
    return cost / 1e6 if tuned.machine == BYTES else 1000 * cost


def shares(tuned: Tuned) -> bool:
    """Whether the loss is a share of tokens."""
    return tuned.floor.clip is None


def front_lines(group: list[Tuned], widest: float) -> list[Series]:
    """Each different front as a line up to the widest risk, and the policies chosen from it as points."""
    owners: dict[tuple[FrontPoint, ...], list[Tuned]] = {}
    for tuned in group:
        owners.setdefault(tuned.front, []).append(tuned)
    lines: list[Series] = []
    for front, choosers in owners.items():
        floor = choosers[0].floor
        name = "candidates" if len(owners) == 1 else f"candidates for {floor_words(floor)}"
        near = tuple(point for point in front if point.risk <= widest)
        lines.append(front_series(name, near, choosers[0], len(lines)))
        for tuned in choosers:
            chosen = [point for point in front if point.policy == tuned.policy_text != "never"]
            if chosen:
                name = f"chosen for {floor_words(tuned.floor)}"
                lines.append(front_series(name, tuple(chosen[:1]), tuned, len(lines)))
    return lines


def front_series(name: str, front: tuple[FrontPoint, ...], tuned: Tuned, place: int) -> Series:
    """Points of a front as a line."""
    x = np.array([loss_of(tuned.floor, point.risk) for point in front], dtype=np.float64)
    y = np.array([drawn_cost(tuned, point.seconds_per_token) for point in front], dtype=np.float64)
    return Series(name, x, y, place, place)


def front_table(fronts: list[tuple[FrontPoint, ...]], tuned: Tuned) -> Markup:
    """The candidates as a table, at most 40 of each front."""
    rows = [
        [
            point.policy,
            risk_text(tuned.floor, point.risk),
            cost_text(tuned.machine, point.seconds_per_token),
            times(point.net_speedup),
            percent(point.skip_ratio),
        ]
        for front in fronts
        for point in spread(front, TABLE_POINTS)
    ]
    header = [
        "Policy",
        "Loss",
        "Moved per token" if tuned.machine == BYTES else "Time per token",
        "Net speed",
        "Layers skipped",
    ]
    return table(header, rows, caption="Candidates of the Pareto front, on the documents searched")
