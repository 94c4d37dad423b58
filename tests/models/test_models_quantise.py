from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from family_configs import model_of
from quantised_cases import EVERY, logits_of, needs_int4, rounded_by_hand
from torch import nn
from transformers import AutoConfig, LlamaForCausalLM

from offramp.errors import InputError, ModelError
from offramp.kit.typed import from_json, to_json
from offramp.models.loading import build_model
from offramp.models.model import Model
from offramp.models.tensors import check_finite, is_finite, is_wrapped, mean_element_bytes, stored_bytes
from offramp.models.transforms import quantised_layers
from offramp.models.transforms.prune import Prune
from offramp.models.transforms.quantise import Int4, Int8, Quantised
from offramp.models.transforms.transform import UNFIT, why_unfit
from offramp.testing.transforms import check_transform, example_model
from offramp.tracing.loading import load_transformed


@pytest.mark.parametrize(("transform", "dtype"), EVERY)
def test_logits_are_those_of_weights_rounded_by_hand(transform: Quantised, dtype: str) -> None:
    by_hand, plain = example_model(dtype), logits_of(example_model(dtype))
    rounded_by_hand(by_hand.hf.model.layers, transform)
    found = logits_of(transform.apply(example_model(dtype)))
    expected = logits_of(by_hand)
    scale = float(plain.float().norm())
    assert float((found - expected).float().norm()) < 0.03 * scale  # roundings to bfloat16
    assert float((found - plain).float().norm()) > 0.003 * scale
    assert check_transform(transform, lambda: example_model(dtype)) is transform


@pytest.mark.parametrize(("transform", "dtype"), EVERY)
def test_only_linear_modules_of_layers_change_and_the_bytes_of_the_shape(
    transform: Quantised, dtype: str
) -> None:
    before, model = example_model(dtype), transform.apply(example_model(dtype))
    was, now = (dict(one.hf.named_parameters()) for one in (before, model))
    changed = {name for name, weight in now.items() if type(weight.data) is not torch.Tensor}
    assert changed == {name for name in was if "_proj" in name}
    assert all(torch.equal(was[name], now[name]) for name in set(was) - changed)
    assert model.identity.transforms == (transform.text,)
    assert model.stack.largest_difference <= (0.0 if dtype == "float32" else 0.1)
    bare = tuple(dataclasses.replace(layer, element_bytes=None) for layer in model.shape.layers)
    assert dataclasses.replace(model.shape, layers=bare) == before.shape
    # What someone quantised before is measured as it is, K and V from the config.
    again = build_model(model.hf, model.tokenizer, name="again", identity=model.identity, dtype=dtype)
    assert again.shape == model.shape
    assert from_json(type(model.shape), to_json(model.shape)) == model.shape


def test_bytes_of_int8_by_hand() -> None:
    # q, k, v, o and the three of the feed-forward block: integers, and a scale of 2 bytes a row.
    weights = 128 * 128 + 2 * 64 * 128 + 128 * 128 + 3 * 256 * 128
    rows = 128 + 2 * 64 + 128 + 2 * 256 + 128
    norms = 2 * 128
    shape = Int8().apply(example_model()).shape
    assert [layer.parameters for layer in shape.layers] == [weights + norms] * 6
    expected = (weights + 2 * rows + 4 * norms) / (weights + norms)
    assert [layer.element_bytes for layer in shape.layers] == [expected] * 6
    assert shape.element_bytes == 4


@needs_int4
@pytest.mark.parametrize("group", [32, 64])
def test_bytes_of_int4_by_hand(group: int) -> None:
    weights = 128 * 128 + 2 * 64 * 128 + 128 * 128 + 3 * 256 * 128
    shape = Int4(group=group).apply(example_model("bfloat16")).shape
    # Half a byte a weight, a scale and a zero point of 2 bytes a group.
    expected = (weights / 2 + 4 * weights / group + 2 * 256) / (weights + 256)
    assert [layer.element_bytes for layer in shape.layers] == [expected] * 6
    assert shape.element_bytes == 2


def test_weights_in_several_tensors_are_looked_through() -> None:
    model = Int8().apply(example_model())
    check_finite(model.hf, "example")
    layer = model.hf.model.layers[2]
    assert stored_bytes([layer, layer]) == stored_bytes([layer])
    assert mean_element_bytes(layer.mlp.up_proj) == 1 + 2 / 128
    assert mean_element_bytes(layer.input_layernorm) is None
    layer.mlp.up_proj.weight.scales[3] = torch.inf
    assert not is_finite(layer.mlp.up_proj.weight)
    with pytest.raises(ModelError, match=r"layers\.2\.mlp\.up_proj\.weight holds NaN or infinite"):
        check_finite(model.hf, "example")


def test_applied_twice_or_over_another_is_refused() -> None:
    model = Int8().apply(example_model())
    with pytest.raises(InputError):
        Int4().apply(model)
    with pytest.raises(ModelError, match="int8 would quantise weights that are quantised already") as caught:
        Int8().apply(model)
    assert caught.value.where == "example, int8"


def test_with_pruning_in_either_order() -> None:
    transforms: list[Any] = [Prune(drop=(2, 5)), Int8()]
    results = []
    for order in (transforms, transforms[::-1]):
        model = example_model()
        for transform in order:
            model = transform.apply(model)
        results.append(model)
    for model in results:
        assert len(model.stack) == len(model.shape.layers) == 4
        assert all(layer.element_bytes for layer in model.shape.layers)
    assert torch.equal(logits_of(results[0]), logits_of(results[1]))
    assert results[0].identity.fingerprint != results[1].identity.fingerprint


# -- families


def test_weights_that_a_family_reads_directly_stay_as_they_are() -> None:
    model = Int8().apply(model_of("mamba"))
    for layer in model.stack.layers:
        wrapped = {name for name, weight in layer.named_parameters() if is_wrapped(weight)}
        assert wrapped == {f"mixer.{name}_proj.weight" for name in ("in", "x", "out")}


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


REFUSED = {
    "gpt2": "most of layer 1 as it is: linear modules hold 0% of its weights(.|\\n)*linear modules alone",
    "mixtral": "most of layer 1 as it is: linear modules hold .*% of its weights",
    "falcon": "the model does not run with int8: a short forward pass",
}


@pytest.mark.parametrize("family", REFUSED)
def test_families_that_are_said_to_be_unfit_are_refused(family: str) -> None:
    assert set(UNFIT["int8"]) == set(REFUSED)
    assert why_unfit(Int8(), family)
    assert why_unfit(Int8(), None) is why_unfit(Int8(), "llama") is None
    with pytest.raises(ModelError, match=REFUSED[family]):
        Int8().apply(model_of(family))


def pruned_by_hand(whole: Any, dropped: tuple[int, ...]) -> Any:
    """A smaller Llama that is given the weights of the layers that stay."""
    layers = whole.config.num_hidden_layers
    keep = [layer for layer in range(1, layers + 1) if layer not in dropped]
    config = AutoConfig.for_model(**{**whole.config.to_dict(), "num_hidden_layers": len(keep)})
    weights = {}
    for name, tensor in whole.state_dict().items():
        place, _, rest = name.removeprefix("model.layers.").partition(".")
        if not name.startswith("model.layers."):
            weights[name] = tensor
        elif int(place) + 1 in keep:
            weights[f"model.layers.{keep.index(int(place) + 1)}.{rest}"] = tensor
    smaller = LlamaForCausalLM(config).eval()
    smaller.load_state_dict(weights)
    return smaller


@pytest.mark.real_model
def test_the_real_model_pruned_and_quantised_is_the_one_by_hand(smollm2: Model) -> None:
    assert smollm2.source is not None
    prune = Prune(drop=(2, *range(8, 31)))
    pruned = load_transformed(smollm2.source, dtype="float32", transforms=[prune])
    by_hand = pruned_by_hand(smollm2.hf, prune.drop)
    ids = torch.tensor([pruned.encode("The capital of France is Paris, and the river there is the Seine.")])
    options = {
        "attention_mask": torch.ones_like(ids),
        "max_new_tokens": 6,
        "do_sample": False,
        "pad_token_id": 0,
    }
    assert torch.equal(logits_of(pruned, ids), by_hand(input_ids=ids).logits)
    assert torch.equal(pruned.hf.generate(ids, **options), by_hand.generate(ids, **options))
    assert pruned.layers == 6
    plain = logits_of(pruned, ids)
    model = Int8().apply(pruned)
    with torch.no_grad():
        for layer in by_hand.model.layers:
            for linear in layer.modules():
                if isinstance(linear, torch.nn.Linear):
                    step = (linear.weight.abs().amax(1, keepdim=True) / 127).bfloat16().float()
                    linear.weight.copy_((linear.weight / step).round().clamp(-127, 127) * step)
        expected = by_hand(input_ids=ids).logits
    assert float((logits_of(model, ids) - expected).norm()) < 0.02 * float(plain.norm())
    assert all(1.0 < (layer.element_bytes or 0) < 1.02 for layer in model.shape.layers)
