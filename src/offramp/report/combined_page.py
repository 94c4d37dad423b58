"""A page of its own for combined accelerations: the report's section, self-contained."""

from __future__ import annotations

from pathlib import Path

from offramp.decoding.measurement.combined import CombineResult
from offramp.files import write_text_atomically
from offramp.report.frame import FOOTER, brand, whole_page
from offramp.report.markup import element, text
from offramp.report.sections.combined import combined_section


def write_combined_page(result: CombineResult, path: Path) -> Path:
    """Write the page in one step and return its path. Raises OfframpError if the disk is full."""
    write_text_atomically(path, render_combined(result))
    return path


def render_combined(result: CombineResult) -> str:
    """The page as HTML; the same result gives the same bytes."""
    title = f"Do the gains add up on {result.model}?"
    body = (
        element("header", brand(), class_="masthead")
        + element("main", element("h1", text(title)) + combined_section(result))
        + FOOTER
    )
    return whole_page(title, body)
