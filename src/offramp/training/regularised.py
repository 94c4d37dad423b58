"""The kind `regularised`: the model's own weights, trained so that exits say early what it says at the end.

LayerSkip's early-exit loss and layer dropout (arXiv 2404.16710, section 4.1), through the model's own norm
and head; tokens further ahead, as multi-token prediction has it (arXiv 2404.19737, section 2); and
KL(original model || trained one) at full depth, which keeps what it says (arXiv 1503.02531, section 2).
What comes of it is a model folder, loaded as any other.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from offramp.errors import InputError
from offramp.heads.precision import exact_sums
from offramp.heads.trained_model import trained_on
from offramp.kit.numbers import shown_size
from offramp.models.model import Model
from offramp.models.process import available_memory
from offramp.models.stack import ExitStack
from offramp.scoring.documents import observed_size
from offramp.tracing.fitting.fitting_documents import seen_by_all
from offramp.tracing.rows import slices
from offramp.training.changed_weights import ChangedWeights, read_out, run_layers
from offramp.training.divergence import SHOWN_FLOOR, Target, TrainingHead, divergence, leaving_shares
from offramp.training.exit_loss_weights import exit_weights
from offramp.training.folder import require_room, write_model
from offramp.training.job import Job, KeptStates, Prepared, first_row, row_count, sides
from offramp.training.loop import HeadProblem, LossOf, Overhead, Parameters, Progress
from offramp.training.recipe import Recipe
from offramp.training.record import Evaluation, Left, ReadRows
from offramp.workloads.packing import Context
from offramp.workloads.shared_text import write_sketch

EVALUATED_TOKENS = 1024
"""Held-out tokens that figures are taken from while it trains."""

AHEAD_SHARE = 0.3
"""Of tokens behind the next in the loss of an exit, as in arXiv 2412.19437 (section 4.2)."""

AHEAD = "ahead"


@dataclass(frozen=True)
class TrainingBatch:
    """What a step reads. places: of sequences to train on. left_out: layers of each. weights: of the loss of
    each exit that it looks at, L last."""

    places: tuple[int, ...]
    left_out: tuple[frozenset[int], ...]
    weights: dict[int, float]


class RegularisedModel(HeadProblem):
    """A model as it is trained to exit: an `offramp.training.loop.Problem` of one part, its weights.

    Its loss is over all tokens: one that it does not look at might come to be likely. fit, held_out:
    contexts. Sequences are run one by one, so that a layer is left out for each by itself, and nothing is
    filled up.
    """

    def __init__(
        self, model: Model, recipe: Recipe, fit: Sequence[Context], held_out: Sequence[Context]
    ) -> None:
        assert recipe.regularisation is not None, "a recipe of this kind"
        self.model, self.recipe, self.asked = model, recipe, recipe.regularisation
        self.weights = ChangedWeights.of(model, self.asked.lora)
        self.fit = fit
        self.held_out = HeldOutModel(self.weights, recipe.at, held_out)
        self._original = original_states(model, fit)
        self._rows = np.array(list(map(row_count, fit)))

    def initial(self) -> list[dict[str, Tensor]]:
        """Parameters that leave the model as it is, and layers that look further ahead: the identity."""
        size = self.model.shape.hidden_size
        further = {
            f"{AHEAD}.{exit}.{tokens}": torch.zeros(size, size)
            for exit in self.recipe.at
            for tokens in range(2, self.asked.ahead + 1)
        }
        return [self.weights.initial(self.recipe.seed) | further]

    def batch(self, step: int, steps: int) -> TrainingBatch:
        """Sequences of the recipe's positions at most, or one; which layers each goes without; exits."""
        generator = np.random.default_rng((self.recipe.seed, step))
        order = generator.permutation(len(self.fit))
        count = max(1, int((np.cumsum(self._rows[order]) <= self.recipe.batch).sum()))
        places = tuple(order[:count].tolist())
        layers = self.model.layers
        dropped = generator.random((len(places), layers)) < self.asked.dropout(layers, step, steps)
        return TrainingBatch(
            places,
            tuple(frozenset((np.flatnonzero(row) + 1).tolist()) for row in dropped),
            self.asked.weights(self.recipe.at, layers, step, steps),
        )

    def losses_of(self, step: int, steps: int, head: TrainingHead) -> LossOf:
        """The loss of a step's sequences. head: of the original model."""
        batch = self.batch(step, steps)
        final = torch.cat([self._original.of(place)[0] for place in batch.places])
        target = head.target(final.to(head.weight.device).float())
        halved = head.precision == torch.bfloat16

        def loss_of(place: int, parameters: Parameters) -> Tensor:
            values = self.weights.values(parameters)
            with torch.autocast(self.model.stack.device.type, torch.bfloat16, enabled=halved):
                return self.weights.run(values, lambda: self._loss(batch, target, parameters))

        return loss_of

    def _loss(self, batch: TrainingBatch, target: Target, parameters: Parameters) -> Tensor:
        """With the trained weights in their places."""
        stack, layers = self.model.stack, self.model.layers
        contexts = [self.fit[place] for place in batch.places]
        states = self._states(batch, contexts)
        total = torch.zeros((), device=stack.head_device)
        for exit, weight in batch.weights.items():
            logits = read_out(stack, states[exit])
            of_text = self.asked.targets == "text"
            loss = cross_entropy(logits, contexts, 1) if of_text else divergence(logits, target)
            if exit < layers and self.asked.ahead > 1:
                loss = loss + AHEAD_SHARE * self._further(exit, states[exit], contexts, parameters)
            total = total + weight * loss
            if exit == layers and self.asked.keep:
                total = total + self.asked.keep * divergence(logits, target)
        return total

    def _states(self, batch: TrainingBatch, contexts: Sequence[Context]) -> dict[int, Tensor]:
        """States [rows of all sequences, hidden] at the step's exits and at L."""
        found = [
            run_layers(self.model.stack, torch.tensor(context.ids), batch.weights, left_out)
            for context, left_out in zip(contexts, batch.left_out, strict=True)
        ]
        return {
            exit: torch.cat(
                [part[exit][first_row(context) :] for part, context in zip(found, contexts, strict=True)]
            )
            for exit in batch.weights
        }

    def _further(
        self, exit: int, states: Tensor, contexts: Sequence[Context], parameters: Parameters
    ) -> Tensor:
        """Mean cross entropy of the tokens behind the next, each through a linear layer of its own."""
        found = []
        for tokens in range(2, self.asked.ahead + 1):
            change = parameters[f"{AHEAD}.{exit}.{tokens}"]
            moved = states + F.linear(states, change.to(states.dtype))
            found.append(cross_entropy(read_out(self.model.stack, moved), contexts, tokens))
        return torch.stack(found).mean()

    # -- held-out text

    @torch.no_grad()
    def evaluate(self, parts: Sequence[Parameters]) -> list[Evaluation]:
        """Every exit and L as trained, on some of the held-out text."""
        return self.held_out.evaluate(self.weights.values(parts[0]), EVALUATED_TOKENS)

    def judged(self, evaluations: Sequence[Evaluation]) -> list[float]:
        """The loss of held-out text, of every exit at once and without layers ahead, no layer left out."""
        weights = exit_weights(self.recipe.at, self.model.layers, self.asked.exit_scale).values()
        of_text = self.asked.targets == "text"
        terms = [
            weight * (evaluation.nll or 0.0 if of_text else evaluation.loss)
            for weight, evaluation in zip(weights, evaluations, strict=True)
        ]
        return [sum(terms) + self.asked.keep * evaluations[-1].loss]

    def in_words(self, evaluations: Sequence[Evaluation]) -> str:
        """Of the exits one after the other, and of the full depth."""
        agreements = " / ".join(f"{evaluation.reference_agreement:.2f}" for evaluation in evaluations[:-1])
        leaving = " / ".join(
            f"{100 * evaluation.leaving[SHOWN_FLOOR]:.0f}" for evaluation in evaluations[:-1]
        )
        last = evaluations[-1]
        return (
            f"exits say what the original says: {agreements}; full depth {last.reference_agreement:.3f} "
            f"(KL {last.loss:.3f}); {leaving} % leave at 95 %"
        )


UNKNOWN = -100
"""In the place of a token behind the last one that is known."""


def original_states(model: Model, contexts: Sequence[Context]) -> KeptStates:
    """What the original model's last layer gives of some sequences: of each of their rows [rows, hidden].

    Kept are states and no logits: of `smollm2` 2.3 kB a token instead of 197 kB, and the head that makes the
    ones of the other takes a fifth of what the layers take.
    """
    last = model.layers

    @torch.no_grad()
    def states(place: int) -> tuple[Tensor]:
        context = contexts[place]
        found = run_layers(model.stack, torch.tensor(context.ids), (last,))
        return (found[last][first_row(context) :].clone(),)

    return KeptStates(states)


def tokens_ahead(context: Context, ahead: int) -> list[int]:
    """Of every row the token so many places further on, UNKNOWN behind the last."""
    known = [*context.ids, context.next_token]
    rows = range(first_row(context), len(context.ids))
    return [known[row + ahead] if row + ahead < len(known) else UNKNOWN for row in rows]


def cross_entropy(logits: Tensor, contexts: Sequence[Context], ahead: int) -> Tensor:
    """Mean over the rows whose token is known, nats, a scalar; 0 if there is none.

    logits: float32 [rows of all contexts, vocabulary]. ahead: 1 for the next token.
    """
    tokens = torch.tensor([token for context in contexts for token in tokens_ahead(context, ahead)])
    known = max(1, int((tokens != UNKNOWN).sum()))
    total = F.cross_entropy(logits, tokens.to(logits.device), ignore_index=UNKNOWN, reduction="sum")
    return total / known


READ_ROWS = 128
"""Rows read out at a time."""


class _Read(NamedTuple):
    """Of some rows, by exit, L last: [exits, rows]. divergence: KL(original || exit), nats. nll: of the
    observed token. confidence: the largest probability. original: the original model's best token, in each
    row the same."""

    divergence: Tensor
    top1: Tensor
    nll: Tensor
    confidence: Tensor
    original: Tensor


class HeldOutModel:
    """Held-out sequences, read by the exits of a model with its trained weights, and by the original."""

    def __init__(self, weights: ChangedWeights, exits: Sequence[int], contexts: Sequence[Context]) -> None:
        self.weights, self.contexts = weights, contexts
        self.model: Model = weights.model
        self.exits = (*exits, self.model.layers)
        self._original = original_states(self.model, contexts)

    @property
    def tokens(self) -> int:
        """Rows of all sequences."""
        return sum(map(row_count, self.contexts))

    @torch.no_grad()
    @exact_sums()
    def evaluate(self, values: Mapping[str, Tensor], tokens: int) -> list[Evaluation]:
        """Every exit and L on so many rows at least, if there are, no layer left out.

        values: the trained weights.
        """
        places = self._places(tokens)
        read = [rows for place in places for rows in self._read(values, place)]
        together = _Read(*(torch.cat(column, 1) for column in zip(*read, strict=True)))
        return _evaluations(together, sum(self._bytes[place] for place in places))

    def _places(self, tokens: int) -> list[int]:
        """Sequences of all documents, always the same ones, until they have so many rows."""
        order = np.random.default_rng(0).permutation(len(self.contexts))
        before = np.cumsum([0, *(row_count(self.contexts[place]) for place in order)])[:-1]
        return sorted(order[before < tokens].tolist())

    @functools.cached_property
    def _bytes(self) -> list[int]:
        """Of the text that each sequence's rows predict."""
        decode = functools.partial(self.model.decode, special=False)
        return [
            observed_size(decode, context.ids[first_row(context)], tokens_ahead(context, 1)).bytes
            for context in self.contexts
        ]

    def _read(self, values: Mapping[str, Tensor], place: int) -> list[_Read]:
        """One sequence, some rows at a time."""
        stack, context = self.model.stack, self.contexts[place]
        first, original = first_row(context), self._original.of(place)[0]
        observed = torch.tensor(tokens_ahead(context, 1), device=stack.head_device)
        ids = torch.tensor(context.ids)
        states = self.weights.run(values, lambda: run_layers(stack, ids, self.exits))
        found = []
        for rows in slices(0, len(original), READ_ROWS):
            log_p = read_out(stack, original[rows]).log_softmax(-1)
            some = [states[exit][first:][rows] for exit in self.exits]
            log_q = self.weights.run(values, functools.partial(_read_all, stack, some))
            found.append(_compared(log_p, log_q, observed[rows]))
        return found


def _read_all(stack: ExitStack, states: Sequence[Tensor]) -> list[Tensor]:
    return [read_out(stack, rows).log_softmax(-1) for rows in states]


def _compared(log_p: Tensor, by_exit: Sequence[Tensor], observed: Tensor) -> _Read:
    """log_p, by_exit: [rows, vocabulary], the original's and each exit's. observed: int64 [rows]."""
    p, best = log_p.exp(), log_p.argmax(-1)
    columns: list[tuple[Tensor, ...]] = []
    for log_q in by_exit:
        largest, top1 = log_q.max(-1)
        divergence = torch.linalg.vecdot(p, log_p - log_q)
        nll = -log_q.gather(1, observed[:, None])[:, 0]
        columns.append((divergence, top1, nll, largest.exp(), best))
    return _Read(*(torch.stack(column).cpu() for column in zip(*columns, strict=True)))


def _evaluations(read: _Read, size: int) -> list[Evaluation]:
    """Of each exit, L last. size: bytes of the observed text."""
    divergence, nll = (values.double().numpy() for values in (read.divergence, read.nll))
    right = (read.top1 == read.original).numpy()
    own = (read.top1 == read.top1[-1]).numpy()
    last = len(right) - 1
    return [
        Evaluation(
            loss=float(divergence[place].mean()),
            agreement=float(own[place].mean()),
            leaving=()
            if place == last
            else leaving_shares(read.confidence[place].numpy(), right[place], stays=right[last]),
            reference_agreement=float(right[place].mean()),
            nll=float(nll[place].mean()),
            bits_per_byte=float(nll[place].sum()) / math.log(2.0) / size if size else None,
        )
        for place in range(len(right))
    ]


ALL_EVALUATED = 4096
"""Held-out tokens of the figures before and after."""

CHECKPOINT_COPIES, MEMORY_COPIES = 8, 11
"""Of what is trained: two checkpoints (weights, two moments, the best), the next beside the last; in memory
these, their gradients, the trained weights with theirs, and a pilot's copies."""


def prepare_model(job: Job) -> Prepared:
    """The model's own weights; a model comes of it."""
    model = job.model
    began = time.perf_counter()
    rows = job.plan()
    fit, held_out = sides(rows)
    problem = RegularisedModel(model, job.recipe, fit, held_out)
    _require_enough(job, problem)
    first = trained_on(model)  # of a model that was trained before
    documents, texts = seen_by_all((first.documents, first.texts), (rows.ids, rows.texts))

    @torch.no_grad()
    def finish(progress: Progress) -> tuple[None, Left]:
        """How it says now what it said, and its folder."""
        values = problem.weights.values(progress.weights[0].best)
        before, after = (
            tuple(problem.held_out.evaluate(weights, ALL_EVALUATED))
            for weights in (problem.weights.weights, values)
        )
        return None, Left(
            heads=write_model(model, values, job.folder),
            before=before,
            trained=after,
            documents=documents,
            texts=tuple(map(write_sketch, texts or ())),
        )

    return Prepared(
        problem,
        rows,
        layers=job.recipe.at,
        reading=rows.answering,
        beside=Overhead(time.perf_counter() - began, evaluations=2 * ALL_EVALUATED / EVALUATED_TOKENS),
        counted=ReadRows.of(rows, sum(map(row_count, fit)), problem.held_out.tokens),
        finish=finish,
    )


def _require_enough(job: Job, problem: RegularisedModel) -> None:
    """Refuse too little text, disk or memory before anything is trained. Raises InputError."""
    rows, batch = sum(map(row_count, problem.fit)), job.recipe.batch
    if rows < batch:
        raise InputError(
            f"there are {rows:,} tokens to train on, beside the half of the text left for tuning and "
            f"documents held out; one step takes {batch:,}",
            where="workloads= (--workload)",
            fix="give more text or raise --tokens",
        )
    trained = problem.weights.parameter_bytes
    stored = sum(weight.nbytes for weight in job.model.hf.parameters())
    fix = "train a low rank instead of all weights (--lora 16)"
    needed = CHECKPOINT_COPIES * trained + stored
    require_room(job.folder, needed, "the trained model and its checkpoint", fix)
    free = available_memory()
    if MEMORY_COPIES * trained > free:
        raise InputError(
            f"training {shown_size(trained)} of weights takes {shown_size(MEMORY_COPIES * trained)} of "
            f"memory, and {shown_size(free)} are free",
            where=job.model.name,
            fix=fix,
        )
