"""Outputs read off a short list of frequent tokens instead of the whole output head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from offramp.errors import PolicyError
from offramp.policies.policy import ExitPolicy, Parameter
from offramp.policies.reading import one_of
from offramp.policies.rules.depth import POLICY, Around
from offramp.policies.signals import needs_full_head_at_last

AT_EXITS, AT_ALL = "exits", "all"


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

    policy: ExitPolicy
    at: str = AT_EXITS

    kind: ClassVar[str] = "shortlist"
    parameters: ClassVar[tuple[Parameter, ...]] = (
        POLICY,
        Parameter("at", one_of(AT_EXITS, AT_ALL), "where the list is read: exits below L, or all", AT_EXITS),
    )

    def __post_init__(self) -> None:
        """Refuse what the grammar would refuse, for policies built in Python."""
        super().__post_init__()
        self.parameters[1].read(self.at)

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
