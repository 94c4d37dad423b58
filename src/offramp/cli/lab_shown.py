"""What `offramp lab` shows: sources of a text, a training's losses, required depth, effects of factors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from offramp.lab.effects.analysis import Effect
    from offramp.lab.effects.runs import Block
    from offramp.lab.required_depth import RequiredDepth
    from offramp.lab.text.folder import TextRecord
    from offramp.lab.training.record import TrainingRecord
    from offramp.report.word_table import WordTable


def effects_table(block: Block, found: Sequence[Effect]) -> WordTable:
    """Every factor on every endpoint."""
    from offramp.report.word_table import WordTable

    title = f"{len(block.names)} runs at a validation loss of {block.loss:.3f}"
    table = WordTable(title=f"[bold]{title}[/]")
    for column in ("endpoint", "factor"):
        table.add_column(column)
    for column in ("effect", "95 % by seeds", "p, all together", "with loss as covariate", "detectable"):
        table.add_column(column, justify="right")
    table.add_column("")
    for one in found:
        interval = "" if one.low is None or one.high is None else f"{one.low:+.3f} to {one.high:+.3f}"
        table.add_row(
            one.endpoint,
            one.factor,
            f"{one.value:+.3f}",
            interval,
            _p(one.adjusted),
            f"{one.with_loss:+.3f} (p {_p(one.p_with_loss)})",
            "" if one.detectable is None else f"{one.detectable:.3f}",
            one.word,
        )
    return table


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def effects_notes(block: Block, found: Sequence[Effect], together: Mapping[str, Any]) -> list[str]:
    """What was left out, and what must be known to read the table."""
    from offramp.lab.effects.factors import LEVELS

    notes = ["effects are " + ", ".join(f"{plus} minus {minus}" for minus, plus in LEVELS.values())]
    notes += [f"left out: {name}, {why}" for name, why in block.left_out.items()]
    if block.below:
        names = ", ".join(block.below)
        notes.append(f"taken at the first checkpoint, whose loss is not above that already: {names}")
    if found[0].low is None:
        notes.append("no cell has two seeds: there is no error of a seed, and nothing is claimed")
    if not together:
        return [*notes, "pairs of factors are not tested: that takes all 16 cells, and one with two seeds"]
    hints = [
        f"{name} on {endpoint} ({values[0, place]:+.3f}, p {_p(values[1, place])})"
        for name, values in together.items()
        for place, endpoint in enumerate(block.endpoints)
        if values[1, place] <= 0.05
    ]
    notes.append(
        f"indications of pairs, no claims: {'; '.join(hints)}" if hints else "no pair of factors stands out"
    )
    return notes


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


def training_notes(record: TrainingRecord) -> list[str]:
    """The model's sizes, the speed, and how it ended, in words."""
    speed = record.tokens / record.seconds if record.seconds else 0.0
    notes = [
        f"{record.parameters:,} parameters, feed-forward width {record.width}, "
        f"{record.products:,} products a token",
        f"{record.tokens:,} tokens in {record.seconds:,.0f} s, {speed:,.0f} a second "
        f"({record.settings.threads} threads, {record.settings.device}): {record.stopped}",
    ]
    if record.diverged:
        notes.append("it diverged: the model is kept as it was before that step, and marked in training.json")
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
        table.add_row(row.form, str(row.steps), f"{row.answers:,}", percent(row.right, 0), exit, counts)
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
