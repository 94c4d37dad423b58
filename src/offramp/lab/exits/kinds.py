"""The kinds of exits that are trained on states: what an exit computes, and from where training starts."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offramp.errors import InputError
from offramp.tracing.exit_readings import ExitMlp, LinearLens
from offramp.tracing.fitted_heads import PreparedLens, PreparedMlp, PreparedReading

Parameters = Mapping[str, Tensor]
"""Of one exit, float32, by name."""

EPSILON = 1e-6
"""Under the root of a block's norm."""

EXECUTED = "executed"
"""The kind that trains K,V maps, and not how an exit is read: `offramp.lab.exits.executed`."""

REGULARISED = "regularised"
"""The kind that trains the model itself: `offramp.lab.exits.regularised`."""


@dataclass(frozen=True)
class Reading:
    """How trained exits are read: what `ExitHeads` holds of them."""

    lens: LinearLens
    mlp: ExitMlp | None = None

    def of(self, place: int, device: torch.device) -> PreparedReading:
        """One exit's reading: of rows [rows, hidden] what the model's final norm is given."""
        mlp = None if self.mlp is None else PreparedMlp.of(self.mlp, place, device)
        return PreparedReading(PreparedLens.of(self.lens, place, device), mlp)


@dataclass(frozen=True)
class Kind:
    """A kind of exit.

    initial: parameters of one exit, of the ridge lens's weight [hidden, hidden] and bias [hidden], the number
    of units, and a generator. prepared: what computes with them, differentiable. reading: of the parameters
    of every exit.
    """

    name: str
    initial: Callable[[Tensor, Tensor, int, torch.Generator], dict[str, Tensor]]
    prepared: Callable[[Parameters], PreparedReading]
    reading: Callable[[Sequence[Parameters]], Reading]
    has_units: bool = False


def _stacked(exits: Sequence[Parameters], name: str) -> np.ndarray:
    return np.stack([one[name].detach().float().cpu().numpy() for one in exits])


def _lens_of(exits: Sequence[Parameters]) -> LinearLens:
    return LinearLens(weight=_stacked(exits, "weight"), bias=_stacked(exits, "bias"))


def _initial_lens(weight: Tensor, bias: Tensor, units: int, generator: torch.Generator) -> dict[str, Tensor]:
    return {"weight": weight, "bias": bias}


def _initial_block(weight: Tensor, bias: Tensor, units: int, generator: torch.Generator) -> dict[str, Tensor]:
    """It begins as the lens: nothing comes through `down`, whose gradient is not zero all the same."""
    hidden = len(bias)

    def random() -> Tensor:
        return torch.randn(units, hidden, generator=generator) / math.sqrt(hidden)

    return {
        "weight": weight,
        "bias": bias,
        "norm": torch.ones(hidden),
        "gate": random(),
        "up": random(),
        "down": torch.zeros(hidden, units),
    }


def _prepared_lens(parameters: Parameters) -> PreparedReading:
    return PreparedReading(PreparedLens(parameters["weight"].t(), parameters["bias"]))


def _prepared_block(parameters: Parameters) -> PreparedReading:
    gate, up, down = (parameters[name].t() for name in ("gate", "up", "down"))
    mlp = PreparedMlp(parameters["norm"], gate, up, down, EPSILON)
    return PreparedReading(PreparedLens(parameters["weight"].t(), parameters["bias"]), mlp)


def _block_of(exits: Sequence[Parameters]) -> Reading:
    arrays: dict[str, Any] = {name: _stacked(exits, name) for name in ("norm", "gate", "up", "down")}
    return Reading(_lens_of(exits), ExitMlp(**arrays, epsilon=EPSILON))


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        # The tuned lens (arXiv 2303.08112, section 3), from the closed form instead of from the identity.
        Kind("lens", _initial_lens, _prepared_lens, lambda exits: Reading(_lens_of(exits))),
        # A block of its own before the model's head, the model frozen: Balcony (arXiv 2503.05005, section 3).
        # Theirs is a layer with attention; the network alone did as well, and needs no keys and values.
        Kind("block", _initial_block, _prepared_block, _block_of, has_units=True),
    )
}


def find_kind(name: str) -> Kind:
    """The kind of this name."""
    return KINDS[name]


def check_kind(name: str) -> None:
    """Raise InputError, with a near one, unless exits of this kind can be trained."""
    there_are = (*KINDS, EXECUTED, REGULARISED)
    if name in there_are:
        return
    there = f"there are: {', '.join(there_are)}"
    if name == "gate":  # no way to read an exit, and made for exits that are there
        raise InputError(
            "gates are trained by a function of their own",
            where="kind= (--kind)",
            fix="call offramp.train_gates, or give --kind gate",
        )
    near = difflib.get_close_matches(name, there_are, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}? " if near else ""
    raise InputError(f"there is no kind of exits {name!r}", where="kind= (--kind)", fix=hint + there)
