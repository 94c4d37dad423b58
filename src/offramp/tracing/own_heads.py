"""Exits with an output head of their own: the stack as such an exit sees it, and heads to trace with."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offramp.errors import InputError
from offramp.models.calls import first_tensor
from offramp.models.stack import ExitStack
from offramp.tracing.exit_heads import ExitHeads, OutputHeads
from offramp.tracing.features import tensor_of
from offramp.tracing.fitted import FittedHeads
from offramp.tracing.head import Head, LinearHead, make_head, on_device
from offramp.tracing.reductions import Reductions
from offramp.tracing.states import StateShape


class ExitNorm(nn.Module):
    """An exit's own norm, "rms" or "layer", computed in float32 and given in the dtype of its input."""

    def __init__(self, heads: OutputHeads, place: int, device: torch.device) -> None:
        super().__init__()
        assert heads.norm_weight is not None, "checked when it was read"
        assert heads.epsilon is not None, "checked when it was read"
        self.rms = heads.norm == "rms"
        self.epsilon = heads.epsilon
        self.weight = tensor_of(heads.norm_weight[place]).to(device)
        self.bias = None if heads.norm_bias is None else tensor_of(heads.norm_bias[place]).to(device)

    def forward(self, hidden: Tensor) -> Tensor:
        """The norm over the last axis: [..., hidden] -> [..., hidden]."""
        wide, sizes = hidden.float(), hidden.shape[-1:]
        if self.rms:
            return F.rms_norm(wide, sizes, self.weight, self.epsilon).to(hidden.dtype)
        return F.layer_norm(wide, sizes, self.weight, self.bias, self.epsilon).to(hidden.dtype)


def require_readable(heads: ExitHeads, stack: ExitStack, where: str = "--heads") -> None:
    """Refuse output heads for a model that does with its logits, or before its head, what no exit can repeat.

    Raises InputError.
    """
    if heads.output is None:
        return
    if stack.readout_kind != "fast" or stack.transform is None:
        raise InputError(
            "exits cannot have output heads of their own: this model's logits are more than a norm, an "
            "output head and a scale or a soft-cap",
            where=where,
            fix="read its exits by the logit lens, or import a linear lens",
        )
    features = first_tensor(stack.layer_outputs[-1]).shape[-1]
    inputs = features if stack.head_weight is None else stack.head_weight.shape[1]
    if heads.output.norm == "model" and inputs != features:
        raise InputError(
            f"exits cannot have output heads behind the model's own norm: its head takes {inputs} numbers, "
            f"made of the {features} of a hidden state",
            where=where,
            fix='import the heads with a norm of their own, or kind = "none"',
        )


def exit_stack(stack: ExitStack, heads: OutputHeads, place: int) -> ExitStack:
    """The model's stack with the norm and the output head of one exit, in the model's dtype, on its device.

    place: of the exit on the first axis of the heads' arrays. The heads fit the model (`require_readable`,
    `FittedHeads.require_sizes`).
    """
    dtype = first_tensor(stack.layer_outputs[-1]).dtype
    device = stack.device
    own_norm = heads.norm in ("rms", "layer")
    weight = tensor_of(heads.weight[place]).to(device, dtype)
    bias = None if heads.bias is None else tensor_of(heads.bias[place]).to(device, dtype)
    head = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    head.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        head.bias = nn.Parameter(bias, requires_grad=False)
    own_tail = (ExitNorm(heads, place, device),) if own_norm else ()
    return dataclasses.replace(
        stack,
        tail=stack.tail if heads.norm == "model" else own_tail,
        head=head,
        head_weight=weight,
        head_bias=bias,
    )


@dataclass(frozen=True)
class OwnHeads:
    """What traced exits below L are read with, where each has an output head of its own; empty elsewhere."""

    stacks: tuple[ExitStack, ...] = ()
    heads: tuple[Head, ...] = ()

    @classmethod
    def of(
        cls, fitted: FittedHeads | None, stack: ExitStack, state_shape: StateShape, reductions: Reductions
    ) -> OwnHeads:
        """The output heads of the traced exits. One buffer of logits serves them all."""
        if fitted is None or fitted.heads.output is None:
            return cls()
        stacks = tuple(exit_stack(stack, fitted.heads.output, place) for place in fitted.places)
        heads: list[Head] = []
        for own in stacks:
            assert own.head_weight is not None
            first = heads[0] if heads else None
            buffer_of = first if isinstance(first, LinearHead) else None
            heads.append(make_head(own, len(own.head_weight), state_shape, reductions, buffer_of=buffer_of))
        return cls(stacks, tuple(heads))

    def states(self, index: int, states: Tensor) -> Tensor:
        """States [rows, features] of one exit below L as its head takes them."""
        own = self.stacks[index]
        return on_device(own.device, own.tail_forward, states)
