"""The stack of exits: readouts, transforms, capture and refusals, on models small enough to check by hand."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import family_configs
import pytest
import torch
from torch import Tensor, nn

from offramp.errors import ModelError
from offramp.models.discovery import find_logit_scaling, find_stack, probe_ids
from offramp.models.stack import READOUTS, LogitScaling
from offramp.models.tensors import largest_difference, largest_finite


def llama(**config: Any) -> Any:
    """A random Llama whose final norm is far from trivial."""
    model = family_configs.llama(initializer_range=0.02, **config)
    model.model.norm.weight.data += torch.randn(32) * 0.5
    return model


def test_each_exit_of_a_llama_is_norm_and_head_of_the_hidden_state() -> None:
    model = llama()
    stack = find_stack(model)
    assert stack.layers == tuple(model.model.layers)
    assert stack.core is model.model
    assert stack.tail == (model.model.norm,)
    assert stack.head is model.lm_head
    assert stack.readout_kind == "fast"
    assert stack.logit_scaling == LogitScaling()
    assert stack.largest_difference == 0.0
    assert stack.head_weight is not None
    assert torch.equal(stack.head_weight, model.lm_head.weight)
    ids = probe_ids(model, 9)
    states = model(ids, output_hidden_states=True, use_cache=False).hidden_states
    seen: list[tuple[int, Tensor, Tensor]] = []
    stack.capture(ids, lambda index, before, after: seen.append((index, before, after)))
    assert [index for index, _, _ in seen] == [0, 1, 2]
    assert torch.equal(seen[0][1], model.model.embed_tokens(ids))
    for index in (0, 1):
        assert torch.equal(seen[index][2], states[index + 1])
        assert torch.equal(seen[index + 1][1], states[index + 1])
    for _, _, hidden in seen:
        weight, epsilon = model.model.norm.weight, model.model.norm.variance_epsilon
        normed = hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + epsilon) * weight
        assert torch.allclose(stack.readout(hidden), normed @ model.lm_head.weight.T, atol=1e-5)
    assert torch.equal(stack.readout(seen[-1][2]), model(ids, use_cache=False).logits)


@pytest.mark.parametrize("kind", ["fast", "stub", "swap"])
def test_the_three_readouts_agree_on_chunks_of_positions(kind: Any) -> None:
    stack = find_stack(llama())
    hidden = torch.randn(1, 5, 32)
    expected = stack.readout(hidden)
    assert torch.equal(READOUTS[kind](stack, hidden, None), expected)
    assert torch.allclose(READOUTS[kind](stack, hidden[:, 1:3], None), expected[:, 1:3], atol=1e-5)
    assert "forward" not in vars(stack.core)
    assert all("forward" not in vars(layer) for layer in stack.layers)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda z: z, LogitScaling()),
        (lambda z: z * 0.3, LogitScaling("scale", 0.3)),
        (lambda z: z / 6.0, LogitScaling("scale", 1 / 6.0, 6.0)),
        (lambda z: torch.tanh(z / 30.0) * 30.0, LogitScaling("softcap", 30.0)),
        (lambda z: z + 1.0, None),
        (lambda z: torch.relu(z), None),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_transform_is_found_numerically(change: Any, expected: LogitScaling | None, dtype: Any) -> None:
    model = _Transformed(change).to(dtype)
    found = find_logit_scaling(model, model.lm_head, torch.zeros(1, 7, dtype=torch.long))
    if expected is None:
        assert found is None
        return
    assert found is not None
    assert found.kind == expected.kind
    assert found.value == pytest.approx(expected.value, rel=1e-6)
    logits = torch.randn(3, 50) * 20
    assert torch.equal(found.apply(logits), change(logits))


class _Transformed(nn.Module):
    """A head followed by a change, in the shape of a transformers model."""

    def __init__(self, change: Any) -> None:
        super().__init__()
        from transformers import LlamaConfig

        self.config = LlamaConfig(vocab_size=50, hidden_size=32)
        self.embedding = nn.Embedding(50, 32)
        self.lm_head = nn.Linear(32, 50, bias=False)
        self.change = change

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> Any:
        from transformers.modeling_outputs import CausalLMOutput

        return CausalLMOutput(logits=self.change(self.lm_head(self.embedding(input_ids))))


def test_bfloat16_is_read_out_within_the_stated_tolerance() -> None:
    model = llama().to(torch.bfloat16)
    stack = find_stack(model)
    largest = float(model(probe_ids(model), use_cache=False).logits.abs().max())
    assert stack.largest_difference <= 2.0**-7 * largest


def test_a_model_that_looks_ahead_is_refused() -> None:
    from transformers import BertConfig, BertLMHeadModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48
    )
    with pytest.raises(ModelError, match="looks ahead"):
        find_stack(BertLMHeadModel(config).eval(), name="bert")


def test_a_model_that_needs_more_than_token_ids_is_refused() -> None:
    model = llama()

    def needs_more(*arguments: Any, **keywords: Any) -> Any:
        raise ValueError("shared states cannot be None")

    model.model.forward = needs_more
    with pytest.raises(ModelError, match="forward pass of the model fails: ValueError: shared states"):
        find_stack(model)


def test_a_model_whose_exits_cannot_be_read_out_is_refused_with_the_largest_difference() -> None:
    model = llama()
    original = model.forward

    def random_logits(*arguments: Any, **keywords: Any) -> Any:
        output = original(*arguments, **keywords)
        # Depends on the embedding, which no readout sees: it cannot come from the last layer alone.
        extra = model.model.embed_tokens(keywords["input_ids"]).sum(-1, keepdim=True)
        return dataclasses.replace(output, logits=output.logits + extra)

    model.forward = random_logits
    with pytest.raises(ModelError, match=r"largest difference [\d.e-]+") as error:
        find_stack(model, name="odd")
    assert "does not reproduce" in error.value.what
    assert error.value.exit_code == 2


def test_a_looped_model_has_one_exit_per_execution() -> None:
    model = llama(num_hidden_layers=2)
    run_layers = model.model.layers

    class Twice(nn.ModuleList):
        def __getitem__(self, index: Any) -> Any:
            return [*run_layers, *run_layers] if isinstance(index, slice) else super().__getitem__(index)

        def __iter__(self) -> Any:
            return iter([*run_layers, *run_layers])

    model.model.layers = Twice(run_layers._modules.values())
    stack = find_stack(model)
    seen: list[int] = []
    stack.capture(probe_ids(model), lambda index, before, after: seen.append(index))
    assert len(stack) == len(seen) == 4


def test_equal_infinities_do_not_differ_and_unequal_ones_do() -> None:
    out = -torch.inf
    left = torch.tensor([1.0, out, 3.0])
    assert largest_difference(left, torch.tensor([1.5, out, 3.0])) == 0.5
    assert largest_difference(left, torch.tensor([1.0, 2.0, 3.0])) == math.inf
    assert math.isnan(largest_difference(left, torch.tensor([torch.nan, out, 3.0])))
    assert largest_finite(torch.tensor([1.0, out, -3.0])) == 3.0
    assert math.isnan(largest_finite(torch.tensor([1.0, torch.nan])))
