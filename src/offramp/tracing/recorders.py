"""Facts recorded on request: from an exit's logits, their change since the last exit, and prompts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from offramp.defaults import CANDIDATES
from offramp.heads.at_work import (
    TOP_K,
    HeadsAtWork,
    candidate_exit,
    candidate_features,
    confidence_features,
    restricted_tokens,
)
from offramp.heads.output_head import Head
from offramp.heads.parts import Classifier
from offramp.heads.statistics import (
    PADDING_LIMIT,
    RowStatistics,
    eager_elements,
    jensen_shannon,
    kl_divergence,
    logit_gap,
    shared_share,
    short_softmax,
)
from offramp.models.devices import to_host
from offramp.tracing.request import Recording
from offramp.tracing.rows import FactTable, NonFinite, slices
from offramp.workloads.packing import Context

PREVIOUS_EXIT_SIGNALS = ("js_to_previous", "kl_to_previous", "top_k_overlap")

PROMPT_TOKENS = 32
"""Last tokens of a prompt whose entropy is averaged."""

Classifiers = Sequence[Classifier[Tensor]]
"""One an exit below L."""


@dataclass(frozen=True)
class ExitOutput:
    """Some rows of a table at one exit: its head, states as it takes them, its output, statistics of both."""

    index: int
    rows: slice
    head: Head
    states: Tensor
    output: Tensor
    statistics: RowStatistics


class FactRecorder(Protocol):
    """Fills columns of a table from readings.

    The exits below L of the same rows come one after another, ascending. Exit L comes before them, unless
    `compares_exits`: then it comes right after them, and every output is float32.
    """

    compares_exits: bool

    def record(self, table: FactTable, reading: ExitOutput) -> None:
        """Put the facts of one reading."""


class LogitGap:
    """`logit_gap`; infinite where there is no second token."""

    compares_exits = False

    def record(self, table: FactTable, reading: ExitOutput) -> None:
        """Put z1 - z2."""
        gap = logit_gap(reading.statistics.maximum, reading.statistics.second)
        table.put(reading.index, reading.rows, logit_gap=gap)


class Restricted:
    """`restricted_top1`, `restricted_max_prob`, `restricted_margin` of a softmax over some tokens.

    heads: of the exits, each once. tokens: int64 ids, ascending, so that the lowest of equals wins.
    """

    compares_exits = False

    def __init__(self, heads: Sequence[Head], tokens: Tensor) -> None:
        tokens = tokens.to(heads[0].device)
        self.tokens = tokens
        self._logits = {id(head): head.restricted(tokens) for head in heads}

    def record(self, table: FactTable, reading: ExitOutput) -> None:
        """Put the three facts."""
        softmax = short_softmax(self._logits[id(reading.head)](reading.states, reading.output))
        table.note_nonfinite(reading.index, reading.rows, torch.isfinite(softmax.maximum))
        table.put(
            reading.index,
            reading.rows,
            restricted_top1=self.tokens[softmax.place].int(),
            restricted_max_prob=softmax.max_prob,
            restricted_margin=softmax.margin,
        )


class Confidence:
    """`adainfer`: a classifier of p1 and p1 - p2; 1 at exit L."""

    compares_exits = False

    def __init__(self, classifiers: Classifiers) -> None:
        self._classifiers = classifiers

    def record(self, table: FactTable, reading: ExitOutput) -> None:
        """Put the probability, from facts that are in the table already."""
        index, rows = reading.index, reading.rows
        if index == table.final:
            table.put(index, rows, adainfer=1.0)
            return
        best, margin = (table.columns[name][rows, index] for name in ("max_prob", "margin"))
        table.put(index, rows, adainfer=self._classifiers[index](confidence_features(best, margin)))


class Candidates:
    """`candidate_score`: a classifier of a few candidate tokens' logits at an exit and at the candidate exit.

    The candidates are the best tokens of the candidate exit. The score is 0 up to there and 1 at exit L.
    """

    compares_exits = False

    def __init__(self, candidate_index: int, classifiers: Classifiers) -> None:
        self.candidate_index = candidate_index
        self._classifiers = classifiers
        self._columns: Tensor
        self._then: Tensor

    def record(self, table: FactTable, reading: ExitOutput) -> None:
        """Put the score; at the candidate exit, choose the candidates."""
        index, states, output = reading.index, reading.states, reading.output
        score: Tensor | float = 1.0 if index == table.final else 0.0
        if index == self.candidate_index:
            self._columns, self._then = reading.head.best_columns(states, output, CANDIDATES)
        elif self.candidate_index < index < table.final:
            now = reading.head.logits_at(states, output, self._columns)
            score = self._classifiers[index](candidate_features(now, self._then))
        table.put(index, reading.rows, candidate_score=score)


class PreviousExit:
    """`kl_to_previous`, `js_to_previous` and `top_k_overlap`, as far as asked for.

    Keeps the last exit's p of the same rows, called q here, in memory of the size of the logits buffer.
    """

    compares_exits = True

    def __init__(self, vocabulary_size: int, rows: int, signals: Sequence[str], device: torch.device) -> None:
        self.signals = frozenset(signals)
        self._diverges = bool(self.signals - {"top_k_overlap"})
        self._step = min(rows, max(1, eager_elements(device) // vocabulary_size))
        self._p = torch.empty(
            rows if self._diverges else 0, vocabulary_size, dtype=torch.float32, device=device
        )
        self._log_p = torch.empty(
            self._step if self._diverges else 0, vocabulary_size, dtype=torch.float32, device=device
        )
        self._scratch = torch.empty_like(self._log_p)
        self._entropy: Tensor
        self._best: Tensor

    def record(self, table: FactTable, reading: ExitOutput) -> None:
        """Put the facts of one reading and keep what the next exit is compared with."""
        if self._diverges:
            self._put_divergences(table, reading)
        if "top_k_overlap" in self.signals:
            best, _ = reading.head.best_columns(reading.states, reading.output, TOP_K)
            overlap: Tensor | float = 0.0
            if reading.index > 0:
                overlap = shared_share(best, self._best)
            self._best = best
            table.put(reading.index, reading.rows, top_k_overlap=overlap)

    def _put_divergences(self, table: FactTable, reading: ExitOutput) -> None:
        entropy = reading.statistics.entropy
        cross, negative = (torch.empty_like(entropy) for _ in range(2))
        for rows in slices(0, len(entropy), self._step):
            cross[rows], negative[rows] = self._sums(reading, rows)
        kl, js = torch.full_like(entropy, torch.inf), torch.full_like(entropy, math.log(2))
        if reading.index > 0:
            kl = kl_divergence(self._entropy, cross)
            js = jensen_shannon(negative, entropy, self._entropy)
            table.note_nonfinite(reading.index, reading.rows, torch.isfinite(kl + js))
        self._entropy = entropy
        divergences = {"kl_to_previous": kl, "js_to_previous": js}
        table.put(
            reading.index,
            reading.rows,
            **{name: divergences[name] for name in self.signals & divergences.keys()},
        )

    def _sums(self, reading: ExitOutput, rows: slice) -> tuple[Tensor, Tensor]:
        """sum q log p and sum (p + q) log (p + q) of a few rows; their p takes the place of q.

        There is no q at the first exit.
        """
        statistics, q = reading.statistics, self._p[rows]
        z = reading.head.transform(reading.output[rows, : reading.head.vocabulary_size])
        # The maximum goes first: subtracting the whole log partition at once would lose digits.
        log_p = torch.sub(z, statistics.maximum[rows, None], out=self._log_p[: len(z)])
        log_p.sub_(statistics.log_sum[rows, None]).clamp_(min=PADDING_LIMIT)  # 0 log 0 is 0, not NaN
        if reading.index == 0:
            torch.exp(log_p, out=q)
            nothing = torch.zeros_like(statistics.entropy[rows])
            return nothing, nothing
        cross = torch.linalg.vecdot(q, log_p)
        p = log_p.exp_()
        both = q.add_(p).clamp_(min=torch.finfo(q.dtype).tiny)
        negative = torch.linalg.vecdot(both, torch.log(both, out=self._scratch[: len(z)]))
        q.copy_(p)
        return cross, negative


def make_recorders(
    head: Head,
    recording: Recording,
    work: HeadsAtWork | None,
    exits: Sequence[int],
    rows: int,
    below: Sequence[Head] = (),
) -> tuple[FactRecorder, ...]:
    """The recorders of one head, or of one at L and others below.

    work: what gives facts at the exits, the last of which is L. rows: of one float32 output at most.
    """
    recorders: list[FactRecorder] = []
    if "logit_gap" in recording.signals:
        recorders.append(LogitGap())
    if "restricted" in recording.signals:
        tokens = restricted_tokens(None if work is None else work.heads, head.vocabulary_size)
        recorders.append(Restricted((head, *below), tokens))
    classifiers = () if work is None else work.heads.classifiers
    if work is not None and "adainfer" in classifiers:
        recorders.append(Confidence([work.classifiers["adainfer", exit] for exit in exits[:-1]]))
    candidate = None if work is None else candidate_exit(work.heads)
    if work is not None and candidate is not None:
        scores = [work.classifiers["candidate_score", exit] for exit in exits[:-1]]
        recorders.append(Candidates(exits.index(candidate), scores))
    compared = [name for name in PREVIOUS_EXIT_SIGNALS if name in recording.signals]
    if compared:
        recorders.append(PreviousExit(head.vocabulary_size, rows, compared, head.device))
    return tuple(recorders)


class PromptStates:
    """The last layer's states of the ends of prompts, kept while contexts run.

    nonfinite: where a prompt met a non-finite number first, by document, once `entropy` was asked for.
    """

    def __init__(self) -> None:
        self.nonfinite: dict[int, NonFinite] = {}
        self._contexts: list[Context] = []
        self._states: list[Tensor] = []

    def keep(self, contexts: Sequence[Context], states: Tensor) -> None:
        """Keep the prompts' last states of a batch [contexts, positions, features]."""
        for context, of_context in zip(contexts, states, strict=True):
            self._contexts.append(context)
            self._states.append(of_context[_first(context) : context.first_row].clone())

    def entropy(self, layer: int, head: Head, normed: Callable[[Tensor], Tensor]) -> dict[int, float]:
        """Mean entropy at exit L over each prompt's last tokens, nats, by document. layer: L."""
        together = torch.split(torch.cat(self._states), head.exact_rows)
        (per_token,) = to_host([torch.cat([_entropy(head, normed(some)) for some in together])])
        means = {}
        lengths = [len(states) for states in self._states]
        for context, entropy in zip(self._contexts, torch.split(per_token, lengths), strict=True):
            bad = np.flatnonzero(~np.isfinite(entropy.numpy()))
            if len(bad):
                self.nonfinite.setdefault(context.document, NonFinite(layer, _first(context) + int(bad[0])))
            means[context.document] = float(entropy.double().mean())
        return means


def _first(context: Context) -> int:
    return max(0, context.first_row - PROMPT_TOKENS)


def _entropy(head: Head, states: Tensor) -> Tensor:
    """Entropy in float32 accuracy: [rows], nats."""
    wanted = torch.zeros(len(states), 2, dtype=torch.long, device=states.device)
    return head.statistics(states, head.exact_output(states), wanted)[0].entropy.clamp(min=0)
