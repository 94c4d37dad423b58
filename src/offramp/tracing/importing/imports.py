"""`import_heads`: exits of others, from safetensors and a key map or a layout, held against their model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from offramp.errors import InputError
from offramp.kit.rules import only_if
from offramp.models.checkpoint import PICKLE_PATTERNS
from offramp.models.checkpoint import read_config as read_model_config
from offramp.models.model import Model
from offramp.models.source import fetch_tensors, looks_like_hub_id
from offramp.tracing.exit_heads import ExitHeads
from offramp.tracing.exit_readings import MLP_ARRAYS, ExitMlp, LinearLens, OutputHeads
from offramp.tracing.fitted_heads import FittedHeads, describe_base
from offramp.tracing.heads_arrays import Weights
from offramp.tracing.importing.key_map import KeyMap, read_key_map
from offramp.tracing.importing.layouts import LAYOUTS, describe
from offramp.tracing.importing.tensors import Tensors
from offramp.tracing.measurement import state_shape_of
from offramp.tracing.own_heads import require_readable
from offramp.tracing.request import LayoutName

KEY_MAP = "key map"
"""The layout of files that a user's own map describes."""

AXES = {
    "lens.weight": "hh",
    "lens.bias": "h",
    "mlp.norm": "h",
    "mlp.gate": "uh",
    "mlp.up": "uh",
    "mlp.down": "hu",
    "output.weight": "vh",
    "output.bias": "v",
    "output.norm.weight": "h",
    "output.norm.bias": "h",
}
"""Of one exit's part: h for numbers of a hidden state, u for units of a network, v for the vocabulary."""

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
    hub = isinstance(path, str) and _names_repository(path)
    if hub and keys is None and format is None:
        raise _undescribed(str(path))  # before anything is fetched
    if hub:
        fetched = fetch_tensors(str(path))
        folder, origin = fetched.folder, {"source": str(path), "revision": fetched.revision}
    else:
        folder = Path(path).expanduser()
        origin = {"source": folder.resolve().name}
    tensors = Tensors.find(folder)
    if format is not None:
        known = describe(format, tensors)
        found = Import(tensors, known.key_map, {"format": format, **origin}, known.check_base, known.builds)
    elif keys is not None:
        found = Import(tensors, keys, {"format": KEY_MAP, **origin})
    else:
        raise _undescribed(str(path), "; the tensors are:\n" + tensors.listing())
    found.require_keys()
    return found


def _undescribed(path: str, listing: str = "") -> InputError:
    return InputError(
        "nothing says which tensors are the heads of which exit",
        where=path,
        fix=f"give --map MAP.toml, or --format {'|'.join(LAYOUTS)}; {ORDINARY}{listing}",
    )


def _names_repository(name: str) -> bool:
    """Whether this is a Hub id, "owner/name" with or without a revision, and no path with a slip."""
    path = Path(name).expanduser()
    is_file = path.suffix in (".safetensors", *(pattern.removeprefix("*") for pattern in PICKLE_PATTERNS))
    return "/" in name and looks_like_hub_id(name) and not is_file and not path.parent.exists()


@dataclass(frozen=True)
class Import:
    """Exits in files, not yet read.

    origin: layout, source and, from the Hub, revision, in JSON values. check_base: refuses another model than
    theirs, and says by what it recognised it. builds: whether the files may be a model that transformers can
    build.
    """

    tensors: Tensors
    key_map: KeyMap
    origin: Mapping[str, Any]
    check_base: Callable[[Model], str] = lambda model: "the user"
    builds: bool = True

    @property
    def exits(self) -> tuple[int, ...]:
        """The exits that the files have, ascending; 0 is the state before the first layer."""
        return self.key_map.exits_among(self.tensors.stored)

    def require_keys(self) -> None:
        """Refuse a map that leads to no tensor, or to one that is not there. Raises InputError."""
        if not self.exits:
            pattern = next(iter(self.key_map.patterns.values()), "none")
            raise self.tensors.refused(f"no tensor has a key like {pattern!r}")
        for key in self.key_map.keys(self.exits):
            self.tensors.require(key)

    def require_sizes(self, layers: int, hidden: int, vocabulary: int) -> None:
        """Refuse what does not fit a model of these sizes; no tensor is read. Raises InputError."""
        exits = self._exits_of(layers)
        shapes = self._shapes(exits, hidden, vocabulary)
        for exit in exits:
            for part, pattern in self.key_map.patterns.items():
                self.tensors.require_shape(self.key_map.key(pattern, exit), shapes[part])

    def require_config(self, folder: Path) -> None:
        """Refuse what does not fit a model's folder before a weight is loaded, if its config has usual names.

        Raises InputError.
        """
        config = read_model_config(folder)
        text = config.get("text_config", config)
        sizes = [text.get(name) for name in ("num_hidden_layers", "hidden_size", "vocab_size")]
        if all(isinstance(size, int) for size in sizes):
            self.require_sizes(*sizes)

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
        shape, keys = model.shape, self.key_map
        self.require_sizes(model.layers, shape.hidden_size, shape.vocabulary_size)
        recognised, exits = self.check_base(model), self._exits_of(model.layers)
        shapes = self._shapes(exits, shape.hidden_size, shape.vocabulary_size)

        def array(part: str, length: int | None = None) -> Any:
            return self._stacked(part, exits, shapes[part], length)

        lens = mlp = output = None
        if keys.lens is not None:
            weight, bias = array("lens.weight"), array("lens.bias")
            if keys.lens.residual:
                weight += np.eye(shape.hidden_size, dtype=np.float32)
            lens = LinearLens(weight, np.zeros(weight.shape[:2], np.float32) if bias is None else bias)
        if keys.mlp is not None:
            arrays = {name: array(f"mlp.{name}") for name in MLP_ARRAYS}
            mlp = ExitMlp(**arrays, epsilon=keys.mlp.epsilon, adds_to_normed=keys.mlp.adds_to_normed)
        if keys.output is not None:
            output = OutputHeads(
                weight=array("output.weight", shape.vocabulary_size),
                bias=array("output.bias", shape.vocabulary_size),
                norm=keys.output.norm.kind,
                norm_weight=array("output.norm.weight"),
                norm_bias=array("output.norm.bias"),
                epsilon=keys.output.norm.epsilon,
            )
        heads = ExitHeads(
            model=describe_base(model),
            exits=exits,
            lens=lens,
            mlp=mlp,
            output=output,
            classifiers={},
            shortlist=None,
            candidate_exit=None,
            documents={},
            provenance={
                "imported": {
                    "files": self.tensors.digests(keys.keys(exits)),
                    "base_recognised_by": recognised,
                    **self.origin,
                }
            },
        )
        require_readable(heads, model.stack, str(self.tensors.where))
        features = state_shape_of(model).features
        FittedHeads.of(heads, (*exits, model.layers)).require_sizes(features, shape.vocabulary_size)
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

    def _shapes(self, exits: Sequence[int], hidden: int, vocabulary: int) -> dict[str, tuple[int, ...]]:
        """The shape of one exit's tensor of every part, as the file has it."""
        gate, output = self.key_map.patterns.get("mlp.gate"), self.key_map.output
        units = 0 if gate is None else (*self.tensors.require(self.key_map.key(gate, exits[0])).shape, 0)[0]
        rows = max(vocabulary, (output and output.rows) or 0)  # those beyond the vocabulary are padding
        sizes = {"h": hidden, "u": units, "v": rows}
        found = {part: tuple(sizes[axis] for axis in axes) for part, axes in AXES.items()}
        return {part: shape[::-1] if self._transposed(part) else shape for part, shape in found.items()}

    def _transposed(self, part: str) -> bool:
        """Whether a part is a matrix that is stored as [inputs, outputs]."""
        table, _, entry = part.rpartition(".")
        return entry == "weight" and getattr(getattr(self.key_map, table, None), "transposed", False)

    def _stacked(
        self, part: str, exits: Sequence[int], stored: tuple[int, ...], length: int | None
    ) -> Weights | None:
        """A part of some exits, float32 [exits, ...], None where there is none. length: to keep of each."""
        pattern = self.key_map.patterns.get(part)
        if pattern is None:
            return None
        shape = stored[::-1] if self._transposed(part) else stored
        stacked = np.empty((len(exits), length or shape[0], *shape[1:]), np.float32)
        for place, exit in enumerate(exits):
            array = self.tensors.take(self.key_map.key(pattern, exit), stored)
            stacked[place] = (array.T if self._transposed(part) else array)[:length]
        return stacked
