"""The runs of the registered study: which there are, in which sizes, and what rows each stands for."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, get_args

import numpy as np

from offramp_lab.family import Heads, Mlp, Norm, Positions, Residual
from offramp_lab.recipes import (
    Attending,
    Continued,
    Dense,
    FromScratch,
    Mamba2,
    Mixture,
    Reading,
    require_comparable,
)

LEVELS: dict[str, tuple[str, str]] = {
    "norm": get_args(Norm),
    "mlp": get_args(Mlp),
    "positions": get_args(Positions),
    "heads": get_args(Heads),
    "residual": get_args(Residual),
}
"""By factor, the level that counts -1 and the one that counts +1."""

FACTORS = tuple(LEVELS)

VOCABULARY = 2048
LAYERS, HIDDEN, HEAD_SIZE, GATE_LAYERS = 12, 96, 16, 4
PARAMETERS = 1_553_088
"""Of the GPT-2-like corner, its feed-forward width four times the hidden size, its vocabulary 2,048."""

REPLICATION = "replication"
"""A block that is a study of its own."""

GPT2_LIKE, LLAMA_LIKE = 1, 16
"""Runs of the two corners of interest."""

MORE_SEEDS = {17: GPT2_LIKE, 18: GPT2_LIKE, 19: LLAMA_LIKE, 20: LLAMA_LIKE}
MIXTURES, STATE_SPACES, SIZES_FROM = range(21, 25), range(25, 29), 29
LEARNED, ROTARY = range(33, 45), range(45, 57)
"""Runs of the replication: the GPT-2-like corner, and the same with rotary positions."""
BASES = (GPT2_LIKE, 17, 18, LLAMA_LIKE, 19, 20)
ARMS = {"4": ("continued", "early_exit_loss"), "5": ("tuned",)}
"""By block what each base goes on with."""

GOING_ON_SHARE, GOING_ON_RATE, GOING_ON_SEED = 5, 1 / 4, 100
"""One part in so many of the tokens; of the largest rate; added to the seed of the base."""


@dataclass(frozen=True)
class Size:
    """How a recipe of the design is scaled.

    hidden, layers, query_heads: times its own.
    spread_by_width: initial matrices have a standard deviation of 1/sqrt(hidden) in the place of 0.02.
    """

    hidden: Fraction = Fraction(1)
    layers: Fraction = Fraction(1)
    query_heads: Fraction = Fraction(1)
    context: int = 256
    batch: int = 16
    precision: str = "float32"
    spread_by_width: bool = False


HALF = Fraction(1, 2)
SIZES: Mapping[str, Size] = {
    "design": Size(),
    "narrow": Size(HALF, HALF, HALF, context=128, batch=4, spread_by_width=True),
    "smoke": Size(HALF, Fraction(1, 3), context=64, batch=4),
    # Some 87 million weights at a vocabulary of 2,048: 12 layers of 768, heads of 64, one GPU.
    "100m": Size(
        hidden=Fraction(8),
        query_heads=Fraction(2),
        context=1024,
        batch=64,
        precision="bfloat16",
    ),
}
"""The one that was written down first, the one that was written down after its gate, one that only shows that
everything works, a larger one."""


@dataclass(frozen=True)
class Run:
    """One training of a study.

    block: "pilot", "gate", "1" to "6" or REPLICATION. model: the recipe that its model's sizes are from: its
    own, or that of the run that it goes on from (base). arm: what is done to that. again: the run that
    diverged, in the place of which it is trained.
    """

    name: str
    block: str
    recipe: Reading
    model: FromScratch
    base: str = ""
    arm: str = ""
    again: str = ""

    @property
    def second_try(self) -> Run:
        """The training in its place if it diverged."""
        recipe = self.recipe.model_copy(update={"seed": self.recipe.seed + 500})
        return replace(self, name=f"{self.name}-again", recipe=recipe, again=self.name)


def run_name(number: int) -> str:
    """Of the run with a number: run-07."""
    return f"run-{number:02}"


CORNERS = (run_name(GPT2_LIKE), run_name(LLAMA_LIKE))


def half_fraction() -> tuple[dict[str, str], ...]:
    """16 of the 32 combinations, the fifth factor minus the product of the four others: resolution V.

    Main effects are confounded with interactions of four factors only, and pairs with those of three (Box,
    Hunter and Hunter 2005, chapter 6). Run n of `docs/preregistered.md` is at place n - 1.
    """
    found = []
    for signs in itertools.product((-1, 1), repeat=4):
        whole = (*reversed(signs), -int(np.prod(signs)))
        found.append({name: LEVELS[name][(sign + 1) // 2] for name, sign in zip(FACTORS, whole, strict=True)})
    return tuple(found)


def design(
    size: str, *, tokens: int, rate: float, vocabulary: int = VOCABULARY, checkpoints: int = 8
) -> dict[str, Run]:
    """Every run by name: four of the gate, runs 1 to 28, those that go on, 29 to 32, and the replication's.

    A run's number is its seed, those of the gate have their corner's: two have its width, and two beside them
    its number of parameters. Those that go on are named after their base, and what is done to it.

    Raises InputError for a size that cannot be matched.
    """
    fixed: dict[str, Any] = {"text": "text", "tokens": tokens, "rate": rate}
    recipes: dict[str, FromScratch] = {
        name: _scaled(recipe, SIZES[size])
        for name, recipe in _from_scratch({**fixed, "checkpoints": checkpoints})
    }
    if (size, vocabulary) != ("design", VOCABULARY):
        recipes = _matched(recipes, SIZES[size], vocabulary)
    for recipe in recipes.values():
        if isinstance(recipe, Dense) and recipe.against is not None:
            other = recipes[recipe.against]
            assert isinstance(other, Dense), "dense models are compared with dense ones"
            require_comparable(recipe, other, recipe.against, vocabulary)
    found = {name: Run(name, block_of(name), recipe, recipe) for name, recipe in recipes.items()}
    going_on = {
        f"{run_name(base)}-{arm.replace('_', '-')}": Run(
            f"{run_name(base)}-{arm.replace('_', '-')}",
            block,
            Continued.model_validate(
                {
                    **fixed,
                    "from": run_name(base),
                    "arm": arm,
                    "tokens": max(1, tokens // GOING_ON_SHARE),
                    "rate": rate * GOING_ON_RATE,
                    "seed": base + GOING_ON_SEED,
                    "checkpoints": 1,
                    **{key: getattr(SIZES[size], key) for key in ("context", "batch", "precision")},
                }
            ),
            recipes[run_name(base)],
            run_name(base),
            arm,
        )
        for block, arms in ARMS.items()
        for base in BASES
        for arm in arms
    }
    after = {name: run for name, run in found.items() if run.block in ("6", REPLICATION)}
    return {**{name: run for name, run in found.items() if name not in after}, **going_on, **after}


def _from_scratch(fixed: Mapping[str, Any]) -> list[tuple[str, FromScratch]]:
    """Recipes of the first size, by name."""
    fixed = {**fixed, "layers": LAYERS, "hidden": HIDDEN}
    cells = half_fraction()

    def dense(cell: int, seed: int, **more: Any) -> Dense:
        sized = {} if "width" in more else {"parameters": PARAMETERS}
        return Dense.model_validate({**fixed, **cells[cell - 1], "seed": seed, **sized, **more})

    width = dense(LLAMA_LIKE, LLAMA_LIKE).sized(VOCABULARY)
    gpt2, llama = CORNERS
    found: list[tuple[str, FromScratch]] = [
        (f"gate-{gpt2}", dense(GPT2_LIKE, GPT2_LIKE, layers=GATE_LAYERS, width=4 * HIDDEN)),
        (f"gate-{llama}", dense(LLAMA_LIKE, LLAMA_LIKE, layers=GATE_LAYERS, width=width)),
    ]
    for corner in (GPT2_LIKE, LLAMA_LIKE):
        against = {"against": run_name(corner), "factor": "layers"}
        found.append((f"gate-wide-{run_name(corner)}", dense(corner, corner, layers=GATE_LAYERS, **against)))
    found += [(run_name(number), dense(number, number)) for number in range(1, len(cells) + 1)]
    for seed, corner in MORE_SEEDS.items():
        found.append((run_name(seed), dense(corner, seed, against=run_name(corner), factor="seed")))
    for seed in MIXTURES:
        found.append((run_name(seed), Mixture(**fixed, parameters=PARAMETERS, seed=seed)))
    for seed in STATE_SPACES:
        found.append((run_name(seed), Mamba2(**fixed, parameters=PARAMETERS, seed=seed)))
    for seed, layers in ((29, LAYERS // 2), (30, 2 * LAYERS)):
        found.append((run_name(seed), dense(LLAMA_LIKE, seed, layers=layers, against=llama, factor="layers")))
    for seed, hidden in ((31, HIDDEN // 2), (32, 2 * HIDDEN)):
        wide = {"hidden": hidden, "width": width * hidden // HIDDEN, "query_heads": hidden // HEAD_SIZE}
        found.append((run_name(seed), dense(LLAMA_LIKE, seed, **wide)))
    for seed in LEARNED:
        found.append((run_name(seed), dense(GPT2_LIKE, seed, against=gpt2, factor="seed")))
    found += [(run_name(seed), dense(GPT2_LIKE, seed, positions="rotary")) for seed in ROTARY]
    return found


def _scaled(recipe: FromScratch, size: Size) -> FromScratch:
    """With layers, hidden size and heads of another size, and its own widths and parameters."""
    heads = round(recipe.query_heads * size.query_heads)
    update: dict[str, object] = {
        "context": size.context,
        "batch": size.batch,
        "precision": size.precision,
        "layers": max(1, round(recipe.layers * size.layers)),
        "hidden": round(recipe.hidden * size.hidden),
        # As many as share keys and values, at least.
        "query_heads": max(recipe.group, heads) if isinstance(recipe, Attending) else heads,
    }
    if size.spread_by_width:
        update["spread"] = round(1 / math.sqrt(recipe.hidden * size.hidden), 4)
    return recipe.model_copy(update=update)


def _matched(recipes: Mapping[str, FromScratch], size: Size, vocabulary: int) -> dict[str, FromScratch]:
    """Scaled recipes with parameters of their GPT-2-like corner with a width of 4 times the hidden size, and
    widths that follow the Llama-like corner's."""
    gpt2, llama = (recipes[name] for name in CORNERS)
    parameters = gpt2.weights(vocabulary, 4 * gpt2.hidden)
    width = llama.model_copy(update={"parameters": parameters}).sized(vocabulary)
    before = next(
        recipe for name, recipe in _from_scratch({"text": "text", "tokens": 1}) if name == CORNERS[1]
    )
    grown = Fraction(width, before.sized(VOCABULARY))
    found = {}
    for name, recipe in recipes.items():
        update = {"parameters": parameters}
        if recipe.width is not None:
            times = grown if isinstance(recipe, Dense) and recipe.mlp == "swiglu" else size.hidden
            update = {"width": round(recipe.width * times)}
        found[name] = recipe.model_copy(update=update)
    return found


def block_of(name: str) -> str:
    """The block of a run that is trained from scratch."""
    if name.startswith("gate"):
        return "gate"
    starts = {1: "1", LLAMA_LIKE + 1: "2", MIXTURES[0]: "3", SIZES_FROM: "6", LEARNED[0]: REPLICATION}
    return starts[max(start for start in starts if start <= int(name.removeprefix("run-")))]


def stands_for(run: Run) -> tuple[str, str] | None:
    """The block, and what was done in it, that a run's last model stands for besides its own; None for most.

    A base is also the frozen model with trained exits: its endpoints by the KL lens stand there in the place
    of those by the logit lens. One that is trained on as it was is also the one that is tuned on plain text.
    """
    if run.arm == "continued":
        return "5", "plain"
    return ("4", "frozen_exits") if (run.again or run.name) in {run_name(base) for base in BASES} else None
