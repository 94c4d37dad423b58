"""The folder of trained exits: which of its files holds the heads, and whether their training has ended."""

from __future__ import annotations

import re
from pathlib import Path

from offramp.errors import InputError
from offramp.models.training_record import TRAINING_FILE as TRAINING_FILE

EXITS_FILE = "exits.safetensors"
"""Trained exits: an ordinary file of exit heads."""
UNDER_WAY = ("checkpoint.safetensors", "states")
"""What only a training that has not ended leaves there."""


def heads_path(path: str | Path) -> Path:
    """The file of exit heads that a path means: itself, or that in a folder of `offramp exits train`.

    Raises InputError for a folder without trained exits, or whose training has not ended.
    """
    folder = Path(path)
    if not folder.is_dir():
        return folder
    file, ended = folder / EXITS_FILE, (folder / TRAINING_FILE).is_file()
    if not ended and any((folder / name).exists() for name in (EXITS_FILE, *UNDER_WAY)):
        raise InputError(
            f"the training of these exits has not ended: {TRAINING_FILE} is missing",
            where=str(folder),
            fix="run its offramp exits train command again: it goes on where it stopped",
        )
    if not file.is_file():
        raise InputError(
            f"the folder holds no trained exits: {EXITS_FILE} is missing",
            where=str(folder),
            fix="give the folder that offramp exits train wrote, or a file that offramp heads fit wrote",
        )
    return file


def names_layers(exits: str | Path) -> bool:
    """Whether this is a list of layers: "all", "10,20,30" (also joined by "+"). A path is none."""
    return isinstance(exits, str) and bool(re.fullmatch(r"all|\d+([,+]\d+)*", exits.replace(" ", "")))


def exits_of(exits: str | Path, heads: str | Path | None) -> tuple[str, Path | None]:
    """Layers to trace, and the exit heads to read them through: of trained exits both are theirs.

    exits: layers, or a folder or file of exit heads. heads: of --heads.

    Raises InputError for exits that are neither, two sources of heads, and heads without an exit; what
    `offramp.tracing.heads_file.read_heads` raises.
    """
    if names_layers(exits):
        return str(exits), None if heads is None else Path(heads)
    if not Path(exits).exists():
        raise InputError(
            f"the exits {str(exits)!r} are not a list of layers, and no trained exits lie there",
            where="exits= (--exits)",
            fix="write 10,20,30 or all, or name the folder that offramp exits train wrote",
        )
    if heads is not None:
        raise InputError(
            f"the trained exits {exits} are exit heads, and others are given too: {heads}",
            where="exits= (--exits)",
            fix="leave heads= (--heads) out; for some of the trained exits only, give their folder there and "
            "the layers here: 12,20",
        )
    from offramp.tracing.heads_file import read_heads

    trained = read_heads(exits).exits
    if not trained:
        raise InputError(
            "the exit heads hold K,V maps alone: no exit is read through them",
            where=f"exits= (--exits): {exits}",
            fix="give them as heads= (--heads), and the layers as exits= (--exits): 12,20",
        )
    return ",".join(map(str, trained)), Path(exits)
