"""A model whose weights are trained: what is added to them, whole or of low rank, and a pass of its layers.

Of low rank: W + B A (LoRA, arXiv 2106.09685, equation 3; its factor alpha / r is 1), A [rank, inputs] random
and B [outputs, rank] zero, so that training begins at the model. AdamW's decay draws towards the model, too.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from offramp.errors import ModelError
from offramp.models.calls import first_tensor, hidden_argument, replaced_forward, with_hidden
from offramp.models.model import Model
from offramp.models.stack import ExitStack, LastLayerDone
from offramp.training.loop import Parameters

CHANGE, LEFT, RIGHT = "change", "left", "right"
"""What parameters of a weight are called, behind its name: a whole change, or B and A."""

Found = TypeVar("Found")


@dataclass(frozen=True)
class ChangedWeights:
    """The weights of a model that are trained, by name as the model has them; they themselves stay.

    rank: of what is added, 0 for whole changes.
    """

    model: Model
    weights: Mapping[str, Tensor]
    rank: int

    @classmethod
    def of(cls, model: Model, rank: int) -> ChangedWeights:
        """Of rank 0 all weights, else the matrices of the layers that are larger than it.

        Raises ModelError for a model with weights that are no floating-point numbers.
        """
        require_trainable(model)
        named = dict(model.hf.named_parameters())  # tied ones once
        if rank:
            own = {id(weight) for layer in model.stack.layers for weight in layer.parameters()}
            named = {
                name: weight
                for name, weight in named.items()
                if id(weight) in own and weight.dim() >= 2 and min(weight.shape[-2:]) > rank
            }
        if not named:
            raise ModelError(
                f"the model's layers have no matrix of more than {rank} rows and columns",
                where=model.name,
                fix="give a lower rank (--lora), or 0 to train all weights",
            )
        return cls(model, {name: weight.detach() for name, weight in sorted(named.items())}, rank)

    def initial(self, seed: int) -> dict[str, Tensor]:
        """Parameters that leave the model as it is, float32 on the processor."""
        found = {}
        for place, (name, weight) in enumerate(self.weights.items()):
            if not self.rank:
                found[f"{name}.{CHANGE}"] = torch.zeros(weight.shape)
                continue
            *several, outputs, inputs = weight.shape
            generator = torch.Generator().manual_seed(seed * 1_000_003 + place)
            right = torch.randn(*several, self.rank, inputs, generator=generator) / math.sqrt(inputs)
            found |= {f"{name}.{LEFT}": torch.zeros(*several, outputs, self.rank), f"{name}.{RIGHT}": right}
        return found

    def values(self, parameters: Parameters) -> dict[str, Tensor]:
        """The trained weights in the model's dtype, by name, differentiable."""

        def change(name: str) -> Tensor:
            if self.rank:
                return parameters[f"{name}.{LEFT}"] @ parameters[f"{name}.{RIGHT}"]
            return parameters[f"{name}.{CHANGE}"]

        return {
            name: (weight.float() + change(name)).to(weight.dtype) for name, weight in self.weights.items()
        }

    def run(self, values: Mapping[str, Tensor], compute: Callable[[], Found]) -> Found:
        """What is computed while the model has these weights, tied ones in every place."""
        named = {f"hf.{name}": value for name, value in values.items()}
        found: Found = torch.func.functional_call(_Holder(self.model.hf), named, (compute,))
        return found

    @property
    def parameter_bytes(self) -> int:
        """Of all parameters, in float32."""
        several = [(weight.numel(), weight.shape) for weight in self.weights.values()]
        if not self.rank:
            return 4 * sum(count for count, _ in several)
        return 4 * sum(self.rank * (count // shape[-1] + count // shape[-2]) for count, shape in several)


class _Holder(nn.Module):
    """Holds a model, so that something is computed while its weights are others."""

    def __init__(self, hf: Any) -> None:
        super().__init__()
        self.hf = hf

    def forward(self, compute: Callable[[], Any]) -> Any:
        return compute()


def require_trainable(model: Model) -> None:
    """Refuse a model whose own weights cannot be trained and saved. Raises ModelError."""
    model.require_loaded("training the model itself")
    if model.transforms:
        raise ModelError(
            f"a model that offramp transformed ({', '.join(model.transforms)}) cannot be trained itself",
            where=model.shown_name,
            fix="train the model without --transform, and transform what comes of it",
        )
    if model.has_no_tokenizer:
        raise ModelError(
            "the model has no tokenizer, so that no model folder can be made of it",
            where=model.name,
            fix="wrap it with its tokenizer: offramp.wrap(model, tokenizer)",
        )
    quantised = getattr(model.hf, "hf_quantizer", None) is not None
    for name, weight in model.hf.named_parameters():
        if quantised or not weight.is_floating_point():
            raise ModelError(
                f"the model's weights are quantised ({name} is {weight.dtype}): nothing can be trained",
                where=model.name,
                fix="train the unquantised model; one from a .gguf file is dequantised when it is loaded, "
                "and can be trained",
            )


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
                raise LastLayerDone
            return output

        return forward

    modules = dict.fromkeys(stack.layers)
    replacements = {module: replacing(module) for module in modules}
    with replaced_forward(replacements), contextlib.suppress(LastLayerDone):
        stack.hf(input_ids=ids.to(stack.device)[None], use_cache=False)
    return found


def read_out(stack: ExitStack, states: Tensor) -> Tensor:
    """Logits, float32 [rows, vocabulary], of states [rows, hidden] through the model's own tail and head."""
    assert stack.head is not None, "asked for by `divergence.trainable_head`"
    assert stack.logit_scaling is not None, "asked for by `divergence.trainable_head`"
    normed = stack.tail_forward(states).to(stack.head_device)
    return stack.logit_scaling.apply(stack.head(normed).float())
