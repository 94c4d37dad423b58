"""Self-speculation: early outputs are drafts, which the remaining layers verify as one block."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from offramp.decoding.engine.cache import Past
from offramp.decoding.generation.next_token import Choice, JudgedToken, NonFiniteLogits, judge, raise_for
from offramp.decoding.strategies.draft_length import draft_length_of
from offramp.decoding.strategies.recompute import Block, Stop, Waiting, descend, go_on
from offramp.decoding.strategies.strategy import Advance, Conditions, Strategy, Work
from offramp.errors import InputError
from offramp.policies.kv import SPECULATE


@dataclass(frozen=True)
class Draft:
    """One drafted token of every sequence.

    exit: where it left. choice: what the exit chose. remembered: the policy's memory after this token.
    """

    exit: int
    choice: Choice
    remembered: Any


@dataclass(frozen=True)
class Round:
    """Rows that are verified together: the drafts' and, unless the text ends with them, a closing one.

    start: position of the first row. drafts: in order. block: all rows after layer L. closing: the row that
    closes the round, which is no draft; None if the drafts are verified alone. exit: where the policy lets
    the closing row leave.
    """

    start: int
    drafts: list[Draft]
    block: Block
    closing: Stop | None
    exit: int


@dataclass(frozen=True)
class Moment:
    """What must be known to go back to an earlier length.

    remembered: the policy's memory. states: of the recurrent layers, in order.
    """

    length: int
    remembered: Any
    states: list[Past]


class Speculate(Strategy, of=SPECULATE):
    """Early outputs are drafts that the full model verifies; LayerSkip (arXiv 2404.16710, section 4.3).

    Tokens are drafted as long as the policy lets them leave, `draft_length` at most; the next one closes the
    round. On its way to exit L it takes along what the drafts have still to run, so that drafts keep their K,
    V and states and no layer runs twice; one head product for all rows then says which drafts were right. The
    first wrong one is replaced by the full model's token, and all that came after it is taken back. The
    policy is asked about the closing row as well.

    Exact: every token is what the full model would have chosen, processors included; sampled tokens have the
    full model's distribution (Leviathan et al., arXiv 2211.17192, algorithm 1; Chen et al., arXiv
    2302.01318). In bfloat16 a block's logits can differ from one row's in their last digit, so that near ties
    may fall the other way. Recurrent states are kept per position and put back, and run one position at a
    time. In lockstep a batch keeps as many drafts as are right in every row that is not over.
    """

    drops: ClassVar[bool] = False

    def __init__(self, work: Work) -> None:
        super().__init__(work)
        self._length = draft_length_of(work.options.draft_length, work.engine, work.driver.policy)
        self._waiting = Waiting(work.sequences, self._keep_state)
        self._states: dict[tuple[int, int], Past] = {}
        self._recurrent = [layer for layer, moves in enumerate(work.engine.recurrent) if moves]
        self._kept_before = 0
        self._alone = 0
        # Forced tokens go on behind an end token.
        ends = work.end_tokens if work.chooser.forced is None else ()
        self._end_tokens = torch.tensor(ends, dtype=torch.int64, device=work.sequences.ids.device)
        work.sequences.record_past()

    @classmethod
    def check(cls, conditions: Conditions) -> None:
        """Raise InputError for rows that would not be verified together, or a logits processor that keeps
        count of its calls, which drafts would upset; PolicyError for a policy that never computes the full
        model's head."""
        from transformers import SynthIDTextWatermarkLogitsProcessor

        super().check(conditions)
        if conditions.options.batching == "rebatch" and conditions.batch > 1:
            raise InputError(
                f"{cls.of.name!r} cannot decode a batch whose rows leave one by one",
                where='batching "rebatch"',
                fix='rows are verified together: choose batching "lockstep", or another kv',
            )
        for processor in conditions.processors:
            if isinstance(processor, SynthIDTextWatermarkLogitsProcessor):
                raise InputError(
                    f"{type(processor).__name__} must see each token once; drafts are seen twice",
                    where='kv "speculate"',
                    fix="leave the watermark out, or choose another kv",
                )

    def advance(self, tokens: Tensor) -> Advance:
        """Feed the last tokens, int64 [batch, 1]; draft, verify, and keep at least one token."""
        longest = 0 if self._alone else self._length.next()
        start = self._start(longest)
        try:
            run = self._run_round(tokens, longest)
            verdicts = self._verify(run)
        except NonFiniteLogits:
            fed = self.work.sequences.length - start.length
            if fed == 1:
                raise
            # It spoils the rows beside it, which are decoded again one by one until it comes.
            self._go_back(start)
            self._alone = fed
            return self.advance(tokens)
        self._take_back(run, len(verdicts))
        exits = np.array([*(draft.exit for draft in run.drafts), run.exit][: len(verdicts)], dtype=np.int64)
        return Advance(
            tokens=torch.stack([verdict.fed for verdict in verdicts], 1),
            chosen=torch.stack([verdict.chosen for verdict in verdicts], 1),
            exits=np.tile(exits, (self.work.sequences.batch, 1)),
            scores=torch.stack([verdict.scores for verdict in verdicts], 1),
            broken=torch.stack([verdict.broken for verdict in verdicts], 1),
        )

    def _run_round(self, tokens: Tensor, longest: int) -> Round:
        """Draft `longest` tokens at most, and run all rows through layer L."""
        work, waiting = self.work, self._waiting
        start, layers, room = work.sequences.length, work.engine.layers, self._room()
        asked = longest > 0 or self._alone > 0
        self._alone = max(0, self._alone - 1)
        self._kept_before = sys.maxsize if longest else 0
        drafts: list[Draft] = []
        ended, over = self._finished(), bool(work.driver.finished.all())
        while len(drafts) < room and not over:
            work.sequences.feed(tokens)
            work.driver.begin()
            stop = descend(work, waiting) if asked else Stop(0, waiting.newest(), None)
            draft = self._draft(stop) if len(drafts) < longest else None
            if draft is None:
                self._kept_before = work.sequences.length - 1
                exit = layers if work.driver.running.any() else stop.exit
                closing = go_on(work, waiting, stop, layers)
                return Round(start, drafts, closing.block, closing, exit)
            drafts.append(draft)
            tokens = draft.choice.fed[:, None]
            ended = ended | self._ends(draft.choice.fed)
            over = all(_told(draft.choice.broken, ended))
        self._kept_before = work.sequences.length - 1
        return Round(start, drafts, waiting.run_rest(), None, layers)

    def _draft(self, stop: Stop) -> Draft | None:
        """Let every row's token leave here; None if one of them does not."""
        work = self.work
        if work.driver.running.any():
            return None
        choice = work.chooser.choose(work.sequences.ids, work.driver.logits(stop.exit, stop.block.last))
        self._waiting.leave(stop.exit, stop.block)
        work.driver.end()
        work.meter.count("overhead", rows=work.sequences.batch)
        return Draft(stop.exit, choice, work.driver.state())

    def _verify(self, run: Round) -> list[JudgedToken]:
        """The full model on every row up to the first wrong draft, one head product for all."""
        work, hidden, closing = self.work, run.block.hidden, run.closing
        work.meter.count("overhead", rows=hidden.shape[0] * hidden.shape[1])
        logits = work.sequences.read_out_all(hidden)
        if closing is not None and run.exit == work.engine.layers:
            work.driver.end(logits[:, -1], run.block.last, closing.before)
        elif closing is not None:
            work.driver.end()
        verdicts: list[JudgedToken] = []
        ended, wrong = self._finished(), False
        choices = [*(draft.choice for draft in run.drafts), None][: hidden.shape[1]]
        for place, choice in enumerate(choices):
            ids = work.sequences.ids[:, : run.start + place + 1]
            verdict = judge(work.chooser, ids, logits[:, place], choice)
            verdicts.append(verdict)
            wrong = any(_told(verdict.broken, ~verdict.right & ~ended))
            if wrong:
                break
            ended = ended | self._ends(verdict.fed)
        self._count(run.drafts, min(len(verdicts) - wrong, len(run.drafts)), wrong)
        return verdicts

    def _count(self, drafts: list[Draft], accepted: int, wrong: bool) -> None:
        rows = int((~self.work.driver.finished).sum())
        self.drafted += rows * len(drafts)
        self.accepted += rows * accepted
        self._length.learn(accepted, wrong, [draft.exit for draft in drafts])

    def _take_back(self, run: Round, kept: int) -> None:
        """Keep the first rows of a round, and leave everything as if the others had never run."""
        length = run.start + kept
        if self.work.sequences.length > length:
            states = [self._states[layer, length - 1] for layer in self._recurrent]
            self._go_back(Moment(length, run.drafts[kept - 1].remembered, states))
        else:
            # Sliding windows let go of what they kept for this.
            self.work.sequences.crop(length, 0, self.work.engine.layers)
        self._states.clear()

    def _start(self, longest: int) -> Moment:
        """What to go back to if a round of several rows breaks."""
        sequences = self.work.sequences
        several = longest > 0 and len(self.work.driver.stops) > 0
        states = [sequences.snapshot(layer, layer + 1) for layer in self._recurrent] if several else []
        return Moment(sequences.length, self.work.driver.state(), states)

    def _go_back(self, moment: Moment) -> None:
        sequences = self.work.sequences
        self._waiting.clear()
        self.work.driver.restore(moment.remembered)
        for state in moment.states:
            sequences.restore(state)
        sequences.unfeed(moment.length)
        sequences.crop(moment.length, 0, self.work.engine.layers)

    def _keep_state(self, layer: int, position: int) -> None:
        """Note a recurrent layer's state after a position that may have to be gone back to.

        The last row of a round is never taken back alone.
        """
        if position < self._kept_before:
            self._states[layer, position] = self.work.sequences.snapshot(layer, layer + 1)

    def _room(self) -> int:
        """Tokens that are still to be fed: the last one that is wanted never is."""
        work = self.work
        if work.limit is None:
            return sys.maxsize
        return work.limit - 1 - (work.sequences.length - work.chooser.prompt)

    def _finished(self) -> Tensor:
        """Rows that are over: bool [batch]."""
        return torch.from_numpy(self.work.driver.finished).to(self.work.sequences.ids.device)

    def _ends(self, tokens: Tensor) -> Tensor:
        return torch.isin(tokens, self._end_tokens)


def _told(broken: Tensor, rows: Tensor) -> list[bool]:
    """Some rows, bool [batch], on the host, with what is broken in the same copy: it is waited for once.

    Raises NonFiniteLogits for the first broken one.
    """
    bad, told = torch.stack([broken, rows]).tolist()
    raise_for(bad)
    return [bool(row) for row in told]
