"""Exits whose norm or output head is their own, at work: in tracing and decoding alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offramp.errors import InputError
from offramp.models.calls import first_tensor
from offramp.models.stack import ExitStack
from offramp.tracing.exit_heads import ExitHeads
from offramp.tracing.exit_readings import OutputHeads
from offramp.tracing.fitted_heads import FittedHeads, tensor_of
from offramp.tracing.head import Head, LinearHead, at_head, make_head
from offramp.tracing.heads_arrays import at_place
from offramp.tracing.states import StateShape


class ExitNorm(nn.Module):
    """An exit's own norm, "rms" or "layer", computed in float32 and given in the dtype of its input."""

    def __init__(self, heads: OutputHeads, place: int, device: torch.device) -> None:
        super().__init__()
        assert heads.norm_weight is not None, "checked when it was read"
        assert heads.epsilon is not None, "checked when it was read"
        self.rms = heads.norm == "rms"
        self.epsilon = heads.epsilon
        weight, bias = heads.norm_weight, heads.norm_bias
        self.weight = tensor_of(weight[place]).to(device)
        self.bias = None if bias is None else tensor_of(bias[place]).to(device)

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
    if stack.readout_kind != "fast" or stack.logit_scaling is None:
        raise InputError(
            "exits cannot have output heads of their own, nor norms: this model's logits are more than a "
            "norm, an output head and a scale or a soft-cap",
            where=where,
            fix="read its exits by the logit lens, or import a linear lens",
        )
    features = first_tensor(stack.layer_outputs[-1]).shape[-1]
    inputs = features if stack.head_weight is None else stack.head_weight.shape[1]
    if inputs == features:
        return
    if heads.output.weight is None:
        raise InputError(
            f"exits cannot have norms of their own before the model's output head: it takes {inputs} "
            f"numbers, made of the {features} of a hidden state",
            where=where,
            fix="import the norms with output heads of their own",
        )
    if heads.output.norm == "model":
        raise InputError(
            f"exits cannot have output heads behind the model's own norm: its head takes {inputs} numbers, "
            f"made of the {features} of a hidden state",
            where=where,
            fix='import the heads with a norm of their own, or kind = "none"',
        )


def exit_stacks(stack: ExitStack, heads: OutputHeads, places: Sequence[int]) -> list[ExitStack]:
    """The model's stack with norm and output head of some exits, in its dtype, where its own head lies.

    places: of the exits on the first axis of the heads' arrays; one head that all exits share is made once.
    The heads fit the model (`require_readable`, `FittedHeads.require_sizes`).
    """
    dtype = first_tensor(stack.layer_outputs[-1]).dtype
    device = stack.head_device
    made: dict[int, nn.Linear] = {}
    stacks = []
    for place in places:
        own_norm = (ExitNorm(heads, place, device),) if heads.norm in ("rms", "layer") else ()
        tail = stack.tail if heads.norm == "model" else own_norm
        if heads.weight is None:
            stacks.append(dataclasses.replace(stack, tail=tail))
            continue
        shared = len(heads.weight) == 1 and (heads.bias is None or len(heads.bias) == 1)
        first = 0 if shared else place
        if first not in made:
            made[first] = _head_at(heads, first, dtype, device)
        head = made[first]
        stacks.append(
            dataclasses.replace(stack, tail=tail, head=head, head_weight=head.weight, head_bias=head.bias)
        )
    return stacks


def _head_at(heads: OutputHeads, place: int, dtype: torch.dtype, device: torch.device) -> nn.Linear:
    """The output head of one exit."""
    assert heads.weight is not None
    weight = tensor_of(at_place(heads.weight, place)).to(device, dtype)
    head = nn.Linear(weight.shape[1], weight.shape[0], bias=heads.bias is not None, device="meta")
    head.weight = nn.Parameter(weight, requires_grad=False)
    if heads.bias is not None:
        bias = tensor_of(at_place(heads.bias, place)).to(device, dtype)
        head.bias = nn.Parameter(bias, requires_grad=False)
    return head


@dataclass(frozen=True)
class OwnHeads:
    """What traced exits below L are read with where norm or output head is their own; empty elsewhere.

    stacks: one an exit. heads: one an exit too; none where the model's own linear head serves them all behind
    norms of their own.
    """

    stacks: tuple[ExitStack, ...] = ()
    heads: tuple[Head, ...] = ()

    @classmethod
    def of(
        cls, fitted: FittedHeads | None, stack: ExitStack, head: Head, state_shape: StateShape
    ) -> OwnHeads:
        """Those of the traced exits of a model with this head. One buffer of logits serves them all."""
        if fitted is None or fitted.heads.output is None:
            return cls()
        stacks = tuple(exit_stacks(stack, fitted.heads.output, fitted.places))
        linear = isinstance(head, LinearHead)
        if fitted.heads.output.weight is None and linear:
            return cls(stacks)
        reductions = head.reductions if isinstance(head, LinearHead) else "eager"
        heads: list[Head] = []
        for own in stacks:
            first = heads[0] if heads else None
            buffer_of = first if isinstance(first, LinearHead) else None
            heads.append(make_head(own, head.vocabulary_size, state_shape, reductions, buffer_of=buffer_of))
        return cls(stacks, tuple(heads))

    def states(self, index: int, states: Tensor) -> Tensor:
        """States [rows, features] of one exit below L, behind lens and network, as its head takes them."""
        if self.heads and not isinstance(self.heads[index], LinearHead):
            return states  # such a head goes through the norm itself
        own = self.stacks[index]
        return at_head(own, own.tail_forward, states)
