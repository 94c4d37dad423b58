"""Exits read off a short list of frequent tokens instead of the whole output head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from offramp.errors import PolicyError
from offramp.policies.policy import ExitPolicy, Parameter
from offramp.policies.rules.depth import POLICY, Around


@dataclass(frozen=True)
class ShortList(Around):
    """Another policy, but a token that leaves early gets the best token of a short list.

    The output head of a small model with a large vocabulary costs as much as several layers. A token that
    leaves by a cheap check pays, instead, the head's columns of the frequent tokens only. Its answer is wrong
    where the full model's token is not on the list, which counts as disagreement like any other. Restricting
    the vocabulary at early exits: SpecEE (arXiv 2504.08850, section 4), there for the check alone.
    """

    policy: ExitPolicy

    kind: ClassVar[str] = "shortlist"
    parameters: ClassVar[tuple[Parameter, ...]] = (POLICY,)

    @property
    def short_list(self) -> bool:
        """It is what it is for."""
        return True

    @property
    def never_deepens(self) -> bool:  # type: ignore[override]
        """As the inner policy."""
        return self.policy.never_deepens

    def needs(self, layers: int) -> Mapping[int, tuple[str, ...]]:
        """As the inner policy.

        Raises PolicyError if that reads the whole head's best token, which is then not the answer.
        """
        needs = self.policy.needs(layers)
        if any("top1" in facts for facts in needs.values()):
            raise PolicyError(
                f"{self.policy} compares tokens of the whole head, and its exits are read off the short list",
                where=str(self),
                fix="let it read restricted_top1",
            )
        return needs
