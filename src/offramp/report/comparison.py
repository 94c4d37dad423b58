"""A comparison shown: its page, one self-contained file with the answer first, and its terminal output."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from offramp.files import write_text_atomically
from offramp.report.combined import advice, combined_sections
from offramp.report.comparison_data import downloads_section
from offramp.report.comparison_words import best_sentences, comparison_headline, left_over, not_claimed
from offramp.report.findings import comparison_decision
from offramp.report.html import fragment
from offramp.report.sections.answers import certified_section
from offramp.report.sections.bytes import bytes_section
from offramp.report.sections.claims import validity_section, validity_words
from offramp.report.sections.compared import citation_section, compared_section, filters
from offramp.report.sections.curves import profiles_section
from offramp.report.sections.leaderboard import leaderboard, leaderboard_section, ordered
from offramp.report.sections.strategies import STRATEGIES, fastest_of_each, strategies_section
from offramp.report.sections.training import trained_groups, trained_section
from offramp.report.sections.verdict import answer_section
from offramp.report.table import TERMINAL_STYLES, Column, reasons
from offramp.scoring.estimate import Estimate
from offramp.studies.comparison.results import Comparison

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")

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

SHOWN_ROWS = 12
"""Rows of a table on a terminal; the page has them all."""


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
        "downloads": downloads_section(comparison),
        "cite": citation_section(comparison),
        "glossary": fragment("glossary", "comparison", comparison.validity),
    }
    links = [(identity, name) for identity, name in NAVIGATION if sections[identity]]
    return fragment("comparison", "page", comparison.title, links, sections.values())


def comparison_terminal(comparison: Comparison, console: Console) -> None:
    """Print the answer, models, the fastest strategies, what trainings and scores say, failures."""
    from rich.markup import escape

    style = TERMINAL_STYLES.get(comparison_decision(comparison), "yellow")
    console.print(f"\n[bold {style}]{escape(comparison_headline(comparison))}[/]")
    for sentence in best_sentences(comparison):
        console.print(escape(sentence))
    console.print()
    rows = ordered(comparison.rows)
    models = leaderboard(rows)
    console.print(models.rich(rows, caption="Models", most=SHOWN_ROWS))
    _print_reasons(figures_of(models.columns, rows[:SHOWN_ROWS]), console)
    if comparison.strategies:
        best = fastest_of_each(comparison)
        console.print()
        console.print(STRATEGIES.rich(best, caption="Fastest strategies", most=SHOWN_ROWS))
        console.print("[dim]what misses its floor stands last, and is marked[/]")
        _print_reasons(figures_of(STRATEGIES.columns, best[:SHOWN_ROWS]), console)
    trained = [f"{name}: {' '.join(sentences)}" for name, sentences in trained_groups(comparison)]
    said = [*trained, *advices(comparison), *validity_words(comparison.validity)]
    if said:
        console.print()
        for sentence in said:
            console.print(escape(sentence))
    console.print()
    for name, why in comparison.failures.items():
        console.print(f"[red]not run:[/] {escape(name)}: {escape(why)}")
    for note in [*left_over(comparison), *not_claimed(comparison)]:
        console.print(f"[dim]{escape(note)}[/]")


def figures_of(columns: Iterable[Column[T]], rows: Iterable[T]) -> list[Estimate]:
    """What a terminal shows of rows that may be undefined."""
    shown = [column for column in columns if column.name and column.on != "page"]
    values = [column.cell(row).value for row in rows for column in shown]
    return [value for value in values if isinstance(value, Estimate)]


def _print_reasons(estimates: Iterable[Estimate], console: Console) -> None:
    """Below a table, why figures in it are undefined."""
    from rich.markup import escape

    for why in reasons([estimate for estimate in estimates if estimate.value is None]):
        console.print(f"[dim]{escape(why)}[/]")


def advices(comparison: Comparison) -> list[str]:
    """What to use of accelerations that were timed together, a sentence for each measurement."""
    return [f"{one.model} on {one.workload or 'the prompts'}: {advice(one)}" for one in comparison.combined]
