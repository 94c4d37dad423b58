from __future__ import annotations

import pytest
import torch
from generation_cases import tiny_llama
from torch.nn.functional import linear

import offramp
from offramp.decoding.engine import engine
from offramp.decoding.engine.build import engine_of
from offramp.decoding.engine.engine import head_logits, transposed_is_faster, transposed_product


@pytest.mark.parametrize("shape", [(1,), (2,), (3, 1), (2, 4), (1, 1)])
@pytest.mark.parametrize("biased", [False, True])
def test_the_transposed_product_is_the_product(shape: tuple[int, ...], biased: bool) -> None:
    torch.manual_seed(0)
    states, weight = torch.randn(*shape, 24), torch.randn(70, 24)
    bias = torch.randn(70) if biased else None
    found = transposed_product(weight, bias, states)
    assert found.shape == (*shape, 70)
    assert found.is_contiguous()
    torch.testing.assert_close(found, linear(states, weight, bias), rtol=1e-5, atol=1e-5)


def test_only_large_float32_heads_are_tried_and_only_a_clear_gain_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stack = tiny_llama().stack
    assert not transposed_is_faster(stack)
    monkeypatch.setattr(engine, "SMALLEST", 1)
    seconds = iter([1.0, 0.79, 1.0, 0.81])
    monkeypatch.setattr(engine, "_seconds", lambda product: (product(), next(seconds))[1])
    assert transposed_is_faster(stack)
    assert not transposed_is_faster(stack)


def test_decoding_with_the_transposed_product_gives_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "SMALLEST", 1)
    monkeypatch.setattr(engine, "CLEARLY", 0.0)
    model = tiny_llama.__wrapped__()  # another test's model was timed without these
    used: list[int] = []
    honest = transposed_product

    def noted(weight: torch.Tensor, bias: torch.Tensor | None, states: torch.Tensor) -> torch.Tensor:
        used.append(states.numel() // states.shape[-1])
        return honest(weight, bias, states)

    monkeypatch.setattr(engine, "transposed_product", noted)
    assert engine_of(model).transposed
    ids = torch.arange(5, 12)[None]
    hidden = torch.randn(9, 2, model.shape.hidden_size)
    torch.testing.assert_close(
        head_logits(model.stack, model.stack.tail_forward(hidden), True), model.stack.readout(hidden)
    )
    used.clear()
    for policy in (None, "threshold:signal=max_prob,value=0.2,exits=1+2"):
        found = offramp.generate(model, ids, policy=policy, kv="speculate", max_new_tokens=9)
        expected = model.hf.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=9, do_sample=False, pad_token_id=0
        )
        assert found.tokens == expected[0, 7:].tolist()
    assert 1 in used
    assert max(used) > 1
