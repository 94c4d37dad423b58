"""A run in the terminal: the answer first, then a table, then what to bear in mind."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape

from offramp.report.findings import run_decision
from offramp.report.next_step import next_step
from offramp.report.run_result import RunResult
from offramp.report.sections.first_screen import VERDICTS, grounds_line, verdicts_of
from offramp.report.table import TERMINAL_STYLES
from offramp.report.words import headline, short_answer, wrong_with


def print_summary(run: RunResult, console: Console, report: Path | None = None) -> None:
    """Print the verdict and what it rests on, a row a text and floor, what is wrong, and what to do next."""
    _print_answer(run_decision(run), short_answer(run), console)
    if grounds := grounds_line(run):
        console.print(escape(grounds))
    if verdicts := verdicts_of(run):
        console.print()
        console.print(VERDICTS.rich(verdicts))
    console.print()
    for note in wrong_with(run):
        console.print(f"[dim]{escape(note)}[/]")
    if report is not None:
        console.print(f"Report: [bold]{escape(str(report))}[/]", soft_wrap=True)
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
