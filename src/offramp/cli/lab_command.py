"""`offramp lab`: small models of one's own, trained one factor apart, and the text that they learn from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from offramp.cli.console import Output, stage
from offramp.cli.lab_shown import (
    claims_shown,
    depth_notes,
    depth_summary,
    depth_table,
    endpoints_notes,
    endpoints_table,
    history_table,
    sources_table,
    text_summary,
    training_notes,
    training_summary,
)
from offramp.cli.options import AsJson, Device, ModelName, RemoteCode, require_placement
from offramp.commands import command_line
from offramp.errors import InputError
from offramp.models.devices import AUTO

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
    out.console.print(sources_table(record))
    lines = [f"not here: {one.name} ({one.fix})" for one in record.absent]
    lines += [f"{one.name}: {one.limits}" for one in record.sources if one.limits]
    for line in [*lines, f"written: {output}, text {made.fingerprint[:12]}"]:
        out.console.print(line, markup=False, soft_wrap=True)
    out.finish(text_summary(record, output, made.fingerprint))


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
    from offramp.tracing.exits_folder import TRAINING_FILE

    asked, _ = read_recipe(recipe)
    ended = (output / TRAINING_FILE).is_file() and not overwrite
    record = train_recipe(asked, output, device=find_device(device), overwrite=overwrite, shown=True)
    out.console.print(history_table(record))
    last = f"it had ended before, and is left as it is: {output}" if ended else f"written: {output}"
    for line in [*training_notes(record, output), last]:
        out.console.print(line, markup=False, soft_wrap=True)
    out.finish(training_summary(record, output))


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
    """Write the recipes of docs/lab/preregistered.md, which are trained in the order of that page."""
    out = Output(as_json)
    from offramp.lab.design import write_design

    written = write_design(output, text_folder, tokens=tokens, rate=rate)
    for line in (
        f"{len(written)} recipes in {output}, of {tokens:,} tokens each",
        f"train one: {command_line('lab train', written[0], output=written[0].with_suffix(''))}",
    ):
        out.console.print(line, markup=False, soft_wrap=True)
    out.finish({"recipes": [str(path) for path in written]})


@lab.command("depth")
def depth(
    model: ModelName,
    text_folder: Annotated[Path, typer.Argument(help="The text that it was trained on.", metavar="TEXT")],
    part: Annotated[
        str,
        typer.Option(
            "--part", help="Of the text: validation; report where all is decided; train to compare."
        ),
    ] = "validation",
    device: Device = AUTO,
    as_json: AsJson = False,
) -> None:
    """Required against used depth: from which layer on an answer is there that takes k steps."""
    out = Output(as_json)
    require_placement(device)
    from offramp.lab.required_depth import answers_of, required_depth
    from offramp.lab.text.folder import read_text_folder
    from offramp.lab.text.work import PARTS
    from offramp.tracing.loading import find_model
    from offramp.tracing.trained_model import trained_in

    chosen = next((one for one in PARTS if one == part), None)
    if chosen is None:
        raise InputError(
            f"a text has no part {part!r}", where="--part", fix=f"choose one of: {', '.join(PARTS)}"
        )
    made = read_text_folder(text_folder)
    trained_in(Path(model))  # one that has not ended or was damaged is refused before it is loaded
    with stage("loading the model and checking its exits"):
        loaded = find_model(model, (), dtype="float32", trust_remote_code=False, device=device).load()
    with stage("asking it"):
        found = required_depth(answers_of(loaded, made, chosen))
    out.console.print(depth_table(found, len(loaded.stack)))
    for line in depth_notes(found):
        out.console.print(line, markup=False, soft_wrap=True)
    out.finish(depth_summary(found))


@lab.command("measure")
def measure(
    model: Annotated[
        str,
        typer.Argument(
            help="A model folder of offramp lab train; or any other: bundled name, folder, .gguf, Hub id."
        ),
    ],
    text_folder: Annotated[
        Path,
        typer.Argument(help="The text that it was trained on; of other models any text.", metavar="TEXT"),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The file to write: endpoints.json.")],
    only: Annotated[
        list[str] | None,
        typer.Option("--only", help="One endpoint; may be repeated. By default all.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the lens.")] = 0,
    device: Device = AUTO,
    trust_remote_code: RemoteCode = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace endpoints that are there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure the endpoints of docs/lab/preregistered.md on a model, on the report part of a text."""
    out = Output(as_json)
    require_placement(device, "float32")
    from offramp.lab.endpoints.measure import measure as measure_model
    from offramp.lab.endpoints.record import ENDPOINTS, RECORD, require_free
    from offramp.lab.text.folder import read_text_folder
    from offramp.models.devices import find_device
    from offramp.tracing.progress import say

    require_free(output, overwrite=overwrite)
    found = measure_model(
        model,
        read_text_folder(text_folder),
        endpoints=only or ENDPOINTS,
        seed=seed,
        device=find_device(device),
        trust_remote_code=trust_remote_code,
        progress=lambda name, seconds: say(f"{name}: {seconds:.1f} s of the processor"),
    )
    RECORD.write(output, found)
    out.console.print(endpoints_table(found))
    for line in [*endpoints_notes(found), f"written: {output}"]:
        out.console.print(line, markup=False, soft_wrap=True)
    out.finish({"endpoints": str(output), **found.values})


@lab.command("report")
def report(
    table: Annotated[
        Path, typer.Argument(help="A CSV file, a line for each kept model of each run of the study.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder of the page and its tables.")],
    text_folder: Annotated[
        Path | None,
        typer.Option("--text", help="The text that the models were trained on.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What the study's runs tell of each claim, as written down before them: a page, and tables."""
    out = Output(as_json)
    from offramp.cli.compare_command import new_pages
    from offramp.lab.effects.runs import read_rows
    from offramp.lab.text.folder import read_text_folder
    from offramp.report import REPORT_FILE
    from offramp.report.lab.tables import TABLES, lab_summary, write_lab_report

    made = None if text_folder is None else read_text_folder(text_folder).record
    command = command_line("lab report", table, output=output, text=text_folder)
    rows = read_rows(table)
    with new_pages(output) as folder:
        found = write_lab_report(rows, folder, text=made, command=command, table=str(table))
    for shown in claims_shown(found):
        out.console.print(shown, markup=False, soft_wrap=True)
    out.console.print(
        f"written: {output / REPORT_FILE}, and its tables in {TABLES}/", markup=False, soft_wrap=True
    )
    out.finish({"report": str(output / REPORT_FILE), **lab_summary(found)})
