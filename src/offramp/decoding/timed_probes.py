"""The probes and the linear lens as they are timed: real products on hidden states, decisions included."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from offramp.costs.probes import ProbeSizes
from offramp.decoding.stopwatch import Probe
from offramp.models.model import Model

LENS = "lens"
# Any value does: what is timed is that each sequence's answer reaches the program.
THRESHOLD = 0.5


def probe_sizes(model: Model) -> ProbeSizes:
    """The usual sizes, cut where the model has fewer tokens."""
    usual, vocabulary = ProbeSizes(), model.shape.vocabulary_size
    return ProbeSizes(
        shortlist=min(usual.shortlist, vocabulary),
        hidden=usual.hidden,
        candidates=min(usual.candidates, vocabulary),
        map_rank=min(usual.map_rank, model.shape.hidden_size),
    )


def build_probes(model: Model, sizes: ProbeSizes) -> dict[str, Probe]:
    """Each kind of probe that this model can be timed with, and the linear lens, by name.

    Those that need the output head's own weights, or a head that runs on a hidden state alone, are left out
    where the model has none.
    """
    probes = {
        "cosine": _cosine,
        "classifier": _classifier(model),
        "network": _network(model, sizes),
        LENS: _lens(model),
    }
    if model.stack.readout_kind == "fast":
        probes["full head"] = _full_head(model)
        if model.stack.head_weight is not None:
            probes["restricted head"] = _restricted_head(model, sizes)
            probes["candidates"] = _candidates(model, sizes)
    return probes


def _decide(score: Tensor) -> list[bool]:
    """One answer per sequence, brought to the program."""
    answers: list[bool] = (score.flatten() > THRESHOLD).tolist()
    return answers


def _random(model: Model, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(*shape, generator=generator) / math.sqrt(shape[-1])
    return weights.to(dtype=model.hf.dtype, device=model.hf.device)


def _full_head(model: Model) -> Probe:
    """Max probability, margin, entropy and top token of an exit's whole vocabulary."""

    def probe(hidden: Tensor, before: Tensor) -> list[list[float]]:
        logarithms = model.stack.readout(hidden)[..., -1, :].float().log_softmax(-1)
        entropy = -(logarithms.exp() * logarithms).sum(-1)
        best, token = logarithms.max(-1)
        second = logarithms.scatter_(-1, token.unsqueeze(-1), -torch.inf).amax(-1)
        margin = best.exp() - second.exp()
        facts: list[list[float]] = torch.stack([best.exp(), margin, entropy, token.float()]).tolist()
        return facts

    return probe


def _head_on(model: Model, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Some columns' logits through the model's own norm and logit transform, float32."""
    logits: Tensor = F.linear(model.stack.tail_forward(hidden), weight, bias)
    transform = model.stack.transform
    assert transform is not None, "a fast readout knows its transform"
    return transform.apply(logits).float()


def _restricted_head(model: Model, sizes: ProbeSizes) -> Probe:
    """The margin within a short list of tokens, whose columns lie together in a copy of their own."""
    weight, bias = model.stack.head_weight, model.stack.head_bias
    assert weight is not None
    columns = weight[: sizes.shortlist].clone()
    offsets = None if bias is None else bias[: sizes.shortlist].clone()

    def probe(hidden: Tensor, before: Tensor) -> list[bool]:
        shares = _head_on(model, hidden, columns, offsets).softmax(-1)
        best = shares.topk(2, -1).values
        return _decide(best[..., 0] - best[..., 1])

    return probe


def _candidates(model: Model, sizes: ProbeSizes) -> Probe:
    """A small network on candidate tokens' logits, shares and change of shares (SpecEE, arXiv 2504.08850)."""
    weight, bias = model.stack.head_weight, model.stack.head_bias
    assert weight is not None
    transform = model.stack.transform
    assert transform is not None
    network = _two_layers(model, 3 * sizes.candidates, sizes.hidden)
    stride = max(1, weight.shape[0] // (sizes.candidates + 1))

    def probe(hidden: Tensor, before: Tensor) -> list[bool]:
        normed = model.stack.tail_forward(hidden)[..., -1, :]
        rows = torch.arange(sizes.candidates, device=hidden.device) * stride
        tokens = (rows + torch.arange(len(normed), device=hidden.device)[:, None]) % weight.shape[0]
        logits = torch.bmm(weight[tokens], normed.unsqueeze(-1)).squeeze(-1)
        logits = transform.apply(logits if bias is None else logits + bias[tokens]).float()
        shares = logits.softmax(-1)
        features = torch.cat([logits, shares, shares - 1.0 / sizes.candidates], -1)
        return _decide(network(features.to(normed.dtype)))

    return probe


def _cosine(hidden: Tensor, before: Tensor) -> list[bool]:
    return _decide(F.cosine_similarity(hidden, before, dim=-1))


def _classifier(model: Model) -> Probe:
    weight, bias = _random(model, 1, model.shape.hidden_size), _random(model, 1)
    return lambda hidden, before: _decide(F.linear(hidden, weight, bias).sigmoid())


def _network(model: Model, sizes: ProbeSizes) -> Probe:
    network = _two_layers(model, model.shape.hidden_size, sizes.hidden)
    return lambda hidden, before: _decide(network(hidden))


def _two_layers(model: Model, inputs: int, hidden_units: int) -> Callable[[Tensor], Tensor]:
    first, first_bias = _random(model, hidden_units, inputs), _random(model, hidden_units)
    second, second_bias = _random(model, 1, hidden_units), _random(model, 1)

    def network(values: Tensor) -> Tensor:
        return F.linear(F.linear(values, first, first_bias).relu(), second, second_bias).sigmoid()

    return network


def _lens(model: Model) -> Probe:
    """One affine map of the hidden state; its probe decides, so that no decision is timed here."""
    weight, bias = (
        _random(model, model.shape.hidden_size, model.shape.hidden_size),
        _random(model, model.shape.hidden_size),
    )
    return lambda hidden, before: F.linear(hidden, weight, bias)
