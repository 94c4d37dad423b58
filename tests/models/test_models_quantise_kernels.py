from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from quantised_cases import needs_int4, needs_int8, rounded
from torch import nn
from torch.nn import functional

from offramp.errors import InputError
from offramp.models.transforms import quantised_layers
from offramp.models.transforms.quantise import INPUTS_AT_ONCE, Int4, Int8, Quantised
from offramp.models.transforms.quantised_layers import KERNELS, PackedWeight, find_kernel
from offramp.testing.transforms import example_model

TRANSFORMS = [
    pytest.param(Int8(), id="int8", marks=needs_int8),
    *(pytest.param(Int4(group=group), id=f"int4-{group}", marks=needs_int4) for group in (32, 64)),
]


def packed(weights: torch.Tensor, transform: Quantised) -> PackedWeight:
    kernel = find_kernel(transform.bits, transform.shared, "cpu")
    return PackedWeight.of(weights, kernel, transform.shared)


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 9, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_products_are_those_of_weights_rounded_by_hand(
    rows: int, dtype: torch.dtype, transform: Quantised
) -> None:
    torch.manual_seed(rows)
    weights, bias = torch.randn(48, 192).to(dtype), torch.randn(48).to(dtype)
    states = torch.randn(1, rows, 192).to(dtype)
    weight = packed(weights, transform)
    truth = states.double() @ rounded(weights, transform).t()
    for own in (None, bias):
        found = functional.linear(states, weight, own)
        expected = truth if own is None else truth + own.double()
        assert (found.dtype, found.shape) == (dtype, (1, rows, 48))
        # States and products are rounded to bfloat16, and so is a weight of four bits.
        torch.testing.assert_close(found.double(), expected, atol=2.0**-6 * float(truth.abs().max()), rtol=0)
    # A row's product does not depend on those that are multiplied with it, to the last bit of a bfloat16.
    alone = functional.linear(states[:, :1], weight)
    torch.testing.assert_close(
        alone, functional.linear(states, weight)[:, :1], atol=2.0**-7 * float(truth.abs().max()), rtol=0
    )


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_weights_that_are_alike_or_zero_stay_what_they_are(transform: Quantised) -> None:
    states = torch.ones(1, 64)
    for value in (0.0, 0.5, -2.0):
        product = functional.linear(states, packed(torch.full((16, 64), value), transform))
        torch.testing.assert_close(product, torch.full((1, 16), 64 * value), rtol=2.0**-7, atol=1e-6)


@needs_int8
def test_a_packed_weight_is_multiplied_with_and_copied_only() -> None:
    linear = nn.Linear(32, 16, bias=False).requires_grad_(False)
    linear.weight = nn.Parameter(packed(linear.weight, Int8()), requires_grad=False)
    other = copy.deepcopy(linear)
    states = torch.randn(3, 32)
    assert torch.equal(other(states), linear(states))
    weight: Any = other.weight
    weight.scales.zero_()
    assert not other(states).any()
    assert linear(states).any()
    assert (weight.shape, weight.dtype, weight.numel()) == ((16, 32), torch.float32, 512)
    with pytest.raises(NotImplementedError, match="of weights in few bits"):
        weight.sum()


@needs_int8
def test_inputs_that_the_int8_kernel_reads_beyond_are_left_as_they_are() -> None:
    """It would read behind the end of such a row: a crash, or numbers of others."""
    assert not Int8().fits(nn.Linear(INPUTS_AT_ONCE + 1, 4))
    sizes = [(INPUTS_AT_ONCE * blocks, outputs) for blocks in (1, 2, 3, 5) for outputs in (1, 3, 15, 33)]
    for inputs, outputs in sizes:
        linear = nn.Linear(inputs, outputs, bias=False)
        assert Int8().fits(linear)
        states = torch.randn(2, inputs)
        truth = states.double() @ rounded(linear.weight.data, Int8()).t()
        found = functional.linear(states, packed(linear.weight, Int8())).double()
        torch.testing.assert_close(found, truth, atol=2.0**-6 * float(truth.abs().max()), rtol=0)


def test_a_machine_without_a_kernel_is_refused_before_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantised_layers, "find_problem", lambda kernel, group: "a plain loop")
    for dtype in (None, "float32", "bfloat16"):
        with pytest.raises(InputError, match="no kernel for int4 weights here: a plain loop") as caught:
            Int4().check(dtype)
        assert caught.value.where == "int4:group=32, cpu"
    with pytest.raises(InputError, match="no kernel for int4 weights here"):
        Int4().apply(example_model())


def test_a_device_without_a_kernel_is_refused() -> None:
    with pytest.raises(InputError, match="PyTorch has none for this device") as caught:
        find_kernel(4, 32, "mps")
    assert caught.value.where == "mps"


def test_trials_find_slow_wrong_and_missing_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    find = quantised_layers.find_problem.__wrapped__

    def pack(weights: torch.Tensor, group: int) -> Any:
        return weights, weights

    def kernel(multiply: Any) -> quantised_layers.Kernel:
        return quantised_layers.Kernel("made up", 8, "cpu", pack, multiply)

    def exact(states: torch.Tensor, numbers: torch.Tensor, group: int, scales: torch.Tensor) -> torch.Tensor:
        return functional.linear(states, numbers.to(states.dtype))

    def missing(*given: Any) -> Any:
        raise AttributeError("no such operator")

    seconds = iter([20.0, 1.0, 2.0, 1.0])
    monkeypatch.setattr(quantised_layers, "seconds_of", lambda product: next(seconds))
    assert "20 times as long" in str(find(kernel(exact), None))
    assert find(kernel(exact), None) is None
    assert "products are off by 100 %" in str(find(kernel(lambda *given: 0.0 * exact(*given)), None))
    assert find(kernel(missing), None) == "AttributeError: no such operator"


def test_there_is_one_kernel_for_bits_and_a_device() -> None:
    assert len({(kernel.bits, kernel.device) for kernel in KERNELS}) == len(KERNELS)
