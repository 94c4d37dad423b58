"""Recording what layers are called with, without running them."""

from __future__ import annotations

import pytest
import torch
from family_configs import build_family
from torch import nn

from offramp.models.calls import LayerCall, Recorder, first_tensor
from offramp.models.discovery import find_stack, probe_ids
from offramp.models.skeleton import drop_weights


@pytest.mark.parametrize("family", ["gpt2", "mamba"])
def test_layers_run_from_recorded_arguments_give_the_same(family: str) -> None:
    model = build_family(family)
    stack = find_stack(model)
    ids = probe_ids(model, 11)
    expected: list[torch.Tensor] = []
    stack.capture(ids, lambda index, before, after: expected.append(after.clone()))
    hidden, calls = Recorder(stack)(input_ids=ids, use_cache=False)
    assert len(calls) == len(stack)
    with torch.no_grad():
        for layer, call, output in zip(stack.layers, calls, expected, strict=True):
            arguments, keywords = call.arguments(hidden)
            hidden = first_tensor(layer(*arguments, **keywords))
            assert torch.equal(hidden, output)


def test_no_layer_runs_and_the_model_is_left_alone() -> None:
    model = build_family("llama")
    stack = find_stack(model)
    ran: list[nn.Module] = []
    for layer in stack.layers:
        layer.register_forward_hook(lambda module, arguments, output: ran.append(module))
        drop_weights(layer)
    forwards = [layer.forward for layer in stack.layers]
    Recorder(stack)(input_ids=probe_ids(model), use_cache=False)
    assert not ran
    assert [layer.forward for layer in stack.layers] == forwards


def test_a_call_puts_the_hidden_state_in_its_place() -> None:
    hidden = torch.full((1,), 7.0)  # equal to none of the others, wherever it stands
    assert LayerCall((1,), (2,), {"mask": 3}, None).arguments(hidden) == ((1, hidden, 2), {"mask": 3})
    assert LayerCall((1,), (), {"mask": 3}, "states").arguments(hidden) == (
        (1,),
        {"mask": 3, "states": hidden},
    )


def test_a_forward_that_calls_fewer_layers_is_refused() -> None:
    model = build_family("llama")
    stack = find_stack(model)
    recorder = Recorder(stack)
    model.config.num_hidden_layers -= 1
    with pytest.raises(LookupError, match="3 of 4 layers were called"):
        recorder(input_ids=probe_ids(model), use_cache=False)
