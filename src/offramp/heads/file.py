"""Files of exit heads: one safetensors file whose metadata says what the arrays belong to.

Every shape, type and number is checked when heads are built from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from offramp.commands import command_for
from offramp.errors import InputError
from offramp.files import is_irregular, open_given, open_regular
from offramp.heads.exit_heads import MADE_BY, ExitHeads, build_heads, unlisted_arrays
from offramp.kit.sealed_tensors import SealedTensors
from offramp.models.identity import CHECKPOINT, shown_name
from offramp.models.training_record import TRAINING_FILE as TRAINING_FILE
from offramp.models.training_record import require_as_trained

SCHEMA_VERSION = 5
"""5: lenses of low rank, networks without a lens, norms and output heads behind either, and what all exits
share. 4: networks behind a lens. 3: K,V maps, and sketches of the texts that fitting read. 2: output heads,
and a lens whose fit is not known. Older files are those without them."""

HEADER = "offramp_heads"
LARGEST_HEADER = 100_000_000
"""Bytes of a safetensors header, by its format."""
FILE = SealedTensors(
    dict[str, Any],
    HEADER,
    "the file of exit heads is damaged: {name}",
    SCHEMA_VERSION,
    unlisted=unlisted_arrays,
)


def write_heads(heads: ExitHeads, path: str | Path) -> None:
    """Write heads in one step (see `offramp.files.write_atomically`): the whole file or none.

    Raises InputError for arrays that do not belong together or hold a number that is not finite.
    """
    arrays, header = heads.arrays(), heads.header()
    build_heads(header, arrays, str(path))  # what could not be read back is not written
    FILE.write(Path(path), header, arrays)


def read_heads(path: str | Path) -> ExitHeads:
    """The heads of a file, or of a folder of trained exits, the bytes checked against their SHA-256.

    Raises InputError for a file that holds no heads or that a newer version wrote, and as
    `heads_path` does, and for trained exits that the record beside them does not
    vouch for; DamagedFileError for one whose bytes changed.
    """
    path = heads_path(path)
    _require_no_pickle(path)
    trained = path.name == EXITS_FILE and (path.parent / TRAINING_FILE).exists()
    again = "train them again (offramp exits train --overwrite)" if trained else "fit the heads again"
    fix = f"copy the file again from where it came, or {again}"
    if not is_heads_file(path):
        what = f"the file holds no exit heads: it is not safetensors with a header {HEADER}"
        raise InputError(what, where=str(path), fix=fix if trained else MADE_BY)
    header, arrays = FILE.read(path, fix)
    heads = build_heads(header, arrays, str(path))
    if path.name == EXITS_FILE:
        require_as_trained(path.parent, heads.fingerprint, model=False)
    return heads


def require_base(heads: ExitHeads, model: Mapping[str, Any], where: str = "the exit heads") -> None:
    """Refuse heads that were fitted on another model: its weights, config or tokenizer differ.

    model: {"name", "fingerprint", ...} of the model at hand, and "transforms" if it has any.

    Raises InputError that names both.
    """
    if heads.model["fingerprint"] == model["fingerprint"]:
        return
    transforms = model.get("transforms", ())
    raise InputError(
        f"the exit heads were {_made(heads)} {heads.model['name']} ({heads.model['fingerprint'][:12]}), "
        f"not {_made(heads).split()[-1]} {shown_name(model['name'], transforms)} "
        f"({model['fingerprint'][:12]})",
        where=where,
        fix="fit heads of this model: "
        + command_for("heads fit", model, workload="prose", output="heads.safetensors"),
    )


def require_layers(heads: ExitHeads, layers: int) -> None:
    """Raise InputError unless heads say that their model has so many layers: their header may be wrong."""
    said = heads.model["layers"]
    if said != layers:
        raise InputError(
            f"the exit heads cannot be used: their model has {said:,} layers, and this one has {layers}",
            where="heads= (--heads)",
            fix="fit heads of this model: offramp heads fit MODEL --workload W -o FILE",
        )


def _made(heads: ExitHeads) -> str:
    """How heads came to belong to their model."""
    return "imported for" if "imported" in heads.provenance else "fitted on"


def _require_no_pickle(path: Path) -> None:
    if not path.exists():
        fix = "check the path: offramp exits train -o writes a folder, offramp heads fit -o a file"
        raise InputError(f"{path.name} does not exist", where=str(path), fix=fix)
    with open_given(path, "file of exit heads") as file:
        beginning = file.read(9)
    if is_pickle(beginning):
        raise InputError(
            "the file is a pickle, which can run code when it is read; exit heads are safetensors",
            where=str(path),
            fix=MADE_BY,
        )


def is_heads_file(path: Path) -> bool:
    """Whether a file begins as `write_heads` writes them, whole or not."""
    if is_irregular(path):
        return False
    with open_regular(path) as file:
        size = int.from_bytes(file.read(8), "little")
        header = file.read(min(size, LARGEST_HEADER))
    return header.startswith(b"{") and HEADER.encode() in header


def is_pickle(beginning: bytes) -> bool:
    """Whether a file that begins with these bytes (9 or more) is a pickle, alone or in a zip as torch's."""
    # A safetensors file begins with eight bytes of length, which may look like a pickle, and a brace.
    return beginning.startswith((b"PK\x03\x04", b"\x80")) and beginning[8:9] != b"{"


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
