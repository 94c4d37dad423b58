"""The trainings of a study of the lab: which there are, how they ended, what is compared at which loss."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from offramp.files import sha256_of_text
from offramp.lab.design import LLAMA_LIKE, MORE_SEEDS, design, rows_of, run_name
from offramp.lab.effects.runs import MOST_ABOVE
from offramp.lab.sizes import DESIGN, SIZES, resized
from offramp.lab.training.recipe import AnyRecipe, ContinuedRecipe, FromScratch

GROUPS = (("1", "2"), ("3",), ("4",), ("5",), ("6",))
"""Blocks in the order of running. Nothing of a group is measured before its last checkpoint is written."""

AGAIN = 500
"""Added to the seed of a training that diverged, for the one in its place."""

LLAMA_LIKES = (LLAMA_LIKE, *(seed for seed, corner in MORE_SEEDS.items() if corner == LLAMA_LIKE))
"""Runs of the Llama-like corner, which blocks 3 and 6 are compared with."""


@dataclass(frozen=True)
class Run:
    """One training of a study. block: "pilot", "gate" or "1" to "6". model: the recipe that its model's sizes
    are from: its own, or that of the run that it goes on from (base). arm: what is done to that. again: the
    run that diverged, in the place of which it is trained."""

    name: str
    block: str
    recipe: AnyRecipe
    model: FromScratch
    base: str = ""
    arm: str = ""
    again: str = ""


@dataclass(frozen=True)
class Outcome:
    """How a training ended. losses: of held-out natural text by checkpoint. diverged: one was not finite.
    failed: it did not end."""

    losses: tuple[float, ...] = ()
    diverged: bool = False
    failed: bool = False

    @property
    def last(self) -> float:
        """After the last step; infinite if that was not reached."""
        return math.inf if self.diverged or self.failed or not self.losses else self.losses[-1]


def designed(size: str, vocabulary: int, checkpoints: int, *, tokens: int, rate: float) -> dict[str, Run]:
    """Every run of docs/lab/preregistered.md by name, in a size. vocabulary: of the text.

    Raises InputError for a size that cannot be matched.
    """
    recipes = design("text", tokens=tokens, rate=rate)
    if (size, vocabulary) != (DESIGN, 2048):
        recipes = resized(recipes, SIZES[size], vocabulary)
    found = {}
    for name, recipe in recipes.items():
        own, model = rows_of(name)[0], recipes.get(rows_of(name)[0].base, recipe)
        assert not isinstance(model, ContinuedRecipe), "bases are trained from scratch"
        if not own.base:
            recipe = recipe.model_copy(update={"checkpoints": checkpoints})
        found[name] = Run(name, own.block, recipe, model, own.base, own.arm)
    return found


def in_order(runs: Sequence[Run]) -> list[Run]:
    """In the order of running: blocks 1 and 2 by a hash of the name, others as they are numbered."""

    def place(run: Run) -> tuple[int, str]:
        group = next((place for place, blocks in enumerate(GROUPS) if run.block in blocks), -1)
        return group, sha256_of_text(run.name) if group == 0 else ""

    return sorted(runs, key=place)


def second_name(name: str) -> str:
    """Of the training in the place of one that diverged."""
    return f"{name}-again"


def second_try(run: Run) -> Run:
    """The training in the place of one that diverged."""
    recipe = run.recipe.model_copy(update={"seed": run.recipe.seed + AGAIN})
    return replace(run, name=second_name(run.name), recipe=recipe, again=run.name)


def diverged(runs: Sequence[Run], outcomes: Mapping[str, Outcome]) -> set[str]:
    """Names of runs of which a loss was not finite, or whose last one is too far above the median of those
    that are alike: blocks 1 and 2, one kind in block 3, what the same was done to in blocks 4 and 5.
    """
    found = {run.name for run in runs if outcomes[run.name].diverged}
    alike: dict[str, list[str]] = {}
    for run in runs:
        if run.block in ("1", "2", "3", "4", "5") and math.isfinite(outcomes[run.name].last):
            alike.setdefault(_alike_as(run), []).append(run.name)
    for names in alike.values():
        median = statistics.median(outcomes[name].last for name in names)
        found |= {name for name in names if outcomes[name].last - median > MOST_ABOVE}
    return found


def _alike_as(run: Run) -> str:
    return run.model.kind if run.block in ("1", "2", "3") else f"{run.block} {run.arm}"


def compared_with(group: Sequence[Run], all_runs: Mapping[str, Run]) -> list[Run]:
    """The runs that share the loss at which those of one group are compared; none in blocks 4 and 5."""
    blocks = {run.block for run in group}
    if blocks & {"4", "5"}:
        return []
    names = {run_name(one) for one in LLAMA_LIKES}
    beside = [run for run in all_runs.values() if names & {run.name, run.again}]
    return [*group, *(beside if blocks & {"3", "6"} else ())]


def matched_places(losses: Sequence[float], loss: float) -> tuple[int, ...]:
    """The kept models between which a run passes a loss: the first from which on none is above it, and the
    one before, if any. As `offramp.lab.effects.matching.at_loss`; the last loss may not be above.
    """
    after = 1 + max((place for place, one in enumerate(losses) if one > loss), default=-1)
    return (after - 1, after) if after else (0,)
