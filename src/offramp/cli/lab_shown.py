"""What `offramp lab` shows: a text's sources, a training's losses, required depth, what runs tell."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

    from offramp.lab.effects.study import LabFindings
    from offramp.lab.endpoints.record import Endpoints
    from offramp.lab.required_depth import RequiredDepth
    from offramp.lab.text.folder import TextRecord
    from offramp.lab.training.record import TrainingRecord
    from offramp.report.word_table import WordTable


def claims_shown(found: LabFindings) -> list[RenderableType]:
    """What the gate found; where it is passed, the words of every claim, and what is missing."""
    from offramp.lab.effects.claims import CLAIMS, judge
    from offramp.report.lab.page import family_notes, gate_lines, headline
    from offramp.report.lab.words import words_of
    from offramp.report.word_table import WordTable

    lines: list[RenderableType] = [headline(found), *gate_lines(found.gate)]
    if found.gate.passed:
        table = WordTable()
        for column in ("claim of the study", "word of each test"):
            table.add_column(column)
        for claim in CLAIMS:
            words = [
                f"{word} x {count}" if count > 1 else word for word, count in words_of(judge(claim, found))
            ]
            table.add_row(claim.said, ", ".join(words))
        lines.append(table)
    left_out = [f"left out: {name}, {why}" for name, why in found.left_out.items()]
    return [*lines, *left_out, *family_notes(found)]


def history_table(record: TrainingRecord) -> WordTable:
    """Losses and right answers after every model that was kept."""
    from offramp.report.formats import decimal, percent
    from offramp.report.word_table import WordTable

    table = WordTable(title="[bold]nats a token, and right answers by the steps they take[/]")
    asked = len(record.history[-1].accuracy) if record.history else 0
    columns = (
        "steps",
        "tokens",
        "trained on",
        "held out",
        "generated",
        *(f"k = {k + 1}" for k in range(asked)),
    )
    for column in columns:
        table.add_column(column, justify="right")
    for one in record.history:
        losses = (decimal(loss, 3) for loss in (one.trained, one.natural, one.generated))
        right = ("" if share is None else percent(share, 0) for share in one.accuracy)
        table.add_row(f"{one.step:,}", f"{one.tokens:,}", *losses, *right)
    return table


WIDTHS = {"mixture": "width of an expert", "mamba2": "numbers of state"}
"""What the width of a model of other kinds than dense is of."""


def training_notes(record: TrainingRecord, folder: Path) -> list[str]:
    """The model's sizes, the speed, how it ended, and which models of earlier steps are gone, in words."""
    from offramp.lab.training.folder import kept_model

    active = "" if record.active is None else f", of which a token meets {record.active:,}"
    speed = record.tokens / record.seconds if record.seconds else 0.0
    notes = [
        f"{record.parameters:,} parameters{active}, {WIDTHS.get(record.recipe.kind, 'feed-forward width')} "
        f"{record.width}, {record.products:,} products a token",
        f"{record.tokens:,} tokens in {record.seconds:,.0f} s, {speed:,.0f} a second "
        f"({record.settings.threads} threads, {record.settings.device}): {record.stopped}",
    ]
    if record.diverged:
        notes.append(
            "it diverged: the model is kept as it was then, and marked in training.json; try a smaller rate, "
            "or another seed"
        )
    kept = [kept_model(folder, one.step) for one in record.history if one.step != record.step]
    gone = [path.name for path in kept if not path.is_dir()]
    if gone:
        notes.append(f"no longer there: {', '.join(gone)}; --overwrite trains all again")
    return notes


def training_summary(record: TrainingRecord, folder: Path) -> dict[str, Any]:
    """A training as JSON."""
    from offramp.records.typed import to_json

    found: dict[str, Any] = to_json(record)
    return {"folder": str(folder), **{key: value for key, value in found.items() if key != "documents"}}


def sources_table(record: TextRecord) -> WordTable:
    """Every source with its licence, and how much of it is in each part."""
    from offramp.lab.text.work import PARTS
    from offramp.report.word_table import WordTable

    tokens = record.tokens["train"]
    title = f"{sum(tokens.values()):,} tokens to train on, {tokens['generated']:,} of them generated"
    table = WordTable(title=f"[bold]{title}[/]")
    for column in ("source", "version", "licence"):
        table.add_column(column)
    for part in PARTS:
        table.add_column(f"{part}, characters", justify="right")
    for one in record.sources:
        table.add_row(one.name, one.version, one.licence, *(f"{one.characters[part]:,}" for part in PARTS))
    return table


def text_summary(record: TextRecord, folder: Path, fingerprint: str) -> dict[str, Any]:
    """A text as JSON."""
    from offramp.records.typed import to_json

    return {
        "text": str(folder),
        "fingerprint": fingerprint,
        "sources": to_json(record.sources),
        "absent": to_json(record.absent),
        "tokens": record.tokens,
    }


def depth_table(found: RequiredDepth, layers: int) -> WordTable:
    """For each form and number of steps how many answers are right, and from which exit on they are said."""
    from offramp.report.formats import decimal, percent
    from offramp.report.word_table import WordTable

    table = WordTable(
        title=f"[bold]answers that take k steps, and the exit of {layers} from which on they are said[/]"
    )
    table.add_column("form")
    for column in ("k", "answers", "right", "mean exit of right ones"):
        table.add_column(column, justify="right")
    table.add_column("")
    for row in found.rows:
        exit = "" if row.exit is None else decimal(row.exit)
        counts = "counts" if row.counts else ""
        right = percent(row.right, 0) if row.answers else "–"
        table.add_row(row.form, str(row.steps), f"{row.answers:,}", right, exit, counts)
    return table


def depth_notes(found: RequiredDepth) -> list[str]:
    """The slope, or why there is none."""
    if found.slope is None:
        return [f"required against used depth cannot be told: {found.untold}"]
    limits = "" if found.low is None else f" ({found.low:+.2f} to {found.high:+.2f})"
    return [
        f"a step more takes {found.slope:+.2f} layers{limits}, within forms, where at least half is right",
        "steps are those on paper: a network can do some at once",
    ]


def depth_summary(found: RequiredDepth) -> dict[str, Any]:
    """The same as JSON."""
    from offramp.records.typed import to_json

    summary: dict[str, Any] = to_json(found)
    return summary


def endpoints_table(found: Endpoints) -> WordTable:
    """Every figure under the name of its column in a table of runs."""
    from offramp.report.word_table import WordTable

    table = WordTable(title=f"[bold]model {found.model[:12]} on text {found.text[:12]}[/]")
    table.add_column("endpoint")
    table.add_column("", justify="right")
    for name, value in found.values.items():
        table.add_row(name, "cannot be told" if value is None else f"{value:.4f}")
    return table


def endpoints_notes(found: Endpoints) -> list[str]:
    """What must be known to read the figures, and how long they took."""
    from offramp.report.formats import counted

    notes = [f"{name}: {why}" for name, why in found.untold.items()]
    for name, one in found.executed.items():
        if one.bound:
            notes.append(f"{name}: at least; the smallest threshold keeps 95 % already")
        if not one.monotone:
            notes.append(
                f"{name}: agreement is not monotone in the threshold, so bisection found one of several"
            )
    for name, tokens in found.tokens.items():
        notes.append(f"{name}: {tokens:,} tokens of {counted(found.documents[name], 'document')}")
    return [*notes, f"{sum(found.seconds.values()):.1f} s of the processor, {found.threads} threads"]
