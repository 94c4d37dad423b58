"""The one entry to models: loaded, transformed in order, and refused before a weight is read."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from offramp.errors import InputError, ModelError
from offramp.models.loading import load_source
from offramp.models.source import find_source
from offramp.models.transforms.prune import Prune
from offramp.tracing.layers_to_prune import measure_importance
from offramp.tracing.loading import load_model
from offramp.tracing.trace import Trace
from offramp.tracing.tracer import trace
from offramp.workloads.registry import load_workload


@pytest.mark.parametrize("given", ["prune:drop=2", ["prune:drop=2"], Prune(drop=(2,)), (Prune(drop=(2,)),)])
def test_a_transform_is_a_text_or_an_object_alone_or_among_others(tiny_model: Path, given: Any) -> None:
    model = load_model(str(tiny_model), transforms=given)
    source = find_source(str(tiny_model))
    assert model.layers == 3
    assert model.source == source
    assert model.identity.transforms == ("prune:drop=2",)
    assert model.identity.base_fingerprint == source.identity.fingerprint


def test_several_transforms_are_made_in_their_order(tiny_model: Path) -> None:
    model = load_model(str(tiny_model), transforms=["int8", "prune:drop=3+2"])
    assert model.identity.transforms == ("int8", "prune:drop=2+3")
    assert model.layers == 2


def test_layers_are_measured_on_the_workload_and_named_in_the_identity(
    tiny_model: Path, documents: Path
) -> None:
    workload = f"jsonl:{documents}#text"
    text = f"prune:by=angular,layers=2,workload={workload},tokens=64"
    model = load_model(str(tiny_model), transforms=[text])
    work = load_workload(workload)
    later = dataclasses.replace(work, documents=work.documents[24:])  # of 48
    importance = measure_importance(load_source(find_source(str(tiny_model))), later, tokens=64)
    first = int(importance.block_distances(2).argmin()) + 1
    assert model.identity.transforms == (f"prune:drop={first}+{first + 1}",)


def traced(folder: Path, name: Path, documents: Path, **options: Any) -> Trace:
    model = load_source(find_source(str(name)))
    return trace(model, f"jsonl:{documents}#text", 64, output=folder, progress=False, **options)


def test_a_trace_chooses_the_layers_of_its_own_model(
    tiny_model: Path, documents: Path, tmp_path: Path
) -> None:
    cosines = traced(tmp_path / "t", tiny_model, documents).fact("hidden_cosine_to_previous").mean(0)
    model = load_model(str(tiny_model), transforms=[f"prune:by=influence,layers=1,trace={tmp_path / 't'}"])
    assert model.identity.transforms == (f"prune:drop={int(cosines.argmax()) + 1}",)


@pytest.fixture
def never_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offramp.models.loading.load_source", lambda *_, **__: pytest.fail("loaded"))


@pytest.mark.usefixtures("never_loaded")
@pytest.mark.parametrize(
    ("transforms", "message"),
    [
        (["prunes:drop=2"], "unknown transform 'prunes'"),
        (["prune:by=angular,layers=4"], "leaves out all of the model's 4 layers"),
        (["int8", "prune:drop=30"], "leaves out layer 30, but the model has 4 layers"),
        (["prune:by=influence,layers=1,trace=none"], "there is no trace here"),
        (["prune:by=angular,layers=1,workload=prosa"], "prosa"),
    ],
)
def test_bad_transforms_are_refused_before_a_weight_is_read(
    tiny_model: Path, transforms: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load_model(str(tiny_model), transforms=transforms)


@pytest.mark.usefixtures("never_loaded")
def test_an_unknown_dtype_is_refused_before_anything_is_looked_for() -> None:
    with pytest.raises(ModelError, match="unknown dtype 'float8'"):
        load_model("no such model", dtype="float8")


@pytest.mark.usefixtures("never_loaded")
def test_a_machine_that_cannot_is_asked_before_the_model_is_looked_for() -> None:
    class Impossible:
        name = text = "impossible"

        def check(self, dtype: str | None = None) -> None:
            assert dtype == "bfloat16"
            raise InputError("this machine cannot do it")

    with pytest.raises(InputError, match="this machine cannot do it"):
        load_model("no such model", dtype="bfloat16", transforms=[Impossible()])  # type: ignore[list-item]
