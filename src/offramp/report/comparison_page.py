"""The page of a comparison: one self-contained file, the answer first."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
from markupsafe import Markup
from pyarrow import csv

from offramp.files import write_text_atomically
from offramp.report.formats import counted
from offramp.report.html import fragment
from offramp.report.sections.combined import combined_sections
from offramp.report.sections.compare_bytes import bytes_section
from offramp.report.sections.compare_certified import certified_section
from offramp.report.sections.compare_leaderboard import leaderboard_section
from offramp.report.sections.compare_pairs import pairs_section
from offramp.report.sections.compare_profiles import profiles_section
from offramp.report.sections.compare_strategies import strategies_section
from offramp.report.sections.compare_trends import trends_section
from offramp.report.sections.compare_validity import validity_section
from offramp.report.sections.compare_verdict import verdict_section
from offramp.report.sections.compared import compared_section, filters
from offramp.report.sections.provenance import citation_section
from offramp.studies.comparison.results import Comparison
from offramp.studies.comparison.tables import comparison_tables

NAVIGATION = (
    ("verdict", "Answer"),
    ("compared", "Compared"),
    ("leaderboard", "Models"),
    ("certified", "Certified"),
    ("strategies", "Strategies"),
    ("profiles", "Layers"),
    ("pairs", "Pairs"),
    ("trends", "Trends"),
    ("validity", "Validity"),
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
        "verdict": verdict_section(comparison),
        "compared": compared_section(comparison),
        "filters": filters(comparison),
        "leaderboard": leaderboard_section(comparison),
        "strategies": strategies_section(comparison),
        "certified": certified_section(comparison),
        "profiles": profiles_section(comparison),
        "pairs": pairs_section(comparison),
        "trends": trends_section(comparison),
        "validity": validity_section(comparison),
        "combined": combined_sections(comparison),
        "bytes": bytes_section(comparison),
        "downloads": downloads_section(comparison_tables(comparison)),
        "cite": citation_section(comparison),
        "glossary": fragment(
            "glossary", "comparison", comparison.pairs, comparison.trends, comparison.validity
        ),
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
    csv.write_csv(found, sink)
    return bytes(sink.getvalue().to_pybytes())


def data_link(content: bytes, kind: str) -> str:
    """Content as a link that needs no file and no network."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def file_size(size: int) -> str:
    """Bytes in the unit that suits them: "12 kB", "3.4 MB"."""
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{max(size / 1e3, 0.1):.3g} kB"
