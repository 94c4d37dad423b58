"""The folder of trained exits: which of its files holds the heads, and whether their training has ended."""

from __future__ import annotations

import re
from pathlib import Path

from offramp.errors import InputError
from offramp.models.identity import CHECKPOINT
from offramp.models.training_record import TRAINING_FILE as TRAINING_FILE
from offramp.tracing.progress import say

ALL = "all"
"""As layers: every one of the model."""
EXITS_FILE = "exits.safetensors"
"""Trained exits: an ordinary file of exit heads."""
UNDER_WAY = (CHECKPOINT, "states")
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
            fix="train them again (offramp exits train --overwrite), or copy the file from where it came"
            if ended
            else "give the folder that offramp exits train wrote, or a file that offramp heads fit wrote",
        )
    return file


def names_layers(exits: str | Path) -> bool:
    """Whether this is a list of layers: "all", "10,20,30" (also joined by "+"). A path is none."""
    return isinstance(exits, str) and bool(re.fullmatch(r"all|\d+([,+]\d+)*", exits.replace(" ", "")))


def exits_of(exits: str | Path, heads: str | Path | None) -> tuple[str, Path | None]:
    """Layers to trace, and the exit heads to read them through.

    exits: of --exits: layers, of exit heads with a few exits "all" means all of these; or, as it was called
    before, the folder or file of exit heads itself. heads: of --heads.

    Raises InputError for exits that are neither, two sources of heads, and heads without an exit; what
    `offramp.tracing.heads_file.read_heads` raises.
    """
    if names_layers(exits):
        if heads is None:
            return str(exits), None
        return (_all_of(Path(heads)) if exits == ALL else str(exits)), Path(heads)
    if not str(exits) or not Path(exits).exists():
        raise InputError(
            f"the exits {str(exits)!r} are not a list of layers, and no trained exits lie there",
            where="exits= (--exits)",
            fix="write 10,20,30 or all; what offramp exits train wrote is named by heads= (--heads)",
        )
    if heads is not None:
        raise InputError(
            f"the trained exits {exits} are exit heads, and others are given too: {heads}",
            where="exits= (--exits)",
            fix="give the one that is meant as heads= (--heads), and as exits= (--exits) layers, or nothing",
        )
    from offramp.tracing.heads_file import read_heads

    trained = read_heads(exits).exits
    if not trained:
        raise InputError(
            "the exit heads hold K,V maps alone: no exit is read through them",
            where=f"exits= (--exits): {exits}",
            fix="give them as heads= (--heads), and the layers as exits= (--exits): 12,20",
        )
    say(f"trained exits are named by --heads now, and layers by --exits: --heads {exits}")
    return ",".join(map(str, trained)), Path(exits)


def _all_of(heads: Path) -> str:
    """All exits that can be read through these heads, "all" where those are all of the model's."""
    from offramp.tracing.heads_file import read_heads

    found = read_heads(heads)
    few = bool(found.exits) and len(found.exits) < int(found.model["layers"]) - 1
    return ",".join(map(str, found.exits)) if few else ALL
