"""Options that several commands share, with their help texts."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from offramp.errors import InputError
from offramp.files import parse_json, read_given_text, require_writable
from offramp.kit.defaults import SHORTLIST
from offramp.models.devices import AUTO, find_device, require_dtype
from offramp.tracing.request import DEFAULT_CONTEXT


def require_json_file(path: Path, what: str, is_own: Callable[[Mapping[str, Any]], bool]) -> None:
    """Refuse an output that cannot be a JSON file, or is another's.

    what: it is to be, such as "a tuned policy". is_own: whether a JSON object is one that the same command
    wrote, of whatever version; only such a one is replaced.

    Raises InputError, before anything is computed.
    """
    fix = "choose another file with -o"
    if path.suffix != ".json":
        raise InputError(
            "the output's name does not end in .json",
            where=str(path),
            fix=f"write -o {path.stem or 'result'}.json",
        )
    if path.is_dir() or not path.absolute().parent.is_dir():
        lies = "a folder" if path.is_dir() else "in a folder that does not exist"
        raise InputError(f"the output is {lies}", where=str(path), fix=fix)
    if not os.access(path.absolute().parent, os.W_OK | os.X_OK):
        raise InputError("the output's folder may not be written", where=str(path), fix=fix)
    if path.exists() and not _holds(path, is_own):
        raise InputError(
            f"the output is there already, and holds no {what.split(' ', 1)[1]}", where=str(path), fix=fix
        )


def _holds(path: Path, is_own: Callable[[Mapping[str, Any]], bool]) -> bool:
    try:
        return is_own(parse_json(read_given_text(path)))
    except (OSError, ValueError):  # no JSON object, or no UTF-8
        return False


ModelName = Annotated[
    str, typer.Argument(help="smollm2, a Hub id, a local folder or a .gguf file.", show_default=True)
]
ContextLength = Annotated[
    int | None,
    typer.Option(
        "--context",
        help=f"Tokens of one sequence at most. By default {DEFAULT_CONTEXT}, or what the model takes.",
        show_default=False,
    ),
]
ShortListSize = Annotated[
    int | None,
    typer.Option(
        "--short-list",
        help="Tokens of the restricted vocabulary: fewer are cheaper to read, more keep more answers. By "
        f"default {SHORTLIST}.",
        show_default=False,
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        help="Where the model computes: auto (an accelerator, if there is one), cpu, cuda, cuda:1, mps, xpu.",
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        "--dtype",
        help="float32, bfloat16, float16 or auto: the checkpoint's on an accelerator, else float32.",
    ),
]
Transforms = Annotated[
    list[str] | None,
    typer.Option(
        "--transform",
        help="Change the model at load: int8, int4, prune:by=angular,layers=6 (offramp list transforms). May "
        "be given several times.",
        show_default=False,
    ),
]
RemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line of stdout.")]


def require_options(
    *,
    tokens: int,
    context: int | None,
    document_tokens: int | None,
    exits: str,
    output: Path | None,
) -> None:
    """Refuse what can be refused before a workload is read or a model is loaded.

    Raises InputError for a size below 1, exits that are no list of layers, and an output folder that cannot
    be one.
    """
    from offramp.tracing.exits_folder import names_layers
    from offramp.workloads.packing import require_sizes

    require_sizes(tokens=tokens, context=context, document_tokens=document_tokens)
    if not names_layers(exits):
        raise InputError(
            f"the exits {exits!r} are not a list of layers", where="--exits", fix="write 10,20,30 or all"
        )
    if output is not None:
        require_writable(output)


def require_placement(device: str, dtype: str = AUTO) -> None:
    """Refuse a device that is not here, and a dtype that models are not loaded in, before anything is loaded.

    Raises InputError.
    """
    require_dtype(dtype, "--dtype")
    if device != AUTO:  # which is here in any case, and would have torch imported to be looked for
        find_device(device)
