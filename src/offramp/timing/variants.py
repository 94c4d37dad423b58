"""The models that combinations of accelerations decode with: the untransformed one, and variants of it."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from offramp.commands import command_for
from offramp.decoding.options import check_policy
from offramp.errors import InputError, ModelError, PolicyError
from offramp.heads.exit_heads import ExitHeads
from offramp.models.discovery import find_stack
from offramp.models.loading import Placement
from offramp.models.model import Model
from offramp.models.transforms.prune import Prune
from offramp.models.transforms.quantise import Quantised
from offramp.models.transforms.transform import Transform, apply_transform, parse_transform
from offramp.policies.parameter_types import pruned_policy
from offramp.timing.accelerations import (
    Parts,
    transforms_of,
)
from offramp.timing.decoder import (
    Setting,
)
from offramp.timing.stopping import Budget
from offramp.tracing.loading import load_transformed

PREPARING_SHARE = 0.5
"""Of the seconds, that loading models and looking for the best way to decode may take."""

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
    unfit: str | None = None
    """Why the transforms do not fit, so that the setting is the base's; None if they do."""


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
    budget: Budget | None = None,
    demanded: bool = True,
) -> dict[Key, ModelVariant]:
    """Every model that the combinations need, by the names of its transforms; all stay in memory.

    base: of the untransformed model, with the policy as its cell. heads: each file is used on the model that
    it was fitted on. budget: a model is left out where the longest of those before would, once more, take it
    beyond PREPARING_SHARE; None for no limit. demanded: whether a transform that does not fit is an error,
    and no reason to leave its model out.

    Raises ModelError for a transform that does not fit the model, InputError for heads of no model here.
    """
    found: dict[Key, ModelVariant] = {(): ModelVariant(base)}
    resolved: dict[str, Transform] = {}
    budget = budget or Budget()
    end, longest, complete = budget.until(PREPARING_SHARE), 0.0, True
    for parts in map(transforms_of, combinations):
        key = key_of(parts)
        if key in found:
            continue
        if longest and budget.spent + longest > end:
            complete = False
            continue
        began = budget.spent
        transforms = [resolved.get(part.name, part.transform) for part in parts if part.transform is not None]
        try:
            model = _transformed(base.model, transforms)
        except ModelError as error:
            if demanded:
                raise
            found[key] = ModelVariant(base, unfit=error.what)
            continue
        if len(parts) == 1:
            # What was measured for it (which layers matter least) is not measured again.
            resolved[key[0]] = parse_transform(model.transforms[-1])
        found[key] = _variant(base, model, heads)
        longest = max(longest, budget.spent - began)
    if complete:
        _require_all_used(found, heads)
    return found


def sharing_weights(model: Model) -> Model:
    """The same model in modules of its own, which hold the same tensors: what replaces some of them leaves
    the other as it is."""
    held = [*model.hf.parameters(), *model.hf.buffers()]
    hf = copy.deepcopy(model.hf, {id(tensor): tensor for tensor in held})
    return replace(model, hf=hf, stack=find_stack(hf, name=model.name))


def _transformed(base: Model, transforms: Sequence[Transform]) -> Model:
    """A model with some transforms more; in few bits it shares whatever they leave as it is."""
    if all(isinstance(transform, Quantised) for transform in transforms):
        return functools.reduce(
            lambda model, transform: apply_transform(transform, model), transforms, sharing_weights(base)
        )
    if base.source is None:
        raise ModelError(
            "a model that was built in memory cannot be loaded again, transformed",
            where=base.name,
            fix="save it to a folder, and load that",
        )
    return load_transformed(
        base.source,
        dtype=base.dtype,
        transforms=[*map(parse_transform, base.transforms), *transforms],
        trust_remote_code=base.runs_own_code,
        progress=False,
        placement=Placement(str(base.stack.device)),
    )


def _variant(base: Setting, model: Model, heads: Sequence[ExitHeads]) -> ModelVariant:
    """The same prompts and sizes on a transformed model."""
    own = heads_for(model, heads)
    cell = replace(base.main, heads=own or _list_alone(base.main.heads, model))
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


def _list_alone(heads: ExitHeads | None, model: Model) -> ExitHeads | None:
    """The short list of another model's heads, and nothing else of them, since tokens are the same."""
    if heads is None or heads.shortlist is None:
        return None
    nothing: dict[str, Any] = {"lens": None, "classifiers": {}, "output": None, "kv_maps": None, "mlp": None}
    identity = {"name": model.name, **model.identity.to_json()}
    return replace(heads, model={**heads.model, **identity}, exits=(), candidate_exit=None, **nothing)


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
