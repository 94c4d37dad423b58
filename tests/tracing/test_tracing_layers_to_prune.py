"""Block influence and angular distance, against the states that transformers gives, and what they choose."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from streamed_runs import streamed
from test_tracing_nonfinite import TEXTS, planted
from tracing_models import build_family, llama, tiny_llama, tiny_model, workload_of

from offramp.errors import InputError, ModelError
from offramp.models.model import Model
from offramp.models.transforms.prune import Prune
from offramp.tracing.layers_to_prune import (
    LayerImportance,
    influence_of_trace,
    least_influence,
    measure_importance,
    resolve,
    resolve_from_trace,
)
from offramp.tracing.trace import Trace
from offramp.tracing.tracer import trace
from offramp.workloads.workload import Workload

# Two of equal length are run together, and 40 tokens are cut short by the total.
LENGTHS = (9, 14, 14, 40, 2)
TOKENS = 60


def layer_states(model: Model, ids: list[int]) -> list[NDArray[np.float64]]:
    """The input of every layer and the output of the last: [positions, hidden] each."""
    last: list[Any] = []
    hook = model.stack.layers[-1].register_forward_hook(lambda module, inputs, output: last.append(output))
    with torch.no_grad():
        states = model.hf(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
    hook.remove()
    output = last[0][0] if isinstance(last[0], tuple) else last[0]
    return [state[0].double().numpy() for state in (*states[:-1], output)]


def slow_importance(model: Model, sequences: list[list[int]]) -> LayerImportance:
    """The two papers' formulas, one token and one pair of layers after the other."""

    def cosine(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
        norms = np.linalg.norm(one) * np.linalg.norm(other)
        return float(one @ other / norms) if norms else 0.0  # the embedding of Jamba's padding is zero

    states = [layer_states(model, ids) for ids in sequences]
    influence, angles = np.zeros(model.layers), np.zeros((model.layers + 1, model.layers + 1))
    for layer in range(model.layers):
        cosines = [cosine(a, b) for each in states for a, b in zip(each[layer], each[layer + 1], strict=True)]
        influence[layer] = 1 - sum(cosines) / len(cosines)
    for one in range(model.layers + 1):
        for other in range(model.layers + 1):
            cosines = [min(1.0, max(-1.0, cosine(each[one][-1], each[other][-1]))) for each in states]
            angles[one, other] = sum(math.acos(value) / math.pi for value in cosines) / len(cosines)
    return LayerImportance(influence, angles)


def sequences_of(model: Model, **options: Any) -> list[list[int]]:
    """What a trace of so many tokens reads, from the trace's own columns."""
    found = trace(model, workload_of(lengths=LENGTHS), TOKENS, progress=False, **options)
    return [found.token[found.document == number].tolist() for number in np.unique(found.document)]


@pytest.mark.parametrize("family", ["gpt2", "jamba"])
def test_it_equals_the_formulas_on_the_states_of_transformers(family: str) -> None:
    model = tiny_model(build_family(family))
    found = measure_importance(model, workload_of(lengths=LENGTHS), tokens=TOKENS, progress=False)
    expected = slow_importance(model, sequences_of(model))
    np.testing.assert_allclose(found.influence, expected.influence, atol=1e-6)
    np.testing.assert_allclose(found.angles, expected.angles, atol=1e-6)
    for layers in range(1, model.layers + 1):
        blocks = [expected.angles[first, first + layers] for first in range(model.layers + 1 - layers)]
        np.testing.assert_allclose(found.block_distances(layers), blocks, atol=1e-6)


@pytest.mark.parametrize("mode", ["text", "generation"])
def test_a_trace_says_the_same_of_influence(mode: str) -> None:
    model, work = tiny_llama(), workload_of(lengths=LENGTHS, mode=mode)
    found = influence_of_trace(trace(model, work, TOKENS, progress=False))
    measured = measure_importance(model, work, tokens=TOKENS, progress=False)
    np.testing.assert_allclose(found, measured.influence, atol=1e-6)


def test_the_least_important_layers_are_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(llama(num_hidden_layers=5))
    angles = np.full((6, 6), 0.4)
    angles[1, 3] = 0.1  # across layers 2 and 3
    angles[4, 5] = 0.05  # across layer 5
    asked: list[Any] = []

    def measured(model: Model, workload: Workload, **options: Any) -> LayerImportance:
        asked.append(([document.id for document in workload.documents], options["tokens"]))
        return LayerImportance(np.array([0.9, 0.2, 0.5, 0.1, 0.2]), angles)

    works = {"prose": workload_of("3 4", "5 6", "7 8", "9 3"), "code": workload_of("3 4 5")}
    monkeypatch.setattr("offramp.tracing.layers_to_prune.measure_importance", measured)
    monkeypatch.setattr("offramp.tracing.layers_to_prune.load_workload", works.__getitem__)
    assert resolve(Prune(by="angular", layers=2), model) == Prune(drop=(2, 3))
    assert resolve(Prune(by="angular", layers=1, workload="code", tokens=9), model) == Prune(drop=(5,))
    assert resolve(Prune(by="influence", layers=2), model) == Prune(drop=(2, 4))
    assert least_influence(np.array([0.3, 0.1, 0.1, 0.1]), 2) == Prune(drop=(2, 3))  # the earlier of equals
    later = ["document 2", "document 3"]  # the first half is left to judge the model on
    assert asked == [(later, 2048), (["document 0"], 9), (later, 2048)]
    given = Prune(drop=(1,))
    assert resolve(given, model) is given
    assert len(asked) == 3


def test_too_many_layers_are_refused_before_anything_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "offramp.tracing.layers_to_prune.measure_importance", lambda *_, **__: pytest.fail("measured")
    )
    with pytest.raises(InputError, match="leaves out all of the model's 3 layers"):
        resolve(Prune(by="angular", layers=3), tiny_llama())


def test_a_state_that_is_not_finite_is_refused() -> None:
    model = tiny_model(llama())
    with (
        planted(model, float("nan"), layer=2),
        pytest.raises(ModelError, match="hidden state of layer 2 is not finite"),
    ):
        measure_importance(model, workload_of(*TEXTS), tokens=TOKENS, progress=False)


def traced(folder: Path, model: Model, **options: Any) -> Trace:
    return trace(model, workload_of(lengths=LENGTHS), TOKENS, output=folder, progress=False, **options)


def test_a_trace_of_the_model_decides_without_the_model(tmp_path: Path) -> None:
    model = tiny_llama()
    found = traced(tmp_path / "t", model)
    prune = Prune(by="influence", layers=1, trace=str(tmp_path / "t"))
    expected = least_influence(influence_of_trace(found), 1)
    assert resolve_from_trace(prune, model.identity) == expected
    assert resolve(prune, model) == expected


def test_a_trace_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    model, other = tiny_llama(), tiny_model(llama(), name="another")
    traced(tmp_path / "other", other)
    traced(tmp_path / "some exits", model, exits=[2])
    pruned = Prune(drop=(2,)).apply(tiny_model(llama(), head_scale=3.0))
    traced(tmp_path / "pruned", pruned, reference=model)
    for folder, message in [
        ("other", "of another model, another"),
        ("some exits", "holds 2 of 3 exits"),
        ("pruned", "of the model after pruning"),
        ("none", "there is no trace here"),
    ]:
        prune = Prune(by="influence", layers=1, trace=str(tmp_path / folder))
        with pytest.raises(InputError, match=message):
            resolve_from_trace(prune, model.identity)
    with pytest.raises(InputError, match="leaves out all"):
        resolve_from_trace(
            Prune(by="influence", layers=3, trace=str(tmp_path / "some exits")), model.identity
        )


def test_layers_that_stay_on_disk_are_refused() -> None:
    model, layers = streamed(tiny_llama())
    with pytest.raises(ModelError, match="measuring what each layer does needs all of the model's weights"):
        measure_importance(model, workload_of("1 2 3"))
    assert layers.read == []
