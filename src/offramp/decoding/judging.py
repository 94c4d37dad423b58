"""The full model as a judge: one teacher-forced forward for sequences, and the quality of free answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from offramp.defaults import DRAWS, SEED
from offramp.errors import InputError
from offramp.heads.output_head import TILE
from offramp.kit.given import prompt_of
from offramp.models.model import Model
from offramp.models.stack import ExitStack
from offramp.policies.figures import FreeRunning
from offramp.scoring.estimate import DocumentBootstrap, Estimate, document_bootstrap

ROWS_AT_ONCE = 64
"""Positions whose logits are in memory together."""

TOLERANCE = {"float32": 2e-5, "bfloat16": 2.0**-6, "float16": 2.0**-9}
"""Of the largest logit: what a sequence's logits may differ by between its own forward and a shared one."""

Pair = tuple[Sequence[int], Sequence[int]]
"""A prompt and its answer, token ids."""


@dataclass(frozen=True)
class JudgedAnswer:
    """What the full model says of an answer, given the prompt and the answer's own earlier tokens."""

    chosen: NDArray[np.int64]
    """int64 [new], its most probable token in each place."""
    logprob: NDArray[np.float64]
    """float64 [new], of the answer's token, in nats."""
    gap: NDArray[np.float64]
    """float64 [new], largest logit less that of the answer's token."""
    largest: NDArray[np.float64]
    """float64 [new]."""


def judge(model: Model, prompt: Sequence[int], answer: Sequence[int]) -> JudgedAnswer:
    """Hold an answer, token ids, against the full model; logits and softmax in float32.

    Raises InputError for an empty prompt or answer, and if a logit is not finite where it is needed.
    """
    ids = _padded(model, [(prompt, answer)])
    with model.given([prompt]):
        states = last_states(model, ids)
    return _of_answer(model.stack, states, ids, len(prompt), answer)


class Judge:
    """The full model as a judge of several answers in one forward, where that is exact for its family.

    Rows are filled up on their right, which no earlier position can see. Whether a row's logits stay what
    they are alone is tried on the first rows of one length, and on the first that are filled up; where they
    do not, answers are judged one by one.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self._exact: dict[bool, bool] = {}

    def __call__(self, pairs: Sequence[Pair]) -> list[JudgedAnswer]:
        """Each answer after its prompt, as `judge` holds it. Raises as that does."""
        lengths = [len(prompt) + len(answer) for prompt, answer in pairs]
        filled = len(set(lengths)) > 1
        if len(pairs) > 1 and self._exact.get(filled, True):
            together = self._judge_together(pairs)
            if together is not None and filled not in self._exact:
                shortest = lengths.index(min(lengths))
                self._exact[filled] = self._same(together[shortest], judge(self.model, *pairs[shortest]))
            if together is not None and self._exact[filled]:
                return together
            self._exact[filled] = False
        return [judge(self.model, prompt, answer) for prompt, answer in pairs]

    def _judge_together(self, pairs: Sequence[Pair]) -> list[JudgedAnswer] | None:
        """All in one forward; None if the layers' outputs do not keep one row for each sequence."""
        ids, stack = _padded(self.model, pairs), self.model.stack
        with self.model.given([prompt for prompt, _ in pairs]):
            states = last_states(self.model, ids)
        if states.dim() != 3 or stack.position_axis != -2 or len(states) != len(pairs):
            return None
        return [
            _of_answer(stack, states[row : row + 1], ids[row : row + 1], len(prompt), answer)
            for row, (prompt, answer) in enumerate(pairs)
        ]

    def _same(self, together: JudgedAnswer, alone: JudgedAnswer) -> bool:
        tolerance = TOLERANCE[self.model.precision] * np.maximum(1.0, np.abs(alone.largest))
        return bool((np.abs(together.gap - alone.gap) <= tolerance).all())


def _padded(model: Model, pairs: Sequence[Pair]) -> Tensor:
    """Prompts and answers without their last token, each row filled up with its own last id."""
    if not all(prompt and answer for prompt, answer in pairs):
        raise InputError("a prompt and an answer need at least one token each", where="judging an answer")
    rows = [[*prompt, *answer[:-1]] for prompt, answer in pairs]
    longest = max(map(len, rows))
    ids = [row + row[-1:] * (longest - len(row)) for row in rows]
    return torch.tensor(ids, dtype=torch.long, device=model.stack.device)


def _of_answer(
    stack: ExitStack, states: Tensor, ids: Tensor, prompt: int, answer: Sequence[int]
) -> JudgedAnswer:
    """An answer held against one sequence's states after layer L; prompt: its tokens."""
    parts = []
    for start in range(0, len(answer), ROWS_AT_ONCE):
        rows = min(ROWS_AT_ONCE, len(answer) - start)
        place = prompt - 1 + start
        hidden = states.narrow(stack.position_axis, place, rows)
        logits = float_logits(stack, hidden, ids[:, place : place + rows])
        parts.append(_of_rows(logits, answer[start : start + rows], start))
    return JudgedAnswer(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def last_states(model: Model, ids: Tensor) -> Tensor:
    """The output of layer L of the full model, as the layer gives it, for ids int64 [batch, positions]."""
    kept: list[Tensor] = []

    def keep(index: int, before: Tensor, after: Tensor) -> None:
        kept[:] = [after]

    model.stack.capture(ids, keep)
    return kept[0]


@torch.no_grad()
def float_logits(stack: ExitStack, hidden: Tensor, ids: Tensor) -> Tensor:
    """The full model's logits, float32 [rows, vocabulary], of one sequence's states after layer L.

    A product that the model rounds to its own dtype is taken in float32, so that its NLL is no step function.
    """
    weight, bias, transform = stack.head_weight, stack.head_bias, stack.logit_scaling
    if stack.readout_kind != "fast" or weight is None or transform is None or weight.dtype == torch.float32:
        return stack.readout(hidden, ids)[0].float()
    normed = stack.tail_forward(hidden)[0].float()
    logits = torch.empty(len(normed), len(weight), dtype=torch.float32, device=normed.device)
    for start in range(0, len(weight), TILE):  # never the whole head in float32
        tile = slice(start, start + TILE)
        own_bias = None if bias is None else bias[tile].float()
        logits[:, tile] = F.linear(normed, weight[tile].float(), own_bias)
    return transform.apply(logits)


def _of_rows(logits: Tensor, tokens: Sequence[int], start: int) -> tuple[NDArray[np.generic], ...]:
    """The columns of `JudgedAnswer` for some rows of logits, float32 [rows, vocabulary]."""
    best, chosen = logits.max(-1)
    own = logits.gather(-1, torch.tensor(tokens, device=logits.device).unsqueeze(-1)).squeeze(-1)
    logprob = own - logits.logsumexp(-1)
    # One copy of all; token ids are exact in float32.
    columns = torch.stack([chosen.float(), logprob, best - own, best]).cpu().double().numpy()
    finite = np.isfinite(columns[1]) & np.isfinite(columns[3])
    if not finite.all():
        place = start + int(np.flatnonzero(~finite)[0])
        raise InputError(
            "the full model's logits of an answer are not finite",
            where=f"token {place + 1} of the answer",
            fix="load the model in float32, or leave this prompt out",
        )
    return (columns[0].astype(np.int64), *columns[1:])


TIE = 1e-4
"""Logits this close are equal: a block forward and one-token decoding differ by about 1e-6 in float32."""

Tokens = Sequence[int]
Values = NDArray[np.float64]
Judgements = dict[tuple[tuple[int, ...], tuple[int, ...]], JudgedAnswer]
"""By prompt and answer."""


def free_running(
    model: Model,
    prompts: Sequence[Tokens],
    answers: Sequence[Tokens],
    plain_answers: Sequence[Tokens],
    *,
    batch: int = 1,
    seed: int = SEED,
    known: Judgements | None = None,
) -> FreeRunning:
    """Judge generated answers, token ids without the prompt, by the full model on the same prefixes.

    plain_answers: the full model's own greedy answers to the same prompts. The end token belongs to an
    answer. Where a prefix is still the plain answer's, the full model's choice is the plain answer's next
    token: that is what it chose, token by token. After that its choice comes from one teacher-forced forward
    per answer; there, and where the two part, a token also counts as its choice if its logit is the largest
    but for `TIE` or one rounding step of its products, whichever is more: such ties fall either way with
    the order of the sums.
    Divergence, match: means over prompts; NLL: over all generated tokens; agreement: over those after the
    first of each answer, which comes with the prompt at full depth; without any it is 1. Intervals: 95 %
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
    diverged, same, agreeing, nll, plain_nll, new, plain_new, decided = sums
    resampled = document_bootstrap(len(new), draws=DRAWS, seed=seed)
    each = np.bincount(units).astype(np.float64)
    return FreeRunning(
        tokens_before_divergence=mean_of(resampled, diverged, each),
        sequence_match=mean_of(resampled, same, each),
        agreement=mean_of(resampled, agreeing, decided) if decided.any() else Estimate(1.0),
        nll=mean_of(resampled, nll, new),
        plain_nll=mean_of(resampled, plain_nll, plain_new),
        prompts=len(prompts),
        new_tokens=int(new.sum()),
    )


def agreement_of(
    model: Model,
    prompts: Sequence[Tokens],
    answers: Sequence[Tokens],
    plain_answers: Sequence[Tokens],
    *,
    seed: int = SEED,
) -> Estimate[float]:
    """`FreeRunning.agreement` alone, as `free_running` finds it: an answer that is the plain one takes no
    forward.

    Raises as `judge` does.
    """
    agreeing = []
    for prompt, answer, plain in zip(prompts, answers, plain_answers, strict=True):
        shared, choices = tokens_before_divergence(answer, plain), np.ones(len(answer), dtype=np.bool_)
        if shared < len(answer):
            choices = full_models_choices(judge(model, prompt, answer), shared, model.precision)
        agreeing.append(int(choices[1:].sum()))
    units = _units(prompts, 1)
    decided = np.bincount(units, weights=[len(answer) - 1 for answer in answers]).astype(np.float64)
    resampled = document_bootstrap(len(decided), draws=DRAWS, seed=seed)
    sums = np.bincount(units, weights=agreeing).astype(np.float64)
    return mean_of(resampled, sums, decided) if decided.any() else Estimate(1.0)


def _units(prompts: Sequence[Tokens], batch: int) -> NDArray[np.int64]:
    """Numbers from 0 of what is drawn together: int64 [prompts]."""
    unit = [place // batch for place in range(len(prompts))]
    first: dict[tuple[int, ...], int] = {}
    for place, prompt in enumerate(prompts):
        old, new = unit[place], first.setdefault(prompt_of(prompt), unit[place])
        unit = [new if number == old else number for number in unit]
        first = {key: new if number == old else number for key, number in first.items()}
    return np.unique(unit, return_inverse=True)[1].astype(np.int64)


def tokens_before_divergence(answer: Tokens, plain: Tokens) -> int:
    """Tokens up to the first that differs, or up to the end of the shorter answer."""
    pairs = zip(answer, plain, strict=False)
    shorter = min(len(answer), len(plain))
    return next(
        (number for number, (token, full_models) in enumerate(pairs) if token != full_models), shorter
    )


def full_models_choices(judged: JudgedAnswer, shared: int, dtype: str) -> NDArray[np.bool_]:
    """Which tokens of an answer are the full model's choice: bool [new].

    shared: length of the prefix that is the plain answer's, and so its choice.
    """
    rounding = torch.finfo(getattr(torch, dtype)).eps * np.abs(judged.largest)
    choices = judged.gap <= np.maximum(TIE, rounding)
    choices[:shared] = True
    return np.asarray(choices)


def _one(model: Model, known: Judgements, prompt: Tokens, answer: Tokens, plain: Tokens) -> tuple[float, ...]:
    """Sums of one prompt: divergence, match, agreeing tokens after the first, NLL of both answers, lengths of
    both, tokens after the first."""
    asked = prompt_of(prompt)
    for tokens in (answer, plain):
        key = (asked, tuple(tokens))
        if key not in known:
            known[key] = judge(model, prompt, tokens)
    judged, judged_plain = (known[asked, tuple(tokens)] for tokens in (answer, plain))
    shared = tokens_before_divergence(answer, plain)
    same = list(answer) == list(plain)
    agreeing = int(full_models_choices(judged, shared, model.precision)[1:].sum())
    nll, plain_nll = -judged.logprob.sum(), -judged_plain.logprob.sum()
    return shared, same, agreeing, nll, plain_nll, len(answer), len(plain), len(answer) - 1


def mean_of(resampled: DocumentBootstrap, sums: Values, counts: Values) -> Estimate[float]:
    """The mean of what was drawn together, with its interval: sums and counts, float64 [units].

    Draws in which there is nothing to count are left out.
    """
    with np.errstate(invalid="ignore"):
        mean = resampled.estimate(resampled.means(sums, counts))
    return replace(mean, no_interval=None)  # which would speak of documents: these are prompts
