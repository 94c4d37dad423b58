"""Study files, and models that are only files, for tests that run and load nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from offramp.studies.plan import make_plan
from offramp.studies.study import Study, StudyPlan
from offramp.studies.study_checks import read_study
from offramp.studies.task import StudyCell

SETTINGS = 'name = "small"\nthreads = 1\ntokens = 64\n'


def write_model(folder: Path, *, layers: int = 4, seed: int = 0, **config: Any) -> Path:
    """A checkpoint folder that says what it is: a config, a tokenizer's file and one small tensor."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {"model_type": "llama", "num_hidden_layers": layers, "hidden_size": 8, "vocab_size": 32}
    (folder / "config.json").write_text(json.dumps({**values, **config}))
    (folder / "tokenizer.json").write_text("{}")
    weights = np.random.default_rng(seed).normal(size=(32, 2)).astype(np.float32)
    save_file({"weight": weights}, folder / "model.safetensors")
    return folder


def write_texts(folder: Path, *names: str) -> None:
    """Text files of different content, to be named as txt:NAME.txt."""
    for name in names:
        (folder / f"{name}.txt").write_text(f"a text called {name}\n")


def write_study(folder: Path, text: str, settings: str = SETTINGS) -> Path:
    """A study file; what stands in front of the first table of `text` is above [study]."""
    axes, bracket, tables = text.partition("\n[")
    path = folder / "STUDY.toml"
    path.write_text(f"{axes}\n[study]\n{settings}{bracket}{tables}\n", encoding="utf-8")
    return path


def study_of(folder: Path, text: str, settings: str = SETTINGS) -> Study:
    return read_study(write_study(folder, text, settings))


def plan_of(folder: Path, text: str, settings: str = SETTINGS) -> StudyPlan:
    return make_plan(study_of(folder, text, settings))


def small_world(folder: Path) -> Path:
    """The folder, with the models a (4 layers) and b (6 layers) and the texts one and two in it."""
    write_model(folder / "a", layers=4, seed=0)
    write_model(folder / "b", layers=6, seed=1)
    write_texts(folder, "one", "two")
    return folder


def kinds_of(cells: tuple[StudyCell, ...]) -> list[str]:
    return [cell.kind for cell in cells]
