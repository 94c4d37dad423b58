"""`offramp lab`: small models of one's own, trained one factor apart, and the text that they learn from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offramp.cli.console import Output
from offramp.cli.options import AsJson

if TYPE_CHECKING:
    from offramp.lab.text.folder import TextRecord
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
