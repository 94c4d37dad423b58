"""The models of a combination: each set of transforms once, with the policy and the heads that fit it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from offramp.decoding.bench.acceleration import Parts, transforms_of
from offramp.decoding.bench.contenders import Setting
from offramp.decoding.generation.compatibility import check_policy
from offramp.errors import InputError, ModelError, PolicyError
from offramp.models.identity import command_name
from offramp.models.model import Model
from offramp.models.transforms.grammar import parse_transform
from offramp.models.transforms.prune import Prune
from offramp.models.transforms.transform import Transform
from offramp.policies.pruned import pruned_policy
from offramp.tracing.exit_heads import ExitHeads
from offramp.tracing.transformed import load_transformed

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
    if model.identity.transforms:
        raise InputError(
            f"{model.name} is transformed already ({', '.join(model.identity.transforms)}), but combinations "
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
            f"{len(own)} files of exit heads belong to {model.name} {', '.join(model.identity.transforms)}",
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
        )
        if len(parts) == 1:
            # What was measured for it (which layers matter least) is not measured again.
            resolved[key[0]] = parse_transform(model.identity.transforms[0])
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
            f"offramp heads fit {command_name(model.name, model.identity.transforms)}",
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
    texts = model.identity.transforms
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
