"""What a machine charges for layers, head and probes, and what was fitted for the probes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from offramp.costs.probes import PROBES
from offramp.report.basis import LOCAL, machine_name
from offramp.report.formats import counted, decimal, duration, listed, percent
from offramp.report.html import Kind, figure, fragment, table
from offramp.report.plot.rows import Bar, Row, RowPlot, Track
from offramp.report.run_result import RunResult

LAYER, HEAD, PROBE, REPAIR, AROUND = 0, 2, 1, 3, 5
PROBED_EXITS = 3


def machine_section(run: RunResult) -> Markup:
    """The price list that speed is predicted from, and what was fitted; nothing if neither is known."""
    if run.hardware is None and run.heads is None:
        return Markup()
    prices = None if run.hardware is None else prices_block(run.hardware)
    return fragment("run", "machine", prices, None if run.heads is None else heads_block(run.heads))


def prices_block(hardware: Mapping[str, Any]) -> dict[str, Any]:
    """The prices as a figure, and what follows from them in words."""
    machine, layer = machine_name(hardware["name"]), hardware["layer_seconds"]
    rows = price_rows(hardware)
    note = (
        f"Time of each part of one decoding step at batch size 1, one layer ({duration(layer)}) = 1. A "
        "probe has to be paid at every exit that is checked, whether the token leaves there or not."
    )
    plot = RowPlot(
        title="The price of each part",
        description=note,
        rows=[cost_row(name, seconds, layer, colour) for name, seconds, colour, _ in rows],
        rule=(1.0, "one layer"),
        include=(0.0,),
        number="{:g}".format,
        ticks=6,
        style="wide",
    )
    data = table(
        ["Part", "Time", "In layers", "What it is"],
        [[name, duration(seconds), ratio_text(seconds / layer), what] for name, seconds, _, what in rows],
        caption=f"What {machine} charges, {hardware['source']}",
    )
    kind: Kind | None = "measured" if hardware["name"] == LOCAL else None
    shown = figure("In units of one layer", note, plot.svg(), data, kind=kind)
    return {"machine": machine, "said": sentences(hardware), "figure": shown}


def cost_row(name: str, seconds: float, layer: float, colour: int) -> Row:
    """One part as a bar of so many layers."""
    words = f"{ratio_text(seconds / layer)} · {duration(seconds)}"
    return Row(name, (Track(bars=(Bar(0.0, seconds / layer, f"{name}: {words}", colour),)),), words)


def price_rows(hardware: Mapping[str, Any]) -> list[tuple[str, float, int, str]]:
    """Name, seconds, colour and meaning of every part, probes from dear to cheap."""
    rows = [
        ("One layer", hardware["layer_seconds"], LAYER, "mean of the layers, run one after the other"),
        ("Output head", hardware["head_seconds"], HEAD, "final norm and the product over the vocabulary"),
    ]
    probes = sorted(hardware["probe_seconds"].items(), key=lambda pair: -pair[1])
    rows += [
        (f"Probe: {kind}", seconds, PROBE, PROBES[kind].meaning if kind in PROBES else "")
        for kind, seconds in probes
    ]
    if hardware.get("key_value_seconds") is not None:
        meaning = "what later tokens need of one skipped layer"
        rows.append(("Repair of one layer", hardware["key_value_seconds"], REPAIR, meaning))
    meaning = "embedding, choice of the token, the program around each step"
    return [*rows, ("Around each step", hardware["overhead_seconds"], AROUND, meaning)]


def ratio_text(layers: float) -> str:
    """A cost in layers with two digits that count."""
    if layers == 0:
        return "0 layers"
    if abs(layers - 1) < 0.0005:
        return "1 layer"
    digits = 1 if layers >= 1 else 2 if layers >= 0.1 else 3
    return f"{decimal(layers, digits)} layers" if layers >= 0.0005 else "under 0.001 layers"


def sentences(hardware: Mapping[str, Any]) -> list[str]:
    """What the prices mean, and whether they add up to the time of plain decoding."""
    layer, probes = hardware["layer_seconds"], hardware["probe_seconds"]
    found = []
    if "full head" in probes:
        cost = probes["full head"] / layer
        found.append(
            f"Asking the full output head for its confidence costs as much as running {ratio_text(cost)}. "
            f"A policy that does so at {PROBED_EXITS} exits has spent {decimal(PROBED_EXITS * cost, 0)} "
            "layers' time before it has saved anything."
        )
    cheap = {kind: seconds for kind, seconds in probes.items() if seconds < layer}
    if cheap:
        kind, seconds = max(cheap.items(), key=lambda pair: pair[1])
        found.append(
            f"{len(cheap)} of {len(probes)} kinds of probe cost less than one layer; the dearest of them "
            f"is “{kind}” at {ratio_text(seconds / layer)}. Where early exit can pay, it pays with these."
        )
    plain, ratio = hardware["plain_seconds_per_token"], hardware.get("self_check_ratio")
    total = f"Added up, the parts give {duration(plain)} per token for plain decoding"
    if ratio is not None:
        total += f"; the stopwatch gave {duration(plain / ratio)}, a ratio of {decimal(ratio, 3)}"
    found.append(f"{total}.")
    circumstances = [hardware["source"]]
    if hardware.get("threads") is not None:
        circumstances.append(f"{hardware['threads']} threads")
    if hardware.get("load") is not None:
        circumstances.append(f"load {decimal(hardware['load'], 1)} at the start")
    found.append(f"Source: {', '.join(circumstances)}.")
    if hardware.get("note") is not None:
        found.append(f"Timings: {hardware['note']}.")
    return found


def heads_block(heads: Mapping[str, Any]) -> dict[str, Any]:
    """The lens and the classifiers that were fitted on documents of their own."""
    classifiers: Mapping[str, Mapping[str, Any]] = heads["classifiers"]
    rows = [
        [
            name.replace("_", " "),
            f"{values['better_than_chance']} of {values['exits']}",
            "undefined" if values["auroc"] is None else decimal(values["auroc"]),
        ]
        for name, values in classifiers.items()
    ]
    header = ["Classifier", "Exits where it beats chance", "Median AUROC"]
    caption = "Classifiers on documents that fitting did not see; AUROC 0.5 is guessing"
    return {
        "came": "imported" if heads.get("imported") else "fitted",
        "said": fitted_sentence(heads),
        "classifiers": table(header, rows, caption=caption) if rows else "",
    }


def fitted_sentence(heads: Mapping[str, Any]) -> str:
    """What was fitted, on how many documents, and what is no better than chance; or what was imported."""
    if heads.get("imported"):
        kind = "an output head of its own" if heads.get("output") else "a linear lens"
        return (
            f"Others trained {kind} at {counted(heads['exits'], 'exit')}. Which documents they used is not "
            "known: on these it looks better than on new text."
        )
    parts = [f"On {counted(heads['documents'], 'document')}, kept apart from all that is judged below:"]
    made = []
    if heads["lens"]:
        explained = heads["lens_explained"]
        says = (
            ""
            if explained is None
            else f" (it explains {percent(explained, 0)} of the last state's variance on others)"
        )
        made.append(f"a linear lens at {counted(heads['exits'], 'exit')}{says}")
    classifiers: Mapping[str, Mapping[str, Any]] = heads["classifiers"]
    if classifiers:
        made.append(counted(len(classifiers), "classifier"))
    parts.append(f"{listed(made) if made else 'nothing that could be used'}.")
    chance = [name.replace("_", " ") for name, v in classifiers.items() if v["better_than_chance"] == 0]
    if chance:
        parts.append(f"No better than chance at any exit: {listed(chance)}.")
    return " ".join(parts)
