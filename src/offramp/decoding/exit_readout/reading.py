"""One exit as it is read now: what facts have in common is computed once, and only if one asks for it."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from offramp.decoding.exit_readout.head import (
    OutputHead,
    PreparedClassifier,
    PreparedLens,
    hidden_of,
    rows_of,
)
from offramp.tracing.statistics import LOWEST


@dataclass(frozen=True)
class Shortlist:
    """The restricted vocabulary. tokens: int64, ascending. block: their columns (`OutputHead.columns`).

    own: by exit, the columns of those whose output head is their own.
    """

    tokens: Tensor
    block: tuple[Tensor, Tensor | None]
    own: Mapping[int, tuple[Tensor, Tensor | None]] = field(default_factory=dict)


@dataclass(frozen=True)
class Tools:
    """What exits are read with. head: the model's. own_heads, lenses: by exit. classifiers: by fact, exit."""

    head: OutputHead
    lenses: Mapping[int, PreparedLens]
    classifiers: Mapping[tuple[str, int], PreparedClassifier]
    shortlist: Shortlist | None = None
    own_heads: Mapping[int, OutputHead] = field(default_factory=dict)


class Reading:
    """The hidden states of one exit, and what follows from them. Not more than once, and not before asked.

    hidden, before: output and input of the exit's layer [rows, 1, hidden]. output: the model's own logits
    there, where they are known already.
    """

    def __init__(
        self, tools: Tools, exit: int, hidden: Tensor, before: Tensor | None, output: Tensor | None = None
    ) -> None:
        self.tools = tools
        self.exit = exit
        self.hidden = hidden
        self.before = before
        self.head = tools.own_heads.get(exit, tools.head)
        if output is not None:
            self.__dict__["output"] = output  # where the cached property would put it

    @property
    def _axis(self) -> int:
        return self.tools.head.stack.position_axis

    @functools.cached_property
    def states(self) -> Tensor:
        """Hidden states as the layer gave them: [rows, features]."""
        return rows_of(self.hidden, self._axis)

    @functools.cached_property
    def seen(self) -> Tensor:
        """What the output head is given, as the layer gave it or through the lens: [rows, 1, hidden]."""
        lens = self.tools.lenses.get(self.exit)
        return self.hidden if lens is None else hidden_of(lens(self.states), self.hidden, self._axis)

    @functools.cached_property
    def normed(self) -> Tensor:
        """The same behind the final norm, for a linear head: [rows, 1, features of the head]."""
        return self.head.stack.tail_forward(self.seen)

    @functools.cached_property
    def output(self) -> Tensor:
        """Logits as the exit's head gives them, in the model's dtype: [rows, vocabulary]."""
        head = self.head
        return head.output_of_normed(self.normed) if head.linear else head.output(self.seen)

    @functools.cached_property
    def logits(self) -> Tensor:
        """Logits that facts are made of, float32: as exact at the top as the tracer's."""
        head = self.head
        return head.corrected(self.output, self.normed) if head.rounds else self.output.float()

    @functools.cached_property
    def best(self) -> tuple[Tensor, Tensor]:
        """The largest logit and its token, the lowest of equals: [rows] each."""
        found = self.logits.max(-1)
        return found.values, found.indices

    @functools.cached_property
    def second(self) -> Tensor:
        """The second largest logit: [rows]."""
        return self.logits.scatter(1, self.best[1].unsqueeze(-1), -torch.inf).amax(-1)

    @functools.cached_property
    def shifted(self) -> Tensor:
        """Logits less their maximum, which keeps digits: [rows, vocabulary]."""
        return (self.logits - self.best[0].unsqueeze(-1)).clamp_(min=LOWEST)

    @functools.cached_property
    def shares(self) -> Tensor:
        """The softmax before it is divided by its sum: [rows, vocabulary]."""
        return self.shifted.exp()

    @functools.cached_property
    def partition(self) -> Tensor:
        """That sum: [rows]."""
        return self.shares.sum(-1)

    @functools.cached_property
    def entropy(self) -> Tensor:
        """In nats: [rows]."""
        weighted = torch.linalg.vecdot(self.shares, self.shifted)
        entropy: Tensor = self.partition.log() - weighted / self.partition
        return entropy.clamp(min=0)

    @functools.cached_property
    def max_prob(self) -> Tensor:
        """Largest probability: [rows]."""
        return 1.0 / self.partition

    @functools.cached_property
    def margin(self) -> Tensor:
        """Difference of the two largest probabilities: [rows]."""
        return (1.0 - (self.second - self.best[0]).exp()) / self.partition

    @property
    def shortlist(self) -> Shortlist:
        """The restricted vocabulary."""
        found = self.tools.shortlist
        assert found is not None, "made ready for a policy that reads it"
        return found

    @functools.cached_property
    def short_logits(self) -> Tensor:
        """Logits of the short list, float32 [rows, tokens]."""
        block = self.shortlist.own.get(self.exit, self.shortlist.block)
        return self.head.from_block(self.normed, block)

    @functools.cached_property
    def short(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of a softmax over the short list: place of the best token, its probability, the margin: [rows]."""
        maximum, place = self.short_logits.max(-1, keepdim=True)
        shares = (self.short_logits - maximum).clamp_(min=LOWEST).exp_()
        total = shares.sum(-1)
        second = shares.scatter_(1, place, 0.0).amax(-1)
        return place[:, 0], 1.0 / total, (1.0 - second) / total

    def probability(self, fact: str, features: Tensor) -> Tensor:
        """What the classifier that gives a fact says at this exit of features [rows, features]."""
        return self.tools.classifiers[fact, self.exit](features)
