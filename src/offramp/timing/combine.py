"""Accelerations alone and together, timed in turns: do the gains add up, and what do they cost in quality?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
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
from offramp.defaults import DRAWS, MAIN_FLOOR, SEED
from offramp.errors import InputError, PolicyError
from offramp.files import sha256_of_text
from offramp.heads.exit_heads import ExitHeads
from offramp.kit.arguments import checked
from offramp.kit.numbers import Proportion
from offramp.models.model import Model
from offramp.models.process import quiet_transformers
from offramp.policies.kv import STRATEGIES
from offramp.policies.rules.fixed import Never
from offramp.scoring.estimate import Estimate, document_bootstrap
from offramp.timing.accelerations import (
    JOINED,
    OF_THE_POLICY,
    PROMPT_LOOKUP,
    SHORT_LIST,
    SPECULATE,
    Acceleration,
    combinations_of,
    excluded_of,
    read_accelerations,
)
from offramp.timing.bench import free_running_of, prompts_and_answers, settle
from offramp.timing.combined_contenders import Chosen, CombinedContender, candidates_within
from offramp.timing.contenders import PLAIN_DECODERS, Extent, plain_decoders
from offramp.timing.decoder import (
    Candidates,
    Decoder,
    Setting,
    own_config,
    plain_config,
)
from offramp.timing.ratios import product_of, ratio_over
from offramp.timing.results import (
    LOOKUP,
    PLAIN_NAME,
    Cluster,
    Combination,
    CombineResult,
    Contender,
    OnTop,
    Quality,
)
from offramp.timing.session import Progress, Session
from offramp.timing.stopping import Budget, TimeLimits
from offramp.timing.variants import Key, ModelVariant, heads_for, load_variants

WARM_UP_TOKENS = 4


@checked
def combine(
    model: Model,
    accelerations: Sequence[str],
    options: DecodingOptions = FULL_MODEL,
    *,
    prompts: Sequence[Sequence[int]],
    heads: Sequence[ExitHeads] = (),
    limits: TimeLimits | None = None,
    plain: str | None = None,
    workload: str = "",
    floor: Proportion = MAIN_FLOOR,
    seed: int = SEED,
    progress: Progress | None = None,
    budget: Budget | None = None,
) -> CombineResult:
    """Time a model decoding with each acceleration alone and with every sensible combination of them.

    model: untransformed, in memory. accelerations: texts of transforms, "exits", "speculate" (both by the
    policy), "shortlist" (the output head cut to a short list of tokens), "prompt_lookup". options: how a
    policy decodes, and how many tokens after each prompt, whatever end tokens come; on a pruned model exit k
    is the one after as many of the first k layers as are left. prompts: token ids, decoded one at a time.
    heads: each on the model that it was fitted on.
    All models stay in memory, and all contenders take turns on every prompt. Quality is always held against
    the untransformed full model's own greedy answers. floor: the share of their tokens that must be chosen
    for a combination to be advised. limits: None for two minutes; what there is no time for is left out, the
    largest combinations first. plain: the plain decoder that all are held against, None for the fastest of a
    pilot. budget: that began when the model was loaded, None for one from now on.

    Raises InputError (PolicyError, ModelError among them) for anything that does not fit, before timing.
    """
    limits = limits or TimeLimits()
    budget = budget or Budget(limits.seconds)
    asked = read_accelerations(accelerations, model.dtype)
    require_base(model)
    require_policy(asked, options, heads)
    own = heads_for(model, heads)
    options = (options if own is None else replace(options, heads=own)).for_task(workload or None)
    base = settle(model, [options], prompts=prompts, task=workload or None)
    require_exits(asked, base)
    variants = load_variants(base, combinations_of(asked), heads=heads, budget=budget)
    # What drafts from the text without exits is timed as transformers does it, too.
    peers = (LOOKUP,) if any(way.text == PROMPT_LOOKUP for way in asked) else ()
    extent = Extent((*PLAIN_DECODERS, *peers), plain, WARM_UP_TOKENS)
    with quiet_transformers():
        # Some are decoded shortly to find the best way.
        combinations = [parts for parts in combinations_of(asked) if parts]
        candidates = candidates_within(base, combinations, variants, budget)
        session = Session(
            base, extent, limits, together=True, seed=seed, progress=progress, budget=budget, judged=True
        )
        session.run(in_order_of_models(base, candidates))
        fields = session.fields(_further(base, variants))
        qualities = qualities_of(session, candidates, seed=seed)
    if options.tuned is not None and len(variants) > 1:
        fields["notes"] = (OF_ANOTHER_MODEL, *fields["notes"])
    all_contenders = (*fields.pop("contenders"), *session.missing)
    contenders = {contender.name: contender for contender in all_contenders}
    combined = {candidate.name for candidate in candidates}
    order = [decoder.name for decoder in session.decoders]
    return CombineResult(
        model=model.name,
        combinations=(
            Combination(
                PLAIN_NAME,
                (),
                replace(contenders[session.plain], name=PLAIN_NAME),
                quality=qualities[PLAIN_NAME],
            ),
            *(_combination(candidate, contenders, qualities.get(candidate.name)) for candidate in candidates),
        ),
        others=tuple(
            sorted(
                (contender for name, contender in contenders.items() if name not in combined),
                key=lambda other: order.index(other.name) if other.name in order else len(order),
            )
        ),
        accelerations={way.name: way.text for way in asked},
        excluded=excluded_of(asked),
        workload=workload,
        floor=floor,
        **fields,
    )


def in_order_of_models(base: Setting, candidates: Sequence[CombinedContender]) -> Candidates:
    """The plain decoders of the untransformed model, and every combination: those of one model in turn."""
    yield from plain_decoders(base)
    able = [candidate for candidate in candidates if isinstance(candidate.contender, Decoder)]
    keys = list(dict.fromkeys([(), *(candidate.key for candidate in able)]))
    for candidate in sorted(able, key=lambda candidate: keys.index(candidate.key)):
        yield candidate.contender


OF_ANOTHER_MODEL = (
    "the policy was tuned on the untransformed model: what its certificate says does not hold on the others"
)


def require_policy(
    asked: Sequence[Acceleration], options: DecodingOptions, heads: Sequence[ExitHeads] = ()
) -> None:
    """Refuse exits without a policy, a policy or heads without exits, and a strategy that is an acceleration.

    Raises InputError or PolicyError.
    """
    using = [way.text for way in asked if way.text in OF_THE_POLICY]
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
    if heads and not using and all(way.text != SHORT_LIST for way in asked):
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
    if any(way.text in OF_THE_POLICY for way in asked) and not policy.needs(base.model.layers):
        raise PolicyError(
            f"{policy} never leaves early: there is nothing to combine",
            where="--policy",
            fix="give a policy that exits, or leave exits and speculate out",
        )


def require_base(model: Model) -> None:
    """Refuse a model that variants cannot be made of. Raises InputError or ModelError."""
    if model.transforms:
        raise InputError(
            f"{model.name} is transformed already ({', '.join(model.transforms)}), but combinations "
            "are held against the untransformed model",
            where="--transform",
            fix="give the transform to --combine instead",
        )
    model.require_loaded("timing")


def _further(base: Setting, variants: Mapping[Key, ModelVariant]) -> dict[str, Any]:
    """Circumstances beside the machine's: fingerprints, and every model that took part."""
    return {
        "policy_fingerprint": sha256_of_text(str(base.main.policy)),
        "heads_fingerprint": _fingerprint(base),
        "models": {
            JOINED.join(key): {
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


def _combination(
    candidate: CombinedContender, contenders: Mapping[str, Contender], quality: Quality | None
) -> Combination:
    names = tuple(part.name for part in candidate.parts)
    contender = candidate.contender
    if isinstance(contender, Decoder):
        contender = contenders[candidate.name]
    if quality is not None:
        contender = replace(contender, executed_agreement=quality.free_running.agreement)
    combination = Combination(
        candidate.name,
        names,
        contender,
        candidate.setting.model.transforms if candidate.key else (),
        candidate.policy,
        quality=quality,
    )
    if contender.left_out is not None or len(names) < 2:
        return combination
    clusters = {name: known.clusters for name, known in contenders.items() if known.left_out is None}
    singles = [clusters[name] for name in names if name in clusters]
    if len(singles) == len(names):
        combination = replace(
            combination,
            product=product_of(*((1.0, single) for single in singles)),
            interaction=interaction_of(singles, contender.clusters),
        )
    # What each part adds to the rest, where the rest was timed.
    rests = {part: JOINED.join(name for name in names if name != part) for part in names}
    ratios = {
        part: ratio_over(contender.clusters, clusters[rest])
        for part, rest in rests.items()
        if rest in clusters
    }
    on_top = tuple(OnTop(part, ratio) for part, ratio in ratios.items() if ratio is not None)
    return replace(combination, on_top=on_top)


def interaction_of(
    singles: Sequence[Sequence[Cluster]], together: Sequence[Cluster]
) -> Estimate[float] | None:
    """Speedup of all parts together over the product of the single ones, on the prompts that all share."""
    return product_of((1.0, together), *((-1.0, single) for single in singles))


def qualities_of(
    session: Session, candidates: Sequence[CombinedContender], *, seed: int = SEED
) -> dict[str, Quality]:
    """Quality of every combination that was timed, by name; "plain" among them.

    Each is held against the untransformed full model's own answers. Intervals: 95 % bootstrap over prompts,
    absent under 20 of them.
    """
    base, decoded, plain = session.setting, session.decoded, session.plain
    prompts, answers = prompts_and_answers(base, decoded[plain])
    known: Judgements = {}

    def quality(name: str, agreeing: Sequence[float]) -> Quality:
        judged = free_running_of(base, decoded[name], decoded[plain], seed=seed, known=known)
        return Quality(judged, _share(agreeing, seed))

    found = {PLAIN_NAME: quality(plain, [1.0] * len(prompts))}
    forced: dict[tuple[Key, str | None], list[float]] = {}
    for candidate in candidates:
        if candidate.name not in decoded:
            continue
        model, cell = candidate.setting.model, candidate.cell
        if cell is not None and (STRATEGIES[cell.kv].lossless or isinstance(cell.policy, Never)):
            cell = None
        key = candidate.key, candidate.name if candidate.forced else None if cell is None else cell.name
        if key not in forced:
            chosen = candidate.forced or _choosing(model, cell)
            forced[key] = [chosen(*pair) for pair in zip(prompts, answers, strict=True)]
        found[candidate.name] = quality(candidate.name, forced[key])
    return found


def _choosing(model: Model, cell: DecodingOptions | None) -> Chosen:
    """That of a model in our loop, or with all layers where no policy decides."""
    return partial(_at_full_depth, model) if cell is None else partial(_as_decoded, model, cell)


def _at_full_depth(model: Model, prompt: Sequence[int], answer: Sequence[int]) -> float:
    """Share of an answer's tokens that all layers of a variant choose, given those before; ties count."""
    return float(full_models_choices(judge(model, prompt, answer), 0, model.dtype).mean())


def _as_decoded(model: Model, cell: DecodingOptions, prompt: Sequence[int], answer: Sequence[int]) -> float:
    """Share of an answer's tokens that the policy's outputs choose when it is fed instead of them."""
    ids, forced = (torch.tensor([list(tokens)], device=model.hf.device) for tokens in (prompt, answer))
    with own_config(model.hf, plain_config(len(answer))), model.given([prompt]):
        found = generate_batch(model, ids, options=replace(cell, new_tokens=len(answer)), force_tokens=forced)
    return float(np.mean(np.array(found.rows[0].chosen) == np.array(answer)))


def _share(shares: Sequence[float], seed: int) -> Estimate[float]:
    values = np.array(shares, dtype=np.float64)
    return mean_of(document_bootstrap(len(values), draws=DRAWS, seed=seed), values, np.ones(len(values)))
