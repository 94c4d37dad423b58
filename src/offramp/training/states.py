"""Hidden states to train on, kept on disk: made once, so that no step of training runs the model again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offramp.errors import InputError
from offramp.files import write_atomically
from offramp.kit.numbers import NotNegative, Whole
from offramp.kit.sealed_tensors import HEADER_BYTES, STREAMED, SealedTensors, StreamedBytes
from offramp.models.model import Model
from offramp.models.shape import ELEMENT_BYTES
from offramp.tracing.fitting.fitting_documents import FittingRows
from offramp.tracing.fitting.fitting_inputs import FIRST_POSITION, captured_states, require_both_sides
from offramp.training.folder import FIT, HELD_OUT, clear_states, require_room

HELD_OUT_ROWS = 8192
"""Held-out rows kept at most, evenly from all held-out documents: what figures are taken from."""

ROWS_AT_ONCE = 4096
"""That are looked at together."""


@dataclass(frozen=True)
class States:
    """What a file of states [rows, layers, hidden] says of them, which are its bytes."""

    key: str
    """Of all that decides what they are."""
    layers: tuple[Whole, ...]
    dtype: str
    """Of the numbers."""
    seconds: NotNegative
    """That making both files took."""
    tokens: Whole
    """That the rows were planned for."""


FILE = SealedTensors(
    States,
    "offramp_states",
    "the file of hidden states {name} is damaged",
    unlisted=lambda header, names: {*names} - {STREAMED},
)


@dataclass(frozen=True)
class CachedStates:
    """States of every row at the exits and at L, whose place is the last."""

    layers: tuple[int, ...]
    """The exits, then L."""
    fit: Tensor
    """[rows, layers, hidden] in bfloat16, memory-mapped."""
    held_out: Tensor
    """The same in the model's dtype, so that what is said of them is what the model says."""
    seconds: float
    """That making them took, whichever process did."""

    @property
    def exits(self) -> tuple[int, ...]:
        """The layers below L."""
        return self.layers[:-1]


@dataclass(frozen=True)
class StatesPlan:
    """Which rows are kept."""

    rows: FittingRows
    layers: tuple[int, ...]
    """The exits, then L."""
    hidden: int
    dtype: torch.dtype
    stride: int
    """Every so many held-out rows is kept."""
    tokens: int
    """That the rows were planned for."""

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
    def held_out_rows(self) -> int:
        """Those of them that are kept, at most."""
        return -(-_row_counts(self.rows)[1] // self.stride)

    @property
    def bytes(self) -> int:
        """That both files take, at most."""
        row = len(self.layers) * self.hidden
        return row * (2 * self.fit_rows + self.dtype.itemsize * self.held_out_rows) + 2 * HEADER_BYTES

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
    if fit is None or held_out is None or fit[0].layers != held_out[0].layers:
        return None
    return CachedStates(fit[0].layers, fit[1], held_out[1], fit[0].seconds)


def tokens_read(folder: Path) -> int | None:
    """The tokens that an earlier process planned for, whose states are in the folder; None without any.

    What is said there is held against the rest of the file where that is read.
    """
    if not all((folder / name).is_file() for name in (FIT, HELD_OUT)):
        return None
    return FILE.stated(folder / FIT, _fix(folder)).tokens


def write_states(
    model: Model, plan: StatesPlan, folder: Path, key: str, advance: Callable[[int], None]
) -> CachedStates:
    """Run the model over the rows and keep their states. key: of all that decides what they are.

    advance: called with the rows done. Both files are whole, or not there.

    Raises DiskFullError if the disk becomes full, ModelError if no row had finite numbers only.
    """
    clear_states(folder)
    folder.mkdir(parents=True, exist_ok=True)

    def write(held_out: Path, fit: Path) -> None:
        with FILE.streamed(held_out) as apart, FILE.streamed(fit) as rows:
            _stream(model, plan, key, rows, apart, advance)

    try:
        write_atomically(
            folder / HELD_OUT,
            lambda held_out: write_atomically(folder / FIT, lambda fit: write(held_out, fit)),
        )
    except BaseException:
        clear_states(folder)
        raise
    found = read_states(folder, key)
    assert found is not None, "they were written just now"
    return found


def _stream(
    model: Model,
    plan: StatesPlan,
    key: str,
    fit: StreamedBytes[States],
    held_out: StreamedBytes[States],
    advance: Callable[[int], None],
) -> None:
    """See `write_states`."""
    started, seen = time.perf_counter(), 0
    for rows, states in captured_states(model, plan.rows.contexts, plan.layers):
        kept = rows.position >= FIRST_POSITION
        apart = plan.rows.held_out[rows.document]
        places = np.flatnonzero(kept & apart)
        chosen = places[(seen + np.arange(len(places))) % plan.stride == 0]
        seen += len(places)
        together = torch.stack(states, dim=1)
        fit.add(_bytes(together, np.flatnonzero(kept & ~apart), torch.bfloat16))
        held_out.add(_bytes(together, chosen, plan.dtype))
        advance(len(rows))
    require_both_sides(model, fit.rows, held_out.rows)
    seconds = time.perf_counter() - started
    for file, dtype in ((fit, torch.bfloat16), (held_out, plan.dtype)):
        file.finish(States(key, plan.layers, str(dtype).removeprefix("torch."), seconds, plan.tokens))


def _bytes(states: Tensor, places: NDArray[np.int64], dtype: torch.dtype) -> NDArray[np.uint8]:
    """Some rows of [rows, layers, hidden], as bytes of this type."""
    chosen = states[torch.from_numpy(places).to(states.device)].to("cpu", dtype).contiguous()
    return chosen.view(torch.uint8).numpy()


def _read(path: Path, key: str) -> tuple[States, Tensor] | None:
    """One file and its states [rows, layers, hidden], memory-mapped; None for one of another key."""
    stated, arrays = FILE.read(path, _fix(path.parent), mapped=True)
    if stated.key != key:
        return None
    rows, size = arrays.get(STREAMED, np.zeros(0)), ELEMENT_BYTES.get(stated.dtype, 0)
    if not size or rows.ndim != 3 or rows.shape[1] != len(stated.layers) or rows.shape[2] % size:
        raise FILE.damaged(path, "it is not what offramp writes (its rows)", _fix(path.parent))
    return stated, torch.from_numpy(rows).view(getattr(torch, stated.dtype))


def _fix(folder: Path) -> str:
    return f"remove the folder {folder}: the same command makes it again"


def require_planned(states: CachedStates, plan: StatesPlan, folder: Path) -> None:
    """Refuse states that an earlier process did not make of these rows. Raises DamagedFileError."""
    most = {FIT: plan.fit_rows, HELD_OUT: plan.held_out_rows}
    types = {FIT: torch.bfloat16, HELD_OUT: plan.dtype}
    for name, kept in {FIT: states.fit, HELD_OUT: states.held_out}.items():
        why = None
        if states.layers != plan.layers or kept.dtype != types[name] or kept.shape[2] != plan.hidden:
            why = "its states are of other layers, sizes or types than the model's"
        elif not 0 < len(kept) <= most[name]:
            why = f"it has {len(kept)} rows, and {most[name]} were planned"
        elif not all(bool(torch.isfinite(some).all()) for some in torch.split(kept, ROWS_AT_ONCE)):
            why = "it holds a number that is not finite"
        if why is not None:
            raise FILE.damaged(folder / name, why, _fix(folder))


def require_enough(rows: int, batch: int) -> None:
    """Refuse too little text to fill one batch. Raises InputError that says what there is."""
    if rows < batch:
        raise InputError(
            f"there are {rows:,} tokens to train on, beside the half of the text left for tuning "
            f"and documents held out; one step takes {batch:,}, and training tens of thousands",
            where="workloads= (--workload)",
            fix="give more text or raise --tokens; so little allows a lens in closed form: offramp heads fit",
        )
