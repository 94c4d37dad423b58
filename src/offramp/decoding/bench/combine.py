"""Accelerations alone and together, timed in turns: do the gains add up, and what do they cost in quality?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from offramp.decoding.bench.acceleration import (
    EXITS,
    SHORT_LIST,
    SPECULATE,
    Acceleration,
    Parts,
    combinations_of,
    excluded_of,
    read_accelerations,
)
from offramp.decoding.bench.bench import check_limits, require_sizes, settle
from offramp.decoding.bench.budget import BUDGET_SECONDS, Budget, Limits
from offramp.decoding.bench.circumstances import Load, describe
from offramp.decoding.bench.combine_contenders import plain_entrants, planned_of
from offramp.decoding.bench.combine_quality import qualities_of
from offramp.decoding.bench.combine_summary import Timed, summarise_combined
from offramp.decoding.bench.combined import CombineResult
from offramp.decoding.bench.contenders import Setting, again
from offramp.decoding.bench.entrant import Entrant
from offramp.decoding.bench.groups import Group, time_groups
from offramp.decoding.bench.pilot import choose_plain, given_plain
from offramp.decoding.bench.together import Progress
from offramp.decoding.bench.trials import Trial, try_out
from offramp.decoding.bench.variants import Key, Variant, heads_for, load_variants, require_base
from offramp.decoding.generation.compatibility import PolicySource
from offramp.decoding.options import DecodingOptions
from offramp.decoding.strategies.draft_length import Auto
from offramp.errors import InputError, PolicyError
from offramp.files import sha256_of_text
from offramp.models.gguf_file import quiet_transformers
from offramp.models.model import Model
from offramp.policies.speculation import DRAFT_LENGTH
from offramp.tracing.exit_heads import ExitHeads
from offramp.tuning.verdict import WORTH

FLOOR = 0.95
WARM_UP_TOKENS = 4


def combine(
    model: Model,
    accelerations: Sequence[str],
    *,
    prompts: Sequence[Sequence[int]],
    policy: PolicySource = None,
    kv: str | None = None,
    heads: Sequence[ExitHeads] = (),
    new_tokens: int = 64,
    rounds: int | None = None,
    budget_seconds: float | None = BUDGET_SECONDS,
    worth: float = WORTH,
    looks: bool = True,
    plain: str | None = None,
    draft_length: int | str | Auto = DRAFT_LENGTH,
    workload: str = "",
    floor: float = FLOOR,
    trust_remote_code: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> CombineResult:
    """Time a model decoding with each acceleration alone and with every sensible combination of them.

    model: untransformed, in memory. accelerations: texts of transforms, "exits", "speculate" (both by the
    policy), "shortlist" (the output head cut to a short list of tokens), "prompt_lookup". prompts: token ids,
    decoded one at a time, `new_tokens` each whatever end tokens come. policy, kv, draft_length: as
    `offramp.generate` takes them; on a pruned model exit k is the one after as many of the first k layers as
    are left. heads: each on the model that it was fitted on.
    All models stay in memory, and all contenders take turns on every prompt. Quality is always held against
    the untransformed full model's own greedy answers. floor: the share of their tokens that must be chosen
    for a combination to be advised. rounds, budget_seconds, worth, seed: as
    `offramp.decoding.bench.bench.measure` takes them. looks: whether it may end before the seconds are over.
    plain: the plain decoder that all are held against, None for the fastest of a pilot.

    Raises InputError (PolicyError, ModelError among them) for anything that does not fit, before timing.
    """
    limits = Limits(budget_seconds, rounds, worth, looks)
    check_limits(limits)
    asked = read_accelerations(accelerations, model.dtype)
    require_base(model)
    require_policy(asked, policy, kv, heads)
    require_floor(floor)
    require_sizes(new_tokens=new_tokens)
    options = DecodingOptions.read(
        policy,
        kv=kv,
        heads=heads_for(model, heads),
        draft_length=draft_length,
        new_tokens=new_tokens,
    ).for_task(workload or None)
    base = settle(model, [options], prompts=prompts, task=workload or None)
    require_exits(asked, base)
    combinations = combinations_of(asked)
    variants = load_variants(base, combinations, heads=heads, trust_remote_code=trust_remote_code)
    notes = [] if options.tuned is None or len(variants) == 1 else [OF_ANOTHER_MODEL]
    with quiet_transformers():
        timed = _timed(base, combinations, variants, limits, plain, seed, progress)
        qualities = qualities_of(base, timed, seed=seed)
    return summarise_combined(
        base,
        timed,
        qualities,
        accelerations={one.name: one.text for one in asked},
        excluded=excluded_of(asked),
        workload=workload,
        floor=floor,
        notes=tuple(notes),
    )


OF_ANOTHER_MODEL = (
    "the policy was tuned on the untransformed model: what its certificate says does not hold on the others"
)


def require_policy(
    asked: Sequence[Acceleration], policy: PolicySource, kv: str | None, heads: Sequence[ExitHeads] = ()
) -> None:
    """Refuse exits without a policy, a policy or heads without exits, and a strategy that is an acceleration.

    Raises InputError or PolicyError.
    """
    using = [one.text for one in asked if one.text in (EXITS, SPECULATE)]
    if using and policy is None:
        raise InputError(
            f"{using[0]} needs a policy that says where tokens leave",
            where="--combine",
            fix="add --policy with a policy's text or file",
        )
    if policy is not None and not using:
        raise InputError(
            "a policy means nothing without exits", where="--policy", fix="add --combine exits or speculate"
        )
    if heads and not using and all(one.text != SHORT_LIST for one in asked):
        raise InputError(
            "exit heads mean nothing without exits or a short list",
            where="--heads",
            fix="add --combine exits, speculate or shortlist",
        )
    if kv is not None and EXITS not in using:
        raise InputError("--kv means nothing without exits", where="--kv", fix="add --combine exits")
    if kv == SPECULATE:
        raise PolicyError(
            "speculation is an acceleration of its own here",
            where="--kv",
            fix="give --combine speculate, and --kv propagate or recompute for the exits",
        )


def require_exits(asked: Sequence[Acceleration], base: Setting) -> None:
    """Refuse a policy that never leaves early. Raises PolicyError."""
    policy = base.main.policy
    if any(one.text in (EXITS, SPECULATE) for one in asked) and not policy.needs(base.model.layers):
        raise PolicyError(
            f"{policy} never leaves early: there is nothing to combine",
            where="--policy",
            fix="give a policy that exits, or leave exits and speculate out",
        )


def require_floor(floor: float) -> None:
    """Raise InputError for a floor that is no share."""
    if not 0.0 <= floor <= 1.0:
        raise InputError(
            f"a floor of {floor:g} is no share", where="--floor", fix="give 0 to 1, such as 0.95"
        )


def _timed(
    base: Setting,
    combinations: Sequence[Parts],
    variants: Mapping[Key, Variant],
    limits: Limits,
    against: str | None,
    seed: int,
    progress: Progress | None,
) -> Timed:
    """Everybody tried out on a model of its own, then all of them in the same turns. against: a plain one."""
    load, budget = Load(), Budget(limits.seconds)

    def visited() -> None:
        if progress is not None and limits.seconds is not None:
            progress(min(round(100 * budget.used), 100), 100)

    planned = planned_of(combinations, variants)
    plain, left_out = plain_entrants(base)
    entrants: dict[Key, list[Entrant]] = {(): list(plain)}
    for one in planned:
        if isinstance(one.found, Entrant):
            entrants.setdefault(one.key, []).append(one.found)
    trials: dict[str, Trial] = {}
    for key, own in entrants.items():
        found, failed = try_out(
            own,
            base.prompts[0],
            base.new_tokens,
            variants[key].setting.model.stack,
            warm_up_tokens=WARM_UP_TOKENS,
        )
        trials |= found
        left_out += failed
        visited()
    plain = [one for one in plain if one.name in trials]
    pilot = (
        choose_plain(plain, base.prompts[0], base.new_tokens, seed=seed)
        if against is None
        else given_plain(plain, against)
    )
    baseline = next(one for one in plain if one.name == pilot.plain)
    taking = [one for own in entrants.values() for one in own if one.name in trials and one not in plain]
    group = Group(
        [baseline, again(baseline), *taking],
        pilot.plain,
        [one.name for one in taking],
        base.prompts,
        base.new_tokens,
        limits.worth,
        limits.rounds,
        together=True,
    )
    time_groups([group], budget=budget, looks=limits.looks, seed=seed, visited=visited)
    if group.error is not None:
        raise group.error
    return Timed(
        planned=tuple(planned),
        plain=tuple(plain),
        pilot=pilot,
        trials=trials,
        group=group,
        left_out=tuple(left_out),
        seconds_spent=budget.spent,
        circumstances=describe(base.model, load, _further(base, variants, limits, seed)),
    )


def _further(base: Setting, variants: Mapping[Key, Variant], limits: Limits, seed: int) -> dict[str, Any]:
    """Circumstances beside the machine's: seed, fingerprints, and every model that took part."""
    return {
        "seed": seed,
        "budget_seconds": limits.seconds,
        "policy_fingerprint": sha256_of_text(str(base.main.policy)),
        "heads_fingerprint": _fingerprint(base),
        "models": {
            " + ".join(key): {
                "fingerprint": variant.setting.model.identity.fingerprint,
                "transforms": list(variant.setting.model.identity.transforms),
                "layers": variant.setting.model.layers,
                "heads_fingerprint": _fingerprint(variant.setting),
            }
            for key, variant in variants.items()
            if key
        },
    }


def _fingerprint(setting: Setting) -> str | None:
    return None if setting.main.heads is None else setting.main.heads.fingerprint
