"""The whole search of the tuner: every family, on one pool of documents."""

from __future__ import annotations

from dataclasses import replace

from offramp.costs.probes import PROBES
from offramp.policies.rules.fixed import Never
from offramp.policies.rules.short_list import AT_ALL, AT_EXITS, ShortList
from offramp.policies.rules.threshold import Threshold, Thresholds
from offramp.tuning.certify import search_targets
from offramp.tuning.exit_sets import Exits, exit_sets, holds, recorded_signals
from offramp.tuning.families import ThresholdFamily, add_static, add_thresholds
from offramp.tuning.per_exit import per_exit_thresholds
from offramp.tuning.pool import Pool
from offramp.tuning.walked import VARIED_SIGNALS, add_walked

BEYOND = (1.5, 2.0, 3.0, 5.0, 10.0)
"""Targets of the search risk beyond what is allowed, in allowed risks, for the front."""

SHORT_LIST = {AT_EXITS: "short list", AT_ALL: "short list everywhere"}
"""Families whose outputs are read off the short list, by where."""
SHORT_AT_FULL_DEPTH = "short list at full depth"


def search_pool(pool: Pool, risk: float) -> None:
    """Fill a pool with the fastest members of every family at search risks up to and around `risk`.

    Beyond the families of `add_exact`: one threshold per exit (coordinate ascent), the families that are
    walked token by token, and thresholds whose exits are read off the short list.
    """
    if not pool.below:
        return
    targets = targets_around(risk)
    families = add_exact(pool, targets)
    add_per_exit(pool, families, risk)
    add_walked(pool, families, risk, targets[:: len(targets) // 6])
    add_short_list(pool, risk, targets)


def targets_around(risk: float) -> tuple[float, ...]:
    """Search risks at which the fastest members are kept."""
    return (*search_targets(risk), *(risk * factor for factor in BEYOND if risk * factor < 1.0))


def add_exact(pool: Pool, targets: tuple[float, ...]) -> dict[str, ThresholdFamily]:
    """Add what is exact on the grid of thresholds: static exits, and one threshold of every recorded signal.

    On single exits, the usual sets, and sets grown from the best single ones.
    """
    add_static(pool)
    return add_thresholds(pool, recorded_signals(pool.trace), targets)


def add_short_list(pool: Pool, risk: float, targets: tuple[float, ...]) -> None:
    """Outputs read off the short list, where that was recorded: at exits below L, and at L too.

    The full model with its head cut to the list, which is no early exit, and thresholds of cheap signals.
    Only under a floor on a share of tokens: the list gives no probability to what is not on it. Signals that
    need the whole head, if only to open, are left out: its product gives the whole head's token.
    """
    if pool.floor.clip is not None or not holds(pool.trace, "restricted_top1"):
        return
    never = ShortList(Never(), AT_ALL)
    evidence, pricing = pool.evidence.short_head, pool.pricing.paid_by(never)
    everywhere = Pool(evidence.trace, pool.floor, pricing, evidence)
    pool.add(replace(everywhere.score(SHORT_AT_FULL_DEPTH, Never()), policy=never))
    _add_thresholds_on_list(pool, everywhere, AT_ALL, risk, targets)
    evidence, pricing = pool.evidence.short_list, pool.pricing.paid_by(ShortList(Never()))
    _add_thresholds_on_list(
        pool, Pool(evidence.trace, pool.floor, pricing, evidence), AT_EXITS, risk, targets
    )


def _add_thresholds_on_list(
    pool: Pool, short: Pool, at: str, risk: float, targets: tuple[float, ...]
) -> None:
    """short: the pool's documents and prices where outputs are read off the list at such exits."""
    cheap = [
        signal
        for signal in recorded_signals(short.trace)
        if not (signal.opens or PROBES[signal.probe].gives_output)
    ]
    families = add_thresholds(short, cheap, targets)
    add_per_exit(short, families, risk)
    for scored in short.found:
        policy = ShortList(scored.policy, at)
        pool.add(replace(scored, family=f"{SHORT_LIST[at]}: {scored.family}", policy=policy))


def add_per_exit(pool: Pool, families: dict[str, ThresholdFamily], risk: float) -> None:
    """One threshold per exit, for the fastest signals: on their best set and on all exits."""
    ordered = sorted(
        (scored for scored in pool.found if isinstance(scored.policy, Threshold)),
        key=lambda scored: (scored.risk > risk, scored.cost, scored.family),
    )
    seen: list[str] = []
    for scored in ordered:
        name = getattr(scored.policy, "signal", "")
        family = families[name]
        if name in seen or family.signal.opens:
            continue
        seen.append(name)
        if len(seen) > VARIED_SIGNALS:
            return
        best = scored.policy.checked_exits(pool.trace.layers)
        for exits in dict.fromkeys(
            one for one in (best, *exit_sets(pool.below)[1:2], pool.below) if len(one) > 1
        ):
            _add(pool, family, exits, risk)


def _add(pool: Pool, family: ThresholdFamily, exits: Exits, risk: float) -> None:
    for chosen, values in per_exit_thresholds(family, exits, risk):
        if len(chosen) > 1:  # one threshold on one exit was tried exactly
            policy = Thresholds(family.signal.name, values, chosen)
            pool.add(pool.score(f"{family.signal.name}, a threshold per exit", policy))
