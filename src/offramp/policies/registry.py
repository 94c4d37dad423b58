"""The registry of policy kinds: the built-in ones, and those of plug-ins."""

from __future__ import annotations

from functools import cache

from offramp.errors import PolicyError
from offramp.plug_ins import load_plug_in, plug_ins, refused
from offramp.policies.policy import ExitPolicy
from offramp.policies.rules.adaptive import Adaptive
from offramp.policies.rules.bandit import Bandit
from offramp.policies.rules.decaying import Decaying
from offramp.policies.rules.depth import Minimum, Monotone, Schedule
from offramp.policies.rules.dynamic import Dynamic
from offramp.policies.rules.fixed import Never, StaticExit
from offramp.policies.rules.oracle import Oracle
from offramp.policies.rules.patience import Patience, Sustained
from offramp.policies.rules.shortlist import ShortList
from offramp.policies.rules.tasks import Tasks
from offramp.policies.rules.threshold import Threshold, Thresholds
from offramp.policies.rules.votes import Votes

ENTRY_POINTS = "offramp.policies"

BUILT_IN: tuple[type[ExitPolicy], ...] = (
    Never,
    StaticExit,
    Schedule,
    Threshold,
    Thresholds,
    Decaying,
    Dynamic,
    Adaptive,
    Bandit,
    Patience,
    Sustained,
    Minimum,
    Monotone,
    Votes,
    ShortList,
    Tasks,
    Oracle,
)


@cache
def policy_kinds() -> dict[str, type[ExitPolicy]]:
    """Policy classes by kind: the built-in ones, then those of installed plug-ins (group "offramp.policies").

    Raises PolicyError for a plug-in that is no ExitPolicy class or takes the name of another kind.
    """
    kinds = {policy.kind: policy for policy in BUILT_IN}
    for point in plug_ins(ENTRY_POINTS).values():
        policy = load_plug_in(point, _is_kind, "policy", "a subclass of ExitPolicy", PolicyError)
        if policy.kind in kinds:
            raise refused(point, f"two policies are called {policy.kind!r}", PolicyError)
        kinds[policy.kind] = policy
    return kinds


def _is_kind(found: object) -> bool:
    return isinstance(found, type) and issubclass(found, ExitPolicy)
