"""A model's own layers over one sequence, differentiable: some of them left out, states after some kept."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection
from typing import Any

from torch import Tensor, nn

from offramp.models.calls import first_tensor, hidden_argument, replaced_forward, with_hidden
from offramp.models.stack import ExitStack


class _LastLayerDone(Exception):
    """Ends the pass after the last layer: the model's own output head is never computed."""


def run_layers(
    stack: ExitStack, ids: Tensor, wanted: Collection[int], left_out: Collection[int] = ()
) -> dict[int, Tensor]:
    """States [positions, hidden] after some layers, 1 .. L, of one sequence.

    ids: int64 [positions]. left_out: layers that hand on what they are given, as if they added nothing.
    Gradients flow through all of it where they are asked for.
    """
    found: dict[int, Tensor] = {}
    layer = 0

    def replacing(module: nn.Module) -> Callable[..., Any]:
        own = module.forward

        def forward(*arguments: Any, **keywords: Any) -> Any:
            nonlocal layer
            layer += 1
            if layer in left_out:
                hidden = hidden_argument(arguments, keywords)
                assert hidden is not None, "found when the stack was"
                output = with_hidden(stack.layer_outputs[layer - 1], hidden)
            else:
                output = own(*arguments, **keywords)
            if layer in wanted:
                found[layer] = first_tensor(output)[0]
            if layer == len(stack):
                raise _LastLayerDone
            return output

        return forward

    modules = dict.fromkeys(stack.layers)
    replacements = {module: replacing(module) for module in modules}
    with replaced_forward(replacements), contextlib.suppress(_LastLayerDone):
        stack.hf(input_ids=ids.to(stack.device)[None], use_cache=False)
    return found


def read_out(stack: ExitStack, states: Tensor) -> Tensor:
    """Logits, float32 [rows, vocabulary], of states [rows, hidden] through the model's own tail and head."""
    assert stack.head is not None, "asked for by `divergence.trainable_head`"
    assert stack.logit_scaling is not None, "asked for by `divergence.trainable_head`"
    normed = stack.tail_forward(states).to(stack.head_device)
    return stack.logit_scaling.apply(stack.head(normed).float())
