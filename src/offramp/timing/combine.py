"""Accelerations alone and together, timed in turns: do the gains add up, and what do they cost in quality?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from offramp.commands import command_for
from offramp.decoding.generation.generate import FULL_MODEL, generate_batch
from offramp.decoding.generation.prompts import PromptBatch
from offramp.decoding.judging import (
    Judgements,
    full_models_choices,
    judge,
    mean_of,
)
from offramp.decoding.options import DecodingOptions, check_policy
from offramp.defaults import DRAWS, MAIN_FLOOR, SEED, SHORTLIST
from offramp.errors import InputError, ModelError, PolicyError
from offramp.files import sha256_of_text
from offramp.heads.at_work import restricted_tokens
from offramp.heads.exit_heads import ExitHeads
from offramp.kit.arguments import checked
from offramp.kit.numbers import Proportion
from offramp.models.loading import Placement
from offramp.models.model import Model
from offramp.models.process import quiet_transformers
from offramp.models.tensors import is_wrapped
from offramp.models.transforms.prune import Prune
from offramp.models.transforms.transform import Transform, parse_transform
from offramp.policies.kv import STRATEGIES
from offramp.policies.parameter_types import pruned_policy
from offramp.policies.rules.fixed import Never
from offramp.policies.rules.short_list import with_short_head
from offramp.scoring.estimate import Estimate, document_bootstrap
from offramp.timing.accelerations import (
    EXITS,
    LLAMA_CPP,
    PROMPT_LOOKUP,
    SHORT_LIST,
    SHORT_LIST_WITH_EXITS,
    SHORT_LIST_WITH_LOOKUP,
    SPECULATE,
    Acceleration,
    Parts,
    combinations_of,
    decoder_of,
    excluded_of,
    name_of,
    read_accelerations,
    transforms_of,
)
from offramp.timing.bench import free_running_of, prompts_and_answers, settle
from offramp.timing.contenders import (
    CONTENDERS,
    FAILURES,
    WITHOUT_PEERS,
    plain_decoders,
    policies,
    seconds_in_trial,
    why,
)
from offramp.timing.decoder import (
    Candidates,
    DecodedBatch,
    Decoder,
    Setting,
    left_out,
    own_config,
    parted,
    plain_config,
)
from offramp.timing.native_runtime import NativeRuntime
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
from offramp.timing.stopping import TimeLimits
from offramp.tracing.loading import load_transformed

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
    limits = limits or TimeLimits()
    asked = read_accelerations(accelerations, model.dtype)
    require_base(model)
    require_policy(asked, options, heads)
    own = heads_for(model, heads)
    options = (options if own is None else replace(options, heads=own)).for_task(workload or None)
    base = settle(model, [options], prompts=prompts, task=workload or None)
    require_exits(asked, base)
    variants = load_variants(base, combinations_of(asked), heads=heads, trust_remote_code=trust_remote_code)
    extent = replace(WITHOUT_PEERS, plain=plain, warm_up_tokens=WARM_UP_TOKENS)
    with quiet_transformers():
        session = Session(base, extent, limits, together=True, seed=seed, progress=progress)
        # Some are decoded shortly to find the best way.
        candidates = [
            candidate_of(parts, variants[key_of(parts)]) for parts in combinations_of(asked) if parts
        ]
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
    using = [way.text for way in asked if way.text in (EXITS, SPECULATE)]
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
    if any(way.text in (EXITS, SPECULATE) for way in asked) and not policy.needs(base.model.layers):
        raise PolicyError(
            f"{policy} never leaves early: there is nothing to combine",
            where="--policy",
            fix="give a policy that exits, or leave exits and speculate out",
        )


Key = tuple[str, ...]
"""Names of the transforms of a variant, in the order in which they are applied; empty for the base."""


def key_of(parts: Parts) -> Key:
    """The variant that a combination decodes with."""
    return tuple(part.name for part in transforms_of(parts))


@dataclass(frozen=True)
class ModelVariant:
    """One model of a combination."""

    setting: Setting
    """Its cell holds the policy that leaves at its exits."""
    refused: str | None = None
    """Why that policy, or none at all, can decide on this model; None if it can."""


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


def heads_for(model: Model, heads: Sequence[ExitHeads]) -> ExitHeads | None:
    """The heads that were fitted on this very model, None without such. Raises InputError for several."""
    own = [fitted for fitted in heads if fitted.model["fingerprint"] == model.identity.fingerprint]
    if len(own) > 1:
        raise InputError(
            f"{len(own)} files of exit heads belong to {model.name} {', '.join(model.transforms)}",
            where="--heads",
            fix="give one file for each model",
        )
    return own[0] if own else None


def load_variants(
    base: Setting,
    combinations: Sequence[Parts],
    *,
    heads: Sequence[ExitHeads] = (),
    trust_remote_code: bool = False,
) -> dict[Key, ModelVariant]:
    """Every model that the combinations need, by the names of its transforms; all stay in memory.

    base: of the untransformed model, with the policy as its cell. heads: each file is used on the model that
    it was fitted on.

    Raises ModelError for a transform that does not fit the model, InputError for heads of no model here.
    """
    source = base.model.source
    found: dict[Key, ModelVariant] = {(): ModelVariant(base)}
    resolved: dict[str, Transform] = {}
    for parts in map(transforms_of, combinations):
        key = key_of(parts)
        if key in found:
            continue
        if source is None:
            raise ModelError(
                "a model that was built in memory cannot be loaded again, transformed",
                where=base.model.name,
                fix="save it to a folder, and load that",
            )
        model = load_transformed(
            source,
            dtype=base.model.dtype,
            transforms=[
                resolved.get(part.name, part.transform) for part in parts if part.transform is not None
            ],
            trust_remote_code=trust_remote_code,
            progress=False,
            placement=Placement(str(base.model.stack.device)),
        )
        if len(parts) == 1:
            # What was measured for it (which layers matter least) is not measured again.
            resolved[key[0]] = parse_transform(model.transforms[0])
        found[key] = _variant(base, model, heads)
    _require_all_used(found, heads)
    return found


def _variant(base: Setting, model: Model, heads: Sequence[ExitHeads]) -> ModelVariant:
    """The same prompts and sizes on a transformed model."""
    own = heads_for(model, heads)
    cell = replace(base.main, heads=own)
    setting = replace(base, model=model, cells=(cell,))
    if base.main.heads is not None and own is None:
        return ModelVariant(
            setting,
            "the exit heads belong to the untransformed model; heads of this one are fitted by "
            + command_for("heads fit", model.described, workload="prose", output="heads.safetensors"),
        )
    if own is not None and base.main.heads is None:
        return ModelVariant(
            setting,
            "this model's exits would be read through exit heads, and the untransformed model's without: "
            "give heads of both",
        )
    try:
        policy = pruned_policy(cell.policy, kept_layers(model, base.model.layers), base.model.layers)
        check_policy(policy, model.layers, own)
    except PolicyError as error:
        return ModelVariant(setting, error.what)
    return ModelVariant(replace(setting, cells=(replace(cell, policy=policy),)))


def kept_layers(model: Model, layers: int) -> tuple[int, ...]:
    """The layers (1 to `layers`) of the untransformed model that a transformed one still has, ascending.

    Raises PolicyError if that is not known.
    """
    texts = model.transforms
    dropped = {
        layer
        for transform in map(parse_transform, texts)
        if isinstance(transform, Prune)
        for layer in transform.drop
    }
    kept = tuple(layer for layer in range(1, layers + 1) if layer not in dropped)
    if len(kept) != model.layers:
        raise PolicyError(
            f"{' and '.join(texts)} left {model.layers} of {layers} layers, and nothing says which",
            where=model.name,
            fix="leave exits and speculate out",
        )
    return kept


def _require_all_used(variants: Mapping[Key, ModelVariant], heads: Sequence[ExitHeads]) -> None:
    known = {variant.setting.model.identity.fingerprint for variant in variants.values()}
    for fitted in heads:
        if fitted.model["fingerprint"] not in known:
            name, fingerprint = fitted.model["name"], fitted.model["fingerprint"][:12]
            raise InputError(
                f"the exit heads were fitted on {name} ({fingerprint}), which "
                "is none of the models that are combined",
                where="--heads",
                fix="leave them out, or fit heads of a model that takes part: offramp heads fit",
            )


ROLE = "combination"


@dataclass(frozen=True)
class CombinedContender:
    """A combination, and its contender on the model that its transforms make, or why it has none."""

    parts: Parts
    setting: Setting
    contender: Decoder | Contender
    cell: DecodingOptions | None = None
    """How our loop decodes it, or would, None if that is not possible."""
    forced: Chosen | None = None
    """None where the model of the setting says that."""

    @property
    def name(self) -> str:
        """As shown."""
        return name_of(self.parts)

    @property
    def key(self) -> Key:
        """Its variant."""
        return key_of(self.parts)

    @property
    def policy(self) -> str | None:
        """The policy that decides on its model, None without."""
        return None if self.cell is None else str(self.cell.policy)


def candidate_of(parts: Parts, variant: ModelVariant) -> CombinedContender:
    """A combination on its model."""
    setting, way, name = variant.setting, decoder_of(parts), name_of(parts)
    if variant.refused is not None and way in OF_THE_POLICY:
        return CombinedContender(parts, setting, left_out(name, ROLE, variant.refused))
    if way == LLAMA_CPP:
        return _native(parts, setting)
    try:
        cell = CELLS[way](setting) if way in CELLS else None
        if way in ELSEWHERE:
            found = ELSEWHERE[way](setting)
        else:
            assert cell is not None  # all others decode in our loop
            found = _decoding(setting, cell)
    except PolicyError as error:
        return CombinedContender(parts, setting, left_out(name, ROLE, error.what))
    if isinstance(found, Contender):
        return CombinedContender(parts, setting, replace(found, name=name, role=ROLE))
    decoder = replace(
        found,
        name=name,
        role=ROLE,
        output_must_match=found.output_must_match and computes_exactly(setting.model),
        required=False,
        note=None if found.note is None else f"{name}: {found.note}",
        full_depth=False,
        on=setting,
        # What a lossless decoder must give is its own model's answer, whatever was done to the model.
        own_plain=name_of(transforms_of(parts)),
    )
    return CombinedContender(parts, setting, decoder, cell)


def _fastest_plain(setting: Setting) -> Decoder | Contender:
    """The plain decoder that is fastest in a short run."""
    trials: dict[str, tuple[float, Decoder]] = {}
    failed = "no plain decoder works on it"
    decoders, _ = parted(plain_decoders(setting))
    for decoder in decoders:
        try:
            trials[decoder.name] = seconds_in_trial(setting, decoder.decode), decoder
        except FAILURES as error:
            failed = why(error)
    if not trials:
        return left_out("", ROLE, failed)
    _, best = min(trials.values(), key=lambda trial: trial[0])
    note = f"decoded plainly by {best.name}, the fastest of {', '.join(trials)} in a trial"
    return replace(best, output_must_match=False, note=note)


def _decoding(setting: Setting, cell: DecodingOptions) -> Decoder | Contender:
    """A policy in our loop; of a cut head it is said to which tokens."""
    (found,) = policies(replace(setting, cells=(cell,)))
    if isinstance(found, Contender) or not cell.policy.short_head:
        return found
    listed = None if cell.heads is None else cell.heads.shortlist
    first = f"first {min(SHORTLIST, setting.model.shape.vocabulary_size):,} ids of the vocabulary"
    tokens = first if listed is None else f"{len(listed):,} of the heads"
    return replace(found, note=f"its tokens are the {tokens}")


def _prompt_lookup(setting: Setting) -> Decoder | Contender:
    """Its drafts are verified with the whole output head."""
    (found,) = CONTENDERS[LOOKUP].make(setting)
    return found if isinstance(found, Contender) else replace(found, output_must_match=setting.exact)


def _lookup_through_cut_head(setting: Setting) -> Decoder | Contender:
    """The same with drafts verified through the head cut to the short list."""
    hf = setting.model.hf
    listed = restricted_tokens(setting.main.heads, setting.model.shape.vocabulary_size)
    head = CutHead(hf.get_output_embeddings(), listed)
    with reading_through(hf, head):
        (found,) = CONTENDERS[LOOKUP].make(setting)
    if isinstance(found, Contender):
        return found
    whole = found.whole
    assert whole is not None  # it decodes at a stretch

    def decode(prompts: PromptBatch, new_tokens: int) -> DecodedBatch:
        with reading_through(hf, head):
            return whole(prompts, new_tokens)

    return replace(found, whole=decode)


@contextmanager
def reading_through(hf: Any, head: nn.Module) -> Iterator[None]:
    """Meanwhile a transformers model has another output head."""
    whole = hf.get_output_embeddings()
    hf.set_output_embeddings(head)
    try:
        yield
    finally:
        hf.set_output_embeddings(whole)


class CutHead(nn.Module):
    """An output head that computes the logits of some tokens alone: [..., hidden] -> [..., vocabulary].

    The logits of all others are the lowest number of their type.
    """

    def __init__(self, head: nn.Linear, tokens: Tensor) -> None:
        """tokens: int64 [listed]."""
        super().__init__()
        self.tokens, self.vocabulary_size = tokens.to(head.weight.device), len(head.weight)
        self.weight = nn.Parameter(head.weight[self.tokens].contiguous(), requires_grad=False)
        self.bias = None if head.bias is None else nn.Parameter(head.bias[self.tokens], requires_grad=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """The logits."""
        listed = nn.functional.linear(hidden, self.weight, self.bias)
        lowest = torch.finfo(listed.dtype).min
        logits = listed.new_full((*listed.shape[:-1], self.vocabulary_size), lowest)
        return logits.index_copy_(-1, self.tokens, listed)


def _native(parts: Parts, setting: Setting) -> CombinedContender:
    """llama.cpp with the file that the model was made from, or why it cannot take part."""
    name = name_of(parts)
    try:
        runtime = NativeRuntime.of(setting)
    except InputError as error:
        return CombinedContender(parts, setting, left_out(name, ROLE, f"{error.what} ({error.fix})"))
    decoder = Decoder(name, ROLE, whole=runtime.decode, on=setting)
    return CombinedContender(parts, setting, decoder, forced=runtime.forced_agreement)


def _cut(cell: DecodingOptions) -> DecodingOptions:
    return replace(cell, policy=with_short_head(cell.policy))


CELLS: dict[str | None, Callable[[Setting], DecodingOptions]] = {
    EXITS: lambda setting: setting.main,
    SPECULATE: lambda setting: replace(setting.main, kv=SPECULATE),
    SHORT_LIST: lambda setting: _cut(setting.main.full_model),
    SHORT_LIST_WITH_EXITS: lambda setting: _cut(setting.main),
    SHORT_LIST_WITH_LOOKUP: lambda setting: _cut(setting.main.full_model),
}
"""Policy and strategy by the way to decode, where that is our loop, or gives what our loop would give."""

ELSEWHERE: dict[str | None, Callable[[Setting], Decoder | Contender]] = {
    None: _fastest_plain,
    PROMPT_LOOKUP: _prompt_lookup,
    SHORT_LIST_WITH_LOOKUP: _lookup_through_cut_head,
}
"""What decodes where that is not our loop; None is plain decoding."""

OF_THE_POLICY = (EXITS, SPECULATE, SHORT_LIST_WITH_EXITS)
"""Ways to decode that need the policy that was given."""


def computes_exactly(model: Model) -> bool:
    """Whether all weights are ordinary float32 numbers: only then several tokens at once give what one gives.

    Kernels of quantised weights may add up in another order, or round otherwise, for several tokens at once.
    """
    return all(
        parameter.dtype == torch.float32 and not is_wrapped(parameter) for parameter in model.hf.parameters()
    )


def _further(base: Setting, variants: Mapping[Key, ModelVariant]) -> dict[str, Any]:
    """Circumstances beside the machine's: fingerprints, and every model that took part."""
    return {
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
    rests = {part: " + ".join(name for name in names if name != part) for part in names}
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
        if cell is not None and STRATEGIES[cell.kv].lossless:
            cell = None
        key = candidate.key, candidate.name if candidate.forced else None if cell is None else cell.name
        if key not in forced:
            chosen = candidate.forced or _choosing(model, cell)
            forced[key] = [chosen(*pair) for pair in zip(prompts, answers, strict=True)]
        found[candidate.name] = quality(candidate.name, forced[key])
    return found


Chosen = Callable[[Sequence[int], Sequence[int]], float]
"""Of a prompt and an answer: the share of its tokens that a decoder chooses too, given those before."""


def _choosing(model: Model, cell: DecodingOptions | None) -> Chosen:
    """That of a model in our loop, or with all layers where no policy decides."""
    return partial(_at_full_depth, model) if cell is None else partial(_as_decoded, model, cell)


def _at_full_depth(model: Model, prompt: Sequence[int], answer: Sequence[int]) -> float:
    """Share of an answer's tokens that all layers of a variant choose, given those before; ties count."""
    return float(full_models_choices(judge(model, prompt, answer), 0, model.dtype).mean())


def _as_decoded(model: Model, cell: DecodingOptions, prompt: Sequence[int], answer: Sequence[int]) -> float:
    """Share of an answer's tokens that the policy's outputs choose when it is fed instead of them."""
    ids, forced = (torch.tensor([list(tokens)], device=model.hf.device) for tokens in (prompt, answer))
    with own_config(model.hf, plain_config(len(answer))):
        found = generate_batch(model, ids, options=replace(cell, new_tokens=len(answer)), force_tokens=forced)
    return float(np.mean(np.array(found.rows[0].chosen) == np.array(answer)))


def _share(shares: Sequence[float], seed: int) -> Estimate[float]:
    values = np.array(shares, dtype=np.float64)
    return mean_of(document_bootstrap(len(values), draws=DRAWS, seed=seed), values, np.ones(len(values)))
