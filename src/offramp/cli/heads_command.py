"""`offramp heads`: fit a linear lens, exit classifiers and K,V maps to a model, or import others' heads."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from offramp.cli.console import Output
from offramp.cli.heads_shown import heads_notes, heads_summary, heads_table, maps_table
from offramp.cli.options import (
    AsJson,
    ContextLength,
    Device,
    Exits,
    ModelName,
    Precision,
    RemoteCode,
    ShortListSize,
    Transforms,
    refuse_idle,
    require_options,
    require_placement,
)
from offramp.costs.probes import USUAL_SIZES
from offramp.errors import InputError
from offramp.files import require_writable
from offramp.kit.defaults import SEED
from offramp.models.devices import AUTO
from offramp.tracing.progress import stage
from offramp.tracing.request import FITTING_TOKENS

if TYPE_CHECKING:
    from offramp.tracing.exit_heads import ExitHeads
    from offramp.tracing.fitting.maps import FittingMemory
    from offramp.tracing.importing.imports import Import

heads = typer.Typer(
    help="Fit exit heads (a linear lens, classifiers, K,V maps), or import those of others.",
    no_args_is_help=True,
)


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
    kv_maps: Annotated[
        str | None,
        typer.Option(
            "--kv-maps",
            help="Exits that get maps to deeper layers' inputs, for --kv mapped: 8,15,20. By default none.",
            show_default=False,
        ),
    ] = None,
    kv_rank: Annotated[
        str,
        typer.Option(
            "--kv-rank",
            help="Of the K,V maps: full, a number, or auto: the lowest that explains nearly as much as full.",
        ),
    ] = "auto",
    short_list: ShortListSize = None,
    add_to: Annotated[
        Path | None,
        typer.Option(
            "--add-to",
            help="A file of exit heads that the K,V maps are added to; nothing else is fitted then.",
            show_default=False,
        ),
    ] = None,
    context: ContextLength = None,
    seed: Annotated[int, typer.Option("--seed", help="Deals documents out and starts the networks.")] = SEED,
    device: Device = AUTO,
    dtype: Precision = AUTO,
    transform: Transforms = None,
    trust_remote_code: RemoteCode = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Fit a linear lens, classifiers and K,V maps per exit on the later half of each workload's documents."""
    from offramp.tracing.loading import find_model, read_transforms
    from offramp.workloads.registry import load_workload

    out = Output(as_json)
    require_options(tokens=tokens, context=context, document_tokens=None, exits=exits, output=None)
    require_placement(device, dtype)
    _require_file(output, overwrite=overwrite)
    if not lens and not classifiers and kv_maps is None:
        raise InputError(
            "neither a lens nor classifiers are to be fitted", where="--no-lens", fix="leave one of them on"
        )
    map_exits, rank = _map_exits(kv_maps), _rank(kv_rank)
    if add_to is not None and map_exits is None:
        raise InputError("there are no maps to add", where="--add-to", fix="name their exits: --kv-maps 8,15")
    only_maps = add_to is not None or not (lens or classifiers)
    unclassified = candidate_exit is not None and (only_maps or not classifiers)
    refuse_idle(
        {
            "--candidate-exit": (unclassified, "without classifiers", ""),
            "--short-list": (short_list is not None and only_maps, "where only K,V maps are fitted", ""),
            "--kv-rank": (kv_rank != "auto" and kv_maps is None, "without K,V maps", "--kv-maps"),
        }
    )
    transforms = read_transforms(transform, dtype)
    works = [load_workload(spec) for spec in dict.fromkeys(workload)]

    from offramp.tracing.fitting.fit import fit_heads
    from offramp.tracing.heads_file import read_heads, require_base, write_heads

    whole = None if add_to is None else read_heads(add_to)
    with stage("loading the model and checking its exits"):
        loaded = find_model(
            model, transforms, dtype=dtype, trust_remote_code=trust_remote_code, device=device
        ).load()
    if whole is not None:
        require_base(whole, {"name": loaded.shown_name, **loaded.identity.to_json()}, str(add_to))

    def tell(memory: FittingMemory) -> None:
        for part in memory.parts:
            out.console.print(part, markup=False, soft_wrap=True)

    fitted = fit_heads(
        loaded,
        works,
        tokens=tokens,
        exits=exits,
        lens=lens and whole is None,
        classifiers=classifiers and whole is None,
        candidate_exit=candidate_exit,
        kv_maps=map_exits,
        kv_rank=rank,
        short_list=USUAL_SIZES.shortlist if short_list is None else short_list,
        context=context,
        seed=seed,
        on_memory=tell,
    )
    if whole is not None:
        fitted = dataclasses.replace(whole, kv_maps=fitted.kv_maps)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_heads(fitted, output)
    if fitted.exits:
        out.console.print(heads_table(fitted))
    if fitted.kv_maps is not None:
        out.console.print(maps_table(fitted.kv_maps))
    for line in [*heads_notes(fitted), f"written: {output}"]:
        out.console.print(line, markup=False, soft_wrap=True)
    out.finish(heads_summary(fitted, output))


@heads.command("import")
def import_(
    file: Annotated[
        str,
        typer.Argument(
            help="A .safetensors file, a folder with such files (a model's own, too), or a Hub id."
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The file to write (.safetensors).")],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="The model that the exits belong to. By default FILE, where that is a model's own.",
            show_default=False,
        ),
    ] = None,
    key_map: Annotated[
        Path | None,
        typer.Option("--map", help="A TOML file: which tensors are the heads of which exit."),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            "--format", help="A known layout instead of a map: tuned-lens, multi-exit, ee-llm, balcony."
        ),
    ] = None,
    device: Device = AUTO,
    dtype: Precision = AUTO,
    transform: Transforms = None,
    trust_remote_code: RemoteCode = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make exits that others trained (lenses, networks, norms, output heads) ready for --heads."""
    from offramp.tracing.loading import find_model, load_for_tracing, read_transforms

    out = Output(as_json)
    require_placement(device, dtype)
    _require_file(output, overwrite=overwrite)
    transforms = read_transforms(transform, dtype)

    from offramp.models.transforms.prune import Prune
    from offramp.tracing.heads_file import write_heads
    from offramp.tracing.importing.imports import find_import

    if any(isinstance(one, Prune) for one in transforms):
        raise InputError(
            "heads are numbered by the layers of the whole model, and a pruned one counts others",
            where="--transform",
            fix="prune the model without heads, or fit heads of the pruned model: offramp heads fit",
        )

    found = find_import(file, key_map=key_map, format=format)
    base = _base_of_import(file, model, found)
    asked = find_model(base, transforms, dtype=dtype, trust_remote_code=trust_remote_code, device=device)
    found.require_config(asked.source.folder)
    with stage("loading the model and checking its exits"):
        # No layer is run, so those of a model that does not fit may stay on disk.
        loaded = load_for_tracing(asked, [], stream=None, memory=None)
    imported = found.heads_for(loaded)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_heads(imported, output)
    for line in [*_import_notes(imported), *found.left_out(loaded.layers), f"written: {output}"]:
        out.console.print(line, markup=False, soft_wrap=True)
    out.finish(heads_summary(imported, output))


def _base_of_import(file: str, model: str | None, found: Import) -> str:
    """The model that imported exits belong to: the one named, or the files themselves."""
    if model is not None:
        return model
    folder = found.tensors.where
    if found.builds and any(folder.glob("model*.safetensors*")) and (folder / "config.json").is_file():
        return file
    plain = (
        "name it with --model; only a model's own folder needs no --model"
        if found.builds
        else "name with --model the one that the exits were added to; transformers cannot build it from "
        "these files (docs/bring-your-own-exits.md says what to change where they hold it)"
    )
    raise InputError("it is not said which model the heads belong to", where=file, fix=plain)


def _import_notes(imported: ExitHeads) -> list[str]:
    """What was imported, and what that means, in words."""
    from offramp.tracing.described_heads import read_by, reading_parts

    listed = ", ".join(str(exit) for exit in imported.exits)
    kind = " and ".join(reading_parts(read_by(imported)))
    return [
        f"{imported.model['name']}: {kind} at exits {listed}",
        "it is not known which documents they were trained on, so tuning cannot leave those out",
    ]


def _map_exits(text: str | None) -> tuple[int, ...] | None:
    """The exits of --kv-maps."""
    if text is None:
        return None
    words = [word.strip() for word in text.replace("+", ",").split(",")]
    if not all(word.isdecimal() for word in words):
        raise InputError(f"{text!r} is not a list of exits", where="--kv-maps", fix="write 8,15,20")
    return tuple(int(word) for word in words)


def _rank(text: str) -> int | str:
    """The rank of --kv-rank."""
    from offramp.tracing.fitting.maps import check_rank

    return check_rank(int(text) if text.isdecimal() else text)


def _require_file(path: Path, *, overwrite: bool) -> None:
    """Refuse an output that is a folder, cannot be written, or is there already: other files even if told to
    overwrite.
    """
    from offramp.tracing.heads_file import is_heads_file

    if path.is_dir():
        raise InputError("the output is a folder, not a file", where=str(path), fix="name a file with -o")
    if path.exists() and not overwrite:
        raise InputError(
            "the output file is there already", where=str(path), fix="choose another, or add --overwrite"
        )
    if path.exists() and not is_heads_file(path):
        raise InputError(
            "the output file is there already, and holds no exit heads",
            where=str(path),
            fix="choose another with -o",
        )
    require_writable(path.parent)
