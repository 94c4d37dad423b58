"""Accelerations alone and together, timed in turns: do the gains add up, and what do they cost in quality?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from offramp.decoding.compatibility import PolicySource
from offramp.decoding.measurement.accelerations import (
    EXITS,
    SHORT_LIST,
    SPECULATE,
    Acceleration,
    combinations_of,
    decoder_of,
    excluded_of,
    read_accelerations,
)
from offramp.decoding.measurement.answers import BUDGET_SECONDS, Budget, Limits
from offramp.decoding.measurement.bench import check_limits, require_sizes, settle
from offramp.decoding.measurement.circumstances import Load, describe
from offramp.decoding.measurement.combinations import (
    Key,
    Planned,
    Variant,
    heads_for,
    load_variants,
    planned_of,
    require_base,
)
from offramp.decoding.measurement.combined import CombineResult
from offramp.decoding.measurement.combined_figures import qualities_of, summarise_combined
from offramp.decoding.measurement.contenders import PLAIN, Extent, Setting
from offramp.decoding.measurement.decoder import Decoder
from offramp.decoding.measurement.measurement import Entry, Progress, time_entries
from offramp.decoding.measurement.results import Contender
from offramp.decoding.options import DecodingOptions
from offramp.decoding.strategies.draft_length import Auto
from offramp.errors import InputError, PolicyError
from offramp.files import sha256_of_text
from offramp.models.model import Model
from offramp.models.quiet import quiet_transformers
from offramp.policies.steps import DRAFT_LENGTH
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
    `offramp.decoding.measurement.bench.measure` takes them. looks: whether it may end before the seconds are
    over. plain: the plain decoder that all are held against, None for the fastest of a pilot.

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
    variants = load_variants(base, combinations_of(asked), heads=heads, trust_remote_code=trust_remote_code)
    extent = Extent(peers=False, plain=plain, warm_up_tokens=WARM_UP_TOKENS)
    with quiet_transformers():
        load, budget = Load(), Budget(limits.seconds)
        planned = planned_of(combinations_of(asked), variants)
        entry = entry_of(base, planned)
        time_entries([entry], extent=extent, limits=limits, budget=budget, seed=seed, progress=progress)
        spent = budget.spent
        if entry.failure is not None:
            raise entry.failure
        circumstances = describe(model, load, _further(base, variants, limits, seed))
        qualities = qualities_of(entry, planned, seed=seed)
    return summarise_combined(
        entry,
        planned,
        qualities,
        circumstances,
        notes=() if options.tuned is None or len(variants) == 1 else (OF_ANOTHER_MODEL,),
        accelerations={one.name: one.text for one in asked},
        excluded=excluded_of(asked),
        workload=workload,
        floor=floor,
        seconds_spent=spent,
    )


def entry_of(base: Setting, planned: Sequence[Planned]) -> Entry:
    """The plain decoders of the untransformed model, and every combination on a model of its own."""
    taking = [one for one in planned if isinstance(one.found, Decoder)]
    plain = {one.key: one.name for one in taking if decoder_of(one.parts) is None}
    found = [one for source in PLAIN.values() for one in source(base)]
    decoders = [one for one in (*found, *(each.found for each in planned)) if isinstance(one, Decoder)]
    return Entry(
        base,
        # Contenders of one model are tried one after the other.
        sorted(decoders, key=_order_of_models(base, taking)),
        [one for one in found if isinstance(one, Contender)],
        settings={one.name: one.setting for one in taking},
        # What a lossless decoder must give is its own model's answer, whatever was done to the model.
        references={one.name: plain[one.key] for one in taking if one.key in plain},
        together=True,
    )


def _order_of_models(base: Setting, taking: Sequence[Planned]) -> Callable[[Decoder], int]:
    keys = list(dict.fromkeys([(), *(one.key for one in taking)]))
    by_name = {one.name: keys.index(one.key) for one in taking}
    return lambda decoder: by_name.get(decoder.name, 0)


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
