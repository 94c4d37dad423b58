"""What tests of trainings share: two trainings held against each other to the last bit; a trained model."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from offramp.models.model import Model
from offramp.tracing import plan
from offramp.tracing.loading import load_model
from offramp.training import recipe
from offramp.training.request import TRAININGS, Regularisation
from offramp.training.train import TrainedExits, train_exits
from offramp.workloads.registry import load_workload
from tiny_models import write_documents


def tiny_recipe(model: Model, **asked: Any) -> recipe.Recipe:
    """A recipe of three steps with float32 products; asked: its kind, exits and whatever else is its own."""
    usual = {"model": model.name, "workloads": "prose", "output": "none", "tokens": 100, "steps": 3}
    return recipe.make_recipe(
        TRAININGS.request(asked.pop("kind"), {**usual, "precision": "float32", **asked}),
        layers=model.layers,
        hidden=model.shape.hidden_size,
        vocabulary=model.shape.vocabulary_size,
        mapped=asked.get("at", ()),
    )


def arrays(one: TrainedExits) -> dict[str, np.ndarray]:
    return one.heads.arrays()


def assert_same(one: TrainedExits, other: TrainedExits) -> None:
    """To the last bit."""
    assert one.record.heads == other.record.heads
    if one.found is None:
        first, second = (
            each.folder / "model.safetensors" for each in (one, other) if each.folder is not None
        )
        assert first.read_bytes() == second.read_bytes()
        return
    first, second = arrays(one), arrays(other)
    assert first.keys() == second.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name], err_msg=name)
    assert one.heads.fingerprint == other.heads.fingerprint


def answering_takes(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let each batch of prompts be answered in so many seconds, by a clock of its own."""
    clock = itertools.count(0.0, seconds)
    monkeypatch.setattr(plan, "time", SimpleNamespace(perf_counter=lambda: next(clock)))


def regularised(model: Model | Path, output: Path, **options: Any) -> TrainedExits:
    """A quick training of a model itself, of a folder if that is given, at exits 2 and 3."""
    file = output.with_name("texts.jsonl")
    if not file.is_file():
        write_documents(file, documents=40)
    asked = {"lora": 4, "layer_dropout": 0.2} | options.pop("asked", {})
    settings = {"at": "2,3", "steps": 12, "tokens": 600, "precision": "float32", "progress": False} | options
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "SEQUENCE_BATCH", 60)
        return train_exits(
            load_model(model) if isinstance(model, Path) else model,
            load_workload(f"jsonl:{file}#text"),
            kind="regularised",
            output=output,
            regularisation=Regularisation(**asked),
            **settings,
        )
