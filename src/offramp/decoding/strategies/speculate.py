"""Self-speculation: early outputs are drafts, as many as pay, which the layers above verify as one block."""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from offramp.costs.probes import ProbeSizes
from offramp.decoding.engine.cache import Past
from offramp.decoding.engine.engine import Engine
from offramp.decoding.options import Auto, each_costs
from offramp.decoding.strategies.next_token import Advance, Choice, Chooser, NonFiniteLogits, raise_for
from offramp.decoding.strategies.recompute import Block, Stop, Waiting, descend, go_on
from offramp.decoding.strategies.strategy import Conditions, Gear, Strategy
from offramp.errors import InputError
from offramp.policies.kv import SPECULATE
from offramp.policies.policy import ExitPolicy

FEW_ROWS = 0.25
"""What a further row costs where products of few rows run the faster way."""

FORGETTING = 0.9
"""Weight of what was seen a round earlier."""

TRUSTED = (2.0, 3.0)
"""Accepted and judged drafts that are assumed before any was made."""

SHORTEST_PAUSE, LONGEST_PAUSE = 8, 128
"""Tokens decoded plainly between two tries while drafting does not pay."""


class AdaptiveLength:
    """The draft length with the most tokens per cost, as far as the drafts so far tell.

    With n drafts of which each is right with probability a, a round gives (1 - a^(n+1)) / (1 - a) tokens
    (Leviathan et al., arXiv 2211.17192, equation 1). It costs, in layers, with e the mean exit of drafts, h
    the head, x an exit's and r(.) the cost of rows: n + 1 rows through layers 1..e one by one, n exit heads,
    and the rest with the head as one block: (n + 1) e + n x + (L - e + h) r(n + 1). The best n in 0..longest
    is taken, where 0 decodes without drafts: plainly, without asking the policy, for L + h, or for what
    `without` says that it costs.

    a = (2 + accepted) / (3 + judged), e and both counts with weights that fall by 0.9 a round; before the
    first draft e is the policy's shallowest exit. A length of 0 teaches nothing, so that after a pause of 8
    tokens one is drafted, and each pause in a row is twice as long, up to 128; but nothing is tried where
    not even right drafts (a = 1) would pay. All follows from which drafts were accepted, nothing from a
    clock: the same run repeats itself.
    """

    def __init__(self, settings: Auto, layers: int, head: float, exit_head: float, shallowest: float) -> None:
        self._settings = settings
        self._layers = layers
        self._head = head
        self._exit_head = exit_head
        self.without: float | None = None
        self._exit = shallowest
        self._accepted = self._judged = self._exits = self._drafts = 0.0
        self._pause = SHORTEST_PAUSE
        self._left = 0

    def next(self) -> int:
        """The longest draft of the next round: the best, 1 to find out, or 0 to decode a token plainly."""
        if not self.best(1.0):
            return 0
        if self._left:
            self._left -= 1
            return 0 if self._left else 1
        right = (TRUSTED[0] + self._accepted) / (TRUSTED[1] + self._judged)
        best = self.best(right) if self._drafts else 1
        if best:
            self._pause = SHORTEST_PAUSE
        else:
            self._left = self._pause
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
        return best

    def best(self, right: float) -> int:
        """The length with the most tokens per cost if drafts are right with this probability."""
        lengths = range(self._settings.longest + 1)
        tokens = itertools.accumulate(right**length for length in lengths)
        gains = map(self._gain, lengths, tokens)
        return max(zip(gains, lengths, strict=True), key=lambda found: (found[0], -found[1]))[1]

    def _gain(self, length: int, tokens: float) -> float:
        """Tokens per cost of a round of so many drafts and tokens; see the class."""
        if not length and self.without is not None:
            return 1.0 / self.without
        exit = self._exit if length else 0.0
        below = (length + 1) * exit + length * self._exit_head
        return tokens / (below + (self._layers - exit + self._head) * self._settings.rows(length + 1))

    def learn(self, accepted: int, rejected: bool, exits: list[int]) -> None:
        """Count a round, and let the older ones fade; a round without drafts teaches nothing.

        accepted: drafts kept. rejected: whether the next one was wrong. exits: of all its drafts.
        """
        if exits:
            self._accepted = FORGETTING * self._accepted + accepted
            self._judged = FORGETTING * self._judged + accepted + rejected
            self._exits = FORGETTING * self._exits + sum(exits)
            self._drafts = FORGETTING * self._drafts + len(exits)
            self._exit = self._exits / self._drafts


def draft_length_of(value: int | str | Auto, engine: Engine, policy: ExitPolicy) -> AdaptiveLength | int:
    """What a caller's draft length means for a policy: a number, "auto", or settings of it."""
    if isinstance(value, int):
        return value
    usual = Auto(rows=each_costs(FEW_ROWS)) if any(engine.linears) else Auto()
    settings = value if isinstance(value, Auto) else usual
    head = settings.head if settings.head is not None else head_in_layers(engine)
    exit_head = settings.exit_head
    if exit_head is None:
        exit_head = head * share_of_vocabulary(engine) if policy.short_list else head
    shallowest = min(policy.leaves_at(engine.layers), default=engine.layers)
    return AdaptiveLength(settings, engine.layers, head, exit_head, shallowest)


def head_in_layers(engine: Engine) -> float:
    """Parameters of the output head over those of a layer: about what its product costs, in layers."""
    stack = engine.stack
    layers = sum(parameter.numel() for layer in set(stack.layers) for parameter in layer.parameters())
    head = sum(parameter.numel() for parameter in stack.head.parameters()) if stack.head else 0
    return head * len(set(stack.layers)) / layers


def share_of_vocabulary(engine: Engine) -> float:
    """Of the whole output head, what a short list of the usual length computes."""
    vocabulary = int(engine.hf.config.get_text_config().vocab_size)
    return min(1.0, ProbeSizes().shortlist / vocabulary)


@dataclass(frozen=True)
class Draft:
    """One drafted token of every sequence."""

    exit: int
    """Where it left."""
    choice: Choice
    """What the exit chose."""
    remembered: Any
    """The policy's memory after this token."""


@dataclass(frozen=True)
class Round:
    """Rows that are verified together: the drafts' and, unless the text ends with them, a closing one."""

    start: int
    """Position of the first row."""
    drafts: list[Draft]
    """In order."""
    block: Block
    """All rows after layer L."""
    closing: Stop | None
    """The row that closes the round, which is no draft; None if the drafts are verified alone."""
    exit: int
    """Where the policy lets the closing row leave."""


@dataclass(frozen=True)
class Moment:
    """What must be known to go back to an earlier length."""

    length: int
    remembered: Any
    """The policy's memory."""
    states: list[Past]
    """Of the recurrent layers, in order."""


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

    def __init__(self, gear: Gear) -> None:
        super().__init__(gear)
        self._length = draft_length_of(gear.options.draft_length, gear.engine, gear.driver.policy)
        self._waiting = Waiting(gear.sequences, self._keep_state)
        self._states: dict[tuple[int, int], Past] = {}
        self._recurrent = gear.engine.recurrent
        self._kept_before = 0
        self._alone = 0
        # Forced tokens go on behind an end token.
        ends = gear.end_tokens if gear.chooser.forced is None else ()
        self._end_tokens = torch.tensor(ends, dtype=torch.int64, device=gear.sequences.ids.device)
        gear.sequences.record_past()

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
        longest = 0 if self._alone else self._longest()
        start = self._start(longest)
        try:
            # 1. Draft: each token is fed, the policy is asked, and what leaves waits for the layers above.
            # 2. Close the round: one token runs deep and takes the drafts along, which fills all K and V.
            run = self._run_round(tokens, longest)
            # 3. Verify: one head product for all rows says which drafts the full model would have chosen.
            choices = self._verify(run)
        except NonFiniteLogits:
            fed = self.gear.sequences.length - start.length
            if fed == 1:
                raise
            # It spoils the rows beside it, which are decoded again one by one until it comes.
            self._go_back(start)
            self._alone = fed
            return self.advance(tokens)
        # 4. Take back what came after the first wrong draft, as if it had never run.
        self._take_back(run, len(choices))
        exits = np.array([*(draft.exit for draft in run.drafts), run.exit][: len(choices)], dtype=np.int64)
        return Advance(tuple(choices), np.tile(exits, (self.gear.sequences.batch, 1)))

    def _run_round(self, tokens: Tensor, longest: int) -> Round:
        """Draft `longest` tokens at most, and run all rows through layer L."""
        gear, waiting = self.gear, self._waiting
        start, layers, room = gear.sequences.length, gear.engine.layers, gear.room
        asks = longest > 0 or self._alone > 0
        self._alone = max(0, self._alone - 1)
        self._kept_before = sys.maxsize if longest else 0
        drafts: list[Draft] = []
        ended, over = self._finished(), bool(gear.driver.finished.all())
        while len(drafts) < room and not over:
            gear.sequences.feed(tokens)
            gear.driver.begin()
            stop = descend(gear, waiting) if asks else Stop(0, waiting.newest(), None)
            draft = self._draft(stop) if len(drafts) < longest else None
            if draft is None:
                self._kept_before = gear.sequences.length - 1
                exit = layers if gear.driver.running.any() else stop.exit
                closing = go_on(gear, waiting, stop, layers)
                return Round(start, drafts, closing.block, closing, exit)
            drafts.append(draft)
            tokens = draft.choice.fed[:, None]
            ended = ended | self._ends(draft.choice.fed)
            over = all(_told(draft.choice.broken, ended))
        self._kept_before = gear.sequences.length - 1
        return Round(start, drafts, waiting.run_rest(), None, layers)

    def _draft(self, stop: Stop) -> Draft | None:
        """Let every row's token leave here; None if one of them does not."""
        gear = self.gear
        if gear.driver.running.any():
            return None
        choice = gear.chooser.choose(gear.sequences.ids, gear.driver.logits(stop.exit, stop.block.last))
        self._waiting.leave(stop.exit, stop.block)
        gear.driver.end()
        gear.meter.count("overhead", rows=gear.sequences.batch)
        return Draft(stop.exit, choice, gear.driver.state())

    def _verify(self, run: Round) -> list[Choice]:
        """The full model on every row up to the first wrong draft, one head product for all."""
        gear, hidden, closing = self.gear, run.block.hidden, run.closing
        gear.meter.count("overhead", rows=hidden.shape[0] * hidden.shape[1])
        logits = gear.sequences.read_out_all(hidden)
        if closing is not None and run.exit == gear.engine.layers:
            gear.driver.end(logits[:, -1], run.block.last, closing.before)
        elif closing is not None:
            gear.driver.end()
        choices: list[Choice] = []
        ended, wrong = self._finished(), False
        drafts = [*(draft.choice for draft in run.drafts), None][: hidden.shape[1]]
        for offset, draft in enumerate(drafts):
            ids = gear.sequences.ids[:, : run.start + offset + 1]
            choice, right = judge(gear.chooser, ids, logits[:, offset], draft)
            choices.append(choice)
            wrong = any(_told(choice.broken, ~right & ~ended))
            if wrong:
                break
            ended = ended | self._ends(choice.fed)
        self._count(run.drafts, min(len(choices) - wrong, len(run.drafts)), wrong)
        return choices

    def _count(self, drafts: list[Draft], accepted: int, wrong: bool) -> None:
        rows = int((~self.gear.driver.finished).sum())
        self.drafted += rows * len(drafts)
        self.accepted += rows * accepted
        if not isinstance(self._length, int):
            self._length.learn(accepted, wrong, [draft.exit for draft in drafts])

    def _take_back(self, run: Round, kept: int) -> None:
        """Keep the first rows of a round, and leave everything as if the others had never run."""
        length = run.start + kept
        if self.gear.sequences.length > length:
            states = [self._states[layer, length - 1] for layer in self._recurrent]
            self._go_back(Moment(length, run.drafts[kept - 1].remembered, states))
        else:
            # Sliding windows let go of what they kept for this.
            self.gear.sequences.crop(length, 0, self.gear.engine.layers)
        self._states.clear()

    def _start(self, longest: int) -> Moment:
        """What to go back to if a round of several rows breaks."""
        sequences = self.gear.sequences
        several = longest > 0 and len(self.gear.driver.stops) > 0
        states = [sequences.snapshot(layer, layer + 1) for layer in self._recurrent] if several else []
        return Moment(sequences.length, self.gear.driver.state(), states)

    def _go_back(self, moment: Moment) -> None:
        sequences = self.gear.sequences
        self._waiting.clear()
        self.gear.driver.restore(moment.remembered)
        for state in moment.states:
            sequences.restore(state)
        sequences.unfeed(moment.length)
        sequences.crop(moment.length, 0, self.gear.engine.layers)

    def _keep_state(self, layer: int, position: int) -> None:
        """Note a recurrent layer's state after a position that may have to be gone back to.

        The last row of a round is never taken back alone.
        """
        if position < self._kept_before:
            self._states[layer, position] = self.gear.sequences.snapshot(layer, layer + 1)

    def _longest(self) -> int:
        """The longest draft of the next round."""
        return self._length if isinstance(self._length, int) else self._length.next()

    def _finished(self) -> Tensor:
        """Rows that are over: bool [batch]."""
        return torch.from_numpy(self.gear.driver.finished).to(self.gear.sequences.ids.device)

    def _ends(self, tokens: Tensor) -> Tensor:
        return torch.isin(tokens, self._end_tokens)


def _told(broken: Tensor, rows: Tensor) -> list[bool]:
    """Some rows, bool [batch], on the host, with what is broken in the same copy: it is waited for once.

    Raises NonFiniteLogits for the first broken one.
    """
    bad, told = torch.stack([broken, rows]).tolist()
    raise_for(bad)
    return [bool(row) for row in told]


def judge(chooser: Chooser, ids: Tensor, logits: Tensor, draft: Choice | None) -> tuple[Choice, Tensor]:
    """Choose the tokens after `ids` [batch, length], from the full model's logits [batch, vocabulary].

    Also returns whether the draft stands, bool [batch]; true where there was none.
    """
    scores, broken = chooser.scores(ids, logits)
    if draft is None:
        chosen = chooser.pick(scores)
        right = torch.ones_like(chosen, dtype=torch.bool)
    elif chooser.sampling:
        chosen, right = accept_or_resample(draft.chosen, draft.scores, scores, chooser.random)
    else:
        chosen = chooser.pick(scores)
        right = chosen == draft.chosen
    return Choice(chosen, chooser.forced_after(ids, chosen), scores, broken), right


def accept_or_resample(
    drafted: Tensor, draft_scores: Tensor, scores: Tensor, random: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Tokens with the distribution p of `scores`, given some drawn from q of `draft_scores`.

    A draft x stands with probability min(1, p(x) / q(x)); else a token of norm(max(p - q, 0)) takes its place
    (Leviathan et al., arXiv 2211.17192, algorithm 1; Chen et al., arXiv 2302.01318, algorithm 2).
    drafted: int64 [batch]. scores: float32 [batch, vocabulary]. random: as in `Chooser`. Returns the tokens
    and whether drafts stand.
    """
    wanted, offered = scores.softmax(-1), draft_scores.softmax(-1)
    place = drafted[:, None]
    luck = torch.rand((len(wanted), 1), dtype=torch.float32, generator=random, device=wanted.device)
    right = luck * offered.gather(1, place) < wanted.gather(1, place)
    right = right.squeeze(1)
    if bool(right.all()):
        return drafted, right
    rest = (wanted - offered).clamp(min=0)
    # Equal distributions leave no rest; then only rounding can have refused the draft.
    rest = torch.where(rest.sum(-1, keepdim=True) > 0, rest, wanted)
    return torch.where(right, drafted, torch.multinomial(rest, 1, generator=random).squeeze(1)), right
