"""One forward pass of all positions in which each layer's output is kept only for tokens that have not left.

Layers go in order and attention is causal: when a layer runs, every earlier token already is as the policy
and its strategy for K and V left it, so that the decisions are those of decoding one token at a time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offramp.decoding.engine.engine import Engine, Meter
from offramp.decoding.engine.sequences import Inputs, Sequences
from offramp.decoding.exit_readout.reader import ExitReader
from offramp.decoding.rerun.trace_sequences import Batch
from offramp.decoding.strategies.next_token import is_broken
from offramp.errors import OfframpError
from offramp.policies.decisions import probed_facts
from offramp.policies.policy import ExitPolicy, Tokens
from offramp.policies.prices import gives_output
from offramp.policies.signals import is_opened, looks_back

InputsAfter = Callable[[int, Tensor], list[Tensor]]
"""From an exit and states that left there [rows, 1, hidden] to what layers exit+1..L are given, in order."""


class Carried:
    """The tokens of one pass that have left, and the state with which each goes past every deeper layer.

    inputs_after: of the strategy for K and V.
    """

    def __init__(self, inputs_after: InputsAfter) -> None:
        self._inputs_after = inputs_after
        self._left: list[tuple[int, Tensor, list[Tensor]]] = []

    def leave(self, exit: int, places: Tensor, hidden: Tensor) -> None:
        """Tokens leave at an exit. places: int64 [rows], among all states. hidden: [rows, 1, hidden]."""
        inputs = [state[:, 0] for state in self._inputs_after(exit, hidden)]
        self._left.append((exit, places, inputs))

    def put_back(self, depth: int, hidden: Tensor) -> Tensor:
        """The states after `depth` layers [batch, positions, hidden], those of tokens that left in place."""
        if not self._left:
            return hidden
        flat = hidden.reshape(-1, hidden.shape[-1])
        for exit, places, inputs in self._left:
            flat = flat.index_copy(0, places, inputs[depth - exit])
        return flat.view(hidden.shape)


def unchanged(layers: int) -> InputsAfter:
    """`propagate`: every skipped layer is given the state that left (CALM, arXiv 2207.07061, section 3.3)."""
    return lambda exit, hidden: [hidden] * (layers - exit)


ROWS = 256
"""Tokens whose exits are read together: the logits of so many are in memory at once."""


class NotParallel(Exception):
    """Decisions of one token depend on checks that differ from token to token: only decoding follows them."""


@dataclass(frozen=True)
class Decided:
    """What became of the decided tokens of a batch, in its order."""

    exits: NDArray[np.int64]
    top1: NDArray[np.int64]
    """int64 [decided]."""
    probed: NDArray[np.bool_]
    """bool [decided, checked exits]."""


@dataclass(frozen=True)
class Read:
    """What was read of some tokens at one exit."""

    facts: Mapping[str, NDArray[Any]]
    """[tokens] each, by name."""
    best: NDArray[np.int64] | None
    """int64 [tokens], the greedy choice there, -1 where a logit is not finite; None if the facts need no
    logits."""


class Untouched:
    """What no policy has touched yet: states after the first layers, and what is read of them at an exit.

    Shared by policies whose first exit is as deep or deeper. most_bytes: of states that are kept; what comes
    later is computed again.
    """

    def __init__(self, most_bytes: int) -> None:
        self._left = most_bytes
        self._kept: dict[tuple[int, int], Tensor] = {}
        self.read: dict[tuple[Hashable, ...], Read] = {}

    def deepest(self, batch: int, depth: int) -> tuple[int, Tensor | None]:
        """The deepest states of a batch that are kept, up to a depth; 0 and None without any."""
        depths = [kept for number, kept in self._kept if number == batch and kept <= depth]
        return (max(depths), self._kept[batch, max(depths)]) if depths else (0, None)

    def keep(self, batch: int, depth: int, hidden: Tensor) -> None:
        """Keep states [batch, positions, hidden] if there is room."""
        size = hidden.numel() * hidden.element_size()
        if (batch, depth) not in self._kept and size <= self._left:
            self._kept[batch, depth] = hidden
            self._left -= size


class ParallelPass:
    """One policy on batches of given sequences.

    inputs_after: of its strategy for K and V. reader: of its exits. untouched: shared with other policies,
    None where a layer attends to the K and V of one before it.
    """

    def __init__(
        self,
        engine: Engine,
        policy: ExitPolicy,
        reader: ExitReader,
        inputs_after: InputsAfter,
        untouched: Untouched | None,
    ) -> None:
        self.engine = engine
        self.policy = policy
        self.reader = reader
        self.inputs_after = inputs_after
        self.untouched = untouched
        self.needs = dict(policy.needs(engine.layers))
        self.checked = tuple(probed_facts(policy, engine.layers))
        # What later checks compare with is kept by the reader itself, which must then have read it.
        compares = any(is_opened(name) for names in self.needs.values() for name in names)
        self.shared = None if untouched is None or compares else untouched.read

    @torch.no_grad()
    def run(self, batch: Batch, number: int, facts: Mapping[str, NDArray[np.float64]]) -> Decided:
        """Decide a batch. number: its place among all batches. facts: of documents, float64 [decided].

        Raises NotParallel, and OfframpError for a logit that is not finite.
        """
        groups = self._groups(batch, number, facts)
        sequences = Sequences(self.engine, batch.ids, None, Meter())
        inputs = sequences.inputs(0, batch.ids.shape[1])
        carried = Carried(self.inputs_after)
        # 1. Run to the first exit, or begin with what another policy has run so far.
        depth, hidden = self._begin(sequences, inputs, number)
        for exit in self.needs:
            if not any(group.running.any() for group in groups):
                break
            before = None
            if self.reader.wants_before(exit):
                depth, before = self._run_to(exit - 1, depth, hidden, sequences, inputs, carried)
                hidden = before
            # 2. Run on; in every layer, tokens that have left stand as their strategy for K and V says.
            depth, hidden = self._run_to(exit, depth, hidden, sequences, inputs, carried)
            # 3. Ask for every token that has not left, and let those leave that want to.
            for group in groups:
                group.ask(exit, hidden, before, carried)
        # 4. What never left is read out after the last layer.
        if any(group.running.any() for group in groups):
            _, hidden = self._run_to(self.engine.layers, depth, hidden, sequences, inputs, carried)
            for group in groups:
                group.end(hidden)
        return Decided(
            exits=np.concatenate([group.exits for group in groups]),
            top1=np.concatenate([group.top1 for group in groups]),
            probed=np.concatenate([group.probed for group in groups]),
        )

    def _groups(self, batch: Batch, number: int, facts: Mapping[str, NDArray[np.float64]]) -> list[_Asked]:
        pieces = [slice(start, start + ROWS) for start in range(0, max(len(batch.places), 1), ROWS)]
        return [
            _Asked(
                self,
                (number, piece.start),
                batch.places[piece],
                Tokens(batch.index[piece], {name: fact[piece] for name, fact in facts.items()}),
            )
            for piece in pieces
        ]

    def _begin(self, sequences: Sequences, inputs: Inputs, number: int) -> tuple[int, Tensor]:
        """How deep all policies share the states, and these."""
        first = next(iter(self.needs), self.engine.layers)
        shared = first - 1 if self.reader.wants_before(first) else first
        if self.untouched is None or shared >= self.engine.layers:
            return 0, inputs.hidden
        depth, kept = self.untouched.deepest(number, shared)
        hidden = sequences.run(inputs.hidden if kept is None else kept, inputs, depth, shared)
        self.untouched.keep(number, shared, hidden)
        return shared, hidden

    def _run_to(
        self, last: int, depth: int, hidden: Tensor, sequences: Sequences, inputs: Inputs, carried: Carried
    ) -> tuple[int, Tensor]:
        """Run layers depth+1..last; after each, tokens that left are given what the next layer is to see."""
        for layer in range(depth, last):
            hidden = sequences.run(hidden, inputs, layer, layer + 1)
            if layer + 1 < self.engine.layers:
                hidden = carried.put_back(layer + 1, hidden)
        return max(depth, last), hidden


class _Asked:
    """Some decided tokens of a batch that are asked together, each a stream of its own.

    name: which of all. places: int64 [tokens], where they lie among all states. running: bool [tokens],
    those that have not left.
    """

    def __init__(
        self, owner: ParallelPass, name: tuple[int, int], places: NDArray[np.int64], tokens: Tokens
    ) -> None:
        layers, count = owner.engine.layers, len(places)
        self.owner = owner
        self.name = name
        self.places = torch.from_numpy(places).to(next(owner.engine.hf.parameters()).device)
        self.reader = copy.copy(owner.reader)
        self.reader.begin()
        self.decider = owner.policy.decider(layers, count)
        self.decider.begin(tokens)
        self.running = np.ones(count, dtype=np.bool_)
        self.exits = np.full(count, layers, dtype=np.int64)
        self.top1 = np.zeros(count, dtype=np.int64)
        self.probed = np.zeros((count, len(owner.checked)), dtype=np.bool_)

    def ask(self, exit: int, hidden: Tensor, before: Tensor | None, carried: Carried) -> None:
        """Ask at one exit, given the output and the input of its layer [batch, positions, hidden]."""
        asking = self.running & self.decider.checks(exit)
        if not asking.any():
            return
        names, present = self.owner.needs[exit], np.flatnonzero(self.running)
        states = self._rows(hidden, present)
        if names:
            if any(map(looks_back, names)) and len(present) > asking.sum():
                raise NotParallel
            self.probed[asking, self.owner.checked.index(exit)] = True
        read = self._read(exit, names, states, None if before is None else self._rows(before, present))
        facts = {}
        for name, values in read.facts.items():
            facts[name] = np.zeros(len(asking), dtype=values.dtype)
            facts[name][present] = values
        leaving = asking & self.decider.decide(exit, facts)
        if leaving.any():
            self._leave(exit, present, leaving[present], states, read, carried)
        self.running &= ~leaving

    def _read(self, exit: int, names: tuple[str, ...], states: Tensor, before: Tensor | None) -> Read:
        """Facts of the present tokens, and what they would say; known already where no policy was before."""
        if not names:
            return Read({}, None)
        owner = self.owner
        key = (self.name, exit, names, owner.policy.short_list)
        known = owner.shared if exit == next(iter(owner.needs)) else None
        if known is not None and key in known:
            return known[key]
        facts = self.reader.read(exit, names, states, before)
        answers = gives_output(names, short_list=owner.policy.short_list)
        best = greedy_tokens(self.reader.logits(exit, states)) if answers else None
        read = Read(facts, best)
        if known is not None:
            known[key] = read
        return read

    def _leave(
        self,
        exit: int,
        present: NDArray[np.int64],
        leaving: NDArray[np.bool_],
        states: Tensor,
        read: Read,
        carried: Carried,
    ) -> None:
        """Some of the present tokens leave, bool [present]; states: of all present [present, 1, hidden]."""
        # By numbers: with a mask the host would wait for how many there are.
        chosen, gone = torch.from_numpy(np.flatnonzero(leaving)).to(states.device), present[leaving]
        if read.best is None:
            best = greedy_tokens(self.reader.logits(exit, states[chosen]))
        else:
            best = read.best[leaving]
        self.exits[gone] = exit
        self.top1[gone] = require_finite(best)
        carried.leave(exit, self.places[torch.from_numpy(gone).to(self.places.device)], states[chosen])
        self.reader.keep_rows(np.flatnonzero(~leaving))

    def end(self, hidden: Tensor) -> None:
        """Those that ran all layers are read by the full model, given states after layer L."""
        present = np.flatnonzero(self.running)
        if len(present):
            best = greedy_tokens(self._final_logits(self._rows(hidden, present)))
            self.top1[present] = require_finite(best)

    def _final_logits(self, states: Tensor) -> Tensor:
        """Logits at exit L of states [rows, 1, hidden]: the full model's, or off the short list."""
        engine = self.owner.engine
        if self.owner.policy.short_head:
            return self.reader.logits(engine.layers, states)
        return engine.logits(states)[:, -1]

    def _rows(self, hidden: Tensor, rows: NDArray[np.int64]) -> Tensor:
        """States of some tokens [rows, 1, hidden]."""
        places = self.places[torch.from_numpy(rows).to(self.places.device)]
        return hidden.reshape(-1, hidden.shape[-1])[places].unsqueeze(1)


def greedy_tokens(logits: Tensor) -> NDArray[np.int64]:
    """The greedy choice, int64 [rows], of logits [rows, vocabulary]; -1 where none can be made."""
    logits = logits.float()
    chosen = logits.argmax(-1).masked_fill(is_broken(logits), -1)
    return np.asarray(chosen.cpu().numpy(), dtype=np.int64)


def require_finite(tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    """Greedy choices, int64 [rows]. Raises OfframpError where a logit was not finite."""
    if (tokens < 0).any():
        raise OfframpError(
            "a logit of a rerun is not finite",
            where="an exit that the policy takes",
            fix="load the model in float32, or leave this document out",
        )
    return tokens
