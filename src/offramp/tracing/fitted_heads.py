"""Fitted exit heads at work: lens, network, features and probabilities, in fitting and tracing alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from offramp.errors import InputError
from offramp.kit.defaults import CANDIDATES
from offramp.models.model import Model
from offramp.tracing.exit_heads import ExitClassifier, ExitHeads
from offramp.tracing.exit_readings import ExitMlp, GatedNetwork, LinearLens
from offramp.tracing.facts import HEAD_FACTS
from offramp.tracing.heads_arrays import at_place, useless

TOP_K = 10
"""Most probable tokens whose set is compared between exits."""


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


@dataclass(frozen=True)
class PreparedMlp(GatedNetwork[Tensor]):
    """One exit's network (see `ExitMlp`), float32, every matrix transposed."""

    @classmethod
    def of(cls, mlp: ExitMlp, place: int, device: torch.device) -> PreparedMlp:
        """The network at one place of the arrays."""
        norm, gate, up, down = (
            tensor_of(at_place(one, place)).to(device) for one in (mlp.norm, mlp.gate, mlp.up, mlp.down)
        )
        return cls(norm, gate.t(), up.t(), down.t(), mlp.epsilon, mlp.adds_to_normed)

    def __call__(self, rows: Tensor) -> Tensor:
        """Of rows [rows, features] in float32."""
        normed = F.rms_norm(rows, rows.shape[-1:], self.norm, self.epsilon)
        carried = normed if self.adds_to_normed else rows
        return torch.addmm(carried, F.silu(normed @ self.gate) * (normed @ self.up), self.down)


@dataclass(frozen=True)
class PreparedLens:
    """One exit's affine map (see `LinearLens`), float32, every matrix transposed.

    weight: [features, features], or U^T [rank, features] of a change of low rank, inward: V [features, rank]
    of that, None where the map is whole. bias: [features].
    """

    weight: Tensor
    bias: Tensor
    inward: Tensor | None = None

    @classmethod
    def of(cls, lens: LinearLens, place: int, device: torch.device) -> PreparedLens:
        """The map at one place of the arrays."""
        bias = tensor_of(lens.bias[place]).to(device)
        if lens.weight is not None:
            return cls(tensor_of(lens.weight[place]).to(device).t(), bias)
        assert lens.inward is not None, "a lens is whole or has both factors"
        assert lens.outward is not None, "a lens is whole or has both factors"
        inward, outward = (tensor_of(one[place]).to(device).t() for one in (lens.inward, lens.outward))
        return cls(outward, bias, inward)

    def __call__(self, rows: Tensor) -> Tensor:
        """Of rows [rows, features] in float32."""
        if self.inward is None:
            return torch.addmm(self.bias, rows, self.weight)
        return torch.addmm(rows + self.bias, rows @ self.inward, self.weight)


@dataclass(frozen=True)
class PreparedReading:
    """What one exit's states go through before the final norm: a lens, a network, or one after the other."""

    lens: PreparedLens | None
    mlp: PreparedMlp | None = None

    @classmethod
    def of(
        cls, lens: LinearLens | None, mlp: ExitMlp | None, place: int, device: torch.device
    ) -> PreparedReading | None:
        """Both at one place of their arrays; None where there is neither."""
        if lens is None and mlp is None:
            return None
        return cls(
            None if lens is None else PreparedLens.of(lens, place, device),
            None if mlp is None else PreparedMlp.of(mlp, place, device),
        )

    def __call__(self, rows: Tensor) -> Tensor:
        """What the final norm is given of rows [rows, features]: in their dtype, computed in float32."""
        seen = rows.float()
        for part in (self.lens, self.mlp):
            seen = seen if part is None else part(seen)
        return seen.to(rows.dtype)


@dataclass(frozen=True)
class PreparedClassifier:
    """One exit's classifier. layers: weight [features, outputs] and bias [outputs] of each, float32."""

    mean: Tensor
    scale: Tensor
    layers: tuple[tuple[Tensor, Tensor], ...]

    @classmethod
    def of(cls, classifier: ExitClassifier, place: int, device: torch.device) -> PreparedClassifier:
        """The classifier at one place of its arrays."""
        layers = [
            (tensor_of(weight[place]).to(device), tensor_of(bias[place]).to(device))
            for weight, bias in zip(classifier.weights, classifier.biases, strict=True)
        ]
        mean, scale = (tensor_of(array[place]).to(device) for array in (classifier.mean, classifier.scale))
        return cls(mean, scale, tuple(layers))

    def __call__(self, features: Tensor) -> Tensor:
        """Probability, float32 [rows], of features [rows, features]."""
        # Not folded into the first layer: with large means that would lose digits, and so change decisions.
        values = (features.float() - self.mean) / self.scale
        for place, (weight, bias) in enumerate(self.layers):
            values = torch.addmm(bias, values.relu() if place else values, weight)
        return values.squeeze(-1).sigmoid()


def tensor_of(array: NDArray[np.float32]) -> Tensor:
    """The array as a tensor; read-only memory is copied, since torch cannot promise to leave it alone."""
    return torch.from_numpy(array if array.flags.writeable else array.copy())


HIDDEN_STATE_FACTS = ("convergence", "correctness", "correctness_network", "gate", "short_correctness")
"""Facts whose classifier looks at the hidden state as the layer gave it."""


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
    unknown = sorted(set(heads.classifiers) - {fact.name for fact in HEAD_FACTS})
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
