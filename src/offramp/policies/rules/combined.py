"""Policies made of several: a vote among them, or one for each class of workload."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from offramp.errors import PolicyError
from offramp.kit.numbers import Count
from offramp.kit.rules import Beside, Must
from offramp.policies.parameter_types import Inner
from offramp.policies.policy import Decider, ExitPolicy, FactsAtExit, Rows, Tokens
from offramp.policies.rules.around import Delegating
from offramp.policies.rules.fixed import Never
from offramp.workloads.registry import split_continued

Voter = Annotated[
    Inner,
    Must(
        lambda policy: not policy.short_list,
        "a voter that leaves open what an exit is read off",
        "put the vote into shortlist:policy=[...]",
    ),
]


@dataclass(frozen=True)
class Votes(ExitPolicy):
    """A token leaves at an exit where enough of several policies would let it leave there.

    All, any, or k of n: a vote over rules, as "Early Exiting with Ensemble Internal Classifiers" (arXiv
    2105.13792) votes over exits. Only policies that ask at an exit vote there; "all" means all of the list,
    so an exit where one of them does not ask lets nothing leave. All are charged: their probes are made
    together, each kind once an exit.
    """

    need: Annotated[
        Literal["all", "any"] | Count,
        Beside(
            lambda need, given: given.of and given.needed <= len(given.of),
            lambda given: f"at most {len(given.of)}, the policies that vote",
        ),
    ]
    """how many must agree: all, any, or a number"""
    of: tuple[Voter, ...]
    """the policies that vote, each in brackets, joined by "+"."""

    kind: ClassVar[str] = "votes"

    @property
    def needed(self) -> int:
        """Votes that let a token leave."""
        if isinstance(self.need, int):
            return self.need
        return 1 if self.need == "any" else len(self.of)

    @property
    def remembers(self) -> bool:
        """Whether one of them does."""
        return any(policy.remembers for policy in self.of)

    @property
    def final_facts(self) -> tuple[str, ...]:
        """What any of them reads."""
        return tuple(sorted({fact for policy in self.of for fact in policy.final_facts}))

    @property
    def document_facts(self) -> tuple[str, ...]:
        """What any of them reads."""
        return tuple(sorted({fact for policy in self.of for fact in policy.document_facts}))

    @property
    def tasks(self) -> tuple[str, ...]:
        """Those of all of them."""
        return tuple(dict.fromkeys(task for policy in self.of for task in policy.tasks))

    def for_task(self, task: str | None) -> ExitPolicy:
        """The same vote among the policies for that workload class."""
        return Votes(self.need, tuple(policy.for_task(task) for policy in self.of))

    def needs(self, layers: int) -> Mapping[int, tuple[str, ...]]:
        """What the policies read, together.

        Raises PolicyError if one does not fit, or if so few ask at the same exit that no vote can be won.
        """
        each = [policy.needs(layers) for policy in self.of]
        exits = sorted({exit for needs in each for exit in needs})
        voters = [sum(exit in needs for needs in each) for exit in exits]
        if voters and max(voters) < self.needed:
            raise PolicyError(
                f"at most {max(voters)} of the policies ask at the same exit, but {self.needed} must agree",
                where=str(self),
                fix="give them the same exits",
            )
        return {
            exit: tuple(dict.fromkeys(fact for needs in each for fact in needs.get(exit, ())))
            for exit in exits
        }

    def leaves_at(self, layers: int) -> tuple[int, ...]:
        """Where so many of them may let go."""
        each = [policy.leaves_at(layers) for policy in self.of]
        return tuple(
            exit for exit in self.needs(layers) if sum(exit in exits for exits in each) >= self.needed
        )

    def decider(self, layers: int, streams: int) -> Decider:
        """All of them at work side by side."""
        voters = [
            _Voter(policy.decider(layers, streams), dict(policy.needs(layers)), policy.final_facts)
            for policy in self.of
        ]
        return _Counts(voters, self.needed)


@dataclass(frozen=True)
class _Voter:
    """One policy at work, where it asks and what it reads."""

    decider: Decider
    needs: Mapping[int, tuple[str, ...]]
    final_facts: tuple[str, ...]


class _Counts(Decider):
    """Counts the votes of those that ask at an exit."""

    def __init__(self, voters: list[_Voter], needed: int) -> None:
        self.voters = voters
        self.needed = needed

    def begin(self, tokens: Tokens) -> None:
        super().begin(tokens)
        for voter in self.voters:
            voter.decider.begin(tokens)

    def checks(self, exit: int) -> Rows:
        asked = np.zeros(self.streams, dtype=np.bool_)
        for voter in self.voters:
            if exit in voter.needs:
                asked |= voter.decider.checks(exit)
        return asked

    def decide(self, exit: int, facts: FactsAtExit) -> Rows:
        votes = np.zeros(self.streams, dtype=np.int64)
        for voter in self.voters:
            if exit in voter.needs:
                read = {name: facts[name] for name in voter.needs[exit]}
                votes += voter.decider.checks(exit) & voter.decider.decide(exit, read)
        return np.asarray(votes >= self.needed)

    def end(self, exits: NDArray[np.int64], final: FactsAtExit) -> None:
        for voter in self.voters:
            voter.decider.end(exits, {name: final[name] for name in voter.final_facts})


RESERVED = ("=", "[", "]", "+(")
"""What the text of a policy cannot hold in a name."""


Name = Annotated[
    str,
    Must(
        lambda name: name.strip() and not any(part in name for part in RESERVED),
        "workload classes",
        'write names joined by "+", as in code+chat, one with a "+" in brackets',
    ),
]


NEVER = Never()


@dataclass(frozen=True)
class Tasks(Delegating):
    """One policy per class of workload, and a fallback for all others.

    Task-dependent strategies, as the study "The Diminishing Returns of Early-Exit Decoding in Modern LLMs"
    (arXiv 2603.23701) calls for. A name is a workload's own (code) or its class, the part before ":" (txt for
    txt:notes.txt); of a text that the model continues also that text's (code for continued:32:code). One that
    holds "+" or "," is written in brackets ([continued:32+64:code]). Where the workload is unknown, the
    fallback decides.
    """

    names: Annotated[tuple[Name, ...], Must(lambda names: len(names) == len(set(names)), "given once each")]
    """workload classes joined by "+", as in code+chat"""
    policies: Annotated[
        tuple[Inner, ...],
        Beside(
            lambda policies, given: len(policies) == len(given.names),
            lambda given: f"one for each of {len(given.names)} names",
        ),
    ]
    """their policies, each in brackets, joined by "+"."""
    fallback: Inner = NEVER
    """the policy for any other workload, in brackets"""

    kind: ClassVar[str] = "tasks"

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names."""
        return self.names

    def for_task(self, task: str | None) -> ExitPolicy:
        """The policy of that name, of the text that it continues, of their classes, or the fallback."""
        own = dict(zip(self.names, self.policies, strict=True))
        name = "" if task is None else task
        text = split_continued(name)[1]
        known = (name, text, text.partition(":")[0], name.partition(":")[0])
        return next((own[key] for key in known if key in own), self.fallback).for_task(task)

    @property
    def deciding(self) -> ExitPolicy:
        """The fallback, as long as no task is chosen."""
        return self.fallback.for_task(None)

    def needs(self, layers: int) -> Mapping[int, tuple[str, ...]]:
        """As the fallback. Raises PolicyError if one of the policies does not fit the model."""
        for policy in self.policies:
            policy.needs(layers)
        return super().needs(layers)
