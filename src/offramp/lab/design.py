"""The recipes of docs/lab/preregistered.md: half of all combinations of factors, more seeds, other sizes."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from offramp.errors import InputError
from offramp.files import write_text_atomically
from offramp.lab.effects.factors import half_fraction
from offramp.lab.text.folder import RECORD, RECORD_FILE
from offramp.lab.training.architecture import make_architecture
from offramp.lab.training.recipe import Recipe

LAYERS, HIDDEN, HEAD_SIZE = 12, 96, 16
PARAMETERS = 1_553_088
"""Of the GPT-2-like corner, its feed-forward width four times the hidden size, its vocabulary 2,048."""

GPT2_LIKE, LLAMA_LIKE = 1, 16
"""Runs of the two corners of interest."""

MORE_SEEDS = {17: GPT2_LIKE, 18: GPT2_LIKE, 19: LLAMA_LIKE, 20: LLAMA_LIKE}
GATE_LAYERS = 4


def design(text: str, *, tokens: int, rate: float) -> dict[str, Recipe]:
    """By name, in the order of the page: four of the gate, runs 1 to 20, and 29 to 32 of other sizes.

    A run's number is its seed, those of the gate have their corner's: two have its width, and two beside them
    its number of parameters. text: the folder, as a recipe names it.
    """
    fixed: dict[str, Any] = {"text": text, "tokens": tokens, "rate": rate, "layers": LAYERS, "hidden": HIDDEN}
    cells = half_fraction()

    def run(cell: int, seed: int, **more: Any) -> Recipe:
        sized = {} if "width" in more else {"parameters": PARAMETERS}
        return Recipe.model_validate({**fixed, **cells[cell - 1], "seed": seed, **sized, **more})

    found = {
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
        folder / f"{name}.toml": toml_of(recipe.model_dump(exclude_none=True))
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
