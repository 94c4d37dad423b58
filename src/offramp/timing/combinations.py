"""Combinations of accelerations: each set of transforms once, each combination as a decoder on its model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from offramp.commands import command_for
from offramp.decoding.options import DecodingOptions, check_policy
from offramp.errors import InputError, ModelError, PolicyError
from offramp.heads.exit_heads import ExitHeads
from offramp.kit.defaults import SHORTLIST
from offramp.models.loading import Placement
from offramp.models.model import Model
from offramp.models.tensors import is_wrapped
from offramp.models.transforms.prune import Prune
from offramp.models.transforms.transform import Transform, parse_transform
from offramp.policies.parameters import pruned_policy
from offramp.policies.rules.short_list import with_short_head
from offramp.timing.accelerations import (
    EXITS,
    PROMPT_LOOKUP,
    SHORT_LIST,
    SHORT_LIST_WITH_EXITS,
    SPECULATE,
    Parts,
    decoder_of,
    name_of,
    transforms_of,
)
from offramp.timing.contenders import (
    FAILURES,
    PEERS,
    PLAIN,
    Setting,
    policies,
    seconds_in_trial,
    why,
)
from offramp.timing.decoder import Decoder, left_out
from offramp.timing.results import LOOKUP, Contender
from offramp.tracing.loading import load_transformed

Key = tuple[str, ...]
"""Names of the transforms of a variant, in the order in which they are applied; empty for the base."""


@dataclass(frozen=True)
class Variant:
    """One model of a combination. setting: its cell holds the policy that leaves at its exits.

    refused: why that policy, or none at all, can decide on this model; None if it can.
    """

    setting: Setting
    refused: str | None = None


def require_base(model: Model) -> None:
    """Refuse a model that variants cannot be made of. Raises InputError or ModelError."""
    if model.transforms:
        raise InputError(
            f"{model.name} is transformed already ({', '.join(model.transforms)}), but combinations "
            "are held against the untransformed model",
            where="--transform",
            fix="give the transform to --combine instead",
        )
    if model.streamed is not None:
        raise ModelError(
            "a model whose layers are read from disk one at a time cannot be timed",
            where=model.name,
            fix="use a machine with enough memory for all weights, or a smaller model",
        )


def heads_for(model: Model, heads: Sequence[ExitHeads]) -> ExitHeads | None:
    """The heads that were fitted on this very model, None without such. Raises InputError for several."""
    own = [one for one in heads if one.model["fingerprint"] == model.identity.fingerprint]
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
) -> dict[Key, Variant]:
    """Every model that the combinations need, by the names of its transforms; all stay in memory.

    base: of the untransformed model, with the policy as its cell. heads: each file is used on the model that
    it was fitted on.

    Raises ModelError for a transform that does not fit the model, InputError for heads of no model here.
    """
    source = base.model.source
    found: dict[Key, Variant] = {(): Variant(base)}
    resolved: dict[str, Transform] = {}
    for parts in map(transforms_of, combinations):
        key = tuple(one.name for one in parts)
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
            transforms=[_transform(one.transform, resolved.get(one.name)) for one in parts],
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


def _transform(asked: Transform | None, resolved: Transform | None) -> Transform:
    assert asked is not None  # ways to decode make no variant
    return resolved or asked


def _variant(base: Setting, model: Model, heads: Sequence[ExitHeads]) -> Variant:
    """The same prompts and sizes on a transformed model."""
    own = heads_for(model, heads)
    cell = replace(base.main, heads=own)
    setting = replace(base, model=model, cells=(cell,))
    if base.main.heads is not None and own is None:
        return Variant(
            setting,
            "the exit heads belong to the untransformed model; heads of this one are fitted by "
            + command_for("heads fit", model.described, workload="prose", output="heads.safetensors"),
        )
    if own is not None and base.main.heads is None:
        return Variant(
            setting,
            "this model's exits would be read through exit heads, and the untransformed model's without: "
            "give heads of both",
        )
    try:
        policy = pruned_policy(cell.policy, kept_layers(model, base.model.layers), base.model.layers)
        check_policy(policy, model.layers, own)
    except PolicyError as error:
        return Variant(setting, error.what)
    return Variant(replace(setting, cells=(replace(cell, policy=policy),)))


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


def _require_all_used(variants: Mapping[Key, Variant], heads: Sequence[ExitHeads]) -> None:
    known = {variant.setting.model.identity.fingerprint for variant in variants.values()}
    for one in heads:
        if one.model["fingerprint"] not in known:
            raise InputError(
                f"the exit heads were fitted on {one.model['name']} ({one.model['fingerprint'][:12]}), which "
                "is none of the models that are combined",
                where="--heads",
                fix="leave them out, or fit heads of a model that takes part: offramp heads fit",
            )


ROLE = "combination"


@dataclass(frozen=True)
class Planned:
    """A combination that takes part, or why it does not.

    cell: how our loop decodes it, None if another one does.
    """

    parts: Parts
    setting: Setting
    found: Decoder | Contender
    cell: DecodingOptions | None = None

    @property
    def policy(self) -> str | None:
        """The policy that decides on its model, None without."""
        return None if self.cell is None else str(self.cell.policy)

    @property
    def name(self) -> str:
        """As shown."""
        return name_of(self.parts)

    @property
    def key(self) -> Key:
        """Its variant."""
        return tuple(one.name for one in transforms_of(self.parts))


def planned_of(combinations: Sequence[Parts], variants: Mapping[Key, Variant]) -> list[Planned]:
    """One for each combination but the plain one."""
    return [_planned(parts, variants) for parts in combinations if parts]


def _planned(parts: Parts, variants: Mapping[Key, Variant]) -> Planned:
    variant = variants[tuple(one.name for one in transforms_of(parts))]
    setting, way, name = variant.setting, decoder_of(parts), name_of(parts)
    if variant.refused is not None and way in OF_THE_POLICY:
        return Planned(parts, setting, left_out(name, ROLE, variant.refused))
    try:
        cell = CELLS[way](setting) if way in CELLS else None
        found = DECODERS_BY_WAY[way](setting) if cell is None else _decoding(setting, cell)
    except PolicyError as error:
        return Planned(parts, setting, left_out(name, ROLE, error.what))
    if isinstance(found, Contender):
        return Planned(parts, setting, replace(found, name=name, role=ROLE))
    note = None if found.note is None else f"{name}: {found.note}"
    must = found.output_must_match and computes_exactly(setting.model)
    decoder = replace(
        found, name=name, role=ROLE, output_must_match=must, required=False, note=note, full_depth=False
    )
    return Planned(parts, setting, decoder, cell)


def _plain(setting: Setting) -> Decoder | Contender:
    """The plain decoder that is fastest in a short run."""
    trials: dict[str, tuple[float, Decoder]] = {}
    failed = "no plain decoder works on it"
    for one in (one for source in PLAIN.values() for one in source(setting)):
        if isinstance(one, Contender):
            continue
        try:
            trials[one.name] = seconds_in_trial(setting, one.decode), one
        except FAILURES as error:
            failed = why(error)
    if not trials:
        return left_out("", ROLE, failed)
    _, best = min(trials.values(), key=lambda trial: trial[0])
    note = f"decoded plainly by {best.name}, the fastest of {', '.join(trials)} in a trial"
    return replace(best, output_must_match=False, note=note)


def _decoding(setting: Setting, cell: DecodingOptions) -> Decoder | Contender:
    """A policy in our loop; of a cut head it is said to which tokens."""
    found = _only(policies(replace(setting, cells=(cell,))))
    if isinstance(found, Contender) or not cell.policy.short_head:
        return found
    listed = None if cell.heads is None else cell.heads.shortlist
    first = f"first {min(SHORTLIST, setting.model.shape.vocabulary_size):,} ids of the vocabulary"
    tokens = first if listed is None else f"{len(listed):,} of the heads"
    return replace(found, note=f"its tokens are the {tokens}")


def _prompt_lookup(setting: Setting) -> Decoder | Contender:
    found = _only(PEERS[LOOKUP](setting))
    return found if isinstance(found, Contender) else replace(found, output_must_match=setting.exact)


def _only(found: Iterator[Decoder | Contender]) -> Decoder | Contender:
    (one,) = found
    return one


DECODERS_BY_WAY: dict[str | None, Callable[[Setting], Decoder | Contender]] = {
    None: _plain,
    PROMPT_LOOKUP: _prompt_lookup,
}
"""By the way to decode, where that is not our loop with a policy."""


def _cut(cell: DecodingOptions) -> DecodingOptions:
    return replace(cell, policy=with_short_head(cell.policy))


CELLS: dict[str | None, Callable[[Setting], DecodingOptions]] = {
    EXITS: lambda setting: setting.main,
    SPECULATE: lambda setting: replace(setting.main, kv=SPECULATE),
    SHORT_LIST: lambda setting: _cut(setting.main.full_model),
    SHORT_LIST_WITH_EXITS: lambda setting: _cut(setting.main),
}
"""Policy and strategy by the way to decode, where that is our loop."""

OF_THE_POLICY = (EXITS, SPECULATE, SHORT_LIST_WITH_EXITS)
"""Ways to decode that need the policy that was given."""


def computes_exactly(model: Model) -> bool:
    """Whether all weights are ordinary float32 numbers: only then several tokens at once give what one gives.

    Kernels of quantised weights may add up in another order, or round otherwise, for several tokens at once.
    """
    return all(
        parameter.dtype == torch.float32 and not is_wrapped(parameter) for parameter in model.hf.parameters()
    )
