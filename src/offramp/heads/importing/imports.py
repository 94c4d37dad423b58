"""`import_heads`: exits of others, from safetensors and a key map or a layout, held against their model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from offramp.errors import InputError
from offramp.heads.at_work import describe_base, require_exits, require_readable, require_sizes
from offramp.heads.exit_heads import ExitHeads, build_heads
from offramp.heads.importing import LayoutName
from offramp.heads.importing.key_map import AXES, KeyMap, Tensors, read_key_map
from offramp.heads.importing.layouts import LAYOUTS, TRAIN, ForeignLayout
from offramp.heads.output_head import state_shape_of
from offramp.heads.parts import OwnHead
from offramp.kit.given_file import Source, checked
from offramp.kit.rules import only_if
from offramp.models.checkpoint import (
    CONFIG_FILE,
    PICKLE_PATTERNS,
    read_config,
    stated_count,
)
from offramp.models.model import Model
from offramp.models.source import fetch_tensors, looks_like_hub_id

KEY_MAP = "key map"
"""The layout of files that a user's own map describes."""

ORDINARY = (
    "a model whose exits share its own norm and output head (LayerSkip's do) has nothing to import: "
    "offramp trace MODEL reads them"
)


def import_heads(
    path: str | Path,
    model: Model,
    *,
    key_map: str | Path | None = None,
    format: Annotated[
        LayoutName | None, only_if(lambda given: given.key_map is None, "beside key_map=")
    ] = None,
) -> ExitHeads:
    """Exits that others trained for a model.

    path: a safetensors file, a folder with such files (a model's own too), or a Hub id ("owner/name", or
    "owner/name@revision"). key_map: a TOML file that says where each exit's tensors are; or format: a known
    layout, one of LAYOUTS.

    Raises InputError for files or a map that cannot be read, tensors that are missing, of another shape or
    not finite, exits that offramp has no equal of, and those of another model; ModelError for a Hub id that
    cannot be fetched.
    """
    return find_import(path, key_map=key_map, format=format).heads_for(model)


def find_import(path: str | Path, *, key_map: str | Path | None = None, format: str | None = None) -> Import:
    """Exits in files, all that can be checked without their model. Raises as `import_heads` does."""
    keys = None if key_map is None else read_key_map(Path(key_map))
    folder, origin = Path(path).expanduser(), {"format": format or KEY_MAP}
    if isinstance(path, str) and _names_repository(path):
        if keys is None and format is None:
            raise _undescribed(path)  # before anything is fetched
        fetched = fetch_tensors(path)
        folder, origin = fetched.folder, origin | {"source": path, "revision": fetched.revision}
    else:
        origin |= {"source": folder.resolve().name}
    tensors = Tensors.find(folder)
    layout = None if format is None else read_layout(format, tensors)
    if layout is not None:
        keys = layout.key_map
    if keys is None:
        raise _undescribed(path, f"; the tensors are:\n{tensors.listing()}")
    found = Import(tensors, keys, layout, origin)
    if not found.exits:
        raise tensors.refused(f"no tensor has a key like {next(iter(keys.patterns.values()), 'none')!r}")
    for key in keys.keys(found.exits):
        tensors.require(key)
    return found


def _undescribed(path: str | Path, listing: str = "") -> InputError:
    return InputError(
        "nothing says which tensors are the heads of which exit",
        where=str(path),
        fix=f"give --map MAP.toml, or --format {'|'.join(LAYOUTS)}; {ORDINARY}{listing}",
    )


def _names_repository(name: str) -> bool:
    """Whether this is a Hub id, "owner/name" with or without a revision, and no path with a slip."""
    path = Path(name).expanduser()
    is_file = path.suffix in (".safetensors", *(pattern.removeprefix("*") for pattern in PICKLE_PATTERNS))
    return "/" in name and looks_like_hub_id(name) and not is_file and not path.parent.exists()


def read_layout(name: str, tensors: Tensors) -> ForeignLayout:
    """The layout of files by their config.json; all parts of their exits are read.

    Raises InputError for a config.json that is damaged, wrong, or absent though an entry is needed, and for
    exits that offramp has no equal of.
    """
    kind, file = LAYOUTS[name], tensors.config
    needed = ", ".join(entry for entry, field in kind.model_fields.items() if field.is_required())
    if needed and not file.is_file():
        raise InputError(
            f"the layout {name} needs a config.json beside the tensors, which says {needed}",
            where=str(file),
            fix="copy it from where the tensors came (docs/bring-your-own-exits.md says how it is made)",
        )
    entries = read_config(file.parent) if file.is_file() else {}
    layout = checked(kind, entries, Source(file, CONFIG_FILE))
    keys = layout.key_map
    known = {*keys.keys(keys.exits_among(tensors.stored))}
    left = [key for key in tensors.stored if key not in known and re.fullmatch(kind.of_exits, key)]

    def require_none(strange: list[str], why: str) -> None:
        more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
        if strange:
            raise InputError(f"{strange[0]}{more}: {why}", where=str(tensors.where), fix=TRAIN)

    for pattern, why in kind.unequal.items():
        require_none([key for key in left if re.fullmatch(pattern, key)], why)
    for what, fix in layout.problems():
        raise InputError(what, where=str(file), fix=fix)
    require_none(left, f"no part of an exit that the layout {name}, with this config.json, has")
    return layout


@dataclass(frozen=True)
class Import:
    """Exits in files, not yet read. origin: layout, source and, from the Hub, revision, in JSON values."""

    tensors: Tensors
    key_map: KeyMap
    layout: ForeignLayout | None
    origin: Mapping[str, Any]

    @property
    def exits(self) -> tuple[int, ...]:
        """The exits that the files have, ascending; 0 is the state before the first layer."""
        return self.key_map.exits_among(self.tensors.stored)

    @property
    def builds(self) -> bool:
        """Whether the files may be a model that transformers can build."""
        return self.layout is None or self.layout.model_type not in self.layout.unbuilt

    def require_sizes(self, layers: int, hidden: int, vocabulary: int) -> dict[str, tuple[int, ...]]:
        """The shape of one exit's tensor of every part, as the file has it, in a model of these sizes.

        Raises InputError for what does not fit them; no tensor is read.
        """
        exits, keys = self._exits_of(layers), self.key_map
        rows = max(vocabulary, (keys.output and keys.output.rows) or 0)  # those beyond it are padding
        sizes = {"h": hidden, "v": rows}
        if keys.mlp is not None:
            sizes["u"] = (*self.tensors.require(keys.key("mlp.gate", exits[0])).shape, 0)[0]
        shapes = {}
        for part in keys.patterns:
            shape = tuple(sizes[axis] for axis in AXES[part])
            shapes[part] = shape[::-1] if keys.is_transposed(part) else shape
            for exit in exits:
                self.tensors.require(keys.key(part, exit), shapes[part])
        return shapes

    def require_config(self, folder: Path) -> None:
        """Refuse what does not fit a model's folder before a weight is loaded, if its config has usual names.

        Raises InputError.
        """
        config = read_config(folder)
        layers, hidden, vocabulary = (
            stated_count(config, (name,)) for name in ("num_hidden_layers", "hidden_size", "vocab_size")
        )
        if layers and hidden and vocabulary:
            self.require_sizes(layers, hidden, vocabulary)

    def left_out(self, layers: int) -> tuple[str, ...]:
        """What the files hold that no exit below L of a model with so many layers is read with."""
        notes = {0: "the state before the first layer is no exit", layers: "exit L is the full model itself"}
        return tuple(
            f"left out: {self._shown(exit)}, since {note}"
            for exit, note in notes.items()
            if exit in self.exits
        )

    def heads_for(self, model: Model) -> ExitHeads:
        """The exits, bound to their model. Raises InputError if they do not fit it."""
        shape, keys, exits = model.shape, self.key_map, self._exits_of(model.layers)
        shapes = self.require_sizes(model.layers, shape.hidden_size, shape.vocabulary_size)
        recognised = "the user" if self.layout is None else self.layout.recognise(model, self.tensors)
        arrays = {}
        for part, stored in shapes.items():
            wide, *rest = stored[::-1] if keys.is_transposed(part) else stored
            rows = shape.vocabulary_size if AXES[part].startswith("v") else wide
            array = arrays[part.replace("norm.", "norm_")] = np.empty((len(exits), rows, *rest), np.float32)
            for place, exit in enumerate(exits):
                taken = self.tensors.take(keys.key(part, exit), stored)
                array[place] = (taken.T if keys.is_transposed(part) else taken)[:rows]
        header: dict[str, Any] = {
            "model": describe_base(model),
            "exits": list(exits),
            "lens": keys.lens is not None,
            "classifiers": {},
            "candidate_exit": None,
            "documents": {},
            "provenance": {
                "imported": {
                    "files": self.tensors.digests(keys.keys(exits)),
                    "base_recognised_by": recognised,
                    **self.origin,
                }
            },
        }
        if keys.lens is not None:
            arrays.setdefault("lens.bias", np.zeros((len(exits), shape.hidden_size), np.float32))
            if keys.lens.residual:
                arrays["lens.weight"] += np.eye(shape.hidden_size, dtype=np.float32)
        if keys.mlp is not None:
            settings = keys.mlp.model_dump(include={"epsilon", "adds_to_normed"})
            header["mlp"] = {"units": shapes["mlp.gate"][0], **settings}
        if keys.output is not None:
            absent = [name for name in OwnHead.AXES if f"output.{name}" not in arrays]
            norm = keys.output.norm
            header["output"] = {"norm": norm.kind, "epsilon": norm.epsilon, "absent": absent}
        heads = build_heads(header, arrays, str(self.tensors.where))
        require_readable(heads, model.stack, str(self.tensors.where))
        require_exits(heads, (*exits, model.layers))
        require_sizes(heads, state_shape_of(model).features, shape.vocabulary_size)
        return heads

    def _exits_of(self, layers: int) -> tuple[int, ...]:
        """The exits below L. Raises InputError for an exit that the model does not have."""
        beyond = [exit for exit in self.exits if exit > layers or exit < 0]
        if beyond:
            raise InputError(
                f"{self._shown(beyond[0])} is of exit {beyond[0]}; the model's exits below its last layer "
                f"are 1 to {layers - 1}",
                where=str(self.tensors.where),
                fix="give the heads' own model with --model, or correct exits and first in the map",
            )
        exits = tuple(exit for exit in self.exits if 0 < exit < layers)
        if not exits:
            raise self.tensors.refused(f"no tensor is of an exit from 1 to {layers - 1}")
        return exits

    def _shown(self, exit: int) -> str:
        """What the files hold of one exit, by its first key, of which one that shares all has none."""
        return next(iter(self.key_map.keys((exit,))), f"exit {exit}")
