"""A NaN or an infinity belongs to one document: named, left out, and without effect on the others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from naive_facts import assert_facts, following_of, logits_of, readings_of
from tracing_models import llama, tiny_model, workload_of

from offramp.errors import ModelError
from offramp.models.model import Model
from offramp.tracing.facts import FACTS
from offramp.tracing.trace import Trace
from offramp.tracing.tracer import trace

SPECIAL = 60
TEXTS = ("3 4 5 6 7 8", "9 10 60 11 12 13", "14 15 16 17", "18 19 20 21 22 23 24", "25 26 27 28 29")


@contextmanager
def planted(model: Model, value: float, *, layer: int, token: int = SPECIAL) -> Iterator[None]:
    """One number of a layer's output is bad wherever the special token stands."""
    ids: list[torch.Tensor] = []

    def remember(module: Any, arguments: Any, keywords: Any) -> None:
        ids[:] = [keywords["input_ids"]]

    def spoil(module: Any, arguments: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        hidden[..., 5] = torch.where(ids[0] == token, value, hidden[..., 5])
        return output

    handles = [
        model.hf.model.register_forward_pre_hook(remember, with_kwargs=True),
        model.hf.model.layers[layer - 1].register_forward_hook(spoil),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def run(model: Model, *texts: str, **options: Any) -> Trace:
    settings = {"tokens": 500, "context": 40, "progress": False} | options
    return trace(model, workload_of(*texts), **settings)


@pytest.mark.parametrize(
    ("value", "layer", "dtype"),
    [
        (float("nan"), 1, "float32"),
        (float("inf"), 2, "bfloat16"),
        (float("-inf"), 3, "float32"),
        (float("nan"), 3, "bfloat16"),
    ],
)
def test_a_document_with_a_bad_state_is_named_and_left_out(value: float, layer: int, dtype: str) -> None:
    model = tiny_model(llama(), head_scale=3.0, dtype=dtype)
    clean = run(model, *TEXTS)
    with planted(model, value, layer=layer):
        found = run(model, *TEXTS)
    assert [document.valid for document in found.documents] == [True, False, True, True, True]
    bad = found.documents[1]
    assert bad.id == "document 1"
    assert bad.tokens == 0
    assert bad.reason == f"a non-finite number at layer {layer}, position 2"
    rows = clean.document != 1
    for fact in FACTS:
        if fact.name != "shuffled_logit_cosine":  # the bad rows are nobody's partner any more
            assert np.array_equal(found.fact(fact.name), clean.fact(fact.name)[rows]), fact.name
        assert np.isfinite(found.fact(fact.name)).all()
    for name in ("token", "next_token", "document", "position", "generated"):
        assert np.array_equal(getattr(found, name), getattr(clean, name)[rows]), name
    block = clean.marginal.block_of_document[1]
    assert found.marginal.tokens[block] == 0
    assert np.all(found.marginal.sums[block] == 0)
    others = np.arange(16) != block
    assert np.array_equal(found.marginal.sums[others], clean.marginal.sums[others])


def test_a_head_that_overflows_for_one_token_spoils_only_the_documents_where_it_does() -> None:
    """Feature 0 is nonzero for the special token only, and one head row is huge there."""

    def change(hf: Any) -> None:
        hf.model.embed_tokens.weight[:, 0] = 0
        hf.model.embed_tokens.weight[SPECIAL, 0] = 5
        for layer in hf.model.layers:
            layer.self_attn.o_proj.weight[0] = 0
            layer.mlp.down_proj.weight[0] = 0
        hf.lm_head.weight[:, 0] = 0

    clean_model = tiny_model(llama(), head_scale=3.0, change=change)
    clean = run(clean_model, *TEXTS)
    model = tiny_model(llama(), head_scale=3.0, change=change)
    model.hf.lm_head.weight[7, 0] = 3e38
    found = run(model, *TEXTS)
    assert [document.valid for document in found.documents] == [True, False, True, True, True]
    assert found.documents[1].reason == "a non-finite number at layer 1, position 2"
    sequences = [[int(word) for word in text.split()] for place, text in enumerate(TEXTS) if place != 1]
    readings, following = readings_of(clean_model, sequences), following_of(sequences)
    assert_facts(found, readings, following)
    # Partners are of the same block, where the clean model has one document more.
    kept = clean.subset(np.array([0, 2, 3, 4]))
    assert_facts(kept, readings, following, but=("shuffled_logit_cosine",))
    assert np.isfinite(found.shuffled_logit_cosine).all()


def test_a_long_document_is_left_out_whole() -> None:
    """The bad number is in the second of its three contexts, in another group than its end."""
    model = tiny_model(llama(), head_scale=3.0)
    long_text = " ".join(["3"] * 55 + ["60"] + ["4"] * 30)
    with planted(model, float("nan"), layer=2):
        found = run(model, long_text, "5 6 7 8", context=30, document_tokens=100)
    assert [document.valid for document in found.documents] == [False, True]
    assert found.documents[0].reason == "a non-finite number at layer 2, position 25"
    assert np.all(found.document == 1)
    assert found.token_count == 3
    assert found.marginal.sums.sum() == pytest.approx(3, abs=1e-5)


def test_a_part_without_any_valid_document_is_written_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offramp.tracing.plan.SMALLEST_PART", 4)
    model = tiny_model(llama(), head_scale=3.0)
    with planted(model, float("nan"), layer=2):
        in_memory = run(model, *TEXTS)
        found = run(model, *TEXTS, output=tmp_path / "trace")
        assert len(list((tmp_path / "trace").glob("tokens-*"))) == 4
        (tmp_path / "trace" / "manifest.json").unlink()
        resumed = run(model, *TEXTS, output=tmp_path / "trace")
    for read in (found, resumed):
        assert read.documents == in_memory.documents
        for fact in FACTS:
            assert np.array_equal(read.fact(fact.name), in_memory.fact(fact.name))
        assert np.array_equal(read.marginal.sums, in_memory.marginal.sums)


@pytest.mark.parametrize("in_folder", [False, True])
def test_only_bad_documents_are_an_error(in_folder: bool, tmp_path: Path) -> None:
    model = tiny_model(llama(), head_scale=3.0)
    output = tmp_path / "trace" if in_folder else None
    with (
        planted(model, float("nan"), layer=2, token=3),
        pytest.raises(ModelError, match="every document") as caught,
    ):
        run(model, "3 4 5", "6 3 7", output=output)
    assert "document 0: a non-finite number at layer 2, position 0" in caught.value.where
    assert caught.value.exit_code == 2
    assert not (tmp_path / "trace" / "manifest.json").exists()


def test_the_marginal_is_the_sum_of_the_final_distributions_by_block() -> None:
    model = tiny_model(llama(), head_scale=3.0)
    texts = [f"{n} {n + 1} {2 * n} {60 - n} 5" for n in range(20)]
    with planted(model, float("nan"), layer=1, token=2 * 9):
        found = run(model, *texts)
    bad = {number for number, text in enumerate(texts) if "18" in text.split()[:4]}
    assert bad == {number for number, document in enumerate(found.documents) if not document.valid}
    assert bad
    sums, tokens = np.zeros((16, 61)), np.zeros(16, dtype=np.int64)
    blocks = [number * 16 // 20 for number in range(20)]
    for number, text in enumerate(texts):
        if number not in bad:
            z = logits_of(model, [int(word) for word in text.split()][:-1])[-1]
            p = np.exp(z - z.max(-1, keepdims=True))
            sums[blocks[number]] += (p / p.sum(-1, keepdims=True)).sum(0)
            tokens[blocks[number]] += 4
    np.testing.assert_allclose(found.marginal.sums, sums, atol=1e-5)
    assert found.marginal.sums.dtype == np.float64
    assert np.array_equal(found.marginal.tokens, tokens)
    assert found.marginal.block_of_document.tolist() == blocks
    # R_0 = H(mean p_L) - E[H(p_L)] from the pieces.
    mean = sums.sum(0) / tokens.sum()
    expected = -(mean * np.log(mean)).sum() - found.entropy[:, -1].mean()
    pieces = found.marginal.sums.sum(0) / found.marginal.tokens.sum()
    assert -(pieces * np.log(pieces)).sum() - found.entropy[:, -1].mean() == pytest.approx(expected, abs=1e-5)
