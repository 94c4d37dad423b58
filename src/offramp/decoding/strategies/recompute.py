"""EE-LLM's strategy: states wait before the layers that were skipped, until a deeper token runs them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offramp.decoding.engine.sequences import OnPosition, Sequences
from offramp.decoding.strategies.next_token import Advance
from offramp.decoding.strategies.propagate import choose, feed, read_final
from offramp.decoding.strategies.strategy import Gear, Strategy
from offramp.policies.kv import RECOMPUTE


@dataclass(frozen=True)
class Block:
    """Hidden states of neighbouring positions, the newest token's last."""

    hidden: Tensor
    """[batch, positions, hidden]."""
    start: int
    """The first one's position."""

    @property
    def end(self) -> int:
        """The position after the last one."""
        return self.start + self.hidden.shape[1]

    @property
    def last(self) -> Tensor:
        """The newest token's hidden state: [batch, 1, hidden]."""
        return self.hidden[:, -1:]


class Waiting:
    """Tokens that left early, kept before the first layer that each has not run.

    Layer l+1 has run fewer positions than layer l exactly where tokens wait between the two, so a token that
    runs on takes them along: the layers above then run the whole block, from their own length on, as EE-LLM
    does (arXiv 2312.04916, section 3), a recurrent layer one position after the other. on_position: told of
    each of these.
    """

    def __init__(self, sequences: Sequences, on_position: OnPosition | None = None) -> None:
        self._sequences = sequences
        self._on_position = on_position
        self._hidden: dict[int, list[Tensor]] = {}

    def newest(self) -> Block:
        """The last token fed, before its first layer."""
        end = self._sequences.length
        return Block(self._sequences.inputs(end - 1, end).hidden, end - 1)

    def leave(self, depth: int, block: Block) -> None:
        """A block that ran layers 1..depth waits there, after those that wait at the same depth already."""
        self._hidden.setdefault(depth, []).append(block.hidden)

    def run(self, block: Block, first: int, last: int) -> Block:
        """Run layers first+1..last on a block and on all that waits before one of them."""
        for depth in sorted(depth for depth in self._hidden if first <= depth < last):
            block = self._run_layers(block, first, depth)
            hidden = torch.cat([*self._hidden.pop(depth), block.hidden], 1)
            block, first = Block(hidden, block.end - hidden.shape[1]), depth
        return self._run_layers(block, first, last)

    def run_rest(self) -> Block:
        """Run all that waits through the last layer, without a new token."""
        depth = min(self._hidden)
        hidden = torch.cat(self._hidden.pop(depth), 1)
        block = Block(hidden, self._sequences.length - hidden.shape[1])
        return self.run(block, depth, self._sequences.engine.layers)

    def keep_rows(self, rows: Tensor) -> None:
        """Only these rows go on: int64."""
        for depth, waiting in self._hidden.items():
            self._hidden[depth] = [hidden[rows] for hidden in waiting]

    def clear(self) -> None:
        """Forget all that waits."""
        self._hidden.clear()

    def _run_layers(self, block: Block, first: int, last: int) -> Block:
        """Run layers that nothing waits between."""
        hidden = self._sequences.run_block(
            block.hidden, block.start, block.end, first, last, self._on_position
        )
        return Block(hidden, block.start)


@dataclass(frozen=True)
class Stop:
    """How far a token has come."""

    exit: int
    """Layers that it has run."""
    block: Block
    """Its hidden state, after those that it took along."""
    before: Tensor | None
    """Its input to the last of these layers [batch, 1, hidden], None where nothing reads it."""


def descend(
    gear: Gear, waiting: Waiting, leave: Callable[[Stop, NDArray[np.bool_]], None] | None = None
) -> Stop:
    """Run the newest token until every row has left, or to the policy's last stop, asking on the way.

    leave: told where rows leave, bool [batch].
    """
    driver = gear.driver
    stop = Stop(0, waiting.newest(), None)
    for exit in driver.stops:
        if not driver.running.any():
            break
        stop = go_on(gear, waiting, stop, exit)
        leaving = driver.at(exit, stop.block.last, stop.before)
        if leave is not None and leaving.any():
            leave(stop, leaving)
    return stop


def go_on(gear: Gear, waiting: Waiting, stop: Stop, exit: int) -> Stop:
    """Run on to a deeper exit."""
    if not gear.driver.reader.wants_before(exit):
        return Stop(exit, waiting.run(stop.block, stop.exit, exit), None)
    block = waiting.run(stop.block, stop.exit, exit - 1)
    return Stop(exit, waiting.run(block, exit - 1, exit), block.last)


class Recompute(Strategy, of=RECOMPUTE):
    """A token that leaves waits before the next layer until a later token runs it; EE-LLM (arXiv 2312.04916).

    Exact: every state of every layer that runs, so a token that reaches exit L gets the full model's logits
    (in float32 within the rounding of wider products, some 2e-6), and every exit's output is what that exit
    of the full model says on the same tokens. Approximate: only that an exit answers instead of exit L.
    Recurrent layers catch up one position at a time. Tokens that wait hold one hidden state each, and a
    deep token after many pays for all of them at once. All rows of a batch run and wait alike, as deep as the
    deepest of them: in lockstep they answer there too, under "rebatch" each answers from its own exit, which
    gives every row what it would say alone and skips no more layers than lockstep does.
    """

    def __init__(self, gear: Gear) -> None:
        super().__init__(gear)
        self._waiting = Waiting(gear.sequences)

    def keep_rows(self, rows: Tensor) -> None:
        """Tokens of other rows no longer wait."""
        self._waiting.keep_rows(rows)

    def advance(self, tokens: Tensor) -> Advance:
        """Feed the last tokens, int64 [batch, 1], and predict one more for each row."""
        gear, driver = self.gear, self.gear.driver
        # 1. Feed.
        feed(gear, tokens)
        if gear.options.batching == "rebatch" and gear.sequences.batch > 1:
            return self._advance_apart()
        # 2. Ask on the way down, taking along all that waits before these layers: so its K and V are filled.
        stop = descend(gear, self._waiting)
        # 3. Leave, and wait there: 4. K and V of the layers above are filled when a deeper token comes along.
        stop, logits = self._end(stop)
        if logits is None:
            logits = driver.logits(stop.exit, stop.block.last)
        return choose(gear, logits, stop.exit)

    def _advance_apart(self) -> Advance:
        """The same where each row answers from its own exit; a row that is over answers nothing."""
        driver = self.gear.driver
        rows: list[NDArray[np.int64]] = []
        answers: list[Tensor] = []

        def leave(stop: Stop, leaving: NDArray[np.bool_]) -> None:
            rows.append(np.flatnonzero(leaving))
            chosen = torch.from_numpy(rows[-1]).to(stop.block.hidden.device)
            answers.append(driver.logits(stop.exit, stop.block.last, chosen).float())

        stop = descend(self.gear, self._waiting, leave)
        deep = np.flatnonzero(driver.running)
        _, logits = self._end(stop, deep)
        if logits is not None:
            rows.append(deep)
            answers.append(logits.float())
        answered = torch.cat(answers)
        spread = answered.new_zeros((len(driver.own), answered.shape[1]))
        spread[torch.from_numpy(np.concatenate(rows)).to(answered.device)] = answered
        return choose(self.gear, spread, driver.own)

    def _end(self, stop: Stop, rows: NDArray[np.int64] | None = None) -> tuple[Stop, Tensor | None]:
        """Run all rows through layer L if any has not left, else let the token wait where the last one did.

        rows: those that answer at L, int64 [rows], None for all; their logits come back too, None without.
        """
        driver = self.gear.driver
        if not driver.running.any():
            self._waiting.leave(stop.exit, stop.block)
            driver.end()
            return stop, None
        stop = go_on(self.gear, self._waiting, stop, self.gear.engine.layers)
        hidden, before = stop.block.last, stop.before
        if rows is not None:
            index = torch.from_numpy(rows).to(hidden.device)
            hidden, before = hidden[index], None if before is None else before[index]
        logits = read_final(self.gear, hidden)
        driver.end(logits, hidden, before, rows)
        return stop, logits
