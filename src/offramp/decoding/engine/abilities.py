"""What a family can do when it is driven layer by layer, found out when it is first asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable

ABILITIES = (
    "never_exit",
    "propagate",
    "mapped",
    "recompute",
    "speculate",
    "monotone",
    "lockstep",
    "rebatch",
    "drop",
)
"""Whether the loop gives the model's own logits, the KV strategies, and what can be done with a batch."""

SAME_AS = {"mapped": "propagate"}
"""Abilities that a family has if it has another one: layers that leave K and V of one state do of any."""


class Abilities:
    """Each ability is None if the family can do it exactly, else the reason in a sentence.

    trial: tries one ability by name. answers: kept between engines of one model.
    """

    def __init__(
        self, trial: Callable[[str], str | None], answers: dict[str, str | None] | None = None
    ) -> None:
        self._trial = trial
        self._answers = {} if answers is None else answers
        self._lock = threading.Lock()

    def reason(self, ability: str) -> str | None:
        """Why the family cannot do one of ABILITIES, None if it can; tried when first asked for."""
        ability = SAME_AS.get(ability, ability)
        with self._lock:
            if ability not in self._answers:
                self._answers[ability] = self._trial(ability)
            return self._answers[ability]

    @property
    def never_exit(self) -> str | None:
        """Logits and greedy tokens of the loop without exits are the model's own."""
        return self.reason("never_exit")

    @property
    def propagate(self) -> str | None:
        """A skipped layer leaves the K and V (or the moved state) of its exit's hidden state."""
        return self.reason("propagate")

    @property
    def mapped(self) -> str | None:
        """The same, each skipped layer of a state of its own."""
        return self.reason("mapped")

    @property
    def recompute(self) -> str | None:
        """Skipped layers run later, several positions at once, as if they had run in time."""
        return self.reason("recompute")

    @property
    def speculate(self) -> str | None:
        """Positions can be drafted by the first layers, verified by the rest, and taken back."""
        return self.reason("speculate")

    @property
    def monotone(self) -> str | None:
        """The first layers go on alone when the rest is never needed again."""
        return self.reason("monotone")

    @property
    def lockstep(self) -> str | None:
        """Each row of a left-padded batch gets the logits it has alone."""
        return self.reason("lockstep")

    @property
    def rebatch(self) -> str | None:
        """Layers run for some rows of a batch while the others only leave their K and V."""
        return self.reason("rebatch")

    @property
    def drop(self) -> str | None:
        """Rows of a batch that are over leave it, and the others go on."""
        return self.reason("drop")
