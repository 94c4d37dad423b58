"""Fitted exit heads at work: lens, network, features and probabilities, in fitting and tracing alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from offramp.errors import InputError
from offramp.heads.arrays import at_place, useless
from offramp.heads.exit_heads import ExitHeads
from offramp.heads.modules import (
    CLASSIFIED_FACTS,
    HIDDEN_STATE_FACTS,
    ExitNorm,
    PreparedClassifier,
    PreparedReading,
    tensor_of,
)
from offramp.heads.output_head import Head, LinearHead, StateShape, at_head, make_head
from offramp.heads.readings import OutputHeads
from offramp.kit.defaults import CANDIDATES, SHORTLIST
from offramp.models.calls import first_tensor
from offramp.models.model import Model
from offramp.models.stack import ExitStack


def describe_base(model: Model) -> dict[str, Any]:
    """What heads keep of the model that they belong to (`ExitHeads.model`)."""
    return {
        "name": model.shown_name,
        "fingerprint": model.identity.fingerprint,
        "dtype": model.dtype,
        "layers": model.layers,
        "hidden_size": model.shape.hidden_size,
        "vocabulary_size": model.shape.vocabulary_size,
    }


def asked_exits(exits: Sequence[int]) -> str:
    """How exits are asked for in Python, and on the command line."""
    listed = ",".join(map(str, exits))
    return f'exits="{listed}" (--exits {listed})'


def _refused(why: str) -> InputError:
    fix = "fit heads of this model: offramp heads fit MODEL --workload W -o FILE"
    return InputError(f"the exit heads cannot be used: {why}", where="heads= (--heads)", fix=fix)


@dataclass(frozen=True)
class FittedHeads:
    """The heads of some traced exits.

    places: of each exit below L on the first axis of the heads' arrays; of no meaning if these hold K,V maps
    alone.
    """

    heads: ExitHeads
    places: tuple[int, ...]
    candidate_index: int | None

    @classmethod
    def of(cls, heads: ExitHeads, exits: Sequence[int]) -> FittedHeads:
        """Heads for these exits, the last of which is L.

        Raises InputError for an exit that the heads were not fitted at, a candidate exit that is left out, a
        fact that is not known, and arrays that are not whole.
        """
        _require_whole(heads)
        below = exits[:-1]
        if heads.holds_maps_alone:
            return cls(heads, (0,) * len(below), None)
        missing = [exit for exit in below if exit not in heads.exits]
        if missing:
            raise InputError(
                f"the heads were not fitted at exit {missing[0]}; they have: "
                + ", ".join(str(exit) for exit in heads.exits),
                where="heads= (--heads)",
                fix="trace their exits only: " + asked_exits(heads.exits),
            )
        candidate = heads.candidate_exit if "candidate_score" in heads.classifiers else None
        if candidate is not None and candidate not in below:
            raise InputError(
                f"the heads take their candidate tokens from exit {candidate}, which is not traced",
                where="exits= (--exits)",
                fix=f"add {candidate} to exits= (--exits)",
            )
        places = tuple(heads.exits.index(exit) for exit in below)
        return cls(heads, places, None if candidate is None else list(below).index(candidate))

    def require_sizes(self, features: int, vocabulary_size: int) -> None:
        """Raise InputError unless the heads fit hidden states of so many features and this vocabulary."""
        candidates = min(CANDIDATES, vocabulary_size)
        given = {"adainfer": 2, "candidate_score": 3 * candidates}
        sizes = {name: classifier.mean.shape[-1] for name, classifier in self.heads.classifiers.items()}
        if self.heads.lens is not None:
            sizes["lens"] = self.heads.lens.hidden
        if self.heads.mlp is not None:
            sizes["network"] = self.heads.mlp.norm.shape[-1]
        if self.heads.kv_maps is not None:
            sizes["K,V maps"] = len(next(iter(self.heads.kv_maps.maps.values())).centre)
        output = self.heads.output
        if output is not None and output.norm_weight is not None:
            sizes["norm"] = output.norm_weight.shape[-1]
        if output is not None and output.weight is not None:
            _, tokens, sizes["output head"] = output.weight.shape
            if tokens != vocabulary_size:
                raise _refused(
                    f"their output heads are of {tokens:,} tokens, and this model of {vocabulary_size:,}"
                )
        for name, size in sizes.items():
            gives = given.get(name, features)
            if size != gives:
                raise _refused(f"{name} takes {size} numbers per token, and this model gives {gives}")
        shortlist = self.heads.shortlist
        if shortlist is not None and not ((shortlist >= 0) & (shortlist < vocabulary_size)).all():
            raise _refused(f"its short list names tokens beyond the {vocabulary_size:,} of this model")

    @property
    def hidden_facts(self) -> tuple[str, ...]:
        """The facts of classifiers of hidden states that the heads give."""
        return tuple(name for name in HIDDEN_STATE_FACTS if name in self.heads.classifiers)

    def on(self, device: torch.device) -> PreparedHeads:
        """The heads with their arrays on a device."""
        lens, mlp = self.heads.lens, self.heads.mlp
        readings = (PreparedReading.of(lens, mlp, place, device) for place in self.places)
        return PreparedHeads(
            heads=self.heads,
            candidate_index=self.candidate_index,
            exits_below=len(self.places),
            hidden_facts=self.hidden_facts,
            readings=[one for one in readings if one is not None],
            classifiers={
                name: [PreparedClassifier.of(classifier, one, device) for one in self.places]
                for name, classifier in self.heads.classifiers.items()
            },
        )


@dataclass(frozen=True)
class PreparedHeads:
    """What traced exits below L are read and judged with, on one device.

    readings: one an exit, none where states go to the norm as they are. classifiers: by the fact they give,
    one an exit. hidden_facts: of those that look at the hidden state.
    """

    heads: ExitHeads
    candidate_index: int | None
    exits_below: int
    hidden_facts: tuple[str, ...]
    readings: Sequence[PreparedReading]
    classifiers: Mapping[str, Sequence[PreparedClassifier]]

    def seen_by_head(self, index: int, states: Tensor) -> Tensor:
        """States of one exit through lens and network, in their own dtype; those of exit L as they are."""
        return self.readings[index](states) if index < len(self.readings) else states

    def probability(self, name: str, index: int, features: Tensor) -> Tensor:
        """What one classifier says at one exit below L: float32 [rows] of features [rows, features]."""
        return self.classifiers[name][index](features)

    def hidden_probabilities(self, index: int, states: Tensor) -> dict[str, Tensor | float]:
        """Facts of the hidden states [rows, features] of one exit; 1 at exit L."""
        if index == self.exits_below:
            return dict.fromkeys(self.hidden_facts, 1.0)
        return {name: self.probability(name, index, states) for name in self.hidden_facts}


def _require_whole(heads: ExitHeads) -> None:
    unknown = sorted(set(heads.classifiers) - set(CLASSIFIED_FACTS))
    if unknown:
        raise _refused(f"they give a fact that is not known: {unknown[0]}")
    for name, array in replace(heads, kv_maps=None).arrays().items():
        if name == "shortlist" or name.startswith("texts."):  # of no exit
            continue
        shared = len(array) == 1 and name.startswith(("mlp.", "output.weight", "output.bias"))
        if len(array) != len(heads.exits) and not shared:
            raise _refused(f"{name} is of {len(array)} exits, not of {len(heads.exits)}")
        if not name.endswith(".auroc") and (why := useless(array)):
            raise _refused(f"{name} {why}")


def restricted_tokens(heads: ExitHeads | None, vocabulary_size: int) -> Tensor:
    """The tokens, int64, ascending: the heads' own, else the first ids: the frequent ones in BPE."""
    if heads is None or heads.shortlist is None:
        return torch.arange(min(SHORTLIST, vocabulary_size), device="cpu")
    return torch.from_numpy(np.unique(heads.shortlist).astype(np.int64))


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
