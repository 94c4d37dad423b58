"""The kinds `lens` and `block`: how exits are read, trained on cached states.

A lens begins in closed form (see `offramp.tracing.fitting.ridge`), a block as a network behind one that gives
back what it is given. How many tokens are read in a training's minutes is learned from the first of them.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offramp.defaults import TRAINING_ROWS
from offramp.errors import InputError
from offramp.heads.exit_heads import ExitHeads
from offramp.heads.parts import ExitReading, GatedNetwork, Lens, Weights, stacked
from offramp.models.devices import float64_device, synchronise
from offramp.models.model import Model
from offramp.tracing.fitting.fit import CLASSIFIER_TOKENS, TrainedReading, complete_heads
from offramp.tracing.fitting.fitting_documents import FittingRows, plan_rows, split_documents, without_text_of
from offramp.tracing.fitting.fitting_inputs import captured_states
from offramp.tracing.fitting.maps import AUTO, fitting_memory, mapped_layers
from offramp.tracing.fitting.ridge import ExitSums, lens_sums, solve_lens
from offramp.tracing.progress import say, token_bar
from offramp.tracing.rows import slices
from offramp.tracing.states import PROCESSOR
from offramp.training.divergence import SHOWN_FLOOR, Evaluator, Read, TrainingHead, frequent_targets
from offramp.training.folder import STATES
from offramp.training.job import Job, Prepared
from offramp.training.loop import HeadProblem, LossOf, Overhead, Parameters, Progress, batch_rows, under
from offramp.training.recipe import Recipe
from offramp.training.record import Evaluation, Left, ReadRows
from offramp.training.request import Precision
from offramp.training.states import (
    CachedStates,
    StatesPlan,
    read_states,
    require_enough,
    require_planned,
    tokens_read,
    write_states,
)
from offramp.workloads.packing import Context

JUDGING_SHARE = 0.2
"""Share of the documents that the classifiers get; training does not see them."""

PILOT_ANSWERS = 2048
"""Tokens of texts that the model writes itself, whose pace is learned on the first of them."""

FIGURES = 3
"""Evaluations of all held-out rows at the end: without heads, as training started, as it ended."""

EVALUATED_ROWS = 1024
"""Held-out rows that are looked at while it trains."""

SAMPLED_TARGETS = 4096
"""Rows that the vocabulary of the loss is chosen by."""

PILOT_TOKENS = 512
"""Read to learn the pace, at least."""
STEP_TOKENS = 512
"""Tokens are cut to a multiple of so many."""
FEWEST_TOKENS = 8 * TRAINING_ROWS
"""Of which something can be learned."""
READING_SHARE = 0.5
"""Of the minutes, that reading may take, and what is fitted on what was read; the rest is for steps."""
SUMMED, SOLVED_LAYER, SOLVED_EXIT = 1.5, 12.0, 45.0
"""Of K,V maps, in float64 products of hidden x hidden: sums of hidden tokens and solving, of an exit and a
deeper layer, and solving of an exit besides. Measured on smollm2 at 1 to 29 exits."""
READ_OUT, FITTED = 2.0, 0.15
"""At each exit of a token for classifiers: products with the head, and fitting, in tokens for states."""

PILOT_PRODUCTS = 6

EPSILON = 1e-6
"""Under the root of a block's norm."""


@dataclass(frozen=True)
class RidgeStart:
    """From where an exit begins: its lens in closed form, and how its states are spread."""

    weight: NDArray[np.float32]
    """[hidden, hidden], rows are outputs."""
    bias: NDArray[np.float32]
    """[hidden]"""
    mean: NDArray[np.float64]
    """Of its states, [hidden]."""
    covariance: NDArray[np.float64]
    """[hidden, hidden]"""


def initial_lens(start: RidgeStart, rank: int = 0) -> dict[str, Tensor]:
    """A lens before the first step. rank: of its change of the state; 0: whole.

    In low rank it is the one that differs least from the whole one on states as they are spread: with C =
    M S^(1/2), M the whole lens less the identity and S the covariance, M is projected on the first left
    singular vectors of C (reduced-rank regression: Izenman, "Reduced-Rank Regression for the Multivariate
    Linear Model", Journal of Multivariate Analysis 5, 1975, section 2). Both factors are of one size, so that
    a rate moves them alike.
    """
    if not rank:
        return {"weight": torch.from_numpy(start.weight), "bias": torch.from_numpy(start.bias)}
    change = start.weight.astype(np.float64) - np.eye(len(start.bias))
    variances, directions = np.linalg.eigh(start.covariance)
    spread = change @ directions * np.sqrt(variances.clip(min=0.0))
    outward = np.linalg.svd(spread, full_matrices=False)[0][:, :rank]
    inward = outward.T @ change
    bias = start.bias + (change - outward @ inward) @ start.mean
    sizes = np.sqrt(np.linalg.norm(inward, axis=1).clip(min=np.finfo(np.float64).tiny))
    factors = {"inward": inward / sizes[:, None], "outward": outward * sizes, "bias": bias}
    return {name: torch.from_numpy(factor.astype(np.float32)) for name, factor in factors.items()}


def initial_network(hidden: int, units: int, generator: torch.Generator) -> dict[str, Tensor]:
    """A network that gives back what it is given: `down` lets nothing through, but its gradient is not 0."""

    def random() -> Tensor:
        return torch.randn(units, hidden, generator=generator) / math.sqrt(hidden)

    return {
        "norm": torch.ones(hidden),
        "gate": random(),
        "up": random(),
        "down": torch.zeros(hidden, units),
    }


def joined(exits: Sequence[Parameters], network: Parameters) -> dict[str, Tensor]:
    """Lenses of several exits and the network that all share, as one: "0.bias", "1.bias", ..., "gate"."""
    lenses = {f"{place}.{name}": tensor for place, lens in enumerate(exits) for name, tensor in lens.items()}
    return {**lenses, **network}


def exits_of(shared: Parameters, exits: int) -> list[dict[str, Tensor]]:
    """Each exit's parameters out of those that `joined` gave."""
    network = {name: tensor for name, tensor in shared.items() if "." not in name}
    return [under(f"{place}.", shared) | network for place in range(exits)]


def prepared(parameters: Parameters) -> ExitReading[Tensor]:
    """What computes with the parameters of one exit, differentiable."""
    of_lens: Any = {name: tensor for name, tensor in parameters.items() if name in Lens.AXES}
    lens = Lens[Tensor](**of_lens)
    if "gate" not in parameters:
        return ExitReading(lens)
    network: Any = {name: parameters[name] for name in GatedNetwork.AXES}
    return ExitReading(lens, GatedNetwork[Tensor](**network, epsilon=EPSILON))


def reading_of(exits: Sequence[Parameters], *, shared: bool) -> ExitReading[Any]:
    """Of the parameters of every exit. shared: whether they hold one network, which is kept once."""
    readings = [prepared(parameters) for parameters in exits]
    networks = [reading.mlp for reading in readings if reading.mlp is not None]
    lens = stacked([reading.lens for reading in readings if reading.lens is not None])
    return ExitReading(lens, stacked(networks[:1] if shared else networks) if networks else None)


class TrainedReadings(HeadProblem):
    """The exits of one model as they are trained on cached states: an `offramp.training.loop.Problem`.

    Its parts are the exits, all trained on the same rows; or one part, where exits share a network.
    """

    def __init__(self, model: Model, recipe: Recipe, states: CachedStates) -> None:
        self.model, self.recipe, self.states = model, recipe, states
        stride = -(-len(states.held_out) // EVALUATED_ROWS)
        self._evaluator = Evaluator(model, states.held_out[::stride])

    def initial(self) -> list[dict[str, Tensor]]:
        """Of each exit, from its ridge lens."""
        recipe, hidden = self.recipe, self.states.fit.shape[-1]
        lenses = [initial_lens(start, recipe.rank) for start in self._starts()]

        def network(exit: int) -> dict[str, Tensor]:
            generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + exit)
            return initial_network(hidden, recipe.units, generator) if recipe.units else {}

        if recipe.shared:
            return [joined(lenses, network(recipe.at[0]))]
        return [{**lens, **network(exit)} for lens, exit in zip(lenses, recipe.at, strict=True)]

    def _starts(self) -> list[RidgeStart]:
        """Where each exit begins."""
        weight, bias = self.ridge.weight, self.ridge.bias
        assert weight is not None, "the closed form is whole"
        sums = [self._sums.fit[exit] for exit in self.recipe.at]  # now of all rows
        return [
            RidgeStart(weight[place], bias[place], of_exit.mean_x, of_exit.moments_xx(of_exit.mean_x))
            for place, of_exit in enumerate(sums)
        ]

    def _exits(self, parts: Sequence[Parameters]) -> list[Parameters]:
        """The parameters of every exit."""
        return [*exits_of(parts[0], len(self.recipe.at))] if self.recipe.shared else list(parts)

    @functools.cached_property
    def ridge(self) -> Lens[Weights]:
        """The lens in closed form of every exit, from the same states."""
        return solve_lens(self._sums)

    @functools.cached_property
    def _sums(self) -> ExitSums:
        hidden, last = self.states.fit.shape[-1], self.states.layers[-1]
        sums = lens_sums(hidden, last, self.states.exits, self.device)
        for side, held_out in ((self.states.fit, False), (self.states.held_out, True)):
            for rows in slices(0, len(side), 4096):
                by_layer = {
                    layer: side[rows, place].float() for place, layer in enumerate(self.states.layers)
                }
                sums.add(by_layer, np.full(len(by_layer[last]), held_out))
        return sums

    def vocabulary(self, precision: Precision) -> Tensor | None:
        """The tokens of the loss: those that the full model thinks likely most often."""
        if not self.recipe.loss_vocabulary:
            return None
        stride = -(-len(self.states.fit) // SAMPLED_TARGETS)
        head = TrainingHead(self.model, precision)
        return frequent_targets(head, self.states.fit[::stride, -1], self.recipe.loss_vocabulary)

    def losses_of(self, step: int, steps: int, head: TrainingHead) -> LossOf:
        """Mean KL(p_L || p_exit) of a step's rows, of exits that share a network their mean.

        p_L is computed once for all exits.
        """
        places = batch_rows(len(self.states.fit), self.recipe.batch, self.recipe.seed, step)
        batch = self.states.fit[places].to(self.device).float()
        target = head.target(batch[:, -1])

        def divergence(place: int, parameters: Parameters) -> Tensor:
            return head.divergence(prepared(parameters)(batch[:, place]), target)

        def mean_divergence(part: int, parameters: Parameters) -> Tensor:
            exits = enumerate(self._exits([parameters]))
            return torch.stack([divergence(place, of_exit) for place, of_exit in exits]).mean()

        return mean_divergence if self.recipe.shared else divergence

    def evaluate(self, parts: Sequence[Parameters]) -> list[Evaluation]:
        """Every exit on some of the held-out rows."""
        return self._evaluator.evaluate(list(map(prepared, self._exits(parts))))

    def judged(self, evaluations: Sequence[Evaluation]) -> list[float]:
        """Each one's own loss; of exits that share a network their mean."""
        losses = super().judged(evaluations)
        return [float(np.mean(losses))] if self.recipe.shared else losses

    def in_words(self, evaluations: Sequence[Evaluation]) -> str:
        """Of several exits, one after the other."""

        def of(values: Sequence[float], form: str) -> str:
            return " / ".join(format(value, form) for value in values)

        loss, agreement = (
            of([evaluation.loss for evaluation in evaluations], ".2f"),
            of([evaluation.agreement for evaluation in evaluations], ".2f"),
        )
        leaving = of([100 * evaluation.leaving[SHOWN_FLOOR] for evaluation in evaluations], ".0f")
        return f"loss {loss}, agreement {agreement}, {leaving} % leave at 95 %"

    def reading(self, progress: Progress) -> ExitReading[Weights]:
        """The exits at their best."""
        exits = self._exits([weights.best for weights in progress.weights])
        return reading_of(exits, shared=self.recipe.shared)


@dataclass(frozen=True)
class ReadingTime:
    """Seconds of a token that is read for its states, and what else is read in such units."""

    pace: float
    """Seconds."""
    exits: int
    """That are trained."""
    head_share: float
    """The output head's products over those of all layers."""
    maps: tuple[float, float] | None
    """Seconds of a token in the sums of all K,V maps, and of solving these; None without any."""
    classifiers: bool
    """Whether there are any."""

    @classmethod
    def of(
        cls, model: Model, pace: float, exits: int, *, maps: tuple[float, float] | None, classifiers: bool
    ) -> ReadingTime:
        """Of a model that reads at a pace."""
        layers = max(1, sum(layer.active_parameters for layer in model.shape.layers))
        return cls(pace, exits, model.shape.head_parameters / layers, maps, classifiers)

    def afterwards(self, tokens: int) -> float:
        """Seconds for what goes with the exits of a training that read so many tokens."""
        judged = min(CLASSIFIER_TOKENS, tokens // 4) if self.classifiers else 0
        read_out = 1.0 + self.exits * (READ_OUT * self.head_share + FITTED)
        mapped = 0.0 if self.maps is None else (self.pace + self.maps[0]) * tokens + self.maps[1]
        return mapped + self.pace * read_out * judged

    def all(self, tokens: int) -> float:
        """Seconds with the states themselves."""
        return self.pace * tokens + self.afterwards(tokens)

    def affordable(self, tokens: int, minutes: float) -> int:
        """So many of some tokens as may be read in these minutes.

        Raises InputError if these are not enough to learn from.
        """
        allowed = READING_SHARE * 60.0 * minutes
        if self.all(tokens) <= allowed:
            return tokens
        most = STEP_TOKENS * (tokens // STEP_TOKENS)
        for fewer in range(most, FEWEST_TOKENS - 1, -STEP_TOKENS):
            if self.all(fewer) <= allowed:
                return fewer
        needed = self.all(min(FEWEST_TOKENS, tokens)) / READING_SHARE / 60.0
        raise InputError(
            f"{minutes:g} minutes are too few: a token takes {self.pace:.2g} s to read, and "
            f"{min(FEWEST_TOKENS, tokens):,} with what is fitted on them half of {needed:.2g} minutes",
            where="minutes= (--minutes)",
            fix=f"give {needed + 0.01:.2f} minutes or more, or --steps; --no-kv-maps and --no-classifiers "
            "leave out what takes longest",
        )


def pace_of(model: Model, contexts: Sequence[Context], layers: Sequence[int]) -> float:
    """Seconds of a token that is read for its states at some layers, on the first contexts."""
    read, first = 0, []
    for context in contexts:
        first.append(context)
        read += context.rows
        if read >= PILOT_TOKENS:
            break
    started = time.perf_counter()
    for _ in captured_states(model, first, layers):
        pass
    return (time.perf_counter() - started) / max(1, read)


def maps_time(model: Model, exits: Sequence[int]) -> tuple[float, float]:
    """Seconds of a token in the sums of the exits' K,V maps, and of solving them, by this machine's products.

    Solving does not depend on the tokens: at many exits it takes longer than reading them.
    """
    hidden = model.shape.hidden_size
    pairs = sum(map(len, mapped_layers(exits, model.layers).values()))
    summing = product_time(hidden, float64_device(model.stack.head_device))
    solving = product_time(hidden, PROCESSOR)
    return SUMMED * pairs * summing / hidden, (SOLVED_LAYER * pairs + SOLVED_EXIT * len(exits)) * solving


def product_time(size: int, device: torch.device) -> float:
    """Seconds of a float64 product of size x size: the median of a few, the first left out."""
    matrix, times = torch.ones(size, size, dtype=torch.float64, device=device), []
    for _ in range(PILOT_PRODUCTS):
        started = time.perf_counter()
        matrix @ matrix
        synchronise(device)
        times.append(time.perf_counter() - started)
    return float(np.median(times[1:]))


def prepare_readings(job: Job) -> Prepared:
    """States on disk, to train how exits are read; with the exits goes what `heads fit` fits, too."""
    model, recipe, exits = job.model, job.recipe, len(job.recipe.at)
    tokens = _tokens(job)
    trained_on, judged_on = _plan(job, tokens)
    plan = StatesPlan.of(model, trained_on, recipe.at, tokens)
    require_enough(plan.fit_rows, recipe.batch)
    _require_memory(job)
    if job.on_size is not None:
        job.on_size(plan.bytes)
    states = _states(job, plan)
    problem = TrainedReadings(model, recipe, states)
    answering = sum(rows.answering for rows in (trained_on, judged_on) if rows is not None)
    rows, read = ReadRows.of(trained_on, len(states.fit), len(states.held_out), plan.bytes), trained_on.tokens

    def finish(progress: Progress) -> tuple[ExitHeads, Left]:
        """The exits with all that goes with them. Nothing in them says how long anything took."""
        reading = problem.reading(progress)
        heads = complete_heads(
            model,
            job.workloads,
            TrainedReading(reading, job.provenance(progress)),
            trained_on,
            judged_on,
            exits=recipe.at,
            kv_maps=_mapped(job),
            short_list=job.request.short_list,
            context=recipe.context,
            seed=recipe.seed,
            progress=job.shown,
        )
        logit_lens: list[Read] = [lambda hidden: hidden] * exits
        ridge, trained = (
            [part.at(place, problem.device) for place in range(exits)]
            for part in (ExitReading(problem.ridge), reading)
        )
        evaluator = Evaluator(model, states.held_out)
        return heads, Left(
            heads=heads.fingerprint,
            logit_lens=tuple(evaluator.evaluate(logit_lens)),
            before=tuple(evaluator.evaluate(ridge)),
            trained=tuple(evaluator.evaluate(trained)),
        )

    return Prepared(
        problem,
        plan.rows,
        layers=plan.layers,
        reading=answering + states.seconds,
        beside=Overhead(
            answering + states.seconds + _reading_time(job, states.seconds / read).afterwards(read),
            evaluations=FIGURES * max(1.0, len(states.held_out) / EVALUATED_ROWS),
        ),
        counted=replace(rows, allowed=None if tokens >= recipe.tokens else tokens),
        finish=finish,
    )


def _tokens(job: Job) -> int:
    """The tokens to read: those that are asked for, or as many as the minutes allow on this machine.

    What an earlier process read stays. Raises InputError for minutes that allow too few.
    """
    asked, minutes = job.recipe.tokens, job.recipe.minutes
    if minutes is None:
        return asked
    before = tokens_read(job.folder / STATES)
    if before is not None:
        return before
    writes = any(work.mode == "generation" for work in job.workloads)
    rows = job.plan(_shares(job), min(asked, PILOT_ANSWERS) if writes else asked)
    layers = (*job.recipe.at, job.model.layers)
    pace = rows.answering / rows.tokens + pace_of(job.model, rows.contexts, layers)
    reading, most = _reading_time(job, pace), asked if writes else rows.tokens
    tokens = reading.affordable(most, minutes)
    if job.shown:
        read = f"{tokens:,}" if tokens == most else f"{tokens:,} of {most:,}"
        first, last = reading.pace * tokens, reading.afterwards(tokens)
        say(
            f"{job.title}, {minutes:g} minutes in all: about {first:,.0f} s to read {read} tokens, "
            f"{last:,.0f} s for what goes with the exits, the rest for steps"
        )
    return asked if tokens == most else tokens


def _reading_time(job: Job, pace: float) -> ReadingTime:
    mapped = _mapped(job) if job.recipe.minutes is not None else []
    maps = maps_time(job.model, mapped) if mapped else None
    return ReadingTime.of(job.model, pace, len(job.recipe.at), maps=maps, classifiers=job.request.classifiers)


def _mapped(job: Job) -> list[int]:
    """The exits that get K,V maps."""
    last = job.model.layers - 1
    return [exit for exit in job.recipe.at if exit < last] if job.request.kv_maps else []


def _require_memory(job: Job) -> None:
    """Refuse maps that will not fit before anything is trained. Raises InputError."""
    model = job.model
    needed = fitting_memory(model.shape.hidden_size, model.layers, 0, _mapped(job), AUTO)
    try:
        needed.require(model.name, model.stack.head_device)
    except InputError as error:
        fix = "leave the K,V maps out (--no-kv-maps), or train fewer exits"
        raise InputError(error.what, where=error.where, fix=fix) from error


def _shares(job: Job) -> list[float]:
    """Of the documents: for the classifiers, if there are any, and to train on."""
    return [JUDGING_SHARE, 1.0 - JUDGING_SHARE] if job.request.classifiers else [1.0]


def _plan(job: Job, tokens: int) -> tuple[FittingRows, FittingRows | None]:
    """Rows to train on, and rows of other documents for the classifiers, which share no text."""
    recipe, shares = job.recipe, _shares(job)
    trained_on = job.plan(shares, tokens)
    if not job.request.classifiers:
        return trained_on, None
    apart = [
        (work, without_text_of(work, split_documents(work, shares, recipe.seed)[0], trained_on.texts))
        for work in job.workloads
    ]
    count = min(CLASSIFIER_TOKENS, tokens // 4)
    judged_on = plan_rows(job.model, apart, count, context=recipe.context, shown=job.shown, folder=job.folder)
    return trained_on, judged_on


def _states(job: Job, plan: StatesPlan) -> CachedStates:
    key, folder = job.key(plan.rows, plan.layers), job.folder / STATES
    states = read_states(folder, key)
    if states is None:
        plan.require_room(folder)
        title = f"{job.model.name}: hidden states"
        with token_bar(title, plan.rows.tokens, shown=job.shown) as advance:
            states = write_states(job.model, plan, folder, key, advance)
    else:
        require_planned(states, plan, folder)
    require_enough(len(states.fit), job.recipe.batch)
    return states
