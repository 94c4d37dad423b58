"""How far float32 may lie from exact arithmetic: bounds from magnitudes and cancellation, for any processor.

A processor sums in an order of its own, with or without fused products, so two right answers differ. What
they have in common is the standard model of rounding (Higham, Accuracy and Stability of Numerical Algorithms,
2002, section 2.2): every operation is off by at most u = 2^-24 of its result. Its errors behave like
independent ones (Higham and Mary 2019, SIAM J. Sci. Comput. 41(5)): a sum of n terms a b is off by about
u sum |a b|, and by at most sqrt(n) times that where all of them have one sign.

Three steps follow, each tested by planted errors in `test_tracing_rounding.py`:

1. States and logits. Every module of the model is given the error of that model (for a product with weights
   u sum |w x|, else u |y|) at random, and what comes out is held against what came out without. That takes
   in whatever the model itself amplifies or cancels. `DEVIATIONS` standard deviations of it are the bound.
2. Facts. A bound on every logit becomes one on each fact by the fact's derivative (`fact_bounds`).
3. The facts' own sums over a vocabulary of V columns are off by sqrt(V) u of the sum of their terms' sizes.

The noise is drawn 64 times too large and scaled back, so that the model's own rounding does not show in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch

UNIT = 2.0**-24
"""Unit roundoff of float32."""

DEVIATIONS = 8.0
"""Standard deviations of the model of rounding that a bound allows: 4.5 are met once in 10^5 logits."""

TRIALS = 6
AMPLIFIED = 64.0

Array = np.ndarray


class Rounded(Protocol):
    """What has a transformers model: a model of offramp's, or its engine."""

    hf: Any


@contextmanager
def rounding_errors(model: Rounded, seed: int) -> Iterator[None]:
    """Every module's output gets an error of the size that float32 makes, AMPLIFIED times."""
    generator = torch.Generator().manual_seed(seed)

    def add(module: Any, arguments: Any, output: Any) -> Any:
        several = type(output) in (tuple, list)
        value = output[0] if several and len(output) else output
        if not torch.is_tensor(value) or not value.is_floating_point():
            return None
        noise = torch.randn(value.shape, generator=generator) * (AMPLIFIED * UNIT)
        noisy = value + noise.to(value.dtype) * torch.nan_to_num(_terms(module, arguments, value), 0, 0, 0)
        return type(output)((noisy, *output[1:])) if several else noisy

    handles = [
        module.register_forward_hook(add)
        for module in model.hf.modules()
        if not isinstance(module, torch.nn.Embedding)  # which looks up and computes nothing
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _terms(module: Any, arguments: Any, value: torch.Tensor) -> torch.Tensor:
    """Sum of the sizes of the terms of a module's output: sum |w x| of a product, else its own size."""
    weight = getattr(module, "weight", None)
    if isinstance(module, torch.nn.Linear):
        return torch.nn.functional.linear(arguments[0].abs(), weight.abs())
    if type(module).__name__ == "Conv1D":  # GPT-2's linear layer, which holds its weights transposed
        return torch.nn.functional.linear(arguments[0].abs(), weight.abs().t())
    return value.abs()


def spread(
    model: Rounded, compute: Callable[[], tuple[Array, ...]], trials: int = TRIALS
) -> tuple[Array, ...]:
    """Standard deviation of what `compute` makes of the model, by entry, when its modules round."""
    exact = compute()
    square = [np.zeros(part.shape) for part in exact]
    for seed in range(trials):
        with rounding_errors(model, seed):
            for total, part, noisy in zip(square, exact, compute(), strict=True):
                with np.errstate(invalid="ignore"):  # masked logits: -inf less -inf
                    total += np.nan_to_num(noisy - part, nan=0.0) ** 2
    return tuple(np.sqrt(total / trials) / AMPLIFIED for total in square)


def logit_bounds(deviation: Array) -> Array:
    """Largest error of any logit of a row, [exits, rows], from deviations [exits, rows, vocabulary].

    The column that is off most decides (with tied weights that of the input token, whose terms have one
    sign); where there are too few columns to tell, the rows of the same exit do.
    """
    rows = deviation.max(-1)
    return DEVIATIONS * np.maximum(rows, np.sqrt((deviation**2).mean((1, 2)))[:, None])


def state_bounds(deviation: Array) -> Array:
    """Largest error of a state's norm, [exits, rows], from deviations [exits, rows, features]."""
    return DEVIATIONS * np.linalg.norm(deviation, axis=-1)


def product_bounds(states: Array, weight: Array) -> Array:
    """Largest error of any logit of a row, [exits, rows], where states [exits, rows, features] are exact.

    weight: [vocabulary, features].
    """
    bound: Array = DEVIATIONS * UNIT * (np.abs(states) @ np.abs(weight).T).max(-1)
    return bound


# -- facts


def _log_softmax(z: Array) -> Array:
    shifted = z - z.max(-1, keepdims=True)
    value: Array = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return value


def _expected(p: Array, value: Array) -> Array:
    """sum p value over the vocabulary, 0 where p is 0."""
    total: Array = np.where(p > 0, p * value, 0.0).sum(-1)
    return total


def _unevenness(p: Array, value: Array) -> Array:
    """sum p |value - sum p value|: how much a mean under softmax(z) moves if every z does so by up to 1."""
    return _expected(p, np.abs(value - _expected(p, value)[..., None]))


def _sum_error(z: Array) -> Array:
    """Relative error of sum exp(z - max): of every exponential |z - max| + 1 units, and of their sum."""
    p = np.exp(_log_softmax(z))
    distance = _expected(p, z.max(-1, keepdims=True) - z)
    value: Array = DEVIATIONS * UNIT * (distance + 1 + np.sqrt(z.shape[-1]))
    return value


@np.errstate(divide="ignore", invalid="ignore")  # masked columns: log 0, and -inf less -inf
def fact_bounds(
    z: Array, error: Array, exact: Mapping[str, Array], gram: Mapping[str, Array] | None = None
) -> dict[str, Array]:
    """Bounds [rows, exits] of the facts that come from logits z [exits, rows, vocabulary].

    error: of any logit, [exits, rows]. exact: the facts themselves. gram: what `gram_bounds` allows the
    cosines besides.
    """
    log_p = _log_softmax(z)
    p = np.exp(log_p)
    sums = _sum_error(z)
    own_entropy = -_expected(p, log_p)
    probability = 2 * error + sums
    # d H = -sum p (log p + H) dz, and its sum of terms p log p.
    entropy = error * _unevenness(p, log_p) + sums * (1 + own_entropy)
    # d KL = sum (p - p_L) dz + sum p_L (log p_L - log p - KL) dz_L; max - sum p_L z is as large as z itself.
    divergent = error * np.abs(p - p[-1]).sum(-1) + 2 * error + sums
    divergent = (
        divergent + error[-1] * _unevenness(p[-1], log_p[-1] - log_p) + sums[-1] * (1 + own_entropy[-1])
    )
    ordered = np.sort(p, axis=-1)
    second = ordered[..., -2] if z.shape[-1] > 1 else 0.0
    bounds = {
        "max_prob": probability * ordered[..., -1],
        "margin": probability * (ordered[..., -1] + second),
        "entropy": entropy,
        "kl_to_final": divergent,
        "nll": 3 * error + sums + _rounded(exact["nll"].T),
        "final_logprob": 3 * error + sums + _rounded(exact["final_logprob"].T),
        **_cosine_bounds(z, error),
    }
    for name, more in (gram or {}).items():
        bounds[name] = bounds[name] + more
    return {name: value.T for name, value in bounds.items()}


def _rounded(value: Array) -> Array:
    """The error of a result that is rounded a few times."""
    bound: Array = DEVIATIONS * UNIT * np.abs(value)
    return bound


def _cosine_bounds(z: Array, error: Array) -> dict[str, Array]:
    """A vector off by d moves its cosine by d / norm at most: sqrt(V) errors of a logit, and its own sums."""
    known = ~np.isneginf(z[-1])
    raw = np.where(known, np.where(np.isneginf(z), 0.0, z), 0.0)
    count = known.sum(-1, keepdims=True)
    centred = np.where(known, raw - raw.sum(-1, keepdims=True) / count, 0.0)
    rows = z.shape[1]
    partner = np.roll(np.arange(rows), -(rows // 2)) if rows % 2 == 0 else np.roll(np.arange(rows), rows // 2)
    sums = DEVIATIONS * UNIT * np.sqrt(z.shape[-1])
    # Taking the mean away rounds at the size of the logits, not of what is left.
    size = np.sqrt(count[..., 0]) * (error + DEVIATIONS * UNIT * np.abs(raw).max(-1))

    def relative(values: Array) -> Array:
        norm = np.linalg.norm(values, axis=-1)
        # The squares of logits below 1e-19 leave float32's normal numbers: each is off by 2^-126, or gone.
        underflow = count[..., 0] * np.finfo(np.float32).tiny
        return np.divide(size * norm + underflow, norm**2, out=np.full_like(norm, 2.0), where=norm > 0)

    of_raw, of_centred = relative(raw), relative(centred)
    return {
        "logit_cosine": of_raw + of_raw[-1] + sums,
        "centred_logit_cosine": of_centred + of_centred[-1] + sums,
        "shuffled_logit_cosine": of_raw + of_raw[-1][partner] + sums,
    }


def gram_bounds(states: Array, weight: Array) -> dict[str, Array]:
    """What the cosines [exits, rows] may be off besides, where they come from x^T G y with G = W^T W.

    states: x as the head takes it, [exits, rows, features]; weight: float64 [vocabulary, features], its scale
    included. The product's terms |x|^T |G| |y| may be far larger than its value: of two columns with nearly
    equal logits nothing else is left of the centred ones.
    """
    mean = weight.mean(0)
    matrix = np.abs((weight - mean).T @ (weight - mean))
    size = np.sqrt(weight.shape[1]) * DEVIATIONS * UNIT
    columns = len(weight)
    partner = np.roll(np.arange(states.shape[1]), -(states.shape[1] // 2))
    if states.shape[1] % 2:
        partner = np.roll(np.arange(states.shape[1]), states.shape[1] // 2)

    def terms(x: Array, y: Array, *, raw: bool) -> Array:
        value = np.einsum("...i,ij,...j->...", np.abs(x), matrix, np.abs(y), optimize=True)
        if raw:
            value = value + columns * (np.abs(x) @ np.abs(mean)) * (np.abs(y) @ np.abs(mean))
        result: Array = value
        return result

    def bound(x: Array, y: Array, *, raw: bool) -> Array:
        columns_of = weight if raw else weight - mean
        left, right = (np.linalg.norm(values @ columns_of.T, axis=-1) for values in (x, y))
        with np.errstate(divide="ignore", invalid="ignore"):
            cross = terms(x, y, raw=raw) / (left * right)
            own = terms(x, x, raw=raw) / left**2 + terms(y, y, raw=raw) / right**2
        return np.nan_to_num(size * (cross + own / 2), nan=2.0, posinf=2.0)

    last = states[-1]
    return {
        "logit_cosine": bound(states, last, raw=True),
        "centred_logit_cosine": bound(states, last, raw=False),
        "shuffled_logit_cosine": bound(states, last[partner], raw=True),
    }


def state_fact_bounds(before: Array, after: Array, came: Array, left: Array) -> dict[str, Array]:
    """Bounds [rows, exits] of the facts of states [exits, rows, features] that are off by these norms."""
    sums = DEVIATIONS * UNIT * np.sqrt(before.shape[-1])
    norms = np.linalg.norm(before, axis=-1), np.linalg.norm(after, axis=-1)
    in_before, in_after = came / norms[0], left / norms[1]
    update = np.linalg.norm(after - before, axis=-1) / norms[0]
    return {
        "hidden_cosine_to_final": (in_after + in_after[-1] + sums).T,
        "hidden_cosine_to_previous": (in_before + in_after + sums).T,
        "update_norm": (in_before + left / norms[0] + update * (in_before + sums)).T,
    }


@np.errstate(divide="ignore", invalid="ignore")
def signal_bounds(z: Array, error: Array, shortlist: Sequence[int], top_k: int = 10) -> dict[str, Array]:
    """Bounds [rows, exits] of the facts on request that come from logits z [exits, rows, vocabulary]."""
    log_p = _log_softmax(z)
    p = np.exp(log_p)
    sums, own_entropy = _sum_error(z), -_expected(p, log_p)
    short = np.sort(np.exp(_log_softmax(z[..., list(shortlist)])), axis=-1)
    of_short = 2 * error + _sum_error(z[..., list(shortlist)])
    second = short[..., -2] if len(shortlist) > 1 else 0.0
    kl, js, overlap = (np.zeros(error.shape) for _ in range(3))
    for exit in range(1, len(z)):
        q, middle = p[exit - 1], np.log((p[exit - 1] + p[exit]) / 2)
        arithmetic = sums[exit - 1] * (1 + own_entropy[exit - 1]) + sums[exit] * (1 + own_entropy[exit])
        cross = sums[exit] + sums[exit - 1] * _expected(q, -log_p[exit])
        kl[exit] = error[exit] * np.abs(p[exit] - q).sum(-1) + arithmetic + cross
        kl[exit] += error[exit - 1] * _unevenness(q, log_p[exit - 1] - log_p[exit])
        js[exit] = arithmetic
        for one in (exit - 1, exit):
            js[exit] += error[one] * _unevenness(p[one], log_p[one] - middle) / 2
            overlap[exit] = np.maximum(overlap[exit], _unsure(z[one], error[one], top_k))
    bounds = {
        "logit_gap": 3 * error,
        "restricted_max_prob": of_short * short[..., -1],
        "restricted_margin": of_short * (short[..., -1] + second),
        "kl_to_previous": kl,
        "js_to_previous": js,
        "top_k_overlap": overlap,
    }
    return {name: value.T for name, value in bounds.items()}


@np.errstate(divide="ignore", invalid="ignore")
def bfloat16_bounds(z: Array, candidates: int, step: float = 2.0**-8) -> dict[str, Array]:
    """What facts [rows, exits] may be off besides, where only some best logits of a row are not rounded.

    The others are rounded to bfloat16, by `step` of each at most (2^-11 in float16). Which are best is itself
    decided by rounded ones, so only the first half is taken to be among them. A soft-cap moves no logit by
    more than that share of itself (x / cosh^2 x <= tanh x).
    """
    log_p = _log_softmax(z)
    p = np.exp(log_p)
    rest = np.where(z < -np.sort(-z, axis=-1)[..., candidates // 2 - 1, None], p, 0.0)
    moved = step * _expected(rest, np.abs(z))
    entropy = -_expected(p, log_p)
    best = p.max(-1)
    bounds = {
        "max_prob": moved * best,
        "margin": 2 * moved * best,
        "entropy": step * _expected(rest, np.abs(z) * np.abs(log_p + entropy[..., None])),
        "kl_to_final": moved + moved[-1],
        "nll": moved,
        "final_logprob": moved,
        "logit_cosine": np.full_like(moved, 2 * step),
    }
    return {name: value.T for name, value in bounds.items()}


def _unsure(z: Array, error: Array, top_k: int) -> Array:
    """Share of the k best columns that are not certain to be among them, [rows]."""
    count = min(top_k, z.shape[-1])
    ordered = -np.sort(-z, axis=-1)
    next_best = ordered[:, count : count + 1] if z.shape[-1] > count else np.full((len(z), 1), -np.inf)
    near = ordered[:, :count] - 2 * error[:, None] <= next_best
    # Equal logits are no doubt: the lower column comes first.
    unsure: Array = (near & (ordered[:, :count] > next_best)).mean(-1)
    return unsure


# -- comparisons


def assert_within(found: Array, exact: Array, bound: Array, name: str = "") -> None:
    """No error above its bound; what is not finite must be equal."""
    found, exact = np.asarray(found, dtype=np.float64), np.asarray(exact, dtype=np.float64)
    assert found.shape == exact.shape, name
    finite = np.isfinite(exact)
    np.testing.assert_array_equal(found[~finite], exact[~finite], err_msg=name)
    error = np.abs(found[finite] - exact[finite])
    bound = np.broadcast_to(bound, exact.shape)[finite]
    # A fact is kept in float32, so rounding it once more is always allowed.
    share = error / (bound + UNIT * np.abs(exact[finite]) + 1e-30)
    assert share.max(initial=0.0) <= 1, (
        f"{name}: {int((share > 1).sum())} of {share.size} are off, one of them {share.max():.3g} times the "
        f"bound ({error[share.argmax()]:.3g} against {bound[share.argmax()]:.3g})"
    )


def assert_best(found: Array, z: Array, error: Array, name: str = "") -> None:
    """Tokens found [rows, exits] have the largest logit z [exits, rows, vocabulary], but for rounding."""
    best = np.take_along_axis(z, found.T[..., None].astype(np.int64), -1)[..., 0]
    off = best < z.max(-1) - 2 * error
    assert not off.any(), f"{name}: {int(off.sum())} of {off.size} are not the best"


def assert_ranks(found: Array, z: Array, error: Array) -> None:
    """Ranks found [rows, exits] of the last exit's best token, counting what is surely or maybe ahead."""
    rows = np.arange(z.shape[1])
    target = z[-1].argmax(-1)
    ahead = z - z[:, rows, target][..., None]
    low, high = ((ahead > sign * 2 * error[..., None]).sum(-1).T for sign in (1, -1))
    assert np.all((found >= low) & (found <= np.maximum(high, 1))), "final_rank"
