"""The page of a comparison: one self-contained file, the answer first."""

from __future__ import annotations

from pathlib import Path

from offramp.files import write_text_atomically
from offramp.report.html import fragment
from offramp.report.sections.combined import combined_sections
from offramp.report.sections.compare_bytes import bytes_section
from offramp.report.sections.compare_certified import certified_section
from offramp.report.sections.compare_downloads import downloads_section
from offramp.report.sections.compare_leaderboard import leaderboard_section
from offramp.report.sections.compare_pairs import pairs_section
from offramp.report.sections.compare_profiles import profiles_section
from offramp.report.sections.compare_strategies import strategies_section
from offramp.report.sections.compare_trends import trends_section
from offramp.report.sections.compare_validity import validity_section
from offramp.report.sections.compare_verdict import verdict_section
from offramp.report.sections.compared import compared_section, filters
from offramp.report.sections.glossary import comparison_glossary
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
        "glossary": comparison_glossary(comparison),
    }
    links = [(identity, name) for identity, name in NAVIGATION if sections[identity]]
    return fragment("comparison", "page", comparison.title, links, sections.values())
