"""A transformed model's trace holds what the untransformed full model says in the same place."""

from __future__ import annotations

import dataclasses
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_tracing_nonfinite import TEXTS, planted
from tracing_models import NumberTokenizer, build_family, llama, tiny_model, workload_of

import offramp.tracing.tracer as tracer
from offramp.errors import InputError, ModelError
from offramp.models.loading import load_source
from offramp.models.model import Model
from offramp.models.source import find_source
from offramp.tracing.sealed_parts import TOKEN_COLUMNS, read_columns
from offramp.tracing.trace import Trace
from offramp.tracing.tracer import trace
from offramp.workloads.registry import load_workload
from tiny_models import write_documents, write_llama

LENGTHS = (14, 9, 20, 12)


def transformed(model: Model) -> Model:
    """The model with weights of one decimal, as a transform gives it back."""
    with torch.no_grad():
        for parameter in (weight for layer in model.stack.layers for weight in layer.parameters()):
            parameter.copy_((parameter * 10).round() / 10)
    identity = dataclasses.replace(model.identity, transforms=("rounded",))
    return model.with_identity(identity, name=f"{model.name} + rounded")


def run(model: Model, **options: Any) -> Trace:
    settings = {"tokens": 500, "context": 30, "progress": False} | options
    work = settings.pop("workload", None) or workload_of(lengths=LENGTHS)
    return trace(model, work, **settings)


def pair(**options: Any) -> tuple[Model, Model]:
    """The same model twice: as it is, and transformed."""
    plain, other = (tiny_model(llama(), head_scale=3.0, **options) for _ in range(2))
    return plain, transformed(other)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_is_the_untransformed_models_own_last_exit(dtype: str) -> None:
    plain, other = pair(dtype=dtype)
    found, own = run(other, reference=plain), run(plain)
    assert found.reference_top1 is not None
    assert found.reference_top1.dtype == np.int32
    assert np.array_equal(found.reference_top1, own.top1[:, -1])
    assert not np.array_equal(found.reference_top1, found.top1[:, -1])  # the transform costs something
    agreement = found.reference_agreement
    assert agreement is not None
    assert np.array_equal(agreement, found.top1 == own.top1[:, -1:])
    assert own.reference_top1 is None
    assert own.reference_agreement is None


def test_other_heads_and_states_too() -> None:
    plain, other = (tiny_model(build_family("gemma2")) for _ in range(2))
    found = run(transformed(other), reference=plain, workload=workload_of(lengths=(9, 7)))
    assert np.array_equal(found.reference_top1, run(plain, workload=workload_of(lengths=(9, 7))).top1[:, -1])


def test_a_reference_of_more_layers_and_exits_apart() -> None:
    """A pruned model's exits are not the untransformed one's."""
    plain = tiny_model(llama(num_hidden_layers=5), name="tiny")
    other = transformed(tiny_model(llama(num_hidden_layers=3), name="tiny"))
    found = run(other, reference=plain, exits="1")
    assert found.exits.tolist() == [1, 3]
    assert np.array_equal(found.reference_top1, run(plain).top1[:, -1])


def test_the_reference_reads_the_transformed_models_own_answers() -> None:
    plain, other = pair(tokenizer=NumberTokenizer(bos=1, eos=2))
    work = workload_of("5 6 7", "8 9 10 11", mode="generation")
    found = run(other, reference=plain, workload=work, tokens=40)
    assert found.generated.any()
    rows = found.document == 0
    front = found.position[rows][0]
    ids = [*plain.encode("5 6 7"), *found.token[rows]][-len(found.token[rows]) - front :]
    assert len(ids) == found.position[rows][-1] + 1
    with torch.no_grad():
        logits = plain.hf(input_ids=torch.tensor([[int(token) for token in ids]])).logits[0, front:]
    assert found.reference_top1 is not None
    assert found.reference_top1[rows].tolist() == logits.argmax(-1).tolist()


@pytest.mark.parametrize(
    ("breaks", "reason"),
    [
        ("reference", "the untransformed model gives a non-finite number"),
        ("transformed", "a non-finite number at layer 2, position 2"),
    ],
)
def test_a_document_that_one_of_the_two_breaks_on_is_left_out(breaks: str, reason: str) -> None:
    plain, other = pair()
    work = workload_of(*TEXTS)
    clean = run(other, reference=plain, workload=work)
    with planted(plain if breaks == "reference" else other, float("nan"), layer=2):
        found = run(other, reference=plain, workload=work)
    assert [document.valid for document in found.documents] == [True, False, True, True, True]
    assert found.documents[1].reason == reason
    rows = clean.document != 1
    assert np.array_equal(found.top1, clean.top1[rows])
    assert np.array_equal(found.reference_top1, clean.reference_top1[rows])
    assert found.marginal.tokens.sum() == found.token_count


def test_subsets_and_other_facts_keep_it() -> None:
    plain, other = pair()
    found = run(other, reference=plain)
    some = found.subset(np.array([1, 3])).with_facts(found.subset(np.array([1, 3])).fact)
    assert np.array_equal(some.reference_top1, found.reference_top1[np.isin(found.document, [1, 3])])
    assert some.reference_agreement.shape == some.agreement.shape


# -- what is refused


def test_a_model_made_in_memory_needs_its_reference(tmp_path: Path) -> None:
    _, other = pair()
    with pytest.raises(ModelError, match="made in memory") as caught:
        run(other, output=tmp_path / "trace")
    assert "reference=" in caught.value.fix
    assert not (tmp_path / "trace").exists()


def test_a_reference_that_is_not_the_models_own_is_refused() -> None:
    plain, other = pair()
    with pytest.raises(InputError, match="is the model itself"):
        run(plain, reference=plain)
    with pytest.raises(InputError, match="another vocabulary"):
        run(plain, reference=tiny_model(llama(vocabulary=80), name="wider"))
    with pytest.raises(InputError, match="not the untransformed model"):
        run(other, reference=other)
    with pytest.raises(InputError, match="not the untransformed model"):
        run(other, reference=tiny_model(llama(), name="another"))
    with pytest.raises(InputError, match="in bfloat16"):
        run(other, reference=tiny_model(llama(), dtype="bfloat16"))


# -- another model, given


def test_another_model_may_be_the_reference_of_one_that_was_trained(tmp_path: Path) -> None:
    original = tiny_model(llama(), name="original", head_scale=3.0)
    torch.manual_seed(5)
    trained = tiny_model(llama(), name="trained", head_scale=3.0)
    with torch.no_grad():
        for weight in trained.hf.parameters():
            weight.add_(0.02 * torch.randn(weight.shape))
    found = run(trained, reference=original, output=tmp_path / "trace")
    assert np.array_equal(found.reference_top1, run(original).top1[:, -1])
    assert not np.array_equal(found.reference_top1, found.top1[:, -1])
    assert found.request["reference"] == {
        "name": "original",
        "fingerprint": original.identity.fingerprint,
        "dtype": "float32",
        "source": original.identity.source,
    }
    assert np.array_equal(Trace.load(tmp_path / "trace").reference_top1, found.reference_top1)
    assert "reference" not in run(trained).request
    with pytest.raises(InputError, match="differs in: reference"):
        run(trained, output=tmp_path / "trace")


# -- loaded from where the model came from, and kept in the parts


@pytest.fixture
def folder_model(tmp_path: Path) -> Path:
    return write_llama(tmp_path / "llama")


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[Any]]:
    """The reference models that were loaded."""
    found: list[weakref.ref[Any]] = []

    def load(*arguments: Any, **options: Any) -> Model:
        loaded = load_source(*arguments, **options)
        found.append(weakref.ref(loaded.hf))
        return loaded

    monkeypatch.setattr(tracer, "load_source", load)
    return found


def test_it_is_loaded_once_and_let_go_of(folder_model: Path, tmp_path: Path, loads: list[Any]) -> None:
    work = load_workload(f"jsonl:{write_documents(tmp_path / 'texts.jsonl', documents=6)}#text")
    source = find_source(str(folder_model))
    found = run(transformed(load_source(source)), workload=work, tokens=120)
    assert [one() for one in loads] == [None]
    own = run(load_source(source), workload=work, tokens=120)
    assert np.array_equal(found.reference_top1, own.top1[:, -1])


def test_it_is_read_layer_by_layer_if_it_does_not_fit(
    folder_model: Path, tmp_path: Path, loads: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    work = load_workload(f"jsonl:{write_documents(tmp_path / 'texts.jsonl', documents=6)}#text")
    model = transformed(load_source(find_source(str(folder_model))))
    whole = run(model, workload=work, tokens=120)
    monkeypatch.setattr(tracer, "would_not_fit", lambda source, dtype: True)
    found = run(model, workload=work, tokens=120)
    assert len(loads) == 1
    assert np.array_equal(found.reference_top1, whole.reference_top1)
    assert np.array_equal(found.top1, whole.top1)


def test_only_missing_parts_are_read_by_the_reference(
    folder_model: Path, tmp_path: Path, loads: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offramp.tracing.plan.SMALLEST_PART", 24)
    work = load_workload(f"jsonl:{write_documents(tmp_path / 'texts.jsonl', documents=12)}#text")
    model, folder = transformed(load_source(find_source(str(folder_model)))), tmp_path / "trace"
    found = run(model, workload=work, tokens=240, output=folder)
    files = {path.name: path.read_bytes() for path in folder.glob("*.parquet")}
    assert len(loads) == 1
    assert np.array_equal(Trace.load(folder).reference_top1, found.reference_top1)
    columns = read_columns(folder / "tokens-00000.parquet")
    assert set(columns) == {*TOKEN_COLUMNS, "reference_top1"}

    run(model, workload=work, tokens=240, output=folder)
    assert len(loads) == 1  # all parts are whole

    measured: list[int] = []
    real = tracer.measure_part
    monkeypatch.setattr(
        tracer, "measure_part", lambda m, index, *rest: measured.append(index) or real(m, index, *rest)
    )
    (folder / "manifest.json").unlink()
    (folder / "tokens-00001.parquet").unlink()
    again = run(model, workload=work, tokens=240, output=folder)
    assert measured == [1, 1]  # of the reference, then of the model itself
    assert len(loads) == 2
    assert np.array_equal(again.reference_top1, found.reference_top1)
    assert {path.name: path.read_bytes() for path in folder.glob("*.parquet")} == files
