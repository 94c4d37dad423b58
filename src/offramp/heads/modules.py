"""What exits are read and judged with, at work: lens, network, norm, classifier and K,V maps of one exit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from offramp.heads.arrays import at_place
from offramp.heads.exit_heads import ExitClassifier
from offramp.heads.maps import ExitMaps
from offramp.heads.readings import ExitMlp, GatedNetwork, LinearLens, OutputHeads

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

CLASSIFIED_FACTS = (*HIDDEN_STATE_FACTS, "adainfer", "candidate_score")
"""All facts that classifiers give; what each means: `offramp.tracing.facts.HEAD_FACTS`."""


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


@dataclass(frozen=True)
class PreparedMaps:
    """The maps of one exit, all deeper layers as one product, or as two of low rank.

    centre: float32 [hidden]. bias: float32 [layers x hidden]. products: float32, applied to the rows one
    after the other: [hidden, layers x hidden], or [hidden, rank] and [rank, layers x hidden].
    """

    centre: Tensor
    bias: Tensor
    products: tuple[Tensor, ...]

    @classmethod
    def of(cls, maps: ExitMaps, device: torch.device) -> PreparedMaps:
        """On a device; nothing is copied if it is the one where the arrays lie."""
        if maps.inward is None or maps.outward is None:
            assert maps.change is not None, "maps are whole or of low rank"
            stacked = [maps.change.reshape(-1, maps.change.shape[-1])]
        else:
            stacked = [maps.inward, maps.outward.reshape(-1, maps.outward.shape[-1])]
        return cls(
            centre=tensor_of(maps.centre).to(device),
            bias=tensor_of(maps.bias).to(device).flatten(),
            products=tuple(tensor_of(array).to(device).t() for array in stacked),
        )

    def __call__(self, rows: Tensor) -> tuple[Tensor, ...]:
        """The output of each deeper layer [rows, hidden] for rows [rows, hidden], float32."""
        values = rows - self.centre
        for product in self.products[:-1]:
            values = values @ product
        changes = torch.addmm(self.bias, values, self.products[-1])
        states = changes.view(len(rows), -1, rows.shape[-1]).transpose(0, 1) + rows
        return states.contiguous().unbind()
