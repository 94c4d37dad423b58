"""The page of a run, one self-contained file with the answer first, and its terminal output."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich.console import Console
from rich.markup import escape

from offramp.files import write_text_atomically
from offramp.report import REPORT_FILE
from offramp.report.answer_words import (
    headline,
    other_texts_notes,
    quality_lines,
    short_answer,
    wrong_with,
)
from offramp.report.combined import combined_section
from offramp.report.curves import layers_section
from offramp.report.drawing import ramp_rules
from offramp.report.findings import run_decision
from offramp.report.formats import counted, decimal, listed
from offramp.report.html import fragment, slug
from offramp.report.passage import passage_section
from offramp.report.run_findings import next_step
from offramp.report.run_result import RunResult, WorkloadResult
from offramp.report.sections.decoded import decoded_section
from offramp.report.sections.families import families_section
from offramp.report.sections.first_screen import (
    VERDICTS,
    caveats_section,
    floors_section,
    grounds_line,
    texts_section,
    verdict_section,
    verdicts_of,
)
from offramp.report.sections.machines import break_even_section, machine_section, machines_section
from offramp.report.sections.potential import components_section
from offramp.report.sections.training import training_section
from offramp.report.sections.tuned import tuned_section
from offramp.report.table import TERMINAL_STYLES, Column, Table


def write_report(run: RunResult, folder: Path) -> Path:
    """Write `report.html` into a folder in one step and return its path.

    Raises OfframpError if the disk is full.
    """
    path = folder / REPORT_FILE
    write_text_atomically(path, render(run))
    return path


def render(run: RunResult) -> str:
    """The whole page as HTML; the same run gives the same bytes."""
    layers = max([run.layers, *[int(workload.trace.exits[-1]) for workload in run.workloads]])
    names = identities(run.workloads)
    provenance = fragment(
        "run", "provenance", run.command, TRACED.html(run.workloads), entries(run.provenance)
    )
    sections = (
        verdict_section(run),
        floors_section(run),
        texts_section(run),
        decoded_section(run),
        training_section(run),
        combined_section(run.combined),
        caveats_section(run),
    )
    return fragment(
        "run",
        "page",
        title=f"Would early exit pay for {run.model_name}?",
        style=Markup(ramp_rules(layers)),
        links=links(run),
        progress=progress_lines(run),
        sections=sections,
        workloads=[workload_part(w, layers, name) for w, name in zip(run.workloads, names, strict=True)],
        last=(machine_section(run), provenance, fragment("glossary", "run")),
    )


def identities(workloads: tuple[WorkloadResult, ...]) -> list[str]:
    """One id per workload, different even if the names differ only in punctuation."""
    slugs: list[str] = []
    for workload in workloads:
        name = slug(workload.name)
        slugs.append(name if name not in slugs else f"{name}-{len(slugs) + 1}")
    return slugs


def links(run: RunResult) -> list[tuple[str, str]]:
    """The sections that the top of the page leads to."""
    costs = run.hardware is not None or run.heads is not None
    sections = (
        ("verdict", "Verdict", True),
        ("floors", "Floors", True),
        ("decoded", "Timed", bool(run.decoding or run.not_decoded)),
        ("training", "Training", run.training is not None),
        ("combined", "Combined", run.combined is not None),
        ("caveats", "Caveats", True),
        ("workloads", "Texts", bool(run.workloads)),
        ("machine", "Machine", costs),
        ("provenance", "Repeat", True),
        ("glossary", "Words", True),
    )
    return [(identity, name) for identity, name, there in sections if there]


def progress_lines(run: RunResult) -> list[str]:
    """What is done and to come while a run goes on; nothing when it is over."""
    if run.progress is None:
        return []
    done, to_come = run.progress.done, run.progress.to_come
    return [
        f"Still running: {run.progress.running}.",
        *([f"Done: {listed(list(done))}."] if done else []),
        *([f"To come: {listed(list(to_come))}."] if to_come else []),
        "This page holds what is there so far; load it again for more. If the run was stopped, the same "
        "command goes on where it stopped.",
    ]


def workload_part(workload: WorkloadResult, layers: int, identity: str) -> dict[str, Any]:
    """Everything about one workload."""
    card = workload.card
    traced = f"{counted(card.documents, 'document')} · {counted(card.tokens, 'token')} traced"
    sections = (
        tuned_section(workload),
        families_section(workload),
        machines_section(workload),
        break_even_section(workload),
        passage_section(workload, layers, identity),
        layers_section(workload),
        components_section(workload),
    )
    facts = f"{workload.mode} mode · {traced}"
    return {"id": identity, "name": workload.name, "facts": facts, "sections": sections}


def print_summary(run: RunResult, console: Console, report: Path | None = None) -> None:
    """Print the verdict and what it rests on, a row a text and floor, what is wrong, and what to do next."""
    _print_answer(run_decision(run), short_answer(run), console)
    if grounds := grounds_line(run):
        console.print(escape(grounds))
    if verdicts := verdicts_of(run):
        console.print()
        console.print(VERDICTS.rich(verdicts))
    for line in quality_lines(run):
        console.print(escape(line))
    console.print()
    for note in wrong_with(run):
        console.print(f"[dim]{escape(note)}[/]")
    if report is not None:
        console.print(f"Report: [bold]{escape(str(report))}[/]", soft_wrap=True)
    for note in other_texts_notes(run):
        console.print(escape(note), soft_wrap=True)
    if step := next_step(run):
        console.print(f"\n[bold]Next[/]: {escape(step.reason)} [dim]{escape(step.expected)}[/]")
        for command in filter(None, (step.command, step.then)):
            console.print(f"  {escape(command)}", soft_wrap=True)


def _print_answer(decision: str, answer: str, console: Console) -> None:
    """The answer in the colour of its decision."""
    style = TERMINAL_STYLES.get(decision, "yellow")
    console.print(f"\n[bold {style}]{escape(answer)}[/]")


def print_verdict_so_far(run: RunResult, console: Console) -> None:
    """Print the verdict as certified and predicted, before policies are timed."""
    _print_answer(run_decision(run), f"Before the timing: {headline(run)}", console)
    console.print(
        "[dim]What is kept is as executed, speeds are predicted. Policies are decoded and timed next.[/]"
    )


TRACED: Table[WorkloadResult] = Table(
    (
        Column("Workload", lambda workload: workload.name),
        Column("Mode", lambda workload: workload.mode),
        Column("Documents", lambda workload: workload.card.documents),
        Column("Left out", lambda workload: sum(not doc.valid for doc in workload.trace.documents)),
        Column("Tokens", lambda workload: f"{workload.card.tokens:,}"),
        Column("Seconds", lambda workload: workload.seconds, partial(decimal, digits=1)),
        Column("Trace", lambda workload: workload.trace_folder),
    ),
    caption="Traced workloads",
    words=2,
)


def entries(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Names and values, nested ones with their path."""
    items: list[tuple[str, str]] = []
    for name, value in values.items():
        path = f"{prefix}{name.replace('_', ' ')}"
        if isinstance(value, Mapping):
            items += entries(value, f"{path} · ")
            continue
        if isinstance(value, list | tuple):
            value = ", ".join(str(item) for item in value)
        items.append((path, "none" if value is None else str(value)))
    return items
