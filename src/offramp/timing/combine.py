"""Accelerations alone and together, timed in turns: do the gains add up, and what do they cost in quality?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from offramp.decoding.generation.generate import FULL_MODEL, generate_batch
from offramp.decoding.judging import (
    Judgements,
    full_models_choices,
    judge,
    mean_of,
)
from offramp.decoding.options import DecodingOptions
from offramp.errors import InputError, PolicyError
from offramp.files import sha256_of_text
from offramp.heads.exit_heads import ExitHeads
from offramp.kit.arguments import checked
from offramp.kit.defaults import DRAWS, MAIN_FLOOR, SEED
from offramp.kit.numbers import Proportion
from offramp.models.model import Model
from offramp.models.process import quiet_transformers
from offramp.policies.kv import STRATEGIES
from offramp.policies.rules.fixed import Never
from offramp.scoring.estimate import Estimate, document_bootstrap
from offramp.timing.accelerations import (
    EXITS,
    SHORT_LIST,
    SPECULATE,
    Acceleration,
    combinations_of,
    decoder_of,
    excluded_of,
    read_accelerations,
    transforms_of,
)
from offramp.timing.answers import Budget, Limits, product_of, ratio_over
from offramp.timing.bench import settle
from offramp.timing.combinations import (
    Key,
    Planned,
    Variant,
    heads_for,
    load_variants,
    planned_of,
    require_base,
)
from offramp.timing.combined import PLAIN_NAME, Combination, CombineResult, OnTop, Quality
from offramp.timing.contenders import PLAIN, Extent, Setting
from offramp.timing.decoder import Decoder, own_config, plain_config
from offramp.timing.defects import Load, a_a_clusters_of, describe
from offramp.timing.judged import free_running_of, prompts_and_answers
from offramp.timing.measurement import Entry, Progress, time_entries
from offramp.timing.results import Cluster, Contender

WARM_UP_TOKENS = 4


@checked
def combine(
    model: Model,
    accelerations: Sequence[str],
    options: DecodingOptions = FULL_MODEL,
    *,
    prompts: Sequence[Sequence[int]],
    heads: Sequence[ExitHeads] = (),
    limits: Limits | None = None,
    plain: str | None = None,
    workload: str = "",
    floor: Proportion = MAIN_FLOOR,
    trust_remote_code: bool = False,
    seed: int = SEED,
    progress: Progress | None = None,
) -> CombineResult:
    """Time a model decoding with each acceleration alone and with every sensible combination of them.

    model: untransformed, in memory. accelerations: texts of transforms, "exits", "speculate" (both by the
    policy), "shortlist" (the output head cut to a short list of tokens), "prompt_lookup". options: how a
    policy decodes, and how many tokens after each prompt, whatever end tokens come; on a pruned model exit k
    is the one after as many of the first k layers as are left. prompts: token ids, decoded one at a time.
    heads: each on the model that it was fitted on.
    All models stay in memory, and all contenders take turns on every prompt. Quality is always held against
    the untransformed full model's own greedy answers. floor: the share of their tokens that must be chosen
    for a combination to be advised. limits: None for two minutes. plain: the plain decoder that all are held
    against, None for the fastest of a pilot.

    Raises InputError (PolicyError, ModelError among them) for anything that does not fit, before timing.
    """
    limits = limits or Limits()
    asked = read_accelerations(accelerations, model.dtype)
    require_base(model)
    require_policy(asked, options, heads)
    own = heads_for(model, heads)
    options = (options if own is None else replace(options, heads=own)).for_task(workload or None)
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
    asked: Sequence[Acceleration], options: DecodingOptions, heads: Sequence[ExitHeads] = ()
) -> None:
    """Refuse exits without a policy, a policy or heads without exits, and a strategy that is an acceleration.

    Raises InputError or PolicyError.
    """
    using = [one.text for one in asked if one.text in (EXITS, SPECULATE)]
    exits = not isinstance(options.policy, Never)
    if using and not exits:
        raise InputError(
            f"{using[0]} needs a policy that says where tokens leave",
            where="--combine",
            fix="add --policy with a policy's text or file",
        )
    if exits and not using:
        raise InputError(
            "a policy means nothing without exits", where="--policy", fix="add --combine exits or speculate"
        )
    if heads and not using and all(one.text != SHORT_LIST for one in asked):
        raise InputError(
            "exit heads mean nothing without exits or a short list",
            where="--heads",
            fix="add --combine exits, speculate or shortlist",
        )
    if options.kv == SPECULATE:
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
                "transforms": list(variant.setting.model.transforms),
                "layers": variant.setting.model.layers,
                "heads_fingerprint": _fingerprint(variant.setting),
            }
            for key, variant in variants.items()
            if key
        },
    }


def _fingerprint(setting: Setting) -> str | None:
    return None if setting.main.heads is None else setting.main.heads.fingerprint


Tokens = Sequence[int]


def summarise_combined(
    entry: Entry,
    planned: Sequence[Planned],
    qualities: Mapping[str, Quality],
    circumstances: Mapping[str, Any],
    *,
    notes: tuple[str, ...],
    **further: Any,
) -> CombineResult:
    """Figures and answers. qualities: by combination's name. further: fields of the result."""
    figures = entry.figures()
    contenders, shared = entry.shared(
        figures, a_a_clusters_of([one.contender for one in figures]), circumstances
    )
    by_name, known = {one.name: one for one in contenders}, {one.name for one in planned}
    by_name |= {one.name: one for one in entry.missing}
    plain = replace(by_name[shared["plain"]], name=PLAIN_NAME)
    order = [one.name for one in entry.decoders]
    others = sorted(
        (one for one in contenders if one.name not in known),
        key=lambda one: order.index(one.name) if one.name in order else len(order),
    )
    return CombineResult(
        model=entry.setting.model.name,
        combinations=(
            Combination(PLAIN_NAME, (), plain, quality=qualities[PLAIN_NAME]),
            *(_combination(one, by_name, qualities.get(one.name)) for one in planned),
        ),
        others=(*others, *(one for one in entry.missing if one.name not in known)),
        **{**shared, "notes": (*notes, *shared["notes"])},
        **further,
    )


def _combination(one: Planned, contenders: Mapping[str, Contender], quality: Quality | None) -> Combination:
    names = [part.name for part in one.parts]
    transforms = one.setting.model.transforms if transforms_of(one.parts) else ()
    contender = one.found if isinstance(one.found, Contender) else contenders[one.name]
    if contender.left_out is not None:
        return Combination(one.name, tuple(names), contender, transforms, one.policy)
    if quality is not None:
        contender = replace(contender, executed_agreement=quality.free_running.agreement)
    combination = Combination(one.name, tuple(names), contender, transforms, one.policy, quality=quality)
    if len(names) < 2:
        return combination
    clusters = {name: known.clusters for name, known in contenders.items() if known.left_out is None}
    singles = [clusters[name] for name in names if name in clusters]
    if len(singles) == len(names):
        combination = replace(
            combination,
            product=product_of(*((1.0, single) for single in singles)),
            interaction=interaction_of(singles, contender.clusters),
        )
    return replace(combination, on_top=tuple(_on_top(names, clusters, contender.clusters)))


def interaction_of(
    singles: Sequence[Sequence[Cluster]], together: Sequence[Cluster]
) -> Estimate[float] | None:
    """Speedup of all parts together over the product of the single ones, on the prompts that all share."""
    return product_of((1.0, together), *((-1.0, single) for single in singles))


def _on_top(
    names: Sequence[str], clusters: Mapping[str, Sequence[Cluster]], together: Sequence[Cluster]
) -> list[OnTop]:
    """What each part adds to the rest, where the rest was timed."""
    found = []
    for part in names:
        rest = " + ".join(name for name in names if name != part)
        ratio = ratio_over(together, clusters[rest]) if rest in clusters else None
        if ratio is not None:
            found.append(OnTop(part, ratio))
    return found


def qualities_of(entry: Entry, planned: Sequence[Planned], *, seed: int = SEED) -> dict[str, Quality]:
    """Quality of every combination that was timed, by name; "plain" among them.

    Each is held against the untransformed full model's own answers. Intervals: 95 % bootstrap over prompts,
    absent under 20 of them.
    """
    base, decoded, plain = entry.setting, entry.decoded, entry.timed[0].plain
    prompts, answers = prompts_and_answers(base, decoded[plain])
    known: Judgements = {}

    def quality(name: str, agreeing: Sequence[float]) -> Quality:
        judged = free_running_of(base, decoded[name], decoded[plain], seed=seed, known=known)
        return Quality(judged, _share(agreeing, seed))

    found = {PLAIN_NAME: quality(plain, [1.0] * len(prompts))}
    forced: dict[tuple[Key, str | None], list[float]] = {}
    for one in planned:
        if one.name not in decoded:
            continue
        lossless = one.cell is None or STRATEGIES[one.cell.kv].lossless
        key = one.key, None if lossless or one.cell is None else one.cell.name
        if key not in forced:
            agreement: Callable[[Planned, Tokens, Tokens], float] = (
                _at_full_depth if lossless else _as_decoded
            )
            forced[key] = [agreement(one, *pair) for pair in zip(prompts, answers, strict=True)]
        found[one.name] = quality(one.name, forced[key])
    return found


def _at_full_depth(one: Planned, prompt: Tokens, answer: Tokens) -> float:
    """Share of an answer's tokens that all layers of a variant choose, given those before; ties count."""
    model = one.setting.model
    return float(full_models_choices(judge(model, prompt, answer), 0, model.dtype).mean())


def _as_decoded(one: Planned, prompt: Tokens, answer: Tokens) -> float:
    """Share of an answer's tokens that the policy's outputs choose when it is fed instead of them."""
    setting, cell = one.setting, one.cell
    assert cell is not None  # or it decodes at full depth
    ids, forced = (
        torch.tensor([list(tokens)], device=setting.model.hf.device) for tokens in (prompt, answer)
    )
    with own_config(setting.model.hf, plain_config(len(answer))):
        found = generate_batch(
            setting.model, ids, options=replace(cell, new_tokens=len(answer)), force_tokens=forced
        )
    return float(np.mean(np.array(found.rows[0].chosen) == np.array(answer)))


def _share(shares: Sequence[float], seed: int) -> Estimate[float]:
    values = np.array(shares, dtype=np.float64)
    return mean_of(document_bootstrap(len(values), draws=DRAWS, seed=seed), values, np.ones(len(values)))
