"""How exits are trained: everything that decides their weights, but for the model and the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from offramp.defaults import TRAINING_ROWS
from offramp.errors import InputError
from offramp.kit.numbers import Count, Layers, Positive, Proportion, Whole
from offramp.tracing.request import parse_exits
from offramp.training.exit_loss_weights import fewest_steps
from offramp.training.request import (
    BlockTraining,
    Effort,
    ExecutedTraining,
    LensTraining,
    Regularisation,
    RegularisedTraining,
    ResumableTraining,
)

SEQUENCE_BATCH = 512
"""Positions of a step where the model itself is trained, at most: whole sequences, or one that is longer."""

RATE = 1e-3
WHOLE_RATE = 5e-5
"""Of all weights of a model; low ranks take RATE."""
EXECUTED_RATE = 0.02
"""Of changes of K,V maps, relative to their size (`offramp.training.executed_pass`)."""
UNITS_PER_HIDDEN = 8 / 3
"""Units of a block over the hidden size: three matrices then hold as much as two of four times the size
(arXiv 2002.05202, section 2)."""


@dataclass(frozen=True, kw_only=True)
class Recipe(Effort):
    """One training."""

    kind: str
    at: tuple[Layers, ...]
    """Exits, ascending, below L."""
    tokens: Count
    """To read, those held out included."""
    seed: Whole
    units: Whole
    """Of a block, 0 for other kinds."""
    batch: Count = TRAINING_ROWS
    """Positions a step."""
    rate: Positive = RATE
    """The largest learning rate."""
    context: Count | None = None
    leave: Proportion = 0.0
    """Share of the tokens that leave while K,V maps are trained, 0 for other kinds."""
    regularisation: Regularisation | None = None
    """Of the kind "regularised", None for others."""
    rank: Whole = 0
    """Of the lenses, 0 where they are whole."""
    shared: bool = False
    """Whether all exits use one network."""

    @property
    def fewest_steps(self) -> int:
        """Steps in which each exit is looked at once."""
        if self.regularisation is None:
            return super().fewest_steps
        return fewest_steps(self.at, self.regularisation.curriculum)


def make_recipe(
    asked: ResumableTraining, *, layers: int, hidden: int, vocabulary: int, mapped: Sequence[int] = ()
) -> Recipe:
    """The recipe that is asked for, checked against the sizes of a model.

    mapped: the exits that have K,V maps to train. Raises InputError.
    """
    rank = asked.rank if isinstance(asked, LensTraining) else None
    if rank is not None and not 1 <= rank <= hidden // 2:
        raise InputError(
            f"a lens of rank {rank} is not possible, or costs more than a whole one of {hidden} x {hidden}",
            where="rank= (--rank)",
            fix=f"give 1 to {hidden // 2}, or leave it out for a whole lens",
        )
    exits = _exits(asked, mapped, layers)
    if not exits:
        raise InputError(
            "there is no exit below the last layer to train",
            where="at= (--at)",
            fix=f"choose among 1 to {layers - 1}"
            if layers > 1
            else "choose a model of two layers at least: one layer has no exit",
        )
    recipe = Recipe(
        kind=asked.kind,
        at=exits,
        tokens=asked.tokens,
        steps=asked.steps,
        minutes=asked.allowed_minutes,
        seed=asked.seed,
        units=0,
        loss_vocabulary=0,
        context=asked.context,
        precision=asked.precision,
    )
    if isinstance(asked, LensTraining):
        listed = 0 if asked.loss_vocabulary >= vocabulary else asked.loss_vocabulary
        recipe = replace(recipe, rank=rank or 0, loss_vocabulary=listed)
    if isinstance(asked, BlockTraining):
        usual = UNITS_PER_HIDDEN * hidden  # a multiple of 64 where the size is that large
        units = asked.units or (64 * round(usual / 64) if usual >= 64 else round(usual))
        recipe = replace(recipe, units=units, shared=asked.shared)
    elif isinstance(asked, ExecutedTraining):
        recipe = replace(recipe, leave=asked.leave, rate=EXECUTED_RATE)
    elif isinstance(asked, RegularisedTraining):
        rate = RATE if asked.lora else WHOLE_RATE
        recipe = replace(recipe, regularisation=asked.regularisation, rate=rate, batch=SEQUENCE_BATCH)
    if recipe.steps is not None and recipe.steps < recipe.fewest_steps:
        raise InputError(
            f"{recipe.steps} steps do not look at each of {len(exits)} exits once",
            where="steps= (--steps)",
            fix=f"give {recipe.fewest_steps} or more, or fewer exits",
        )
    return recipe


def _exits(asked: ResumableTraining, mapped: Sequence[int], layers: int) -> tuple[int, ...]:
    """The exits below L that are asked for; those with maps by default, where these are trained."""
    if asked.at is None:
        return tuple(mapped)
    exits = parse_exits(asked.at, layers, "at= (--at)")[:-1]
    if isinstance(asked, RegularisedTraining) and 1 in exits:
        raise InputError(
            "exit 1 has no weight in the loss of LayerSkip, and would not be trained",
            where="at= (--at)",
            fix=f"choose among 2 to {layers - 1}",
        )
    without = [exit for exit in exits if exit not in mapped]
    if isinstance(asked, ExecutedTraining) and without:
        raise InputError(
            f"the heads have no K,V maps at exit {without[0]}; they have: {', '.join(map(str, mapped))}",
            where="at= (--at)",
            fix="choose among these, or fit maps there first: offramp heads fit --kv-maps",
        )
    return tuple(exits)
