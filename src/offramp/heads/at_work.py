"""Exit heads at work: whether they fit a model and its exits, and what these are then read and judged with.

In fitting, tracing and decoding alike.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from offramp.defaults import CANDIDATES, SHORTLIST
from offramp.errors import InputError
from offramp.heads.exit_heads import ExitHeads, useless
from offramp.heads.parts import Classifier, ExitReading, OwnHead, Weights, tensor_of
from offramp.models.calls import first_tensor
from offramp.models.model import Model
from offramp.models.stack import ExitStack

TOP_K = 10
"""Most probable tokens whose set is compared between exits."""

HIDDEN_STATE_FACTS = ("convergence", "correctness", "correctness_network", "gate", "short_correctness")
"""Facts whose classifier looks at the hidden state as the layer gave it."""

CLASSIFIED_FACTS = (*HIDDEN_STATE_FACTS, "adainfer", "candidate_score")
"""All facts that classifiers give; what each means: `offramp.tracing.facts.HEAD_FACTS`."""


def candidate_features(now: Tensor, then: Tensor) -> Tensor:
    """Features of a few candidate tokens (SpecEE, arXiv 2504.08850): float32 [rows, 3 x candidates].

    now, then: logits [rows, candidates] of the same tokens at an exit and at the candidate exit, best first
    there. First each logit less the largest of the candidates', then each share of a softmax over the
    candidates, then the change of that share since the candidate exit.
    """
    below_best = now.float() - now.float().amax(-1, keepdim=True)
    share = below_best.softmax(-1)
    return torch.cat([below_best, share, share - then.float().softmax(-1)], dim=-1)


def confidence_features(max_prob: Tensor, margin: Tensor) -> Tensor:
    """Features p1 and p1 - p2 of an exit (AdaInfer, arXiv 2403.02181, section 3): float32 [rows, 2]."""
    return torch.stack([max_prob, margin], dim=-1).float()


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


def _refused(why: str) -> InputError:
    fix = "fit heads of this model: offramp heads fit MODEL --workload W -o FILE"
    return InputError(f"the exit heads cannot be used: {why}", where="heads= (--heads)", fix=fix)


def require_exits(heads: ExitHeads, exits: Sequence[int]) -> None:
    """Refuse heads that do not read, and judge, these exits, the last of which is L.

    Raises InputError for an exit that the heads were not fitted at, a candidate exit that is left out, a fact
    that is not known, and arrays that are not whole.
    """
    _require_whole(heads)
    below = exits[:-1]
    if heads.holds_maps_alone:
        return
    missing = [exit for exit in below if exit not in heads.exits]
    if missing:
        listed = ",".join(map(str, heads.exits))
        fix = f'trace their exits only: exits="{listed}" (--exits {listed})'
        raise not_fitted_at(missing[0], heads, fix)
    candidate = candidate_exit(heads)
    if candidate is not None and candidate not in below:
        raise InputError(
            f"the heads take their candidate tokens from exit {candidate}, which is not traced",
            where="exits= (--exits)",
            fix=f"add {candidate} to exits= (--exits)",
        )


def not_fitted_at(exit: int, heads: ExitHeads, fix: str) -> InputError:
    """The error for heads that lack an exit."""
    return InputError(
        f"the heads were not fitted at exit {exit}; they have: " + ", ".join(map(str, heads.exits)),
        where="heads= (--heads)",
        fix=fix,
    )


def candidate_exit(heads: ExitHeads) -> int | None:
    """Where heads take the candidates of `candidate_score`; None where they do not give it."""
    return heads.candidate_exit if "candidate_score" in heads.classifiers else None


def require_sizes(heads: ExitHeads, features: int, vocabulary_size: int) -> None:
    """Raise InputError unless the heads fit hidden states of so many features and this vocabulary."""
    given = {"adainfer": 2, "candidate_score": 3 * min(CANDIDATES, vocabulary_size)}
    sizes = {name: classifier.mean.shape[-1] for name, classifier in heads.classifiers.items()}
    if heads.lens is not None:
        sizes["lens"] = heads.lens.bias.shape[-1]
    if heads.mlp is not None:
        sizes["network"] = heads.mlp.norm.shape[-1]
    if heads.kv_maps is not None:
        sizes["K,V maps"] = len(next(iter(heads.kv_maps.maps.values())).centre)
    output = heads.output
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
    shortlist = heads.shortlist
    if shortlist is not None and not ((shortlist >= 0) & (shortlist < vocabulary_size)).all():
        raise _refused(f"its short list names tokens beyond the {vocabulary_size:,} of this model")


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


class OwnNorm(nn.Module):
    """An exit's own norm, in the place of a model's."""

    def __init__(self, head: OwnHead[Tensor]) -> None:
        super().__init__()
        self.head = head

    def forward(self, hidden: Tensor) -> Tensor:
        """The norm over the last axis: [..., hidden] -> [..., hidden]."""
        return self.head.normed(hidden)


@dataclass(frozen=True)
class HeadsAtWork:
    """What exits below L are read and judged with, by exit."""

    heads: ExitHeads
    readings: Mapping[int, ExitReading[Tensor]]
    """Of those whose states do not go to the norm as they are."""
    classifiers: Mapping[tuple[str, int], Classifier[Tensor]]
    """By the fact they give, and the exit."""
    stacks: Mapping[int, ExitStack]
    """Of the exits whose norm or output head is their own, the model's stack with these."""

    @classmethod
    def of(
        cls,
        heads: ExitHeads,
        exits: Sequence[int],
        stack: ExitStack,
        device: torch.device,
        facts: Collection[tuple[str, int]] | None = None,
    ) -> HeadsAtWork:
        """Heads that fit (see the checks above) at some exits of a model. device: of states.

        facts: by name and exit, those that are asked for; by default all that the heads give.
        """
        places = {exit: heads.exits.index(exit) for exit in exits if heads.reads_exits}
        asked = [(fact, exit) for fact in heads.classifiers for exit in exits] if facts is None else facts
        reading = heads.reading
        return cls(
            heads,
            {} if reading is None else {exit: reading.at(place, device) for exit, place in places.items()},
            {
                (fact, exit): heads.classifiers[fact].at(heads.exits.index(exit), device)
                for fact, exit in asked
            },
            {} if heads.output is None else _own_stacks(stack, heads.output, places),
        )

    def seen(self, exit: int, states: Tensor) -> Tensor:
        """States [rows, features] of an exit through lens and network, in their own dtype."""
        reading = self.readings.get(exit)
        return states if reading is None else reading(states)

    @property
    def own_output(self) -> bool:
        """Whether the exits' output heads are not the model's."""
        return self.heads.output is not None and self.heads.output.weight is not None

    def hidden_probabilities(self, exit: int, states: Tensor) -> dict[str, Tensor | float]:
        """Facts of the hidden states [rows, features] of one exit that classifiers give; 1 at exit L."""
        facts = [fact for fact in HIDDEN_STATE_FACTS if fact in self.heads.classifiers]
        classifiers = {fact: self.classifiers.get((fact, exit)) for fact in facts}
        return {
            fact: 1.0 if classifier is None else classifier(states)
            for fact, classifier in classifiers.items()
        }


def _own_stacks(stack: ExitStack, own: OwnHead[Weights], places: Mapping[int, int]) -> dict[int, ExitStack]:
    """The model's stack with norm and output head of some exits, in its dtype, where its own head lies.

    places: by exit, on the first axis of the heads' arrays; one head that all exits share is made once.
    """
    dtype, device = first_tensor(stack.layer_outputs[-1]).dtype, stack.head_device
    norms = replace(own, weight=None, bias=None)
    made: dict[int, nn.Linear] = {}
    stacks = {}
    for exit, place in places.items():
        tail = stack.tail
        if own.norm != "model":
            tail = () if own.norm == "none" else (OwnNorm(norms.at(place, device)),)
        stacks[exit] = replace(stack, tail=tail)
        if own.weight is None:
            continue
        first = 0 if own.shares_head else place
        if first not in made:
            made[first] = _linear(own, first, dtype, device)
        head = made[first]
        stacks[exit] = replace(stacks[exit], head=head, head_weight=head.weight, head_bias=head.bias)
    return stacks


def _linear(own: OwnHead[Weights], place: int, dtype: torch.dtype, device: torch.device) -> nn.Linear:
    """The output head of one exit."""
    arrays = own.given(("weight", "bias"))
    shape = arrays["weight"].shape[1:]
    head = nn.Linear(shape[1], shape[0], bias="bias" in arrays, device="meta")
    for name, array in arrays.items():
        of_exit = tensor_of(array[place if len(array) > 1 else 0]).to(device, dtype)
        setattr(head, name, nn.Parameter(of_exit, requires_grad=False))
    return head
