"""The loss and its gradient against softmax written out, and the head that training multiplies with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tracing_models import build_family, llama, tiny_llama, tiny_model

from offramp.errors import ModelError
from offramp.models.model import Model
from offramp.training.divergence import (
    MeanDivergence,
    TrainingHead,
    frequent_targets,
    trainable_head,
    usual_precision,
)

FAMILIES = {
    "llama": llama,
    "granite": lambda: build_family("granite"),
    "gemma2": lambda: build_family("gemma2"),
}
"""Logits as the head gives them, scaled, and capped."""


def plain_divergence(logits: torch.Tensor, final: torch.Tensor) -> torch.Tensor:
    """Mean over rows of sum p (ln p - ln q), every logarithm taken of the softmax itself."""
    p, q = final.softmax(-1), logits.softmax(-1)
    return (p * (p.log() - q.log())).sum(-1).mean()


def states(model: Model, rows: int = 7, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    """Random states [rows, hidden]."""
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(rows, model.shape.hidden_size, generator=generator)


def test_the_loss_and_its_gradient_are_those_of_softmax_written_out() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, final = (3 * torch.randn(5, 40, generator=generator, dtype=torch.float64) for _ in range(2))
    p = final.softmax(-1)
    found, plain = (logits.clone().requires_grad_() for _ in range(2))
    apply: Any = MeanDivergence.apply
    loss = apply(found, p, (p * p.log()).sum(-1).mean())
    expected = plain_divergence(plain, final)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    (3 * loss).backward()
    (3 * expected).backward()
    torch.testing.assert_close(found.grad, plain.grad, rtol=1e-10, atol=1e-14)
    assert float(apply(final, p, (p * p.log()).sum(-1).mean())) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_the_models_own_and_gradients_reach_the_states(family: str) -> None:
    model = tiny_model(FAMILIES[family](), head_scale=3.0)
    head = TrainingHead(model, "float32")
    here, last = states(model), states(model, seed=1)
    torch.testing.assert_close(head.logits(last), model.stack.readout(last[None])[0].float())
    found, plain = (here.clone().requires_grad_() for _ in range(2))
    with torch.enable_grad():
        head.divergence(found, head.target(last)).backward()  # type: ignore[no-untyped-call]
        final = model.stack.readout(last[None])[0].double()
        stack = model.stack
        assert stack.head is not None
        assert stack.logit_scaling is not None
        logits = stack.logit_scaling.apply(stack.head(stack.tail_forward(plain)))
        plain_divergence(logits.double(), final).backward()  # type: ignore[no-untyped-call]
    assert found.grad is not None
    assert plain.grad is not None
    torch.testing.assert_close(
        found.grad, plain.grad, rtol=1e-3, atol=1e-6 + 1e-4 * float(plain.grad.abs().max())
    )
    assert float(found.grad.abs().max()) > 0


def test_a_vocabulary_of_the_loss_is_a_softmax_over_its_tokens() -> None:
    model = tiny_llama()
    tokens = torch.tensor([2, 3, 11, 40])
    head = TrainingHead(model, "float32", tokens)
    here, last = states(model), states(model, seed=1)
    logits, final = (model.stack.readout(one[None])[0][:, tokens].double() for one in (here, last))
    found = float(head.divergence(here, head.target(last)))
    assert found == pytest.approx(float(plain_divergence(logits, final)), rel=1e-4)


def test_the_tokens_of_the_loss_are_those_thought_likely_most_often() -> None:
    model = tiny_llama()
    last = states(model, rows=300)
    mean = model.stack.readout(last[None])[0].double().softmax(-1).mean(0).numpy()
    found = frequent_targets(TrainingHead(model, "float32"), last, 10).numpy()
    assert sorted(found) == found.tolist()
    assert set(found) == set(np.argsort(-mean)[:10])


def test_products_in_bfloat16_are_near_those_of_float32() -> None:
    model = tiny_llama()
    here = states(model)
    exact, rounded = (TrainingHead(model, one).logits(here) for one in ("float32", "bfloat16"))
    assert rounded.dtype == torch.float32
    assert not torch.equal(exact, rounded)
    # Factors of 8 bits, and an output that is rounded to 8 as well.
    torch.testing.assert_close(rounded, exact, rtol=2**-7, atol=float(exact.abs().max()) * 2**-6)


def test_the_usual_precision_asks_no_stopwatch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.perf_counter", lambda: pytest.fail("it was timed"))
    assert [usual_precision(device) for device in ("cpu", "cuda", "xpu")] == ["float32", *["bfloat16"] * 2]


def test_a_model_whose_logits_are_more_than_a_head_is_refused() -> None:
    model = tiny_llama()
    with pytest.raises(ModelError, match="exits cannot be trained"):
        trainable_head(replace(model, stack=replace(model.stack, readout_kind="stub")))
