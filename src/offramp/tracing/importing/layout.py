"""What is known of a layout: how a program names the parts of its exits, and what its config.json says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from offramp.errors import InputError
from offramp.files import JsonError, read_json
from offramp.models.model import Model
from offramp.tracing.importing.key_map import KeyMap
from offramp.tracing.importing.tensors import Tensors

WHY_ATTENTION = (
    "the exits are transformer layers with attention, which need keys and values of their own for every "
    "token; exits of offramp keep none"
)
"""Why exits that attend cannot be imported."""


@dataclass(frozen=True)
class Described:
    """What files of a known layout hold.

    check_base: refuses another model than the one that the exits were trained for, and says by what it
    recognised it. builds: whether transformers can build the model of these very files, where they hold it.
    """

    key_map: KeyMap
    check_base: Callable[[Model], str]
    builds: bool = True


@dataclass(frozen=True)
class Layout:
    """One program's files. name: as it is asked for. describe: of a folder's or file's path, and its tensors.

    of_exits: regular expression of the keys that belong to an exit. Each of them must be a part that is read,
    so that no exit is read in another way than it was trained.
    """

    name: str
    describe: Callable[[Path, Tensors], Described]
    of_exits: str

    def require_all_read(self, tensors: Tensors, key_map: KeyMap) -> None:
        """Refuse a tensor of an exit that the map does not read. Raises InputError."""
        read = {*key_map.keys(key_map.exits_among(tensors.stored))}
        left = [key for key in tensors.stored if re.fullmatch(self.of_exits, key) and key not in read]
        if left:
            raise cannot_be_read(
                tensors, left, f"no part of an exit that the layout {self.name}, with this config.json, has"
            )


def cannot_be_read(tensors: Tensors, keys: list[str], why: str) -> InputError:
    """The error for exits that no exit of offramp can be the same as. keys: of the tensors in question."""
    rest = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
    return InputError(
        f"{keys[0]}{rest}: {why}" if keys else why,
        where=str(tensors.where),
        fix="train exits of this model instead: offramp exits train MODEL --workload W --kind block -o DIR",
    )


class Config(BaseModel):
    """Entries of a config.json that a layout reads; others are left alone."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


Read = TypeVar("Read", bound=Config)


def config_path(path: Path) -> Path:
    """The config.json that belongs to tensors. path: their folder, or their file."""
    return (path if path.is_dir() else path.parent) / "config.json"


def read_config_json(file: Path) -> dict[str, Any]:
    """The content of a config.json. Raises InputError for one that is damaged."""
    try:
        content: dict[str, Any] = read_json(file, lenient=True)
    except JsonError as error:
        raise InputError(
            f"config.json cannot be read: {error}", where=str(file), fix="copy the file again"
        ) from error
    return content


def read_config(path: Path, kind: type[Read], layout: str) -> Read:
    """What a layout's config.json says. path: of the tensors.

    Raises InputError for one that is absent or damaged, or without an entry that is needed.
    """
    file = config_path(path)
    if not file.is_file():
        needed = ", ".join(name for name, entry in kind.model_fields.items() if entry.is_required())
        raise InputError(
            f"the layout {layout} needs a config.json beside the tensors, which says {needed}",
            where=str(file),
            fix="copy it from where the tensors came (docs/bring-your-own-exits.md says how it is made)",
        )
    try:
        return kind.model_validate_json(json.dumps(read_config_json(file)))
    except ValidationError as error:
        first = error.errors()[0]
        entry = ".".join(map(str, first["loc"])) or "the file"
        raise InputError(
            f"{entry}: {first['msg']}",
            where=str(file),
            fix=f"give the config.json of a model of the layout {layout}, or write a key map: --map MAP.toml",
        ) from error
