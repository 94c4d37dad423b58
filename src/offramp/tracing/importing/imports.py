"""`import_heads`: exit heads of others, from safetensors and a key map, checked against their model."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from offramp.errors import InputError
from offramp.models.model import Model
from offramp.tracing.exit_heads import ExitHeads
from offramp.tracing.exit_readings import LinearLens, OutputHeads
from offramp.tracing.fitted_heads import FittedHeads, describe_base
from offramp.tracing.heads_arrays import Weights
from offramp.tracing.importing.key_map import (
    TUNED_LENS,
    KeyMap,
    LensKeys,
    OutputKeys,
    TunedLensConfig,
    read_key_map,
    read_tuned_lens_config,
)
from offramp.tracing.importing.tensors import Tensors
from offramp.tracing.measurement import state_shape_of
from offramp.tracing.own_heads import require_readable

FORMATS = (TUNED_LENS,)


def import_heads(
    path: str | Path, model: Model, *, key_map: str | Path | None = None, format: str | None = None
) -> ExitHeads:
    """Exit heads that others trained for a model.

    path: a safetensors file, or a folder with such files (a model's own too). key_map: a TOML file that says
    where each exit's tensors are; or format: a known layout, one of FORMATS.

    Raises InputError for files or a map that cannot be read, tensors that are missing, of another shape or
    not finite, and heads of another model.
    """
    return find_import(path, key_map=key_map, format=format).heads_for(model)


def find_import(path: str | Path, *, key_map: str | Path | None = None, format: str | None = None) -> Import:
    """Heads in files, all that can be checked without their model. Raises as `import_heads` does."""
    if format is not None and format not in FORMATS:
        near = difflib.get_close_matches(format, FORMATS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(
            f"no format {format!r}",
            where="format= (--format)",
            fix=f"{hint}choose one of: {', '.join(FORMATS)}",
        )
    if key_map is not None and format is not None:
        raise InputError(
            "both a key map and a format are given", where="key_map= (--map)", fix="leave one of them out"
        )
    path = Path(path)
    if format is not None:
        tensors, config = Tensors.find(path), read_tuned_lens_config(path)
        found = Import(tensors, config.key_map(), config)
    else:
        keys = None if key_map is None else read_key_map(Path(key_map))
        tensors = Tensors.find(path)
        if keys is None:
            raise InputError(
                "nothing says which tensors are the heads of which exit",
                where=str(path),
                fix=f"give --map MAP.toml, or --format {FORMATS[0]}; the tensors are:\n" + tensors.listing(),
            )
        found = Import(tensors, keys, None)
    found.require_keys()
    return found


@dataclass(frozen=True)
class Import:
    """Heads in files, not yet read. config: what a tuned lens says of its model."""

    tensors: Tensors
    key_map: KeyMap
    config: TunedLensConfig | None

    @property
    def exits(self) -> tuple[int, ...]:
        """The exits that the files have heads of, ascending; 0 is the state before the first layer."""
        return self.key_map.exits_among(self.tensors.stored)

    def require_keys(self) -> None:
        """Refuse a map that leads to no tensor, or to one that is not there. Raises InputError."""
        if not self.exits:
            raise self.tensors.refused(f"no tensor has a key like {self.key_map.keys.weight!r}")
        for key in self._all_keys(self.exits):
            self.tensors.require(key)

    def left_out(self, layers: int) -> tuple[str, ...]:
        """What the files hold that no exit below L of a model with so many layers is read with."""
        notes = {0: "the state before the first layer is no exit", layers: "exit L is the full model itself"}
        return tuple(
            f"left out: {self.key_map.key(self.key_map.keys.weight, exit)}, since {note}"
            for exit, note in notes.items()
            if exit in self.exits
        )

    def heads_for(self, model: Model) -> ExitHeads:
        """The heads, bound to their model. Raises InputError if they do not fit it."""
        base = "the user" if self.config is None else self.config.check_base(model)
        exits, shape, keys = self._exits_of(model.layers), model.shape, self.key_map.keys
        lens, output = None, None
        if isinstance(keys, LensKeys):
            lens = self._lens(keys, exits, shape.hidden_size)
        else:
            output = self._output(keys, exits, shape.hidden_size, shape.vocabulary_size)
        heads = ExitHeads(
            model=describe_base(model),
            exits=exits,
            lens=lens,
            output=output,
            classifiers={},
            shortlist=None,
            candidate_exit=None,
            documents={},
            provenance={
                "imported": {
                    "files": self.tensors.digests(self._all_keys(exits)),
                    "format": "key map" if self.config is None else TUNED_LENS,
                    "base_recognised_by": base,
                }
            },
        )
        require_readable(heads, model.stack, str(self.tensors.where))
        features = state_shape_of(model).features
        FittedHeads.of(heads, (*exits, model.layers)).require_sizes(features, model.shape.vocabulary_size)
        return heads

    def _exits_of(self, layers: int) -> tuple[int, ...]:
        """The exits below L. Raises InputError for an exit that the model does not have."""
        listed = self.key_map.exits is not None
        beyond = [exit for exit in self.exits if exit > layers or (listed and exit == layers)]
        if beyond:
            key = self.key_map.key(self.key_map.keys.weight, beyond[0])
            raise InputError(
                f"{key} is of exit {beyond[0]}; the model's exits below its last layer are 1 to {layers - 1}",
                where=str(self.tensors.where),
                fix="give the heads' own model with --model, or correct exits and first in the map",
            )
        exits = tuple(exit for exit in self.exits if 0 < exit < layers)
        if not exits:
            raise self.tensors.refused(f"no tensor is of an exit from 1 to {layers - 1}")
        return exits

    def _all_keys(self, exits: Sequence[int]) -> list[str]:
        keys = self.key_map.keys
        patterns = [keys.weight, keys.bias]
        if isinstance(keys, OutputKeys):
            patterns += [keys.norm_weight, keys.norm_bias]
        return [self.key_map.key(pattern, exit) for exit in exits for pattern in patterns if pattern]

    def _lens(self, keys: LensKeys, exits: Sequence[int], hidden: int) -> LinearLens:
        weight = self._stacked(keys.weight, exits, (hidden, hidden), transposed=keys.transposed)
        if keys.residual:
            weight += np.eye(hidden, dtype=np.float32)
        bias = self._stacked_if(keys.bias, exits, hidden)
        return LinearLens(weight, np.zeros((len(exits), hidden), np.float32) if bias is None else bias)

    def _output(self, keys: OutputKeys, exits: Sequence[int], hidden: int, vocabulary: int) -> OutputHeads:
        return OutputHeads(
            weight=self._stacked(keys.weight, exits, (vocabulary, hidden), transposed=keys.transposed),
            bias=self._stacked_if(keys.bias, exits, vocabulary),
            norm=keys.norm,
            norm_weight=self._stacked_if(keys.norm_weight, exits, hidden),
            norm_bias=self._stacked_if(keys.norm_bias, exits, hidden),
            epsilon=keys.epsilon,
        )

    def _stacked(
        self, pattern: str, exits: Sequence[int], shape: tuple[int, ...], *, transposed: bool = False
    ) -> Weights:
        """The tensors of some exits: float32 [exits, *shape]."""
        stacked = np.empty((len(exits), *shape), np.float32)
        for place, exit in enumerate(exits):
            array = self.tensors.take(self.key_map.key(pattern, exit), shape[::-1] if transposed else shape)
            stacked[place] = array.T if transposed else array
        return stacked

    def _stacked_if(self, pattern: str | None, exits: Sequence[int], size: int) -> Weights | None:
        """Vectors of this size of some exits, None without a key for them."""
        return None if pattern is None else self._stacked(pattern, exits, (size,))
