"""Quality of free-running answers: where they part from the full model's own, and what it thinks of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from offramp.decoding.measurement.results import FreeRunning, Interval
from offramp.decoding.quality.judging import Judged, judge
from offramp.errors import InputError
from offramp.models.model import Model
from offramp.scoring.estimate import DocumentBootstrap, document_bootstrap

DRAWS = 1000
TIE = 1e-4
"""Logits this close are equal: a block forward and one-token decoding differ by about 1e-6 in float32."""

Tokens = Sequence[int]
Values = NDArray[np.float64]
Judgements = dict[tuple[tuple[int, ...], tuple[int, ...]], Judged]
"""By prompt and answer."""


def free_running(
    model: Model,
    prompts: Sequence[Tokens],
    answers: Sequence[Tokens],
    plain_answers: Sequence[Tokens],
    *,
    batch: int = 1,
    seed: int = 0,
    known: Judgements | None = None,
) -> FreeRunning:
    """Judge generated answers, token ids without the prompt, by the full model on the same prefixes.

    plain_answers: the full model's own greedy answers to the same prompts. The end token belongs to an
    answer. Where a prefix is still the plain answer's, the full model's choice is the plain answer's next
    token: that is what it chose, token by token. After that its choice comes from one teacher-forced forward
    per answer; there, and where the two part, a token also counts as its choice if its logit is the largest
    but for `TIE` or one rounding step of the model's dtype, whichever is more: such ties fall either way with
    the order of the sums.
    Divergence, match: means over prompts; agreement, NLL: over all generated tokens. Intervals: 95 %
    bootstrap over prompts, absent under 20 of them. What depends on each other is drawn together: prompts of
    one batch, and a prompt that comes again.

    batch: so many prompts were decoded together, in this order. known: what the model said of answers before;
    new judgements are added.

    Raises InputError if the three lists differ in length or are empty, or if a prompt or an answer is empty.
    """
    if not len(prompts) == len(answers) == len(plain_answers) or not prompts:
        raise InputError(
            f"{len(prompts)} prompts, {len(answers)} answers and {len(plain_answers)} plain answers "
            "do not match",
            where="free-running quality",
            fix="give one answer and one plain answer to each of at least one prompt",
        )
    known = {} if known is None else known
    columns = [_one(model, known, *triple) for triple in zip(prompts, answers, plain_answers, strict=True)]
    units = _units(prompts, batch)
    by_figure = np.array(columns, dtype=np.float64).T
    sums = [np.bincount(units, weights=column).astype(np.float64) for column in by_figure]
    diverged, same, agreeing, nll, plain_nll, new, plain_new = sums
    resampled = document_bootstrap(len(new), draws=DRAWS, seed=seed)
    each = np.bincount(units).astype(np.float64)
    return FreeRunning(
        tokens_before_divergence=_mean(resampled, diverged, each),
        sequence_match=_mean(resampled, same, each),
        agreement=_mean(resampled, agreeing, new),
        nll=_mean(resampled, nll, new),
        plain_nll=_mean(resampled, plain_nll, plain_new),
        prompts=len(prompts),
        new_tokens=int(new.sum()),
    )


def _units(prompts: Sequence[Tokens], batch: int) -> NDArray[np.int64]:
    """Numbers from 0 of what is drawn together: int64 [prompts]."""
    unit = [place // batch for place in range(len(prompts))]
    first: dict[tuple[int, ...], int] = {}
    for place, prompt in enumerate(prompts):
        old, new = unit[place], first.setdefault(tuple(prompt), unit[place])
        unit = [new if one == old else one for one in unit]
        first = {key: new if one == old else one for key, one in first.items()}
    return np.unique(unit, return_inverse=True)[1].astype(np.int64)


def tokens_before_divergence(answer: Tokens, plain: Tokens) -> int:
    """Tokens up to the first that differs, or up to the end of the shorter answer."""
    pairs = zip(answer, plain, strict=False)
    shorter = min(len(answer), len(plain))
    return next((place for place, (one, other) in enumerate(pairs) if one != other), shorter)


def full_models_choices(judged: Judged, shared: int, dtype: str) -> NDArray[np.bool_]:
    """Which tokens of an answer are the full model's choice: bool [new].

    shared: length of the prefix that is the plain answer's, and so its choice.
    """
    rounding = torch.finfo(getattr(torch, dtype)).eps * np.abs(judged.largest)
    choices = judged.gap <= np.maximum(TIE, rounding)
    choices[:shared] = True
    return np.asarray(choices)


def _one(model: Model, known: Judgements, prompt: Tokens, answer: Tokens, plain: Tokens) -> tuple[float, ...]:
    """Sums of one prompt: divergence, match, agreeing tokens, NLL of both answers, lengths of both."""
    for tokens in (answer, plain):
        key = (tuple(prompt), tuple(tokens))
        if key not in known:
            known[key] = judge(model, prompt, tokens)
    judged, judged_plain = (known[tuple(prompt), tuple(tokens)] for tokens in (answer, plain))
    shared = tokens_before_divergence(answer, plain)
    same = list(answer) == list(plain)
    agreeing = full_models_choices(judged, shared, model.dtype).sum()
    nll, plain_nll = -judged.logprob.sum(), -judged_plain.logprob.sum()
    return shared, same, agreeing, nll, plain_nll, len(answer), len(plain)


def _mean(resampled: DocumentBootstrap, sums: Values, counts: Values) -> Interval:
    estimate = resampled.estimate(resampled.means(sums, counts))
    return Interval(float(resampled.means(sums, counts)[0]), estimate.low, estimate.high)
