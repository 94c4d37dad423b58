"""Hidden states to train on, kept on disk: made once, so that no step of training runs the model again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offramp.errors import DamagedFileError, InputError
from offramp.files import (
    SEAL,
    canonical_json,
    no_room,
    parse_json,
    sha256_of_text,
    sync_folder,
)
from offramp.lab.exits.folder import FIT, HELD_OUT, clear_states, require_room
from offramp.models.model import Model
from offramp.tracing.fitting.documents import FittingRows
from offramp.tracing.fitting.readings import FIRST_POSITION, captured_states, require_both_sides
from offramp.tracing.rows import slices
from offramp.tracing.states import bytes_of

HELD_OUT_ROWS = 8192
"""Held-out rows kept at most, evenly from all held-out documents: what figures are taken from."""

TOKENS = "tokens"
"""The detail that says what the rows were planned for."""
MOST_DIGITS = 15

HEADER_BYTES = 4096
"""Of a file of states, before its numbers; safetensors takes a header that is filled up with spaces."""

TYPES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}
"""What safetensors calls them."""


@dataclass(frozen=True)
class CachedStates:
    """States of every row at the exits and at L, whose place is the last.

    layers: the exits, then L. fit: [rows, layers, hidden] in bfloat16, memory-mapped. held_out: the same in
    the model's dtype, so that what is said of them is what the model says. seconds: that making them took,
    whichever process did.
    """

    layers: tuple[int, ...]
    fit: Tensor
    held_out: Tensor
    seconds: float

    @property
    def exits(self) -> tuple[int, ...]:
        """The layers below L."""
        return self.layers[:-1]


@dataclass(frozen=True)
class StatesPlan:
    """Which rows are kept. layers: the exits, then L. stride: every so many held-out rows is kept. tokens:
    that the rows were planned for.
    """

    rows: FittingRows
    layers: tuple[int, ...]
    hidden: int
    dtype: torch.dtype
    stride: int
    tokens: int

    @classmethod
    def of(cls, model: Model, rows: FittingRows, exits: Sequence[int], tokens: int) -> StatesPlan:
        """The plan for some exits below L."""
        held_out = _row_counts(rows)[1]
        return cls(
            rows=rows,
            layers=(*exits, model.layers),
            hidden=model.shape.hidden_size,
            dtype=getattr(torch, model.dtype),
            stride=max(1, -(-held_out // HELD_OUT_ROWS)),
            tokens=tokens,
        )

    @property
    def fit_rows(self) -> int:
        """Rows to train on, at most: contexts with a number that is not finite are left out."""
        return _row_counts(self.rows)[0]

    @property
    def bytes(self) -> int:
        """That both files take, at most."""
        held_out = -(-_row_counts(self.rows)[1] // self.stride)
        row = len(self.layers) * self.hidden
        return row * (2 * self.fit_rows + self.dtype.itemsize * held_out) + 2 * HEADER_BYTES

    def require_room(self, folder: Path) -> None:
        """Refuse what the disk has no room for, before anything is written. Raises DiskFullError."""
        what = f"hidden states of {self.rows.tokens:,} tokens at {len(self.layers)} layers"
        require_room(folder, self.bytes, what, "give fewer --tokens or exits")


def _row_counts(rows: FittingRows) -> tuple[int, int]:
    """Rows of documents to fit on, and of held-out ones, without the first position."""
    counts = [0, 0]
    for context in rows.contexts:
        first = max(context.first_row, FIRST_POSITION)
        counts[int(rows.held_out[context.document])] += max(0, len(context.ids) - first)
    return counts[0], counts[1]


def read_states(folder: Path, key: str) -> CachedStates | None:
    """The states that an earlier process left in the folder, None if there are none under this key.

    Raises DamagedFileError if their bytes changed.
    """
    if not all((folder / name).is_file() for name in (FIT, HELD_OUT)):
        return None
    fit, held_out = (_read(folder / name, key) for name in (FIT, HELD_OUT))
    if fit is None or held_out is None or fit.layers != held_out.layers:
        return None
    return CachedStates(fit.layers, fit.states, held_out.states, fit.seconds)


def tokens_read(folder: Path) -> int | None:
    """The tokens that an earlier process planned for, whose states are in the folder; None without any.

    What is said there is held against the rest of the file where that is read.
    """
    from safetensors import SafetensorError, safe_open

    if not all((folder / name).is_file() for name in (FIT, HELD_OUT)):
        return None
    try:
        with safe_open(folder / FIT, framework="pt") as file:
            stated = dict(file.metadata() or {}).get(TOKENS, "")
    except SafetensorError as error:
        raise _damaged(folder / FIT, str(error)) from error
    return int(stated) if stated.isdecimal() and len(stated) < MOST_DIGITS else None


def write_states(
    model: Model, plan: StatesPlan, folder: Path, key: str, advance: Callable[[int], None]
) -> CachedStates:
    """Run the model over the rows and keep their states. key: of all that decides what they are.

    advance: called with the rows done. Both files are whole, or not there.

    Raises DiskFullError if the disk becomes full, ModelError if no row had finite numbers only.
    """
    started = time.perf_counter()
    clear_states(folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with (
            _writer(folder / HELD_OUT, plan, plan.dtype) as held_out,
            _writer(folder / FIT, plan, torch.bfloat16) as fit,
        ):
            seen = 0
            for rows, states in captured_states(model, plan.rows.contexts, plan.layers):
                kept = rows.position >= FIRST_POSITION
                apart = plan.rows.held_out[rows.document]
                places = np.flatnonzero(kept & apart)
                chosen = places[(seen + np.arange(len(places))) % plan.stride == 0]
                seen += len(places)
                together = torch.stack(states, dim=1)
                fit.add(together, np.flatnonzero(kept & ~apart))
                held_out.add(together, chosen)
                advance(len(rows))
            require_both_sides(model, fit.rows, held_out.rows)
            seconds = time.perf_counter() - started
            held_out.finish(key, seconds)
            fit.finish(key, seconds)
    except BaseException:
        clear_states(folder)
        raise
    found = read_states(folder, key)
    assert found is not None, "they were written just now"
    return found


class _Writer:
    """Appends rows [rows, layers, hidden] to a safetensors file, whose header, which counts them, is last."""

    def __init__(self, path: Path, plan: StatesPlan, dtype: torch.dtype) -> None:
        self.path, self.plan, self.dtype = path, plan, dtype
        self.rows = 0
        self._digest = hashlib.sha256()
        self._partial = path.with_suffix(".partial")
        self._file = self._partial.open("wb")
        self._file.write(b" " * HEADER_BYTES)

    def add(self, states: Tensor, places: np.ndarray[Any, Any]) -> None:
        """Append some rows of [rows, layers, hidden]."""
        if not len(places):
            return
        chosen = states[torch.from_numpy(places).to(states.device)].to("cpu", self.dtype).contiguous()
        data = bytes_of(chosen)
        self._digest.update(data)
        self._file.write(data)
        self.rows += len(places)

    def finish(self, key: str, seconds: float) -> None:
        """Write the header and put the file in place. seconds: that all rows took."""
        shape = [self.rows, len(self.plan.layers), self.plan.hidden]
        size = int(np.prod(shape)) * self.dtype.itemsize
        further = {"layers": self.plan.layers, "seconds": seconds, TOKENS: self.plan.tokens}
        stated = {"key": key, **{name: json.dumps(value) for name, value in further.items()}}
        metadata = {**stated, SEAL: _seal(stated, self.dtype, shape, self._digest)}
        entry = {"dtype": TYPES[self.dtype], "shape": shape, "data_offsets": [0, size]}
        header = canonical_json({"__metadata__": metadata, "states": entry}).encode()
        room = HEADER_BYTES - 8
        self._file.seek(0)
        self._file.write(room.to_bytes(8, "little") + header.ljust(room))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._partial.replace(self.path)
        sync_folder(self.path.parent)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


@contextlib.contextmanager
def _writer(path: Path, plan: StatesPlan, dtype: torch.dtype) -> Iterator[_Writer]:
    writer = _Writer(path, plan, dtype)
    try:
        yield writer
    except OSError as error:
        full = no_room(error, path, writer.rows * len(plan.layers) * plan.hidden * dtype.itemsize)
        if full is None:
            raise
        raise full from error
    finally:
        with contextlib.suppress(OSError):  # what is still in its buffer finds no room either
            writer.close()


@dataclass(frozen=True)
class _File:
    """One file. states: [rows, layers, hidden], memory-mapped. seconds: that making them took."""

    layers: tuple[int, ...]
    states: Tensor
    seconds: float


def _read(path: Path, key: str) -> _File | None:
    """One file, None for one of another key."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            stated, states = dict(file.metadata() or {}), file.get_tensor("states")
    except SafetensorError as error:
        raise _damaged(path, str(error)) from error
    if "key" in stated and stated["key"] != key:
        return None
    seal, digest = stated.pop(SEAL, None), hashlib.sha256()
    for rows in slices(0, len(states), 1024):
        digest.update(bytes_of(states[rows]))
    if seal != _seal(stated, states.dtype, states.shape, digest):
        raise _damaged(path, "its bytes changed since it was written (SHA-256 differs)")
    try:
        return _File(tuple(parse_json(stated["layers"], list)), states, float(stated["seconds"]))
    except (KeyError, ValueError) as error:  # sealed, but by another program
        raise _damaged(path, f"it is not what offramp writes ({error})") from error


def _seal(stated: Mapping[str, str], dtype: torch.dtype, shape: Sequence[int], numbers: hashlib._Hash) -> str:
    """SHA-256 of all that a file says. numbers: the digest of its states' bytes."""
    said = [dict(stated), str(dtype), list(shape), numbers.hexdigest()]
    return sha256_of_text(canonical_json(said))


def _damaged(path: Path, why: str) -> DamagedFileError:
    return DamagedFileError(
        f"the file of hidden states {path.name} is damaged: {why}",
        where=str(path),
        fix=f"remove the folder {path.parent}: the same command makes it again",
    )


def require_enough(plan: StatesPlan, batch: int) -> None:
    """Refuse too little text to fill one batch. Raises InputError that says what there is."""
    if plan.fit_rows < batch:
        raise InputError(
            f"there are {plan.fit_rows:,} tokens to train on, beside the half of the text left for tuning "
            f"and documents held out; one step takes {batch:,}, and training tens of thousands",
            where="workloads= (--workload)",
            fix="give more text or raise --tokens; so little allows a lens in closed form: offramp heads fit",
        )
