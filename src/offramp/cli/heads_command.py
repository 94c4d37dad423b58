"""`offramp heads`: fit a linear lens and exit classifiers to a model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offramp.cli.console import Output, stage
from offramp.cli.options import (
    AsJson,
    ContextLength,
    Exits,
    ModelName,
    Precision,
    RemoteCode,
    require_options,
)
from offramp.cli.run_folder import require_writable
from offramp.errors import InputError
from offramp.tracing.fitting.sizes import FITTING_TOKENS

if TYPE_CHECKING:
    from rich.table import Table

    from offramp.tracing.exit_heads import ExitHeads

heads = typer.Typer(help="Fit exit heads: a linear lens and classifiers.", no_args_is_help=True)


@heads.command("fit")
def fit(
    model: ModelName,
    workload: Annotated[
        list[str],
        typer.Option(
            "--workload",
            "-w",
            help="What to fit on; may be repeated: prose, code, chat, math, txt:PATH, jsonl:PATH#field, ...",
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The file to write (.safetensors).")],
    tokens: Annotated[
        int, typer.Option("--tokens", help="Tokens over all workloads; a quarter of them for classifiers.")
    ] = FITTING_TOKENS,
    exits: Exits = "all",
    lens: Annotated[bool, typer.Option(help="Fit a linear lens: every exit is then read through it.")] = True,
    classifiers: Annotated[bool, typer.Option(help="Fit classifiers that predict agreement.")] = True,
    candidate_exit: Annotated[
        int | None,
        typer.Option(
            "--candidate-exit",
            help="Exit whose best tokens candidate_score looks at. By default near half of the depth.",
            show_default=False,
        ),
    ] = None,
    context: ContextLength = None,
    seed: Annotated[int, typer.Option("--seed", help="Deals documents out and starts the networks.")] = 0,
    dtype: Precision = "float32",
    trust_remote_code: RemoteCode = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Fit a linear lens and classifiers per exit on the later half of each workload's documents."""
    from offramp.workloads.registry import load_workload

    out = Output(as_json)
    require_options(
        tokens=tokens, context=context, document_tokens=None, exits=exits, dtype=dtype, output=None
    )
    _require_file(output, overwrite=overwrite)
    if not lens and not classifiers:
        raise InputError(
            "neither a lens nor classifiers are to be fitted", where="--no-lens", fix="leave one of them on"
        )
    works = [load_workload(spec) for spec in dict.fromkeys(workload)]

    from offramp.models.loading import load_model
    from offramp.tracing.fitting.fit import fit_heads
    from offramp.tracing.heads_file import write_heads

    with stage("loading the model and checking its exits"):
        loaded = load_model(model, dtype=dtype, trust_remote_code=trust_remote_code)
    fitted = fit_heads(
        loaded,
        works,
        tokens=tokens,
        exits=exits,
        lens=lens,
        classifiers=classifiers,
        candidate_exit=candidate_exit,
        context=context,
        seed=seed,
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    write_heads(fitted, output)
    out.console.print(_table(fitted))
    for line in [*_notes(fitted), f"written: {output}"]:
        out.console.print(line, markup=False, soft_wrap=True)
    out.finish(_summary(fitted, output))


def _require_file(path: Path, *, overwrite: bool) -> None:
    """Refuse an output that is a folder, is there already or cannot be written."""
    if path.is_dir():
        raise InputError("the output is a folder, not a file", where=str(path), fix="name a file with -o")
    if path.exists() and not overwrite:
        raise InputError(
            "the output file is there already", where=str(path), fix="choose another, or add --overwrite"
        )
    require_writable(path.parent)


def _table(fitted: ExitHeads) -> Table:
    """Explained variance and each classifier's AUROC per exit; in brackets where it does not beat chance."""
    from rich.table import Table

    from offramp.report.formats import decimal

    title = "held-out documents: variance explained by the lens, AUROC of the classifiers"
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("exit", justify="right")
    if fitted.lens is not None:
        table.add_column("lens", justify="right")
    for name in fitted.classifiers:
        table.add_column(name.replace("_", " "), justify="right")
    for index, exit in enumerate(fitted.exits):
        cells = [str(exit)]
        if fitted.lens is not None:
            cells.append(decimal(float(fitted.lens.explained[index])))
        for classifier in fitted.classifiers.values():
            auroc = float(classifier.auroc[index])
            text = "rare" if math.isnan(auroc) else decimal(auroc)
            cells.append(text if classifier.better_than_chance[index] else f"({text})")
        table.add_row(*cells)
    return table


def _notes(fitted: ExitHeads) -> list[str]:
    """What each classifier is worth, in words."""
    lines = []
    for name, classifier in fitted.classifiers.items():
        worse = [
            exit
            for exit, better in zip(fitted.exits, classifier.better_than_chance, strict=True)
            if not better
        ]
        if len(worse) == len(fitted.exits):
            lines.append(
                f"{name} is not shown to beat the base rate at any exit: do not build a policy on it"
            )
        elif worse:
            listed = ", ".join(str(exit) for exit in worse)
            lines.append(f"{name} is not shown to beat the base rate at exits {listed}")
    if fitted.classifiers:
        lines.append(
            "(0.70): not shown to beat the base rate on held-out documents; rare: too few tokens of one class"
        )
    seen = sum(len(ids) for ids in fitted.documents.values())
    lines.append(f"fitting read {seen} documents; tuning on a trace made with these heads leaves them out")
    return lines


def _summary(fitted: ExitHeads, output: Path) -> dict[str, Any]:
    """The same as JSON."""
    return {
        "heads": str(output),
        "fingerprint": fitted.fingerprint,
        "exits": list(fitted.exits),
        "candidate_exit": fitted.candidate_exit,
        "lens": None
        if fitted.lens is None
        else {"explained": fitted.lens.explained.tolist(), "penalty": fitted.lens.penalty.tolist()},
        "classifiers": {
            name: {
                "auroc": classifier.auroc.tolist(),
                "base_rate": classifier.base_rate.tolist(),
                "better_than_chance": classifier.better_than_chance.tolist(),
            }
            for name, classifier in fitted.classifiers.items()
        },
        "documents": {workload: list(ids) for workload, ids in fitted.documents.items()},
        "provenance": dict(fitted.provenance),
    }
