"""`import_heads`: exits of others, from safetensors and a key map or a layout, held against their model."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from offramp.errors import InputError
from offramp.models.checkpoint import PICKLE_PATTERNS
from offramp.models.checkpoint import read_config as read_model_config
from offramp.models.model import Model
from offramp.models.source import fetch_tensors, looks_like_hub_id
from offramp.tracing.exit_heads import ExitHeads
from offramp.tracing.exit_readings import ExitMlp, LinearLens, OutputHeads
from offramp.tracing.fitted_heads import FittedHeads, describe_base
from offramp.tracing.heads_arrays import Weights
from offramp.tracing.importing.key_map import KeyMap, LensKeys, MlpKeys, OutputKeys, read_key_map
from offramp.tracing.importing.layouts import LAYOUTS
from offramp.tracing.importing.tensors import Tensors
from offramp.tracing.measurement import state_shape_of
from offramp.tracing.own_heads import require_readable

KEY_MAP = "key map"
"""The layout of files that a user's own map describes."""

ORDINARY = (
    "a model whose exits share its own norm and output head (LayerSkip's do) has nothing to import: "
    "offramp trace MODEL reads them"
)


def import_heads(
    path: str | Path, model: Model, *, key_map: str | Path | None = None, format: str | None = None
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
    if format is not None and format not in LAYOUTS:
        near = difflib.get_close_matches(format, LAYOUTS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(
            f"no format {format!r}",
            where="format= (--format)",
            fix=f"{hint}choose one of: {', '.join(LAYOUTS)}; {ORDINARY}",
        )
    if key_map is not None and format is not None:
        raise InputError(
            "both a key map and a format are given", where="key_map= (--map)", fix="leave one of them out"
        )
    keys = None if key_map is None else read_key_map(Path(key_map))
    hub = isinstance(path, str) and _names_repository(path)
    if hub and keys is None and format is None:
        raise _undescribed(str(path))  # before anything is fetched
    folder, origin = _fetched(str(path)) if hub else _local(Path(path).expanduser())
    tensors = Tensors.find(folder)
    if format is not None:
        layout = LAYOUTS[format]
        described = layout.describe(folder, tensors)
        layout.require_all_read(tensors, described.key_map)
        found = Import(
            tensors, described.key_map, {"format": format, **origin}, described.check_base, described.builds
        )
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


def _fetched(name: str) -> tuple[Path, dict[str, Any]]:
    """Where the files of a Hub id lie, and what is kept of where they came from."""
    fetched = fetch_tensors(name)
    return fetched.folder, {"source": name, "revision": fetched.revision}


def _local(path: Path) -> tuple[Path, dict[str, Any]]:
    """The same of files that are here."""
    return path, {"source": path.resolve().name}


def _the_user(model: Model) -> str:
    """By whom a model is recognised that nothing in the files names."""
    return "the user"


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
    check_base: Callable[[Model], str] = _the_user
    builds: bool = True

    @property
    def exits(self) -> tuple[int, ...]:
        """The exits that the files have, ascending; 0 is the state before the first layer."""
        return self.key_map.exits_among(self.tensors.stored)

    def require_keys(self) -> None:
        """Refuse a map that leads to no tensor, or to one that is not there. Raises InputError."""
        if not self.exits:
            pattern = next(iter(self.key_map.patterns), "none")
            raise self.tensors.refused(f"no tensor has a key like {pattern!r}")
        for key in self.key_map.keys(self.exits):
            self.tensors.require(key)

    def require_sizes(self, layers: int, hidden: int, vocabulary: int) -> None:
        """Refuse what does not fit a model of these sizes; no tensor is read. Raises InputError."""
        exits = self._exits_of(layers)
        for key, shape in self._shapes(exits, hidden, vocabulary):
            self.tensors.require_shape(key, shape)

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
        heads = ExitHeads(
            model=describe_base(model),
            exits=exits,
            lens=None if keys.lens is None else self._lens(keys.lens, exits, shape.hidden_size),
            mlp=None if keys.mlp is None else self._mlp(keys.mlp, exits, shape.hidden_size),
            output=None
            if keys.output is None
            else self._output(keys.output, exits, shape.hidden_size, shape.vocabulary_size),
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

    def _shapes(
        self, exits: Sequence[int], hidden: int, vocabulary: int
    ) -> Iterator[tuple[str, Sequence[int]]]:
        """Every key of some exits and the shape that its tensor must have; units are as the file has them."""
        lens, mlp, output = self.key_map.lens, self.key_map.mlp, self.key_map.output
        of_patterns: dict[str | None, tuple[int, ...]] = {}
        if lens is not None:
            of_patterns |= {lens.weight: (hidden, hidden), lens.bias: (hidden,)}
        if mlp is not None:
            units = self._units(mlp, exits)
            wide = (units, hidden)
            of_patterns |= {mlp.norm: (hidden,), mlp.gate: wide, mlp.up: wide, mlp.down: wide[::-1]}
        if output is not None:
            rows = self._rows(output, vocabulary)
            stored = (hidden, rows) if output.transposed else (rows, hidden)
            of_patterns |= {output.weight: stored, output.bias: (rows,)}
            of_patterns |= {output.norm_weight: (hidden,), output.norm_bias: (hidden,)}
        for exit in exits:
            for pattern, shape in of_patterns.items():
                if pattern is not None:
                    yield self.key_map.key(pattern, exit), shape

    def _units(self, keys: MlpKeys, exits: Sequence[int]) -> int:
        """Units of the networks, as the first one has them."""
        stored = self.tensors.require(self.key_map.key(keys.gate, exits[0]))
        return stored.shape[0] if stored.shape else 0

    def _rows(self, keys: OutputKeys, vocabulary: int) -> int:
        """Rows of the stored output heads, those beyond the vocabulary being padding."""
        return vocabulary if keys.rows is None else max(keys.rows, vocabulary)

    def _lens(self, keys: LensKeys, exits: Sequence[int], hidden: int) -> LinearLens:
        weight = self._stacked(keys.weight, exits, (hidden, hidden), transposed=keys.transposed)
        if keys.residual:
            weight += np.eye(hidden, dtype=np.float32)
        bias = self._stacked_if(keys.bias, exits, hidden)
        return LinearLens(weight, np.zeros((len(exits), hidden), np.float32) if bias is None else bias)

    def _mlp(self, keys: MlpKeys, exits: Sequence[int], hidden: int) -> ExitMlp:
        units = self._units(keys, exits)
        gate, up = (self._stacked(pattern, exits, (units, hidden)) for pattern in (keys.gate, keys.up))
        return ExitMlp(
            norm=self._stacked(keys.norm, exits, (hidden,)),
            gate=gate,
            up=up,
            down=self._stacked(keys.down, exits, (hidden, units)),
            epsilon=keys.epsilon,
            adds_to_normed=keys.adds_to_normed,
        )

    def _output(self, keys: OutputKeys, exits: Sequence[int], hidden: int, vocabulary: int) -> OutputHeads:
        rows, shape = self._rows(keys, vocabulary), (vocabulary, hidden)
        return OutputHeads(
            weight=None
            if keys.weight is None
            else self._stacked(keys.weight, exits, shape, transposed=keys.transposed, rows=rows),
            bias=self._stacked_if(keys.bias, exits, vocabulary),
            norm=keys.norm,
            norm_weight=self._stacked_if(keys.norm_weight, exits, hidden),
            norm_bias=self._stacked_if(keys.norm_bias, exits, hidden),
            epsilon=keys.epsilon,
        )

    def _stacked(
        self,
        pattern: str,
        exits: Sequence[int],
        shape: tuple[int, ...],
        *,
        transposed: bool = False,
        rows: int | None = None,
    ) -> Weights:
        """The tensors of some exits: float32 [exits, *shape]. rows: as many are stored, if they are more."""
        stacked = np.empty((len(exits), *shape), np.float32)
        held = shape if rows is None else (rows, *shape[1:])
        for place, exit in enumerate(exits):
            array = self.tensors.take(self.key_map.key(pattern, exit), held[::-1] if transposed else held)
            stacked[place] = (array.T if transposed else array)[: shape[0]]
        return stacked

    def _stacked_if(self, pattern: str | None, exits: Sequence[int], size: int) -> Weights | None:
        """Vectors of this size of some exits, None without a key for them."""
        return None if pattern is None else self._stacked(pattern, exits, (size,))
