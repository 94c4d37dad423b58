"""What fitted exit heads compute, the same in fitting and in tracing: lens, features, probabilities."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offramp.tracing.exit_heads import ExitClassifier, LinearLens

CANDIDATES = 8
"""Tokens whose logits a candidate head looks at: the best ones of the candidate exit."""

SHORTLIST = 2048
"""Tokens of the restricted vocabulary unless heads bring their own: BPE gives the frequent ones low ids."""

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


def classifier_probability(classifier: ExitClassifier, exit_index: int, features: Tensor) -> Tensor:
    """Probability that one exit's classifier gives: float32 [rows] of features [rows, features].

    exit_index: place on the first axis of the classifier's arrays.
    """
    values = (features.float() - tensor_of(classifier.mean[exit_index])) / tensor_of(
        classifier.scale[exit_index]
    )
    last = len(classifier.weights) - 1
    for layer, (weight, bias) in enumerate(zip(classifier.weights, classifier.biases, strict=True)):
        values = torch.addmm(tensor_of(bias[exit_index]), values, tensor_of(weight[exit_index]))
        if layer < last:
            values = values.relu()
    return values.squeeze(-1).sigmoid()


def apply_lens(lens: LinearLens, exit_index: int, states: Tensor) -> Tensor:
    """A h + b of hidden states [rows, hidden] at one exit, in float32.

    exit_index: place on the first axis of the lens's arrays.
    """
    weight, bias = tensor_of(lens.weight[exit_index]), tensor_of(lens.bias[exit_index])
    return torch.addmm(bias, states.float(), weight.t())


def tensor_of(array: NDArray[np.float32]) -> Tensor:
    """The array as a tensor; read-only memory is copied, since torch cannot promise to leave it alone."""
    return torch.from_numpy(array if array.flags.writeable else array.copy())
