"""The slow, plain reference of the facts: every logit of every exit in float64, and one formula per fact."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rounding import (
    DEVIATIONS,
    TRIALS,
    UNIT,
    assert_best,
    assert_ranks,
    assert_within,
    fact_bounds,
    gram_bounds,
    logit_bounds,
    signal_bounds,
    spread,
    state_bounds,
    state_fact_bounds,
)
from tracing_models import independent_readout

from offramp.models.model import Model
from offramp.tracing.facts import FACT_BY_NAME, FACTS
from offramp.tracing.trace import Trace

COSINES = (
    "logit_cosine",
    "centred_logit_cosine",
    "shuffled_logit_cosine",
    "hidden_cosine_to_final",
    "hidden_cosine_to_previous",
)


def facts_of_logits(z: np.ndarray, next_token: np.ndarray) -> dict[str, np.ndarray]:
    """Facts [rows, exits] of logits z, float64 [exits, rows, vocabulary]; partners are half the rows away."""
    finite = np.where(np.isneginf(z), 0.0, z)
    known = ~np.isneginf(z[-1])
    largest = z.max(-1, keepdims=True)
    log_p = z - largest - np.log(np.exp(z - largest).sum(-1, keepdims=True))
    p = np.exp(log_p)
    top = z.argmax(-1)
    exits, rows, vocabulary = z.shape
    row = np.arange(rows)
    ordered = np.sort(p, axis=-1)
    final_logit = z[:, row, top[-1]]
    ahead = (z > final_logit[..., None]).sum(-1)
    with np.errstate(invalid="ignore"):
        divergence = np.where(p[-1] > 0, p[-1] * (log_p[-1] - log_p), 0.0).sum(-1)
        plogp = np.where(p > 0, p * log_p, 0.0)
    centred = [
        np.where(
            known,
            finite[exit] - (finite[exit] * known).sum(-1, keepdims=True) / known.sum(-1, keepdims=True),
            0,
        )
        for exit in range(exits)
    ]
    partner = np.roll(row, -(rows // 2)) if rows % 2 == 0 else np.roll(row, rows // 2)
    result = {
        "top1": top,
        "max_prob": p.max(-1),
        "margin": ordered[..., -1] - (ordered[..., -2] if vocabulary > 1 else 0.0),
        "entropy": -plogp.sum(-1),
        "kl_to_final": divergence,
        "nll": -log_p[:, row, next_token],
        # Of equal logits only the exit's own top-1 counts as ahead.
        "final_rank": np.where(top == top[-1], 0, np.maximum(ahead, 1)),
        "final_logprob": log_p[:, row, top[-1]],
        "logit_cosine": _cosine(finite * known, (finite * known)[-1]),
        "centred_logit_cosine": _cosine(np.stack(centred), centred[-1]),
        "shuffled_logit_cosine": _cosine(finite * known[partner], (finite * known)[-1][partner]),
    }
    for name in ("logit_cosine", "centred_logit_cosine"):
        result[name][-1] = 1.0  # exit L is itself, even where its centred logits are all zero
    return {name: column.T for name, column in result.items()}


def _cosine(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(left, axis=-1) * np.linalg.norm(right, axis=-1)
    dot = (left * right).sum(-1)
    return np.divide(dot, norms, out=np.zeros_like(dot), where=norms > 0)


def facts_of_states(before: np.ndarray, after: np.ndarray) -> dict[str, np.ndarray]:
    """Facts [rows, exits] of hidden states before and after each layer, float64 [exits, rows, features]."""
    norm = np.linalg.norm(before, axis=-1)
    return {
        "hidden_cosine_to_final": _cosine(after, after[-1]).T,
        "hidden_cosine_to_previous": _cosine(before, after).T,
        "update_norm": (np.linalg.norm(after - before, axis=-1) / np.maximum(norm, 1e-12)).T,
    }


def states_of(model: Model, ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and outputs of every layer, [layers, positions, features], through hooks of our own."""
    axis = model.stack.position_axis
    seen: list[tuple[Any, Any]] = []

    def note(module: Any, arguments: Any, keywords: Any, output: Any) -> None:
        tensors = [value for value in (*arguments, *keywords.values()) if torch.is_tensor(value)]
        hidden = next(value for value in tensors if value.is_floating_point())
        out = output[0] if isinstance(output, (tuple, list)) else output
        seen.append(tuple(part.double().movedim(axis, 0).flatten(1).numpy() for part in (hidden, out)))

    handles = [
        layer.register_forward_hook(note, with_kwargs=True) for layer in dict.fromkeys(model.stack.layers)
    ]
    try:
        with torch.no_grad():
            model.hf(input_ids=torch.tensor([ids]), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return np.stack([before for before, _ in seen]), np.stack([after for _, after in seen])


def logits_of(model: Model, ids: list[int], exits: Sequence[int] | None = None) -> np.ndarray:
    """The model's own logits at every exit, float64 [exits, positions, vocabulary]."""
    with torch.no_grad():
        exits = [
            independent_readout(model.hf, model.stack.layers, torch.tensor([ids]), number)
            for number in exits or range(1, model.layers + 1)
        ]
    return torch.stack([logits.double().reshape(len(ids), -1) for logits in exits]).numpy()


@dataclass(frozen=True)
class Readings:
    """What a model says of some rows at some exits, the last of them L, and how far float32 may be from it.

    logits: float64 [exits, rows, vocabulary]; before, after: states [exits, rows, features]. error: of any
    logit, came, left: of a state's norm, [exits, rows] each. gram: what the cosines may be off besides.
    """

    logits: np.ndarray
    error: np.ndarray
    before: np.ndarray
    after: np.ndarray
    came: np.ndarray
    left: np.ndarray
    gram: Mapping[str, np.ndarray]

    def facts(self, following: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """The facts of every trace [rows, exits], and the bounds of those that are no whole numbers."""
        facts = facts_of_logits(self.logits, following)
        bounds = fact_bounds(self.logits, self.error, facts, self.gram)
        bounds |= state_fact_bounds(self.before, self.after, self.came, self.left)
        return facts | facts_of_states(self.before, self.after), bounds


def readings_of(
    model: Model,
    sequences: list[list[int]],
    exits: Sequence[int] | None = None,
    logits: Callable[[np.ndarray], np.ndarray] | None = None,
    seen: Callable[[np.ndarray], np.ndarray] | None = None,
    trials: int = TRIALS,
) -> Readings:
    """Readings of sequences of ids, whose last ids are next tokens only.

    logits: makes logits [exits, rows, vocabulary] of the outputs of all layers, by default the model's own.
    seen: makes of them what the model's own norm takes, if they do not go there as they are. trials: draws of
    rounding errors.
    """
    layers = [number - 1 for number in exits or range(1, model.layers + 1)]

    def read() -> tuple[np.ndarray, ...]:
        pairs = [states_of(model, ids[:-1]) for ids in sequences]
        before, after = (np.concatenate([pair[i] for pair in pairs], axis=1) for i in (0, 1))
        if logits is None:
            z = np.concatenate([logits_of(model, ids[:-1], exits) for ids in sequences], axis=1)
        else:
            z = logits(after)
        return z, before[layers], after[layers]

    z, before, after = read()
    of_logits, of_before, of_after = spread(model, read, trials)
    # The readout by a hand-made product has no module to round in.
    error = logit_bounds(of_logits) + DEVIATIONS * UNIT * np.abs(np.where(np.isfinite(z), z, 0)).max(-1)
    own_head = logits is None or seen is not None
    gram = gram_of(model, after if seen is None else seen(after)) if own_head else {}
    return Readings(z, error, before, after, state_bounds(of_before), state_bounds(of_after), gram)


def gram_of(model: Model, after: np.ndarray) -> dict[str, np.ndarray]:
    """What x^T G y may be off for a model with a linear head."""
    stack = model.stack
    if stack.readout_kind != "fast" or stack.head_weight is None or stack.logit_scaling is None:
        return {}
    if stack.head_weight.shape[1] != after.shape[-1]:  # several streams, which the tail brings together
        return {}
    bias = torch.zeros(len(stack.head_weight)) if stack.head_bias is None else stack.head_bias
    if stack.logit_scaling.kind == "softcap" or not torch.isfinite(bias).all():
        return {}
    with torch.no_grad():
        states = stack.tail_forward(torch.tensor(after).float()).double()
    scale = stack.logit_scaling.value if stack.logit_scaling.kind == "scale" else 1.0
    weight = torch.cat([stack.head_weight.double(), bias.double()[:, None]], dim=1) * scale
    states = torch.cat([states, torch.ones(*states.shape[:-1], 1)], dim=-1)
    return gram_bounds(states.numpy(), weight.numpy())


def assert_facts(found: Trace, readings: Readings, following: np.ndarray, but: Sequence[str] = ()) -> None:
    """The facts of every trace, but for some, are the naive ones, but for rounding."""
    expected, bounds = readings.facts(following)
    assert set(expected) == {fact.name for fact in FACTS}
    for fact in FACTS:
        column = found.fact(fact.name)
        assert column.dtype == fact.dtype
        if fact.name in bounds and fact.name not in but:
            assert_within(column, expected[fact.name], bounds[fact.name], fact.name)
    assert_best(found.top1, readings.logits, readings.error, "top1")
    assert_ranks(found.final_rank, readings.logits, readings.error)


def assert_signals(found: Trace, z: np.ndarray, error: np.ndarray, shortlist: Sequence[int]) -> None:
    """The facts on request are the naive ones of logits z [exits, rows, vocabulary], but for rounding.

    error: of any logit, [exits, rows].
    """
    bounds = signal_bounds(z, error, shortlist)
    for name, column in signals_of_logits(z, shortlist).items():
        if name in found.fact_names:
            assert found.fact(name).dtype == FACT_BY_NAME[name].dtype
            if name in bounds:
                assert_within(found.fact(name), column, bounds[name], name)
    places = np.searchsorted(shortlist, found.restricted_top1)
    assert np.array_equal(np.asarray(shortlist)[places], found.restricted_top1), "restricted_top1"
    assert_best(places, z[..., list(shortlist)], error, "restricted_top1")


def following_of(sequences: list[list[int]]) -> np.ndarray:
    """The observed next token of every row of `readings_of`."""
    return np.concatenate([np.array(ids[1:]) for ids in sequences])


def log_softmax(z: np.ndarray) -> np.ndarray:
    """Log probabilities of logits in float64."""
    largest = z.max(-1, keepdims=True)
    shifted = z - largest
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def signals_of_logits(z: np.ndarray, shortlist: Sequence[int], top_k: int = 10) -> dict[str, np.ndarray]:
    """Facts on request [rows, exits] of logits z, float64 [exits, rows, vocabulary]."""
    log_p = log_softmax(z)
    p = np.exp(log_p)
    ordered = np.sort(z, axis=-1)
    vocabulary = z.shape[-1]
    short = np.exp(log_softmax(z[..., shortlist]))
    short_ordered = np.sort(short, axis=-1)
    single = len(shortlist) == 1
    # A stable sort keeps the lower of equal ids first.
    best = np.argsort(-z, axis=-1, kind="stable")[..., : min(top_k, vocabulary)]
    kl, js, overlap = (np.empty(z.shape[:2]) for _ in range(3))
    kl[0], js[0], overlap[0] = np.inf, np.log(2), 0
    for exit in range(1, len(z)):
        kl[exit] = _divergence(p[exit - 1], p[exit])
        middle = (p[exit - 1] + p[exit]) / 2
        js[exit] = (_divergence(p[exit - 1], middle) + _divergence(p[exit], middle)) / 2
        pairs = zip(best[exit - 1], best[exit], strict=True)
        overlap[exit] = [len(set(then) & set(now)) / len(now) for then, now in pairs]
    result = {
        "logit_gap": ordered[..., -1] - ordered[..., -2] if vocabulary > 1 else np.full(z.shape[:2], np.inf),
        "restricted_top1": np.asarray(shortlist)[z[..., shortlist].argmax(-1)],
        "restricted_max_prob": short.max(-1),
        "restricted_margin": short_ordered[..., -1] - (0.0 if single else short_ordered[..., -2]),
        "kl_to_previous": kl,
        "js_to_previous": js,
        "top_k_overlap": overlap,
    }
    return {name: column.T for name, column in result.items()}


def _divergence(q: np.ndarray, p: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(q > 0, q * (np.log(q) - np.log(p)), 0.0).sum(-1)
