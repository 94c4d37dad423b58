"""The recipes of docs/lab/preregistered.md: combinations of factors, seeds, kinds, going on, other sizes."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offramp.errors import InputError
from offramp.files import write_text_atomically
from offramp.lab.effects.factors import half_fraction
from offramp.lab.text.folder import RECORD, RECORD_FILE
from offramp.lab.training.architecture import make_architecture
from offramp.lab.training.recipe import AnyRecipe, ContinuedRecipe, Mamba2Recipe, MixtureRecipe, Recipe

LAYERS, HIDDEN, HEAD_SIZE = 12, 96, 16
PARAMETERS = 1_553_088
"""Of the GPT-2-like corner, its feed-forward width four times the hidden size, its vocabulary 2,048."""

GPT2_LIKE, LLAMA_LIKE = 1, 16
"""Runs of the two corners of interest."""

MORE_SEEDS = {17: GPT2_LIKE, 18: GPT2_LIKE, 19: LLAMA_LIKE, 20: LLAMA_LIKE}
GATE_LAYERS = 4

MIXTURES, STATE_SPACES = range(21, 25), range(25, 29)
BASES = (GPT2_LIKE, 17, 18, LLAMA_LIKE, 19, 20)
ARMS = {"4": ("continued", "early_exit_loss"), "5": ("tuned",)}
"""By block what each base goes on with."""

GOING_ON_SHARE, GOING_ON_RATE, GOING_ON_SEED = 5, 1 / 4, 100
"""One part in so many of the tokens; of the largest rate; added to the seed of the base."""


@dataclass(frozen=True)
class Row:
    """A run in the table of results. base: the run that it goes on from. arm: what was done to that."""

    block: str
    base: str = ""
    arm: str = ""


def rows_of(name: str) -> tuple[Row, ...]:
    """The rows that a run of the design stands for, its own first.

    A base is also the frozen model with trained exits: its endpoints by the KL lens stand there in the place
    of those by the logit lens. One that is trained on as it was is also the one that is tuned on plain text.
    """
    if name.startswith("gate"):
        return (Row("gate"),)
    base, _, rest = name.removeprefix("run-").partition("-")
    number, arm = int(base), rest.replace("-", "_")
    if arm:
        (block,) = (block for block, arms in ARMS.items() if arm in arms)
        own = Row(block, run_name(number), arm)
        return (own, Row("5", own.base, "plain")) if arm == "continued" else (own,)
    starts = (1, LLAMA_LIKE + 1, MIXTURES[0], 29)
    own = Row("1236"[sum(number >= one for one in starts) - 1])
    return (own, Row("4", name, "frozen_exits")) if number in BASES else (own,)


def design(text: str, *, tokens: int, rate: float) -> dict[str, AnyRecipe]:
    """By name, in the order of the page: four of the gate, runs 1 to 28, those that go on, and 29 to 32.

    A run's number is its seed, those of the gate have their corner's: two have its width, and two beside them
    its number of parameters. Those that go on are named after their base, a folder beside the recipe, and
    what is done to it. text: the folder, as a recipe names it.
    """
    fixed: dict[str, Any] = {"text": text, "tokens": tokens, "rate": rate, "layers": LAYERS, "hidden": HIDDEN}
    cells = half_fraction()

    def run(cell: int, seed: int, **more: Any) -> Recipe:
        sized = {} if "width" in more else {"parameters": PARAMETERS}
        return Recipe.model_validate({**fixed, **cells[cell - 1], "seed": seed, **sized, **more})

    found: dict[str, Any] = {
        f"gate-{run_name(corner)}": run(corner, corner, layers=GATE_LAYERS, width=width)
        for corner, width in ((GPT2_LIKE, 4 * HIDDEN), (LLAMA_LIKE, _width(run(LLAMA_LIKE, LLAMA_LIKE))))
    }
    for corner in (GPT2_LIKE, LLAMA_LIKE):
        found[f"gate-wide-{run_name(corner)}"] = run(
            corner, corner, layers=GATE_LAYERS, against=f"{run_name(corner)}.toml", factor="layers"
        )
    found |= {run_name(number): run(number, number) for number in range(1, len(cells) + 1)}
    for seed, corner in MORE_SEEDS.items():
        found[run_name(seed)] = run(corner, seed, against=f"{run_name(corner)}.toml", factor="seed")
    sized = {**fixed, "parameters": PARAMETERS}
    for seed in MIXTURES:
        found[run_name(seed)] = MixtureRecipe(kind="mixture", seed=seed, **sized)
    for seed in STATE_SPACES:
        found[run_name(seed)] = Mamba2Recipe(kind="mamba2", seed=seed, **sized)
    found |= _going_on(text, tokens, rate)
    for seed, layers in ((29, LAYERS // 2), (30, 2 * LAYERS)):
        found[run_name(seed)] = run(
            LLAMA_LIKE, seed, layers=layers, against=f"{run_name(LLAMA_LIKE)}.toml", factor="layers"
        )
    for seed, hidden in ((31, HIDDEN // 2), (32, 2 * HIDDEN)):
        width = _width(found[run_name(LLAMA_LIKE)]) * hidden // HIDDEN
        found[run_name(seed)] = run(
            LLAMA_LIKE, seed, hidden=hidden, width=width, query_heads=hidden // HEAD_SIZE
        )
    return found


def _going_on(text: str, tokens: int, rate: float) -> dict[str, ContinuedRecipe]:
    """Blocks 4 and 5: every base with everything that is done to it."""
    return {
        f"{run_name(base)}-{arm.replace('_', '-')}": ContinuedRecipe.model_validate(
            {
                "text": text,
                "from": run_name(base),
                "arm": arm,
                "tokens": max(1, tokens // GOING_ON_SHARE),
                "rate": rate * GOING_ON_RATE,
                "seed": base + GOING_ON_SEED,
                "checkpoints": 1,
            }
        )
        for arms in ARMS.values()
        for base in BASES
        for arm in arms
    }


def run_name(number: int) -> str:
    """Of the run with a number: run-07."""
    return f"run-{number:02}"


def _width(recipe: Recipe) -> int:
    return make_architecture(recipe, 2048).width


def write_design(folder: Path, text: Path, *, tokens: int, rate: float) -> list[Path]:
    """Write every recipe into a file of its name, and give the files.

    Raises InputError for a text that is not there or of another vocabulary than 2,048, for a rate that cannot
    be, and for a file that is there and says something else; nothing is written then.
    """
    if not (text / RECORD_FILE).is_file():
        raise InputError("no text of a lab lies there", where=str(text), fix="make one: offramp lab text")
    vocabulary = RECORD.read(text / RECORD_FILE).vocabulary
    if vocabulary != 2048:
        raise InputError(
            f"the text has a vocabulary of {vocabulary:,} tokens, and the design one of 2,048",
            where=str(text),
            fix="make a text with vocabulary = 2048, which is the default",
        )
    if not 0 < rate < math.inf:
        raise InputError(f"a learning rate cannot be {rate:g}", where="--rate", fix="give a number above 0")
    named = os.path.relpath(text.absolute(), folder.absolute())
    contents = {
        folder / f"{name}.toml": toml_of(recipe.model_dump(exclude_none=True, by_alias=True))
        for name, recipe in design(named, tokens=tokens, rate=rate).items()
    }
    for path, content in contents.items():
        if path.exists() and (not path.is_file() or path.read_text(encoding="utf-8") != content):
            raise InputError(
                "another recipe of this name is there", where=str(path), fix="choose another folder with -o"
            )
    folder.mkdir(parents=True, exist_ok=True)
    for path, content in contents.items():
        write_text_atomically(path, content)
    return list(contents)


def toml_of(values: Mapping[str, Any]) -> str:
    """A flat table of texts and numbers as TOML."""
    return "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items())
