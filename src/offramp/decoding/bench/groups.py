"""Groups of contenders that are timed until their questions are answered, visit by visit."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from offramp.decoding.bench.answers import Looks
from offramp.decoding.bench.budget import Budget
from offramp.decoding.bench.entrant import Entrant, PromptBatch
from offramp.decoding.bench.results import Stopped
from offramp.decoding.bench.series import Series
from offramp.decoding.bench.visits import Visit, log_ratios, visit
from offramp.errors import OfframpError

FEWEST_VISITS = 2
"""Made whatever the budget: of two prompts there is an interval, however wide."""
RARELY = 2
"""A peer that decodes at a stretch takes part in one of so many visits: no question is about it."""


@dataclass
class Group:
    """Contenders that decode the same batches of prompts in turn.

    plain: the name of the plain decoder that all others are held against. questions: those whose answers are
    sought. worth: the gain that matters, as a share. together: whether all of them are timed until all are
    answered; else each only until its own is. rounds: how often each batch is visited, at most; None for no
    limit. error: what ended the group.
    """

    entrants: Sequence[Entrant]
    plain: str
    questions: Sequence[str]
    prompts: Sequence[PromptBatch]
    new_tokens: int
    worth: float
    rounds: int | None = None
    together: bool = False
    visits: list[tuple[int, Visit]] = field(default_factory=list)
    series: dict[str, Series] = field(default_factory=dict)
    answered: set[str] = field(default_factory=set)
    seconds: float = 0.0
    stopped: Stopped | None = None
    error: OfframpError | None = None

    @property
    def over(self) -> bool:
        """Whether nothing more is timed here."""
        return self.stopped is not None or self.error is not None

    def visit_next(self, order: random.Random, budget: Budget) -> None:
        """Decode the next batch of prompts, in their order, around and around."""
        began = budget.spent
        place = len(self.visits) % len(self.prompts)
        found = visit(self._taking_part(), self.prompts[place], self.new_tokens, order)
        for name, timed in found.items():
            if name != self.plain:
                series = self.series.setdefault(name, Series())
                series.add(place, log_ratios(found[self.plain], timed))
        self.visits.append((place, found))
        self.seconds += budget.spent - began

    def _taking_part(self) -> list[Entrant]:
        skipped = set(self.answered)
        # Every second prompt, and in the next round the others.
        if sum(divmod(len(self.visits), len(self.prompts))) % RARELY:
            skipped |= {one.name for one in self.entrants if one.start is None and one.role == "peer"}
        return [one for one in self.entrants if one.name == self.plain or one.name not in skipped]

    def look(self, level: float) -> None:
        """See which questions are answered at an interval's level."""
        asked = [name for name in self.questions if name not in self.answered]
        for name in asked:
            self.series[name].look(level)
        over = {name for name in asked if self.series[name].is_over(self.worth)}
        if not self.together or len(over) == len(asked):
            self.answered |= over
        if self.answered.issuperset(self.questions):
            self._end("answered", level)

    def end_if_due(self, budget: Budget, last: float) -> None:
        """End where the rounds are over, or the next visit would probably last too long. last: the level."""
        count = len(self.visits)
        if self.rounds is not None and count >= self.rounds * len(self.prompts):
            self._end("rounds", last)
        elif count >= FEWEST_VISITS and not budget.has(self.seconds / count):
            self._end("seconds", last)

    def _end(self, why: Stopped, level: float) -> None:
        """The last look at all questions that are open. Others are looked at once, at the full level."""
        self.stopped = why
        for name in self.questions:
            if name not in self.answered:
                self.series[name].look(level)


def time_groups(
    groups: Sequence[Group],
    *,
    budget: Budget,
    looks: bool = True,
    seed: int = 0,
    visited: Callable[[], None] = lambda: None,
) -> None:
    """Visit the groups' prompts in turn until every question is answered, the rounds or the budget are over.

    looks: whether anything may end sooner. seed: of the order in which contenders take blocks.
    A group that fails leaves the others.
    """
    order, schedule = random.Random(seed), Looks() if looks else Looks(at=(), spends=())
    while not all(group.over for group in groups):
        for group in groups:
            if group.over:
                continue
            try:
                group.visit_next(order, budget)
            except OfframpError as error:  # the other groups still count
                group.error = error
            visited()
        level = schedule.due(budget.used)
        for group in groups:
            if level is not None and not group.over:
                group.look(level)
            if not group.over:
                group.end_if_due(budget, schedule.last())
