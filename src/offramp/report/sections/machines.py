"""What a machine charges for each part of a step, where it would pay, and what would have to change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from markupsafe import Markup

from offramp.costs.probes import PROBES
from offramp.defaults import LOCAL
from offramp.report.answer_words import answers_at_main_floor, machine_name, machines_sentence
from offramp.report.drawing import drawn
from offramp.report.formats import (
    counted,
    decimal,
    duration,
    listed,
    percent,
    times,
    whole_percent,
)
from offramp.report.html import Kind, fragment, pill, small, styled, text
from offramp.report.plots import Bar, PlotRow, RowPlot, Track
from offramp.report.run_result import ClassifierQuality, HeadsSummary, PriceList, RunResult, WorkloadResult
from offramp.report.table import Cell, Column, Table, estimated
from offramp.tuning.break_even import BreakEven
from offramp.tuning.ranking import MachineAnswer

LAYER, HEAD, PROBE, REPAIR, AROUND = 0, 2, 1, 3, 5
PROBED_EXITS = 3


def machine_section(run: RunResult) -> Markup:
    """The price list that speed is predicted from, and what was fitted; nothing if neither is known."""
    if run.hardware is None and run.heads is None:
        return Markup()
    prices = None if run.hardware is None else prices_block(run.hardware)
    return fragment("run", "machine", prices, None if run.heads is None else heads_block(run.heads))


def prices_block(hardware: PriceList) -> dict[str, Any]:
    """The prices as a figure, and what follows from them in words."""
    machine, layer = machine_name(hardware.name), hardware.layer_seconds
    rows = price_rows(hardware)
    note = (
        f"Time of each part of one decoding step at batch size 1, one layer ({duration(layer)}) = 1. A "
        "probe has to be paid at every exit that is checked, whether the token leaves there or not."
    )
    plot = RowPlot(
        title="The price of each part",
        description=note,
        rows=[
            PlotRow(name, (Track(bars=(Bar(0.0, seconds / layer, f"{name}: {words}", colour),)),), words)
            for name, seconds, colour, _ in rows
            for words in (f"{ratio_text(seconds / layer)} · {duration(seconds)}",)
        ],
        rule=(1.0, "one layer"),
        include=(0.0,),
        number="{:g}".format,
        ticks=6,
        style="wide",
    )
    table: Table[Price] = Table(
        (
            Column("Part", lambda price: price[0]),
            Column("Time", lambda price: duration(price[1])),
            Column("In layers", lambda price: ratio_text(price[1] / layer)),
            Column("What it is", lambda price: price[3]),
        ),
        caption=f"What {machine} charges, {hardware.source}",
        words=1,
    )
    kind: Kind | None = "measured" if hardware.name == LOCAL else None
    shown = drawn(plot, table.html(rows), title="In units of one layer", kind=kind)
    return {"machine": machine, "said": sentences(hardware), "figure": shown}


Price = tuple[str, float, int, str]
"""Name, seconds, colour and meaning of a part."""


def price_rows(hardware: PriceList) -> list[Price]:
    """Every part, probes from dear to cheap."""
    rows = [
        ("One layer", hardware.layer_seconds, LAYER, "mean of the layers, run one after the other"),
        ("Output head", hardware.head_seconds, HEAD, "final norm and the product over the vocabulary"),
    ]
    probes = sorted(hardware.probe_seconds.items(), key=lambda pair: -pair[1])
    rows += [
        (f"Probe: {kind}", seconds, PROBE, PROBES[kind].meaning if kind in PROBES else "")
        for kind, seconds in probes
    ]
    meaning = "what later tokens need of one skipped layer"
    rows.append(("Repair of one layer", hardware.key_value_seconds, REPAIR, meaning))
    meaning = "embedding, choice of the token, the program around each step"
    return [*rows, ("Around each step", hardware.overhead_seconds, AROUND, meaning)]


def ratio_text(layers: float) -> str:
    """A cost in layers with two digits that count."""
    if layers == 0:
        return "0 layers"
    if abs(layers - 1) < 0.0005:
        return "1 layer"
    digits = 1 if layers >= 1 else 2 if layers >= 0.1 else 3
    return f"{decimal(layers, digits)} layers" if layers >= 0.0005 else "under 0.001 layers"


def sentences(hardware: PriceList) -> list[str]:
    """What the prices mean, and whether they add up to the time of plain decoding."""
    layer, probes = hardware.layer_seconds, hardware.probe_seconds
    lines = []
    if "full head" in probes:
        cost = probes["full head"] / layer
        lines.append(
            f"Asking the full output head for its confidence costs as much as running {ratio_text(cost)}. "
            f"A policy that does so at {PROBED_EXITS} exits has spent {decimal(PROBED_EXITS * cost, 0)} "
            "layers' time before it has saved anything."
        )
    cheap = {kind: seconds for kind, seconds in probes.items() if seconds < layer}
    if cheap:
        kind, seconds = max(cheap.items(), key=lambda pair: pair[1])
        lines.append(
            f"{len(cheap)} of {len(probes)} kinds of probe cost less than one layer; the dearest of them "
            f"is “{kind}” at {ratio_text(seconds / layer)}. Where early exit can pay, it pays with these."
        )
    plain, ratio = hardware.plain_seconds_per_token, hardware.self_check_ratio
    total = f"Added up, the parts give {duration(plain)} per token for plain decoding"
    if ratio is not None:
        total += f"; the stopwatch gave {duration(plain / ratio)}, a ratio of {decimal(ratio, 3)}"
    lines.append(f"{total}.")
    circumstances = [hardware.source]
    if hardware.threads is not None:
        circumstances.append(f"{hardware.threads} threads")
    if hardware.load is not None:
        circumstances.append(f"load {decimal(hardware.load, 1)} at the start")
    lines.append(f"Source: {', '.join(circumstances)}.")
    if hardware.note is not None:
        lines.append(f"Timings: {hardware.note}.")
    return lines


Classifier = tuple[str, ClassifierQuality]
"""The name of a classifier, and how it does on documents that fitting did not see."""

CLASSIFIERS: Table[Classifier] = Table(
    (
        Column("Classifier", lambda row: row[0].replace("_", " ")),
        Column("Exits where it beats chance", lambda row: f"{row[1].better_than_chance} of {row[1].exits}"),
        Column(
            "Median AUROC",
            lambda row: (
                "undefined: at every exit too few rows of a class"
                if row[1].auroc is None
                else decimal(row[1].auroc)
            ),
        ),
    ),
    caption="Classifiers on documents that fitting did not see; AUROC 0.5 is guessing",
    words=1,
)


def heads_block(heads: HeadsSummary) -> dict[str, Any]:
    """The lens and the classifiers that were fitted on documents of their own."""
    return {
        "came": "imported" if heads.imported else "fitted",
        "said": fitted_sentence(heads),
        "classifiers": CLASSIFIERS.html(heads.classifiers.items()),
    }


def fitted_sentence(heads: HeadsSummary) -> str:
    """What was fitted, on how many documents, and what is no better than chance; or what was imported."""
    if heads.imported:
        kind = listed(list(heads.reading))
        return (
            f"Others trained {kind} at {counted(heads.exits, 'exit')}. Which documents they used is not "
            "known: on these it looks better than on new text."
        )
    parts = [f"On {counted(heads.documents, 'document')}, kept apart from all that is judged below:"]
    made = []
    if heads.reading:
        explained = heads.lens_explained
        says = (
            ""
            if explained is None
            else f" (it explains {percent(explained, 0)} of the last state's variance on others)"
        )
        made.append(f"{listed(list(heads.reading))} at {counted(heads.exits, 'exit')}{says}")
    if heads.classifiers:
        made.append(counted(len(heads.classifiers), "classifier"))
    parts.append(f"{listed(made) if made else 'nothing that could be used'}.")
    chance = [
        name.replace("_", " ")
        for name, quality in heads.classifiers.items()
        if quality.better_than_chance == 0
    ]
    if chance:
        parts.append(f"No better than chance at any exit: {listed(chance)}.")
    return " ".join(parts)


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
    )


OfMachine = tuple[int, str, Mapping[int, MachineAnswer]]
"""A machine: its number among the sources below, its name, and its answers by batch size."""


def matrix(answers: Sequence[MachineAnswer], machines: Sequence[str], caption: str) -> Markup:
    """Rows are machines, columns batch sizes."""
    rows: list[OfMachine] = [
        (place, machine, {answer.batch: answer for answer in answers if answer.machine == machine})
        for place, machine in enumerate(machines, 1)
    ]
    columns = [
        Column(f"batch {batch}", partial(_answer_at, batch=batch))
        for batch in sorted({answer.batch for answer in answers})
    ]
    table: Table[OfMachine] = Table(
        (Column("Machine", _machine_cell), *columns), caption=caption, style="machines"
    )
    return table.html(rows)


def _machine_cell(row: OfMachine) -> Cell:
    place, machine, by_batch = row
    name, first = "This machine" if machine == LOCAL else machine, min(by_batch)
    plain = f"plain, batch {first}: {duration(by_batch[first].plain_seconds_per_token)} per token"
    return Cell(name, below=plain, html=text(name) + Markup(f"<sup>{place}</sup>"))


def _answer_at(row: OfMachine, batch: int) -> Cell:
    """One decision with its net speed."""
    answer = row[2].get(batch)
    if answer is None:
        return Cell("not asked")
    if answer.plain:
        return Cell(answer.decision, tone=answer.decision, below="best never to exit")
    speed = estimated(answer.net_speedup, times)
    shown = styled(text(speed.shown) + Markup().join(map(small, (*speed.lines, speed.remark))), "speed")
    return Cell(answer.decision, tone=answer.decision, html=pill(answer.decision) + shown)


def break_even_section(workload: WorkloadResult) -> Markup:
    """What would have to change, by itself, for each policy asked about to pay; nothing without any."""
    if not workload.break_even:
        return Markup()
    targets = sorted({lever.target for lever in workload.break_even})
    goal = " or ".join(f"{whole_percent(target - 1)} faster" for target in targets)
    by_policy: dict[str, list[BreakEven]] = {}
    for lever in workload.break_even:
        by_policy.setdefault(lever.policy, []).append(lever)
    tables = [LEVERS.html(levers, caption=f"Policy: {policy}") for policy, levers in by_policy.items()]
    return fragment("run", "break_even", goal, tables)


LEVERS: Table[BreakEven] = Table(
    (
        Column(
            "If only this changed",
            lambda lever: f"{'one' if lever.lever in ('probe', 'layer') else 'the'} {lever.lever}",
        ),
        Column("Today", lambda lever: duration(lever.now)),
        Column("Turning point", lambda lever: "none" if lever.needed is None else duration(lever.needed)),
        Column("Against today", lambda lever: factor_text(lever.factor)),
        Column("In words", lambda lever: lever.sentence),
    ),
    style="levers",
)


def factor_text(factor: float | None) -> str:
    """The turning point against today's price."""
    if not factor:
        return "–"
    return f"1/{1 / factor:.1f} of it" if factor < 1 else f"{factor:.1f} × as much"
