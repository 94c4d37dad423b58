"""The page of a comparison: one self-contained file, the answer first."""

from __future__ import annotations

from pathlib import Path

from offramp.files import write_text_atomically
from offramp.report.frame import FOOTER, asset, brand, whole_page
from offramp.report.markup import element, text
from offramp.report.sections.compare_bytes import bytes_section
from offramp.report.sections.compare_cells import cells_section
from offramp.report.sections.compare_certified import certified_section
from offramp.report.sections.compare_citation import citation_section
from offramp.report.sections.compare_combined import combined_section
from offramp.report.sections.compare_downloads import downloads_section
from offramp.report.sections.compare_filters import filters
from offramp.report.sections.compare_glossary import glossary_section
from offramp.report.sections.compare_leaderboard import leaderboard_section
from offramp.report.sections.compare_pairs import pairs_section
from offramp.report.sections.compare_profiles import profiles_section
from offramp.report.sections.compare_strategies import strategies_section
from offramp.report.sections.compare_trends import trends_section
from offramp.report.sections.compare_validity import validity_section
from offramp.report.sections.compare_verdict import verdict_section
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
    sections = (
        verdict_section(comparison)
        + cells_section(comparison)
        + filters(comparison)
        + leaderboard_section(comparison)
        + strategies_section(comparison)
        + certified_section(comparison)
        + profiles_section(comparison)
        + pairs_section(comparison)
        + trends_section(comparison)
        + validity_section(comparison)
        + combined_section(comparison)
        + bytes_section(comparison)
        + downloads_section(comparison_tables(comparison))
        + citation_section(comparison)
        + glossary_section(comparison)
    )
    body = (
        element("a", "Skip to the answer", class_="skip", href="#verdict")
        + masthead(sections)
        + element("main", sections)
        + FOOTER
        + element("script", asset("compare.js"))
    )
    return whole_page(comparison.title, body, style=asset("compare.css"))


def masthead(sections: str) -> str:
    """The line at the top, with links to the sections that there are."""
    links = "".join(
        element("a", text(name), href=f"#{identity}")
        for identity, name in NAVIGATION
        if f'<section id="{identity}"' in sections
    )
    return element("header", brand() + element("nav", links, aria_label="Sections"), class_="masthead")
