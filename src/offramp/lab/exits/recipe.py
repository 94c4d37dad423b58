"""How exits are trained: everything that decides their weights, but for the model and the text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from offramp.errors import InputError
from offramp.lab.exits.divergence import PRECISIONS, Precision
from offramp.lab.exits.kinds import find_kind
from offramp.tracing.fitting.fit import check_seed
from offramp.tracing.request import parse_exits
from offramp.workloads.packing import require_sizes

MINUTES = 20.0
BATCH = 192
"""Positions of one step: random ones, of which so few tell as much of the gradient as whole contexts."""

RATE = 1e-3
MINIMUM_LOGITS = 256
"""Fewest tokens of a vocabulary of the loss."""

UNITS_PER_HIDDEN = 8 / 3
"""Units of a block over the hidden size: three matrices then hold as much as two of four times the size
(arXiv 2002.05202, section 2)."""


@dataclass(frozen=True)
class Recipe:
    """One training.

    at: exits, ascending, below L. tokens: to read, those held out included. steps, minutes: of training,
    one of them None: minutes become steps by a pilot. batch: positions a step. rate: the largest learning
    rate. units: of a block, 0 for other kinds. loss_vocabulary: tokens that the loss looks at, 0 for all.
    precision: of the products with the output head in training, "auto" for what is faster here.
    """

    kind: str
    at: tuple[int, ...]
    tokens: int
    steps: int | None
    minutes: float | None
    seed: int
    units: int
    loss_vocabulary: int
    batch: int = BATCH
    rate: float = RATE
    context: int | None = None
    precision: Precision | str = "auto"


def make_recipe(
    *,
    layers: int,
    hidden: int,
    vocabulary: int,
    kind: str,
    at: str | Sequence[int],
    tokens: int,
    steps: int | None,
    minutes: float | None,
    seed: int,
    units: int | None,
    loss_vocabulary: int,
    context: int | None,
    precision: str,
) -> Recipe:
    """The recipe that is asked for, checked against the sizes of a model.

    Raises InputError.
    """
    found = find_kind(kind)
    require_sizes(tokens=tokens, context=context, steps=steps)
    if steps is not None and minutes is not None:
        raise InputError(
            "both steps and minutes of training are given", where="steps= (--steps)", fix="give one of them"
        )
    if minutes is not None and not (0 < minutes < math.inf):
        raise InputError(
            f"training cannot take {minutes:g} minutes",
            where="minutes= (--minutes)",
            fix="give a number above 0",
        )
    check_seed(seed)
    if units is not None and not found.has_units:
        raise InputError(
            f"exits of the kind {kind} have no units", where="units= (--units)", fix="leave it out"
        )
    require_sizes(units=units)
    if precision not in ("auto", *PRECISIONS):
        raise InputError(
            f"products cannot be in {precision!r}",
            where="precision=",
            fix=f"give auto, {' or '.join(PRECISIONS)}",
        )
    if loss_vocabulary and loss_vocabulary < MINIMUM_LOGITS:
        raise InputError(
            f"a loss over {loss_vocabulary} tokens says little",
            where="loss_vocabulary= (--loss-vocabulary)",
            fix=f"give {MINIMUM_LOGITS} or more, or 0 for all",
        )
    exits = parse_exits(at if isinstance(at, str) else list(at), layers, "at= (--at)")[:-1]
    if not exits:
        raise InputError(
            "there is no exit below the last layer to train",
            where="at= (--at)",
            fix=f"choose among 1 to {layers - 1}",
        )
    return Recipe(
        kind=kind,
        at=exits,
        tokens=tokens,
        steps=steps,
        minutes=MINUTES if steps is None and minutes is None else minutes,
        seed=seed,
        units=(units or _default_units(hidden)) if found.has_units else 0,
        loss_vocabulary=0 if loss_vocabulary >= vocabulary else loss_vocabulary,
        context=context,
        precision=precision,
    )


def _default_units(hidden: int) -> int:
    """A multiple of 64 where the size is that large."""
    units = UNITS_PER_HIDDEN * hidden
    return 64 * round(units / 64) if units >= 64 else round(units)
