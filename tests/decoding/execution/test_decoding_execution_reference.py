"""What a trained model decodes, judged by the model that it was before: against a naive loop."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from execution_cases import (
    NumberTokenizer,
    agreeable,
    agreeable_llama,
    best_tokens,
    decoded_alone,
    llama,
    openings_of,
    options_of,
    texts,
    tiny_model,
)

import offramp
from offramp.decoding.execution.execution import execute
from offramp.decoding.judging import Judge
from offramp.decoding.openings import Opening
from offramp.errors import InputError
from offramp.models.model import Model
from offramp.policies.figures import PLAIN_DECODING
from offramp.tracing.trace import Trace
from offramp.tracing.tracer import trace
from offramp.tuning.splits import split_roles

FLOOR = {"reference_agreement": 0.5}
SIZES: dict[str, Any] = {"prompt_tokens": 6, "new_tokens": 6}


@functools.cache
def trained(size: float) -> Model:
    """`agreeable_llama` after a step of some size in a random direction."""

    def change(hf: Any) -> None:
        agreeable(hf)
        generator = torch.Generator().manual_seed(5)
        for weight in hf.parameters():
            weight.add_(size * torch.randn(weight.shape, generator=generator))

    hf = llama(num_hidden_layers=4, eos_token_id=None)
    return tiny_model(hf, name=f"trained {size}", head_scale=3.0, change=change, tokenizer=NumberTokenizer())


@functools.cache
def traced(size: float) -> Trace:
    """Of half of the texts, with the original's choices."""
    found = trace(
        trained(size),
        texts(100),
        tokens=400,
        document_tokens=10,
        signals="restricted",
        progress=False,
        reference=agreeable_llama(),
    )
    assert found.reference_top1 is not None
    return found


def tuned(size: float, **options: Any) -> offramp.Tuned:
    given = {"workload": texts(100), "reference": agreeable_llama(), **SIZES, **options}
    return offramp.tune(traced(size), FLOOR, None, trained(size), **given)


@pytest.mark.parametrize("policy", ["never", "threshold:signal=margin,value=0.05,exits=1+2+3"])
def test_every_token_is_held_against_the_originals_own_choice(policy: str) -> None:
    model, original = trained(0.02), agreeable_llama()
    openings, options = openings_of(9, 5, 12, 9), replace(options_of(policy), new_tokens=12)
    found = execute(model, openings, options, Judge(original), rows=4)
    for opening, one in zip(openings, found, strict=True):
        answer = decoded_alone(model, opening, options, 12).tokens
        assert one.answer == tuple(answer)
        assert one.agrees == tuple(np.equal(best_tokens(original, opening.ids, answer), answer))
    assert any(one.loss for one in found)  # at full depth, too
    assert any(one.loss < 1.0 for one in found)


def test_the_certificate_is_that_of_the_naive_loop(tmp_path: Path) -> None:
    model, original, found = trained(0.005), agreeable_llama(), traced(0.005)
    answer = tuned(0.005, folder=tmp_path)
    certificate = answer.certificate
    assert certificate.executed
    assert certificate.holds
    assert certificate.stopped_after is not None
    by_id = {document.id: document.text for document in texts(100).documents}
    losses, options = [], options_of(answer.policy, answer.kv)
    for place in split_roles(found, 0).certify[: certificate.stopped_after]:
        name = found.documents[int(place)].id
        opening = Opening(name, tuple(model.encode(by_id[name])[:6]), True)
        tokens = decoded_alone(model, opening, options, 6).tokens
        losses.append(1 - np.equal(best_tokens(original, opening.ids, tokens), tokens)[1:].mean())
    assert len(losses) == certificate.stopped_after
    assert certificate.empirical_risk == pytest.approx(np.mean(losses))
    assert answer.executed_reference_agreement is not None
    assert answer.executed_agreement is None
    assert answer.candidates[0].policy == PLAIN_DECODING
    # What was kept is read again, and never as the full model's own judgement.
    kept = sorted(tmp_path.glob("*.json"))
    assert tuned(0.005, folder=tmp_path) == answer
    assert sorted(tmp_path.glob("*.json")) == kept
    own = offramp.tune(
        found, {"agreement": 0.5}, None, model, workload=texts(100), folder=tmp_path, documents=8, **SIZES
    )
    assert own.certificate.executed
    assert len(list(tmp_path.glob("*.json"))) > len(kept)


def test_a_model_that_became_another_one_is_below_the_floor_by_itself() -> None:
    answer = tuned(0.3)
    assert answer.plain
    assert "the full model by itself, without any exit, is below reference_agreement=0.5" in answer.answer
    assert [one.policy for one in answer.candidates] == [PLAIN_DECODING]


def test_a_reference_that_does_not_belong_is_refused_before_anything_is_decoded(tmp_path: Path) -> None:
    folder = tmp_path / "executions"
    for other in (trained(0.02), replace(agreeable_llama(), dtype="bfloat16")):
        with pytest.raises(InputError, match="the reference of the trace is another model, agreeable"):
            tuned(0.005, reference=other, folder=folder)
    with pytest.raises(InputError, match="nothing is decoded that agreeable None"):
        offramp.tune(traced(0.005), {"agreement": 0.5}, None, trained(0.005), reference=agreeable_llama())
    with pytest.raises(InputError, match="without a model"):
        offramp.tune(traced(0.005), FLOOR, None, reference=agreeable_llama())
    own = trace(trained(0.005), texts(100), tokens=40, document_tokens=10, progress=False)
    with pytest.raises(InputError, match="no other reference was given"):
        offramp.tune(
            own, FLOOR, None, trained(0.005), reference=agreeable_llama(), workload=texts(100), **SIZES
        )
    assert not folder.exists()


def test_without_the_reference_such_a_floor_is_a_replay_bound() -> None:
    assert not tuned(0.005, reference=None).certificate.executed
