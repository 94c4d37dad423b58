"""The pages of a run and of a comparison: one self-contained file each, the answer first."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from markupsafe import Markup
from pyarrow import csv

from offramp.files import write_text_atomically
from offramp.kit.spreadsheet import csv_table
from offramp.report import REPORT_FILE
from offramp.report.combined import combined_section, combined_sections
from offramp.report.formats import counted, listed
from offramp.report.html import fragment, slug
from offramp.report.passage import passage_section
from offramp.report.plot.drawing import ramp_rules
from offramp.report.run_result import RunResult, WorkloadResult
from offramp.report.sections.claims import validity_section
from offramp.report.sections.curves import profiles_section
from offramp.report.sections.decoded import decoded_section
from offramp.report.sections.families import families_section
from offramp.report.sections.first_screen import (
    caveats_section,
    floors_section,
    texts_section,
    verdict_section,
)
from offramp.report.sections.layers import layers_section
from offramp.report.sections.leaderboard import leaderboard_section
from offramp.report.sections.machines import break_even_section, machine_section, machines_section
from offramp.report.sections.potential import components_section
from offramp.report.sections.provenance import citation_section, compared_section, filters, provenance_section
from offramp.report.sections.strategies import bytes_section, certified_section, strategies_section
from offramp.report.sections.trained import trained_section
from offramp.report.sections.training import training_section
from offramp.report.sections.tuned import tuned_section
from offramp.report.sections.verdict import answer_section
from offramp.studies.comparison.results import Comparison
from offramp.studies.comparison.tables import comparison_tables


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


NAVIGATION = (
    ("verdict", "Answer"),
    ("compared", "Compared"),
    ("leaderboard", "Models"),
    ("trainings", "Trained"),
    ("certified", "Certified"),
    ("strategies", "Strategies"),
    ("profiles", "Layers"),
    ("validity", "Scores"),
    ("combined", "Combined"),
    ("bytes", "Per byte"),
    ("downloads", "Tables"),
    ("cite", "Cite"),
    ("glossary", "Words"),
)
"""Sections by id; the page links to those that it has."""


LARGEST_PLAIN = 1_000_000
"""A table of more bytes is kept compressed, so that the page stays small."""


def write_comparison_page(comparison: Comparison, path: Path) -> Path:
    """Write the page in one step and return its path. Raises OfframpError if the disk is full."""
    write_text_atomically(path, render_comparison(comparison))
    return path


def render_comparison(comparison: Comparison) -> str:
    """The whole page as HTML; the same comparison gives the same bytes."""
    sections = {
        "verdict": answer_section(comparison),
        "compared": compared_section(comparison),
        "filters": filters(comparison),
        "leaderboard": leaderboard_section(comparison),
        "trainings": trained_section(comparison),
        "strategies": strategies_section(comparison),
        "certified": certified_section(comparison),
        "profiles": profiles_section(comparison),
        "validity": validity_section(comparison),
        "combined": combined_sections(comparison),
        "bytes": bytes_section(comparison),
        "downloads": downloads_section(comparison_tables(comparison)),
        "cite": citation_section(comparison),
        "glossary": fragment("glossary", "comparison", comparison.validity),
    }
    links = [(identity, name) for identity, name in NAVIGATION if sections[identity]]
    return fragment("comparison", "page", comparison.title, links, sections.values())


def downloads_section(tables: Mapping[str, pa.Table]) -> Markup:
    """A link for each table that has rows, with how large it is; nothing without one."""
    files = [_file(name, found) for name, found in tables.items() if found.num_rows]
    return fragment("comparison", "downloads", files) if files else Markup()


def _file(name: str, found: pa.Table) -> tuple[str, str, str]:
    """A table's file: its name, its content as a link, its size."""
    content = csv_bytes(found)
    size = f"{counted(found.num_rows, 'row')}, {file_size(len(content))}"
    file, kind = f"{name}.csv", "text/csv"
    if len(content) > LARGEST_PLAIN:
        content, file, kind = gzip.compress(content, mtime=0), f"{file}.gz", "application/gzip"
    return file, data_link(content, kind), size


def csv_bytes(found: pa.Table) -> bytes:
    """A table as CSV in UTF-8."""
    sink = pa.BufferOutputStream()
    csv.write_csv(csv_table(found), sink)
    return bytes(sink.getvalue().to_pybytes())


def data_link(content: bytes, kind: str) -> str:
    """Content as a link that needs no file and no network."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def file_size(size: int) -> str:
    """Bytes in the unit that suits them: "12 kB", "3.4 MB"."""
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{max(size / 1e3, 0.1):.3g} kB"
