"""`offramp-lab`: a text, trainings, what is measured of a model, a study and its page."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from offramp import InputError, OfframpError

app = typer.Typer(
    help="Small models, trained one factor apart: what makes them exit early?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Output = Annotated[Path, typer.Option("-o", "--output", help="What to write.")]
Device = Annotated[str, typer.Option("--device", help="cpu, or as torch names another.")]
Threads = Annotated[int, typer.Option("--threads", min=1, help="Of torch.")]


@app.command()
def text(
    output: Output,
    request: Annotated[
        Path | None, typer.Argument(help="A TOML file: sources, folders of packages, one's own text.")
    ] = None,
) -> None:
    """Make a text to train on: what is here, dealt to parts by whole works, a quarter of known depth."""
    from pydantic import ValidationError

    from offramp_lab.page import text_part
    from offramp_lab.recipes import invalid, read_toml
    from offramp_lab.text import TextRequest, make_text

    asked = TextRequest()
    if request is not None:
        try:
            asked = TextRequest.model_validate(read_toml(request)).placed(request.parent)
        except ValidationError as error:
            raise invalid(error, str(request)) from error
    made = make_text(asked, output)
    part = text_part(made)
    print("\n".join([part["caption"], *part["lines"]]))


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="A TOML file: the architecture, sizes, text and seed.")],
    output: Output,
    device: Device = "cpu",
    threads: Threads = 1,
) -> None:
    """Train a small model, or go on with it: a model folder, with the models of earlier steps beside it."""
    from offramp_lab.recipes import Dense, read_recipe, require_comparable
    from offramp_lab.text import read_text
    from offramp_lab.train import train as train_recipe

    asked = read_recipe(recipe)
    made = read_text(asked.text)
    if isinstance(asked, Dense) and asked.against is not None:
        other = read_recipe(Path(asked.against))
        if not isinstance(other, Dense) or read_text(other.text).fingerprint != made.fingerprint:
            fix = "compare dense models that are trained on one text"
            raise InputError("the two cannot be compared", where=f"{recipe}, against", fix=fix)
        require_comparable(asked, other, asked.against, made.vocabulary)
    record = train_recipe(asked, made, output, device=device, threads=threads)
    for kept in record["history"]:
        right = " ".join("–" if share is None else f"{share:.0%}" for share in kept["accuracy"])
        print(f"step {kept['step']:,}: {kept['natural']:.3f} nat held out, right by steps {right}")
    print(f"{record['parameters']:,} parameters, width {record['width']}: {record['stopped']}")


@app.command()
def measure(
    model: Annotated[str, typer.Argument(help="A model of this lab; or any other, as offramp takes it.")],
    text_folder: Annotated[Path, typer.Argument(metavar="TEXT", help="The text that it was trained on.")],
    output: Output,
    only: Annotated[list[str] | None, typer.Option("--only", help="One endpoint; may be repeated.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the lens.")] = 0,
    device: Device = "cpu",
    threads: Threads = 1,
) -> None:
    """Measure the endpoints of docs/preregistered.md on the report part of a text."""
    from offramp_lab.endpoints import ENDPOINTS
    from offramp_lab.study import measure_into
    from offramp_lab.text import read_text

    how = {"endpoints": only or ENDPOINTS, "seed": seed, "device": device, "threads": threads}
    measure_into(output, model, read_text(text_folder), **how)
    found = json.loads(output.read_text(encoding="utf-8"))
    for name, value in found["values"].items():
        print(f"{name}: {found['untold'][name] if value is None else f'{value:.4f}'}")


@app.command()
def study(
    file: Annotated[Path, typer.Argument(help="A TOML file that lists the runs.")],
    output: Output,
) -> None:
    """Run a study, or go on with it: trainings, what is measured of them, the table of runs and the page."""
    from offramp_lab.study import read_study, run_study

    print(run_study(read_study(file), output, again("study", file, "-o", output)))


@app.command()
def report(
    table: Annotated[Path, typer.Argument(help="A CSV file, a line for each kept model of each run.")],
    output: Output,
    text_folder: Annotated[
        Path | None, typer.Option("--text", help="What the models were trained on.")
    ] = None,
) -> None:
    """What the study's runs tell of each claim, as written down before them: a page, and tables."""
    from offramp_lab.families import analyse
    from offramp_lab.page import PAGE, headline, write_report
    from offramp_lab.runs import read_models
    from offramp_lab.text import read_text

    findings = analyse(read_models(table))
    made = None if text_folder is None else read_text(text_folder)
    write_report(findings, output, text=made, command=again("report", table, "-o", output))
    print(headline(findings))
    print(output / PAGE)


@app.command()
def given(
    file: Annotated[Path, typer.Argument(help="A TOML file that lists models.")],
    output: Output,
) -> None:
    """Measure the same endpoints on models that are given: a table, and a page beside each other."""
    from offramp_lab.given import measure_given

    print(measure_given(file, output, again("given", file, "-o", output)))


def again(*arguments: object) -> str:
    """The command that does it again."""
    return shlex.join(["offramp-lab", *map(str, arguments)])


def main() -> None:
    """The command; an error is said in a sentence, with what to do."""
    try:
        app()
    except OfframpError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
