"""`offramp lab`: small models of one's own, trained one factor apart, and the text that they learn from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offramp.cli.console import Output
from offramp.cli.options import AsJson, Device, require_placement
from offramp.models.devices import AUTO

if TYPE_CHECKING:
    from offramp.lab.text.folder import TextRecord
    from offramp.lab.training.record import TrainingRecord
    from offramp.report.word_table import WordTable

lab = typer.Typer(help="Train small models one factor apart, and make their text.", no_args_is_help=True)


@lab.callback()
def lab_group() -> None:
    """Train small models one factor apart, and make their text."""


@lab.command("text")
def text(
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder to write.")],
    request: Annotated[
        Path | None,
        typer.Argument(help="A TOML file: sources, folders of packages, one's own text.", show_default=False),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Make the text again that is there.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make a text to train on: what is here, dealt to parts by whole works, a quarter of known depth."""
    out = Output(as_json)
    from offramp.lab.text.make import make_text
    from offramp.lab.text.request import TextRequest, read_request

    made = make_text(TextRequest() if request is None else read_request(request), output, overwrite=overwrite)
    record = made.record
    out.console.print(_sources_table(record))
    lines = [f"not here: {one.name} ({one.fix})" for one in record.absent]
    lines += [f"{one.name}: {one.limits}" for one in record.sources if one.limits]
    for line in [*lines, f"written: {output}, text {made.fingerprint[:12]}"]:
        out.console.print(line, markup=False, soft_wrap=True)
    out.finish(_text_summary(record, output, made.fingerprint))


@lab.command("train")
def train(
    recipe: Annotated[Path, typer.Argument(help="A TOML file: the architecture, sizes, text and seed.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The model's folder. What was killed goes on there.")
    ],
    device: Device = AUTO,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace another training in the folder, or a finished one.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train a small model from scratch: a model folder, with the models of earlier steps beside it."""
    out = Output(as_json)
    require_placement(device, "float32")

    from offramp.lab.training.recipe import read_recipe
    from offramp.lab.training.train import train as train_recipe
    from offramp.models.devices import find_device

    asked, _ = read_recipe(recipe)
    record = train_recipe(asked, output, device=find_device(device), overwrite=overwrite, shown=True)
    out.console.print(_history_table(record))
    for line in [*_training_notes(record), f"written: {output}"]:
        out.console.print(line, markup=False, soft_wrap=True)
    out.finish(_training_summary(record, output))


def _history_table(record: TrainingRecord) -> WordTable:
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


def _training_notes(record: TrainingRecord) -> list[str]:
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


def _training_summary(record: TrainingRecord, folder: Path) -> dict[str, Any]:
    from offramp.records.typed import to_json

    found: dict[str, Any] = to_json(record)
    return {"folder": str(folder), **{key: value for key, value in found.items() if key != "documents"}}


def _sources_table(record: TextRecord) -> WordTable:
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


def _text_summary(record: TextRecord, folder: Path, fingerprint: str) -> dict[str, Any]:
    from offramp.records.typed import to_json

    return {
        "text": str(folder),
        "fingerprint": fingerprint,
        "sources": to_json(record.sources),
        "absent": to_json(record.absent),
        "tokens": record.tokens,
    }
