from __future__ import annotations

import pytest
import torch
from family_configs import model_of
from quantised_cases import needs_int4
from torch import nn

from offramp.errors import ModelError
from offramp.models.tensors import is_wrapped
from offramp.models.transforms import quantised_layers
from offramp.models.transforms.quantise import Int4, Int8


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("gpt2", "most of layer 1 as it is: linear modules hold 0% of its weights"),
        ("mixtral", "most of layer 1 as it is: linear modules hold .*% of its weights"),
    ],
)
def test_families_with_most_weights_elsewhere_are_refused(name: str, what: str) -> None:
    with pytest.raises(ModelError, match=what) as caught:
        Int8().apply(model_of(name))
    assert "linear modules alone" in caught.value.fix


def test_weights_that_a_family_reads_directly_stay_as_they_are() -> None:
    model = Int8().apply(model_of("mamba"))
    for layer in model.stack.layers:
        wrapped = {name for name, weight in layer.named_parameters() if is_wrapped(weight)}
        assert wrapped == {f"mixer.{name}_proj.weight" for name in ("in", "x", "out")}


def test_a_family_that_multiplies_with_weights_of_its_own_is_refused() -> None:
    with pytest.raises(ModelError, match="the model does not run with int8: a short forward pass"):
        Int8().apply(model_of("falcon"))


def test_an_expert_that_no_token_meets_is_quantised_too() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList([nn.Sequential(nn.Linear(4, 4)), nn.Sequential(nn.Linear(4, 4))])
            self.step = nn.Linear(4, 4)

        def forward(self, states: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.experts[1](states) @ self.step.weight
            return found

    layer = Layer()
    called = quantised_layers.called_linears([layer], lambda: layer(torch.zeros(1, 4)))
    assert called == [layer.experts[0][0], layer.experts[1][0]]
    assert not layer._forward_pre_hooks


@needs_int4
def test_a_group_that_fits_few_matrices_is_refused() -> None:
    model = model_of("llama", "bfloat16")
    with pytest.raises(
        ModelError, match=r"fits only 0% of the weights of layer 1: one of its matrices has 64 inputs"
    ):
        Int4(group=128).apply(model)
    assert not any(type(weight.data) is not torch.Tensor for weight in model.hf.parameters())
