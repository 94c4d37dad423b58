from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from quantised_cases import EVERY, IDS, config_by_hand, logits_of, needs_int4

from offramp.errors import InputError, ModelError
from offramp.models.loading import build_model
from offramp.models.measuring import measure_shape
from offramp.models.model import Model
from offramp.models.tensors import check_finite, is_finite, mean_element_bytes, stored_bytes
from offramp.models.transforms.contract import check_transform, example_model
from offramp.models.transforms.kernels import MOST_ROWS
from offramp.models.transforms.prune import Prune
from offramp.models.transforms.quantise import Int4, Int8, Quantised
from offramp.records.typed import from_json, to_json


@pytest.mark.parametrize(("transform", "dtype"), EVERY)
def test_logits_are_those_of_a_model_that_torchao_quantised(transform: Quantised, dtype: str) -> None:
    from torchao.quantization import quantize_

    by_hand, plain = example_model(dtype), logits_of(example_model(dtype))
    quantize_(by_hand.hf.model.layers, config_by_hand(transform))
    found = logits_of(transform.apply(example_model(dtype)))
    assert IDS.shape[1] > MOST_ROWS  # fewer rows of int8 take another kernel
    assert torch.equal(found, logits_of(by_hand))
    assert not torch.equal(found, plain)


@pytest.mark.parametrize(("transform", "dtype"), EVERY)
def test_the_contract_holds(transform: Quantised, dtype: str) -> None:
    assert check_transform(transform, lambda: example_model(dtype)) is transform


@pytest.mark.parametrize(("transform", "dtype"), EVERY)
def test_only_linear_modules_of_layers_change(transform: Quantised, dtype: str) -> None:
    before, model = example_model(dtype), transform.apply(example_model(dtype))
    was, now = (dict(one.hf.named_parameters()) for one in (before, model))
    changed = {name for name, weight in now.items() if type(weight.data) is not torch.Tensor}
    assert changed == {name for name in was if "_proj" in name}
    assert all(torch.equal(was[name], now[name]) for name in set(was) - changed)
    assert model.identity.transforms == (transform.text,)
    assert model.stack.largest_difference <= (0.0 if dtype == "float32" else 0.1)


def test_bytes_of_int8_by_hand() -> None:
    # q, k, v, o and the three of the feed-forward block: integers, a float32 scale and a zero point a row.
    weights = 128 * 128 + 2 * 64 * 128 + 128 * 128 + 3 * 256 * 128
    rows = 128 + 2 * 64 + 128 + 2 * 256 + 128
    norms = 2 * 128
    shape = Int8().apply(example_model()).shape
    assert [layer.parameters for layer in shape.layers] == [weights + norms] * 6
    expected = (weights + 5 * rows + 4 * norms) / (weights + norms)
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


@pytest.mark.parametrize(("transform", "dtype"), EVERY)
def test_the_shape_is_that_of_before_but_for_bytes(transform: Quantised, dtype: str) -> None:
    before, model = example_model(dtype).shape, transform.apply(example_model(dtype))
    bare = tuple(dataclasses.replace(layer, element_bytes=None) for layer in model.shape.layers)
    assert dataclasses.replace(model.shape, layers=bare) == before
    # Measuring a quantised model as it is gives the same, K and V from the config.
    assert measure_shape(model.hf, model.stack) == model.shape
    assert from_json(type(model.shape), to_json(model.shape)) == model.shape


def test_weights_in_several_tensors_are_looked_through() -> None:
    model = Int8().apply(example_model())
    check_finite(model.hf, "example")
    layer = model.hf.model.layers[2]
    assert stored_bytes([layer, layer]) == stored_bytes([layer])
    assert mean_element_bytes(layer.mlp.up_proj) == 1 + 5 / 128
    assert mean_element_bytes(layer.input_layernorm) is None
    layer.mlp.up_proj.weight.scale[3] = torch.inf
    assert not is_finite(layer.mlp.up_proj.weight)
    with pytest.raises(ModelError, match=r"layers\.2\.mlp\.up_proj\.weight holds NaN or infinite"):
        check_finite(model.hf, "example")


def test_a_quantised_model_in_memory_can_be_built() -> None:
    """What someone quantised before is measured as it is."""
    quantised = Int8().apply(example_model())
    model = build_model(
        quantised.hf, quantised.tokenizer, name="again", identity=quantised.identity, dtype="float32"
    )
    assert model.shape == quantised.shape


def test_applied_twice_or_over_another_is_refused() -> None:
    model = Int8().apply(example_model())
    with pytest.raises(InputError):
        Int4().apply(model)
    with pytest.raises(ModelError, match="int8 would quantise weights that are quantised already") as caught:
        Int8().apply(model)
    assert caught.value.where == "example, int8"


@pytest.mark.parametrize("pruned_first", [True, False])
def test_with_pruning_in_either_order(pruned_first: bool) -> None:
    transforms: list[Any] = [Prune(drop=(2, 5)), Int8()]
    results = []
    for order in (transforms, transforms[::-1]):
        model = example_model()
        for transform in order:
            model = transform.apply(model)
        results.append(model)
    model = results[0 if pruned_first else 1]
    assert len(model.stack) == len(model.shape.layers) == 4
    assert all(layer.element_bytes for layer in model.shape.layers)
    assert torch.equal(logits_of(results[0]), logits_of(results[1]))
    assert results[0].identity.fingerprint != results[1].identity.fingerprint


def test_a_family_that_cannot_run_so_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any, **keywords: Any) -> Any:
        raise ModelError("a short forward pass of the model fails: TypeError", where="example", fix="-")

    model = example_model()
    monkeypatch.setattr("offramp.models.discovery.find_stack", broken)
    with pytest.raises(ModelError, match="the model does not run with int8: a short forward pass"):
        Int8().apply(model)


@pytest.mark.real_model
@pytest.mark.slow
def test_the_real_model_gets_the_logits_of_torchao(smollm2: Model) -> None:
    from torchao.quantization import quantize_

    from offramp.models.loading import load_source
    from offramp.models.source import find_source

    ids = torch.tensor([smollm2.encode("The capital of France is Paris, and that of Italy")])
    by_hand = copy.deepcopy(smollm2.hf)
    quantize_(by_hand.model.layers, config_by_hand(Int8()))
    model = Int8().apply(load_source(find_source("smollm2")))
    with torch.no_grad():
        assert torch.equal(logits_of(model, ids), by_hand(input_ids=ids).logits)
    assert all(1.0 < (layer.element_bytes or 0) < 1.02 for layer in model.shape.layers)
