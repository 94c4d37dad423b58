"""Prompt lookup beside exits: where the text repeats itself, all layers verify its continuation at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offramp.decoding.options import Auto, each_costs
from offramp.decoding.strategies.next_token import Advance, Choice
from offramp.decoding.strategies.propagate import read_final
from offramp.decoding.strategies.recompute import Block, Recompute
from offramp.decoding.strategies.speculate import (
    FORGETTING,
    AdaptiveLength,
    head_in_layers,
    share_of_vocabulary,
)
from offramp.decoding.strategies.strategy import Conditions, Gear
from offramp.errors import InputError
from offramp.policies.kv import RECOMPUTE

REPEATED = (3, 2, 1)
"""Tokens at the end of the text that are looked for earlier in it, the most first."""

A_ROW_MORE = 0.15
"""What a further row of a block costs, in layers' own cost: 0.1 to 0.25 was measured on processors."""


class LookUp(Recompute, of=RECOMPUTE):
    """`Recompute`, with drafts copied from the text so far; prompt lookup (A. Saxena, 2023).

    Where the last tokens stand in the text already, what followed them there is fed as drafts. All layers run
    the last token and its drafts as one block, together with whatever waits of tokens that left early, so
    that every layer holds K and V of all of them; the full model's choices (those of its short list, where
    the policy reads that) are kept up to the first that is not the draft. Where nothing is found, or drafts
    do not pay, the policy decides as without.

    Exact: as `Recompute`; tokens of a block are the full model's. The longest draft is the one with the most
    tokens per cost, as `AdaptiveLength` finds it for drafts that cost nothing to make, beside what the
    policy's own tokens cost of late. Nothing of a policy is asked in a block: for it these tokens leave at
    exit L.
    """

    def __init__(self, gear: Gear) -> None:
        super().__init__(gear)
        head = head_in_layers(gear.engine)
        self._head = head * share_of_vocabulary(gear.engine) if gear.driver.policy.short_head else head
        settings = Auto(rows=each_costs(A_ROW_MORE), longest=gear.options.lookup)
        self._length = AdaptiveLength(settings, gear.engine.layers, self._head, 0.0, 0.0)
        gear.sequences.record_past()

    @classmethod
    def check(cls, conditions: Conditions) -> None:
        """Raise InputError for several sequences, PolicyError as K and V do."""
        super().check(conditions)
        if conditions.batch > 1:
            raise InputError(
                "drafts from the text are verified in one sequence at a time",
                where="lookup= (--lookup)",
                fix="decode one prompt at a time, or leave it out",
            )

    def advance(self, tokens: Tensor) -> Advance:
        """Feed the last token, int64 [1, 1], and predict one more, or several where drafts are right."""
        drafts = self._drafts()
        advance = self._without(tokens) if drafts is None else self._verify(tokens, drafts)
        # Sliding windows let go of what they kept for drafts that are wrong.
        sequences = self.gear.sequences
        sequences.crop(sequences.length, 0, self.gear.engine.layers)
        return advance

    def _without(self, tokens: Tensor) -> Advance:
        """One token as the policy decides; what such tokens cost, in layers, is what drafts must beat."""
        advance = super().advance(tokens)
        exit, layers = int(advance.exits[0, 0]), self.gear.engine.layers
        cost = exit + A_ROW_MORE * (layers - exit) + self._head
        before = self._length.without
        self._length.without = cost if before is None else FORGETTING * before + (1 - FORGETTING) * cost
        return advance

    def _drafts(self) -> Tensor | None:
        """What followed the last tokens where they stood before, int64 [1, drafts]; None for none."""
        gear = self.gear
        most = min(gear.room - 1, gear.options.lookup)  # beside the last token
        found = continuation(gear.tokens()[0].cpu().numpy(), most) if most > 0 else []
        found = found[: self._length.next()] if found else []
        return torch.tensor([found], device=gear.sequences.ids.device) if found else None

    def _verify(self, tokens: Tensor, drafts: Tensor) -> Advance:
        """Run the last token and its drafts through all layers, and keep what the model chooses."""
        gear, sequences, driver = self.gear, self.gear.sequences, self.gear.driver
        start = sequences.length
        # 1. Feed them as a block, which takes along all that waits: K and V are filled in every layer.
        sequences.feed(torch.cat([tokens, drafts], 1))
        gear.meter.count("overhead", rows=1)
        driver.begin()
        block = Block(sequences.inputs(start, sequences.length).hidden, start)
        before = None
        if driver.reader.wants_before(driver.layers):
            below = self._waiting.run(block, 0, driver.layers - 1)
            before, block = below.hidden[0, start - below.start :, None], below
        deepest = driver.layers - 1 if before is not None else 0
        block = self._waiting.run(block, deepest, driver.layers)
        # 2. One product with the head for all of its rows.
        rows = block.hidden[0, start - block.start :, None]
        logits = read_final(gear, rows)
        # 3. Keep what the model chooses, as far as the drafts foretold it.
        choices = self._choose(drafts[0].tolist(), start, rows, before, logits)
        # 4. Take back what came after the first wrong draft.
        kept = start + len(choices)
        sequences.unfeed(kept)
        sequences.crop(kept, 0, driver.layers)
        return Advance(tuple(choices), np.full((1, len(choices)), driver.layers, dtype=np.int64))

    def _choose(
        self, drafts: Sequence[int], start: int, rows: Tensor, before: Tensor | None, logits: Tensor
    ) -> list[Choice]:
        """The choices after the last token and after every draft that was right.

        rows, before: output and input of layer L [1 + drafts, 1, hidden]. logits: [1 + drafts, vocabulary].
        """
        gear, driver = self.gear, self.gear.driver
        choices: list[Choice] = []
        for place in range(len(rows)):
            here = slice(place, place + 1)
            choice = gear.chooser.choose(gear.sequences.ids[:, : start + 1 + place], logits[here])
            choices.append(choice)
            driver.end(logits[here], rows[here], None if before is None else before[here])
            token = int(choice.fed)
            right = place < len(drafts) and token == drafts[place]
            if not right or token in gear.end_tokens:
                break
            driver.begin()
        accepted = len(choices) - 1
        self.drafted += len(drafts)
        self.accepted += accepted
        self._length.learn(accepted, accepted < len(drafts), [0] * len(drafts))
        return choices


def continuation(text: Sequence[int] | NDArray[np.int64], most: int) -> list[int]:
    """What followed the last tokens of a text where they last stood before, so many tokens at most.

    It is copied token by token, as if the text went on so: a text that repeats itself goes on to.
    """
    tokens = np.asarray(text, dtype=np.int64)
    for size in REPEATED:
        starts = len(tokens) - size  # the last tokens themselves are no earlier place
        if starts < 1:
            continue
        equal = [tokens[place : place + starts] == tokens[starts + place] for place in range(size)]
        places = np.flatnonzero(np.logical_and.reduce(equal))
        if len(places):
            copied: list[int] = tokens[places[-1] + size :].tolist()
            for place in range(most):
                copied.append(copied[place])
            return copied[-most:]
    return []
