"""Outputs read off a restricted vocabulary, the short list: the rule, and the trace and prices it sees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from offramp.costs.token import TokenCosts
from offramp.errors import PolicyError
from offramp.policies.parameter_types import Inner
from offramp.policies.policy import ExitPolicy
from offramp.policies.rules.around import Around
from offramp.policies.signals import needs_full_head_at_last
from offramp.scoring.documents import fact_of
from offramp.tracing.trace import FactArray, Trace

At = Literal["exits", "all"]
AT_EXITS: At = "exits"
AT_ALL: At = "all"


@dataclass(frozen=True)
class ShortList(Around):
    """Another policy, but a token gets the best token of a short list.

    The output head of a small model with a large vocabulary costs as much as several layers. A token that
    leaves by a cheap check pays, instead, the head's columns of the frequent tokens only. Its answer is wrong
    where the full model's token is not on the list, which counts as disagreement like any other. Restricting
    the vocabulary at early exits: SpecEE (arXiv 2504.08850, section 4), there for the check alone.

    at: "exits" for tokens that leave early, while one that runs to exit L gets the whole head; "all" for
    every token, so that the whole head is never computed. Around "never" the latter is no early exit: it is
    plain decoding with a smaller head.
    """

    policy: Inner
    at: At = AT_EXITS
    """where the list is read: exits below L, or all"""

    kind: ClassVar[str] = "shortlist"

    @property
    def short_list(self) -> bool:
        """It is what it is for."""
        return True

    @property
    def short_head(self) -> bool:
        """Whether the list is read everywhere."""
        return self.at == AT_ALL or self.policy.short_head

    @property
    def never_deepens(self) -> bool:  # type: ignore[override]
        """As the inner policy."""
        return self.policy.never_deepens

    def needs(self, layers: int) -> Mapping[int, tuple[str, ...]]:
        """As the inner policy.

        Raises PolicyError if that reads the whole head's best token, which is then not the answer, or learns
        from the whole head at exit L where that is not computed.
        """
        needs = self.policy.needs(layers)
        if any("top1" in facts for facts in needs.values()):
            raise PolicyError(
                f"{self.policy} compares tokens of the whole head, and its exits are read off the short list",
                where=str(self),
                fix="let it read restricted_top1",
            )
        learned = needs_full_head_at_last(self.policy.final_facts)
        if self.short_head and learned:
            raise PolicyError(
                f"{self.policy} learns from {learned[0]} at exit {layers}, where only the short list is read",
                where=str(self),
                fix=f"write at={AT_EXITS}, or choose a policy that does not learn from the full model",
            )
        return needs

    def __str__(self) -> str:
        """The policy's text; what is usual is left out, so that older texts stay what they are."""
        return f"{self.kind}:policy=[{self.policy}]" if self.at == AT_EXITS else super().__str__()


def with_short_head(policy: ExitPolicy) -> ExitPolicy:
    """The same policy with every output read off the short list."""
    if policy.short_head:
        return policy
    return ShortList(policy.policy if isinstance(policy, ShortList) else policy, AT_ALL)


# These are of the whole head: a token outside the list has no probability on it.
OF_WHOLE_HEAD = ("nll", "kl_to_final")


def read_short(trace: Trace, *, head: bool = False) -> Trace:
    """The same trace whose `top1` below exit L is the best token of the short list; with `head`, at L too.

    What outputs are compared with stays the full model's own token. Losses in nats are not a number where the
    list is read. Raises InputError if the short list was not recorded, with the option that records it.
    """
    fact_of(trace, "restricted_top1")
    below = slice(None) if head else slice(None, -1)
    full = trace.full_top1

    def facts(name: str) -> FactArray:
        whole = trace.fact(name)
        if name == "top1":
            whole = whole.copy()
            whole[:, below] = trace.fact("restricted_top1")[:, below]
        elif name in OF_WHOLE_HEAD:
            whole = whole.copy()
            whole[:, below] = np.nan
        return whole

    return trace.with_facts(facts, full_top1=full)


def seen_by(policy: ExitPolicy, trace: Trace) -> Trace:
    """The trace as the policy's outputs make it: through the short list if it reads that."""
    return read_short(trace, head=policy.short_head) if policy.short_list else trace


def costs_for(policy: ExitPolicy, costs: TokenCosts) -> TokenCosts:
    """The price list that the policy pays, whose `plain` is then not the full model's.

    costs: as they were counted or timed.
    """
    return replace(
        costs,
        exit_head=costs.short_exit_head if policy.short_list else costs.exit_head,
        head=costs.short_head if policy.short_head else costs.head,
        short_list=policy.short_list,
    )
