"""`offramp lab`: small models of one's own, trained one factor apart, and the text that they learn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offramp.cli.console import Output
from offramp.cli.options import AsJson, Device, require_placement
from offramp.errors import InputError
from offramp.models.devices import AUTO

if TYPE_CHECKING:
    from offramp.lab.effects.analysis import Effect
    from offramp.lab.effects.runs import Block
    from offramp.lab.text.folder import TextRecord
    from offramp.lab.training.record import TrainingRecord
    from offramp.report.word_table import WordTable

SMALLEST = 0.03
"""The smallest effect of a factor that matters, on an endpoint between 0 and 1."""

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


@lab.command("design")
def design(
    text_folder: Annotated[Path, typer.Argument(help="A folder of offramp lab text.", metavar="TEXT")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder of the recipes.")],
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Of each run.")],
    rate: Annotated[
        float, typer.Option("--rate", help="The largest learning rate, the same for all.")
    ] = 2e-3,
    as_json: AsJson = False,
) -> None:
    """Write the recipes of docs/lab/preregistered.md that differ in one factor, in seed or in size."""
    out = Output(as_json)
    from offramp.lab.design import write_design

    written = write_design(output, text_folder, tokens=tokens, rate=rate)
    for line in (
        f"{len(written)} recipes in {output}, of {tokens:,} tokens each",
        f"train one: offramp lab train {written[0]} -o lab/{written[0].stem}",
    ):
        out.console.print(line, markup=False, soft_wrap=True)
    out.finish({"recipes": [str(path) for path in written]})


@lab.command("effects")
def effects(
    table: Annotated[
        Path,
        typer.Argument(
            help="A CSV file, a line a checkpoint: run, norm, mlp, positions, heads, residual, step, loss, "
            "and a column for each endpoint."
        ),
    ],
    smallest: Annotated[
        list[str] | None,
        typer.Option(
            "--smallest",
            help="The smallest effect that matters, of one endpoint (representation=0.03) or of all (0.03).",
            show_default=False,
        ),
    ] = None,
    permutations: Annotated[
        int | None,
        typer.Option("--permutations", min=99, help="Of the test. By default 9,999.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the permutations.")] = 0,
    as_json: AsJson = False,
) -> None:
    """What each factor does to each endpoint at equal validation loss, tested together, errors from seeds."""
    out = Output(as_json)
    from offramp.lab.effects.analysis import PERMUTATIONS, main_effects, pair_effects
    from offramp.lab.effects.runs import make_block, read_runs

    runs, endpoints = read_runs(table)
    block = make_block(runs, endpoints)
    least = _smallest(smallest or [], endpoints)
    count = PERMUTATIONS if permutations is None else permutations
    found = main_effects(block, least, permutations=count, seed=seed)
    together = pair_effects(block, permutations=count, seed=seed)
    out.console.print(_effects_table(block, found))
    for line in _effects_notes(block, found, together):
        out.console.print(line, markup=False, soft_wrap=True)
    out.finish(
        {
            "loss": block.loss,
            "runs": list(block.names),
            "left_out": dict(block.left_out),
            "effects": [vars(one) for one in found],
            "pairs": {
                name: {
                    endpoint: {"value": float(values[0, place]), "adjusted": float(values[1, place])}
                    for place, endpoint in enumerate(endpoints)
                }
                for name, values in together.items()
            },
        }
    )


def _smallest(given: Sequence[str], endpoints: Sequence[str]) -> Any:
    """The smallest effect that matters of each endpoint. Raises InputError."""
    import numpy as np

    found = dict.fromkeys(endpoints, SMALLEST)
    for text in given:
        name, equals, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if not value > 0 or (equals and name not in found):
            raise InputError(
                f"{text!r} is no smallest effect",
                where="--smallest",
                fix=f"write a number above 0, or one of {', '.join(found)} and it: {next(iter(found))}=0.03",
            )
        found |= {name: value} if equals else dict.fromkeys(endpoints, value)
    return np.array(list(found.values()))


def _effects_table(block: Block, found: Sequence[Effect]) -> WordTable:
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


def _effects_notes(block: Block, found: Sequence[Effect], together: Mapping[str, Any]) -> list[str]:
    """What was left out, and what must be known to read the table."""
    from offramp.lab.effects.factors import LEVELS

    notes = ["effects are " + ", ".join(f"{plus} minus {minus}" for minus, plus in LEVELS.values())]
    notes += [f"left out: {name}, {why}" for name, why in block.left_out.items()]
    if found[0].low is None:
        notes.append("no cell has two seeds: there is no error of a seed, and nothing is claimed")
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
