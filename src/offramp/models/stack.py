"""The stack of exits of a language model: its layers in execution order and how an exit is read out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offramp.models.calls import first_tensor, hidden_argument, hooked, replaced_forward, with_hidden
from offramp.models.conditioned import probing
from offramp.models.tensors import is_wrapped


@dataclass(frozen=True)
class LogitScaling:
    """logits = z ("identity"), value * z ("scale") or value * tanh(z / value) ("softcap")."""

    kind: Literal["identity", "scale", "softcap"] = "identity"
    value: float = 1.0
    divisor: float | None = None
    """Set where the model divides instead of multiplying; 1 / value, kept so that `apply` is bit-exact."""

    def apply(self, logits: Tensor) -> Tensor:
        """The scaled logits, same shape and dtype."""
        if self.kind == "identity":
            return logits
        if self.kind == "softcap":
            return torch.tanh(logits / self.value) * self.value
        return logits * self.value if self.divisor is None else logits / self.divisor


ReadoutKind = Literal["fast", "stub", "swap"]
OnLayer = Callable[[int, Tensor, Tensor], None]


class LastLayerDone(Exception):
    """Ends a forward pass after its last layer, so that the output head is never computed."""


@dataclass(frozen=True)
class ExitStack:
    """Layers 1..L, what the model does after them, and the readout that reproduces the model's own logits."""

    hf: Any
    """The transformers model."""
    layers: tuple[nn.Module, ...]
    """One entry per execution, in order (a looped model repeats modules)."""
    core: nn.Module
    """The module that calls the layers."""
    core_output: Any
    layer_outputs: tuple[Any, ...]
    tail: tuple[nn.Module, ...]
    """The modules between the last layer and the head, usually the final norm."""
    core_tail: tuple[nn.Module, ...]
    """Those of them that run inside the core."""
    head: nn.Module | None
    """The output head (None if not found)."""
    logit_scaling: LogitScaling | None
    position_axis: int
    """The axis of a layer's output that counts positions, from the end (-2 in [batch, positions, hidden])."""
    handed_on: tuple[int, ...] = ()
    """Places in layer 1's output, beside its state, of tensors that all later layers are given and return."""
    readout_kind: ReadoutKind = "fast"
    """How exits are read out: "fast" = logit_scaling(head(tail(h))); "stub" = the model's own forward with
    the core replaced; "swap" = the same with every layer passing the hidden state through."""
    head_weight: Tensor | None = None
    """[vocabulary, hidden]; None if the head is not a plain linear map."""
    head_bias: Tensor | None = None
    """[vocabulary]; None without one."""
    largest_difference: float = math.nan
    """Largest absolute difference at exit L from the model's own logits (0.0 in float32)."""

    def __len__(self) -> int:
        """L, the number of exits."""
        return len(self.layers)

    @property
    def device(self) -> torch.device:
        """Where the model takes token ids: the device of its first weight that is in memory."""
        device: torch.device = next(weight.device for weight in self.hf.parameters() if not weight.is_meta)
        return device

    @property
    def head_device(self) -> torch.device:
        """Where exits are read out and all statistics are taken: the device of the output head.

        Of a model that is spread over several devices the layers' outputs are brought there; layers and final
        norm compute where they lie (their own hooks move what they are given).
        """
        if self.head_weight is not None:
            return self.head_weight.device
        weights = [] if self.head is None else list(self.head.parameters())
        device: torch.device = next((weight.device for weight in weights if not weight.is_meta), self.device)
        return device

    def tail_forward(self, hidden: Tensor) -> Tensor:
        """The tail applied to a layer's output [..., positions, hidden], recomputed for every exit."""
        return _chain(self.tail, hidden)

    def readout(self, hidden: Tensor, ids: Tensor | None = None) -> Tensor:
        """Logits of an exit from the layer's output, by `readout_kind`.

        hidden: as the layer returned it, or a slice of it along `position_axis`. ids: int64 [batch,
        positions], only used by "swap" (zeros if not given). Returns [batch, positions, vocabulary] ("fast"
        keeps any leading axes).
        """
        with torch.no_grad():
            return READOUTS[self.readout_kind](self, hidden, ids)

    def capture(self, ids: Tensor, on_layer: OnLayer) -> None:
        """Run the model's own layers on `ids` and hand over each layer's input and output as it happens.

        ids: int64 [batch, positions], on any device. on_layer(index, input, output): index from 0; output is
        the layer's hidden state (the first element of a tuple), input is the output of the layer before, or
        the embedding for the first. No cache is kept and the output head is not computed. Hooks are removed
        whatever happens.
        """
        executed = 0
        previous: Tensor | None = None

        def before(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            nonlocal previous
            if previous is None:
                previous = hidden_argument(arguments, keywords)

        def after(module: nn.Module, arguments: Any, keywords: Any, output: Any) -> None:
            nonlocal executed, previous
            hidden = first_tensor(output)
            on_layer(executed, hidden if previous is None else previous, hidden)
            previous = hidden
            executed += 1
            if executed == len(self.layers):
                raise LastLayerDone

        with torch.no_grad(), hooked(self.layers, before, after):
            try:
                self.hf(input_ids=ids.to(self.device), use_cache=False)
            except LastLayerDone:
                return


def _chain(modules: Sequence[nn.Module], hidden: Tensor) -> Tensor:
    for module in modules:
        hidden = module(hidden)
    return hidden


def _read_fast(stack: ExitStack, hidden: Tensor, ids: Tensor | None) -> Tensor:
    if stack.head is None or stack.logit_scaling is None:
        raise LookupError("no head or no known scaling of logits")
    logits: Tensor = stack.head(stack.tail_forward(hidden))
    return stack.logit_scaling.apply(logits)


def _placeholder_ids(stack: ExitStack, hidden: Tensor) -> Tensor:
    """Token ids of the right count: 1 document if the batch axis is not evident."""
    positions = hidden.shape[stack.position_axis]
    batch = hidden.shape[0] if hidden.dim() == 3 and stack.position_axis == -2 else 1
    return torch.zeros(batch, positions, dtype=torch.long, device=stack.device)


def _read_stub(stack: ExitStack, hidden: Tensor, ids: Tensor | None) -> Tensor:
    output = with_hidden(stack.core_output, _chain(stack.core_tail, hidden))
    ids = _placeholder_ids(stack, hidden) if ids is None else ids
    # What is read out is there already: any source will do.
    with replaced_forward({stack.core: lambda *arguments, **keywords: output}), probing(stack.hf):
        logits: Tensor = stack.hf(input_ids=ids, use_cache=False).logits
    return logits


def _read_swap(stack: ExitStack, hidden: Tensor, ids: Tensor | None) -> Tensor:
    ids = _placeholder_ids(stack, hidden) if ids is None else ids

    def passing(output: Any) -> Callable[..., Any]:
        passed = with_hidden(output, hidden)
        return lambda *arguments, **keywords: passed

    replacements = {
        layer: passing(output) for layer, output in zip(stack.layers, stack.layer_outputs, strict=True)
    }
    with replaced_forward(replacements), probing(stack.hf):
        logits: Tensor = stack.hf(input_ids=ids, use_cache=False).logits
    return logits


READOUTS: dict[ReadoutKind, Callable[[ExitStack, Tensor, Tensor | None], Tensor]] = {
    "fast": _read_fast,
    "stub": _read_stub,
    "swap": _read_swap,
}


def plain_linear(head: nn.Module | None, normed: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The head's weight [vocabulary, hidden] and bias if F.linear gives its output bit for bit, else None."""
    weight, bias = getattr(head, "weight", None), getattr(head, "bias", None)
    if head is None or not isinstance(weight, Tensor) or weight.dim() != 2 or is_wrapped(weight):
        return None, None  # quantised weights are no plain tensors: the model reads itself out
    if weight.shape[1] != normed.shape[-1] or weight.dtype != normed.dtype:
        return None, None
    normed = normed.to(weight.device)  # of a model that is spread over several
    with torch.no_grad():
        same = torch.equal(F.linear(normed, weight, bias), head(normed))
    return (weight.detach(), None if bias is None else bias.detach()) if same else (None, None)
