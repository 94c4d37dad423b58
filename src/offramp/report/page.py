"""The page of a run: one self-contained file, the answer first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup

from offramp.files import write_text_atomically
from offramp.report import REPORT_FILE
from offramp.report.combined import combined_section
from offramp.report.formats import counted, listed
from offramp.report.html import fragment, slug
from offramp.report.passage import passage_section
from offramp.report.plot.drawing import ramp_rules
from offramp.report.run_result import RunResult, WorkloadResult
from offramp.report.sections.decoded import decoded_section
from offramp.report.sections.families import families_section
from offramp.report.sections.first_screen import (
    caveats_section,
    floors_section,
    texts_section,
    verdict_section,
)
from offramp.report.sections.layers import layers_section
from offramp.report.sections.machines import break_even_section, machine_section, machines_section
from offramp.report.sections.potential import components_section
from offramp.report.sections.provenance import provenance_section
from offramp.report.sections.training import training_section
from offramp.report.sections.tuned import tuned_section


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
        last=(machine_section(run), provenance_section(run), fragment("glossary", "run")),
    )


def identities(workloads: tuple[WorkloadResult, ...]) -> list[str]:
    """One id per workload, different even if the names differ only in punctuation."""
    found: list[str] = []
    for workload in workloads:
        name = slug(workload.name)
        found.append(name if name not in found else f"{name}-{len(found) + 1}")
    return found


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
