"""The kind `executed`: K,V maps trained by what they do to tokens that stay, in the pass as it is executed.

With a frozen base the state at the first exit that is checked is exact whatever tokens do. What drifts are
tokens that stay: deeper layers let them attend to K and V of mapped states. The loss is KL(full model || a
token that stays), mean over such tokens, through the frozen deeper layers into the maps.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from offramp.decoding.engine.build import engine_of
from offramp.decoding.exit_readout.reader import ExitReader
from offramp.decoding.rerun.parallel import ROWS
from offramp.errors import InputError
from offramp.heads.exit_heads import ExitHeads
from offramp.heads.file import require_base
from offramp.heads.parts import ExitMaps, Weights
from offramp.models.model import Model
from offramp.tracing.fitting.fitting_documents import seen_by_all
from offramp.tracing.rows import slices
from offramp.training.divergence import Evaluator, TrainingHead
from offramp.training.executed_pass import (
    Leaving,
    Started,
    TrainableMaps,
    mapped_inputs,
    places_of,
    run_executed,
)
from offramp.training.job import Job, KeptStates, Prepared, first_row, row_count, sides
from offramp.training.loop import HeadProblem, LossOf, Overhead, Parameters, Progress, under
from offramp.training.recipe import Recipe
from offramp.training.record import Evaluation, Left, ReadRows
from offramp.workloads.packing import Context

CONTEXTS = 3
"""Sequences of one step."""

EVALUATED_TOKENS = 4096
"""Held-out tokens that figures are taken from."""

CALIBRATED = 12
"""Sequences that thresholds are taken from."""

SIGNALS = ("gate", "correctness_network", "correctness")
"""What decides who leaves while maps are trained: the first that the heads give, and that beats the base rate
at every exit; else the exit's largest probability."""

OWN_CONFIDENCE = "max_prob"


class ExecutedMaps(HeadProblem):
    """K,V maps of some heads and the sequences they are trained on: a `loop.Problem` of one part.

    The maps of all exits of the recipe are trained together, by all tokens of the vocabulary: what drifts is
    small, and so would be what a short list leaves out. fit, held_out: contexts. Tokens leave where a signal
    of the heads is at least a threshold, by which the same share leaves at every exit: those that leave while
    it trains are those that will when a policy decides.

    Raises InputError for heads that cannot be read at the exits of their maps.
    """

    def __init__(
        self,
        model: Model,
        heads: ExitHeads,
        recipe: Recipe,
        fit: Sequence[Context],
        held_out: Sequence[Context],
    ) -> None:
        assert heads.kv_maps is not None, "checked before anything ran"
        self.model, self.all_maps, self.recipe = model, heads.kv_maps.maps, recipe
        self.engine = engine_of(model)
        self.exits = recipe.at
        self.signal = signal_of(heads, self.exits)
        self._reader = ExitReader(self.engine, heads, dict.fromkeys(self.exits, (self.signal,)))
        device = model.stack.device
        self.maps = {exit: TrainableMaps.of(self.all_maps[exit], device) for exit in self.exits}
        self.fit, self.held_out = (
            KnownTexts(model, some, self.exits[0], lambda states: self.read(self.exits[0], states))
            for some in (fit, held_out)
        )

    def initial(self) -> list[dict[str, Tensor]]:
        """What is trained, by "exit.array": changes that leave the maps as they were."""
        return [
            {
                f"{exit}.{name}": array
                for exit, maps in self.maps.items()
                for name, array in maps.initial().items()
            }
        ]

    def in_words(self, evaluations: Sequence[Evaluation]) -> str:
        """For a progress bar."""
        staying = evaluations[0]
        return f"KL {staying.loss:.4f}, agreement {staying.agreement:.3f} of tokens that stay"

    def read(self, exit: int, states: Tensor) -> Tensor:
        """The signal at an exit, float32 [rows], of states [rows, hidden]."""
        found = []
        for rows in slices(0, len(states), ROWS):
            self._reader.begin()
            facts = self._reader.read(exit, (self.signal,), states[rows].unsqueeze(1), None)
            found.append(torch.from_numpy(facts[self.signal].astype(np.float32)))
        return torch.cat(found).to(states.device)

    def losses_of(self, step: int, steps: int, head: TrainingHead) -> LossOf:
        """Mean KL(full model || a token that stays) of some tokens of some sequences; 0 if none stays."""
        generator = np.random.default_rng((self.recipe.seed, step))
        texts = self.fit.draw(CONTEXTS, generator)

        def loss_of(place: int, changes: Parameters) -> Tensor:
            hidden, stays = self.run(changes, texts)
            places = places_of(stays).cpu()
            if not len(places):  # they say nothing of the maps, and a mean over none is no number
                return hidden.new_zeros(())
            count = min(self.recipe.batch, len(places))
            chosen = places[torch.from_numpy(generator.choice(len(places), count, replace=False))]
            rows, final = (states.reshape(-1, states.shape[-1])[chosen] for states in (hidden, texts.final))
            return head.divergence(rows.float(), head.target(final.float()))

        return loss_of

    def run(self, changes: Parameters, texts: Texts) -> tuple[Tensor, Tensor]:
        """States after L [batch, positions, hidden], and which tokens stay, bool [batch, positions]."""
        left = torch.zeros_like(texts.may_leave)

        def leaving(exit: int, hidden: Tensor) -> Tensor:
            values = self._values(exit, hidden, texts, texts.may_leave & ~left)
            gone = values >= self.thresholds[exit]
            left.logical_or_(gone)
            return places_of(gone)

        return self._executed(changes, texts, leaving), texts.may_leave & ~left

    def _executed(self, changes: Parameters, texts: Texts, leaving: Leaving) -> Tensor:
        """States after L, through the maps with these changes."""
        maps = {exit: maps.prepared(under(f"{exit}.", changes)) for exit, maps in self.maps.items()}
        return run_executed(
            self.engine,
            texts.ids,
            self.exits,
            leaving,
            mapped_inputs(self.engine.layers, maps),
            Started(self.exits[0], texts.hidden),
        )

    def _values(self, exit: int, hidden: Tensor, texts: Texts, asked: Tensor) -> Tensor:
        """The signal at an exit, float32 [batch, positions]; minus infinity for tokens that are not asked."""
        if exit == self.exits[0]:
            return texts.signal.masked_fill(~asked, -torch.inf)
        values = texts.signal.new_full(asked.shape, -torch.inf)
        if asked.any():
            values[asked] = self.read(exit, hidden[asked])
        return values

    @functools.cached_property
    def thresholds(self) -> dict[int, float]:
        """By exit, the signal from which on a token leaves there.

        Found exit by exit in one pass over some of the texts to train on, through the maps as they start.
        """
        with torch.no_grad():
            return self._calibrated(self.recipe.leave / len(self.exits))

    def _calibrated(self, share: float) -> dict[int, float]:
        places = np.unique(np.linspace(0, len(self.fit) - 1, CALIBRATED).astype(int)).tolist()
        texts = self.fit.take(places)
        count = max(1, round(share * int(texts.may_leave.sum())))
        running = texts.may_leave.clone()
        thresholds: dict[int, float] = {}

        def leaving(exit: int, hidden: Tensor) -> Tensor:
            values = self._values(exit, hidden, texts, running)
            asked = values[running]
            thresholds[exit] = float(asked.sort(descending=True).values[min(count, len(asked)) - 1])
            gone = values >= thresholds[exit]
            running.logical_and_(~gone)
            return places_of(gone)

        self._executed(self.initial()[0], texts, leaving)
        return thresholds

    @torch.no_grad()
    def evaluate(self, parts: Sequence[Parameters]) -> list[Evaluation]:
        """Held-out tokens that stay: KL from the full model, and agreement with it; and the share that left.

        Read with the model's own head in float32. Raises InputError if no token stays.
        """
        states, asked = [], 0
        for texts in self._evaluated():
            hidden, stays = self.run(parts[0], texts)
            states.append(torch.stack([hidden[stays], texts.final[stays]], 1))
            asked += int(texts.may_leave.sum())
        together = torch.cat(states)
        if not len(together):
            raise InputError(
                "every held-out token leaves, so that none is there to judge maps by",
                where="leave= (--leave)",
                fix="let fewer leave, such as 0.3",
            )
        found = Evaluator(self.model, together).evaluate([lambda rows: rows])[0]
        return [replace(found, leaving=(1.0 - len(together) / asked,))]

    def _evaluated(self) -> Iterator[Texts]:
        """Held-out texts, evenly from all, about EVALUATED_TOKENS."""
        share = min(1.0, EVALUATED_TOKENS / max(1, self.held_out.tokens))
        count = max(1, round(share * len(self.held_out)))
        places = np.unique(np.linspace(0, len(self.held_out) - 1, count).astype(int)).tolist()
        for some in slices(0, len(places), CONTEXTS):
            yield self.held_out.take(places[some])

    def trained(self, changes: Parameters) -> dict[int, ExitMaps[Weights]]:
        """The maps as heads hold them, of exits that were not trained as well."""
        return dict(self.all_maps) | {
            exit: maps.trained(under(f"{exit}.", changes)) for exit, maps in self.maps.items()
        }


def signal_of(heads: ExitHeads, exits: Sequence[int]) -> str:
    """The fact by which tokens leave at some exits (see SIGNALS)."""
    for name in SIGNALS:
        classifier = heads.classifiers.get(name)
        if classifier is None or not set(exits) <= set(heads.exits):
            continue
        if all(classifier.better_than_chance[heads.exits.index(exit)] for exit in exits):
            return name
    return OWN_CONFIDENCE


@dataclass(frozen=True)
class Texts:
    """Some sequences side by side, filled up on the right: attention is causal, so that nothing sees it.

    ids: int64 [batch, positions]. may_leave: bool [batch, positions], tokens that a policy is asked about: of
    the sequence, behind its first position and what stands in front of it. hidden: states after the first
    exit's layer [batch, positions, hidden]. final: after layer L. signal: float32 [batch, positions], what
    decides who leaves at the first exit.
    """

    ids: Tensor
    may_leave: Tensor
    hidden: Tensor
    final: Tensor
    signal: Tensor


Signal = Callable[[Tensor], Tensor]
"""Of states [rows, hidden] at the first exit: float32 [rows], large where a token is to leave."""


class KnownTexts:
    """Contexts whose states after the first exit's layer and after L are computed when first asked for."""

    def __init__(
        self,
        model: Model,
        contexts: Sequence[Context],
        exit: int,
        signal: Signal,
    ) -> None:
        self.model, self.contexts, self.exit, self.signal = model, contexts, exit, signal
        self.states = KeptStates(self._known)

    def __len__(self) -> int:
        return len(self.contexts)

    @property
    def tokens(self) -> int:
        """That a policy is asked about."""
        return sum(map(row_count, self.contexts))

    def draw(self, count: int, generator: np.random.Generator) -> Texts:
        """Some at random, none twice."""
        return self.take(generator.choice(len(self), min(count, len(self)), replace=False).tolist())

    def take(self, places: Sequence[int]) -> Texts:
        """Those at some places."""
        contexts = [self.contexts[place] for place in places]
        longest = max(len(context.ids) for context in contexts)
        device = self.model.stack.device
        # Filled up with a token of the sequence itself: one that the model surely has.
        ids = [[*context.ids, *[context.ids[-1]] * (longest - len(context.ids))] for context in contexts]
        may = [
            [first_row(context) <= place < len(context.ids) for place in range(longest)]
            for context in contexts
        ]
        known = [self.states.of(place) for place in places]
        hidden, final, signal = (
            torch.stack([_filled(states, longest) for states in column])
            for column in zip(*known, strict=True)
        )
        return Texts(
            torch.tensor(ids, device=device), torch.tensor(may, device=device), hidden, final, signal
        )

    def _known(self, place: int) -> tuple[Tensor, ...]:
        """Of one sequence: states of the exit and of L [length, hidden], the signal [length]."""
        found: dict[int, Tensor] = {}
        wanted = (self.exit, self.model.layers)

        def on_layer(layer: int, before: Tensor, after: Tensor) -> None:
            if layer + 1 in wanted:
                found[layer + 1] = after[0].clone()

        self.model.stack.capture(torch.tensor([self.contexts[place].ids]), on_layer)
        hidden = found[self.exit]
        return hidden, found[self.model.layers].to(hidden.device), self.signal(hidden)


def _filled(states: Tensor, length: int) -> Tensor:
    return torch.cat([states, states[-1:].expand(length - len(states), *states.shape[1:])])


def start_of(model: Model, heads: ExitHeads | None) -> ExitHeads:
    """The heads whose K,V maps are trained, checked.

    Raises InputError where there are none, for heads of another model, and for such without K,V maps.
    """
    where = "start= (--from)"
    maps = f"offramp heads fit MODEL --workload W --kv-maps {model.layers // 2} -o FILE"
    fix = f"fit some: {maps}; or train exits, which does"
    if heads is None:
        raise InputError("there are no heads whose K,V maps are to be trained", where=where, fix=fix)
    require_base(heads, {"name": model.shown_name, **model.identity.to_json()}, where)
    if heads.kv_maps is None:
        raise InputError("the heads have no K,V maps to train", where=where, fix=fix)
    return heads


def prepare_maps(job: Job) -> Prepared:
    """K,V maps of the heads that a training starts from; all else in them stays."""
    start = job.start
    assert start is not None, "checked by `start_of`"
    given = start.kv_maps
    assert given is not None, "checked by `start_of`"
    began = time.perf_counter()
    rows = job.plan()
    problem = ExecutedMaps(job.model, start, job.recipe, *sides(rows))

    def finish(progress: Progress) -> tuple[ExitHeads, Left]:
        """The maps with all documents that any of their fitting saw, in the heads, and what trained them."""
        best = progress.weights[0].best
        documents, texts = seen_by_all((given.documents, given.texts), (rows.ids, rows.texts))
        maps = replace(
            given,
            maps=problem.trained(best),
            documents=documents,
            texts=texts,
            provenance={**given.provenance, "trained": job.provenance(progress)},
        )
        heads = replace(start, kv_maps=maps)
        before, after = (problem.evaluate([changes])[0] for changes in (problem.initial()[0], best))
        return heads, Left(heads=heads.fingerprint, before=(before,), trained=(after,), floors=())

    return Prepared(
        problem,
        rows,
        layers=job.recipe.at,
        reading=rows.answering,
        beside=Overhead(time.perf_counter() - began, evaluations=2),
        counted=ReadRows.of(rows, problem.fit.tokens, problem.held_out.tokens),
        finish=finish,
    )
