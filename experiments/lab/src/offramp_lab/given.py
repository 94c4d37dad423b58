"""The same endpoints on models that are given: a table, and a page with what scores tell of savings.

Public models differ in everything at once, and may have been trained on these very texts: what sets one apart
from another is not told here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from offramp import InputError, OfframpError
from offramp_lab.charts import score_charts
from offramp_lab.endpoints import ENDPOINTS, ORACLE
from offramp_lab.page import (
    PAGE,
    TABLES,
    choice_sentences,
    endpoint_name,
    number,
    render,
    table_html,
    text_part,
)
from offramp_lab.page import score_name as named
from offramp_lab.recipes import invalid, read_toml
from offramp_lab.runs import (
    CALIBRATION,
    REPRESENTATION,
    REPRESENTATION_LENS,
    SCORE,
    SKIPPED,
    SKIPPED_CODE,
    SKIPPED_LENS,
)
from offramp_lab.scores import TRAININGS_NEEDED, ScoreValidity, score_validity
from offramp_lab.study import measure_into, text_in
from offramp_lab.text import TextRequest

FACTS = ["model", "base", "family", "generation", "released", "kind", "stage", "parameters", "layers"]
"""Columns of models.csv before those of endpoints."""
SHOWN = (SKIPPED, SKIPPED_LENS, REPRESENTATION, REPRESENTATION_LENS, CALIBRATION)


class GivenModel(BaseModel):
    """A model, with whatever facts are to stand in the table."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str
    source: str
    """As offramp takes it."""
    base: str = ""
    """Models of one base are one training; by default each is its own."""
    trust_remote_code: bool = False


class Given(BaseModel):
    """Models to measure, and how."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: tuple[GivenModel, ...] = Field(min_length=1)
    endpoints: tuple[str, ...] = tuple(name for name in ENDPOINTS if name != "required_depth")
    seed: int = 0
    threads: int = 1
    device: str = "cpu"
    text: TextRequest = TextRequest()


def measure_given(file: Path, folder: Path, command: str = "") -> Path:
    """Measure the models of a TOML file one after another, and write table and page; the page's path.

    A model that cannot be had or measured is named with the reason, and the others are measured. Raises
    InputError for a file that does not fit, and where no model could be measured.
    """
    try:
        asked = Given.model_validate(read_toml(file))
    except ValidationError as error:
        raise invalid(error, str(file)) from error
    (folder / "measured").mkdir(parents=True, exist_ok=True)
    text = text_in(folder, asked.text.placed(file.parent))
    how = {"endpoints": asked.endpoints, "seed": asked.seed, "threads": asked.threads, "device": asked.device}
    found, absent = [], []
    for place, model in enumerate(asked.models):
        path = folder / "measured" / f"{place:02}.json"
        if not path.is_file():
            try:
                measure_into(path, model.source, text, trust_remote_code=model.trust_remote_code, **how)
            except OfframpError as error:
                absent.append(f"{model.name}: {error}")
                continue
        facts = {"model": model.name, **(model.model_extra or {}), "base": model.base or model.name}
        found.append(json.loads(path.read_text(encoding="utf-8")) | facts)
    if not found:
        raise InputError(f"no model could be measured: {absent[0]}", where=str(file), fix="see there")
    table = pd.DataFrame([{**{key: one.get(key) for key in FACTS}, **one["values"]} for one in found])
    (folder / TABLES).mkdir(exist_ok=True)
    table.to_csv(folder / TABLES / "models.csv", index=False, lineterminator="\n")
    validity, said = validity_of(found)
    charts = [*score_charts(validity, named)]
    shown = table.reindex(columns=["model", "base", "kind", "layers", *SHOWN]).rename(columns=endpoint_name)
    page = render(
        title="How early do these models know?",
        headline=f"{len(found)} models, by their own heads and through a lens that was trained.",
        gate=[],
        claims=[],
        figures=[{"name": "Does a score tell savings?", "note": "", "charts": charts}] if charts else [],
        pairs=[],
        families="",
        notes=[*said, *(note for one in found for note in notes_of(one))],
        runs=table_html(shown),
        left_out=absent,
        text=text_part(text),
        command=command,
    )
    (folder / PAGE).write_text(page, encoding="utf-8")
    return folder / PAGE


def skips_layers(model: dict[str, Any]) -> bool:
    """Whether layers above where tokens left need not run; recurrent ones do, on the state they are given."""
    found = model["executed"].get(SKIPPED)
    return found is None or bool(found["above"] <= found["share"])


def notes_of(model: dict[str, Any]) -> list[str]:
    """What must be known to read a model's figures."""
    name = model["model"]
    notes = [f"{name}, {endpoint_name(one)}: {why}" for one, why in model["untold"].items()]
    notes += [
        f"{name}, {endpoint_name(one)}: at least; the smallest threshold keeps 95 % already"
        for one, executed in model["executed"].items()
        if executed["bound"]
    ]
    if not skips_layers(model):
        above = number(model["executed"][SKIPPED]["above"])
        fact = "recurrent layers run whatever exits say: layers skipped are a fact about caches"
        notes.append(f"{name}: {fact}; {above} of its layers lay above where tokens left")
    return notes


def validity_of(models: Sequence[dict[str, Any]]) -> tuple[ScoreValidity | None, list[str]]:
    """What scores on prose tell of what is skipped on code, in sentences too.

    A base is one training, whatever number of its models there are: the mean of them. None with fewer bases
    than a table needs, or without scores.
    """
    there = [one for one in models if one["values"].get(SKIPPED_CODE) is not None and skips_layers(one)]
    notes = [
        f"{one['model']} does not count: "
        + (
            "layers skipped on code were not measured"
            if skips_layers(one)
            else "its recurrent layers all run"
        )
        for one in models
        if one not in there
    ]
    table = pd.DataFrame([one["values"] for one in there], dtype=float)
    scores = [name for name in table if name.startswith(SCORE) or name == ORACLE]
    whole = [name for name in scores if table[name].notna().all()]
    notes += [f"{name} was not measured on all of them" for name in scores if name not in whole]
    if not whole:
        return None, ["Whether a score tells savings was not measured.", *notes]
    means = table.groupby([one["base"] for one in there], sort=False).mean()
    if len(means) < TRAININGS_NEEDED:
        few = f"{len(means)} independent trainings here, a table needs {TRAININGS_NEEDED}"
        return None, [f"Whether a score tells savings cannot be told: {few}.", *notes]
    values = {name.removeprefix(SCORE): means[name].to_numpy() for name in sorted(whole)}
    found = score_validity([*means.index], values, means[SKIPPED_CODE].to_numpy())
    return found, [*choice_sentences(found), *notes]
