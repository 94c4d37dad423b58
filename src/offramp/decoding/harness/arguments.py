"""The model arguments of lm-eval's command line: what they mean, refused before any weight is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from offramp.decoding.options import (
    DecodingOptions,
    check_policy,
)
from offramp.errors import InputError
from offramp.kit.rules import suggest
from offramp.models.checkpoint import read_config, stated_layers
from offramp.models.devices import AUTO, device_count
from offramp.models.model import Model
from offramp.models.source import ModelFiles
from offramp.models.transforms.transform import Transform, parse_transforms
from offramp.tracing.loading import find_model

WHERE = "--model_args"

DEFAULTS_OF_LM_EVAL = ("cuda", "cuda:0")
"""Devices that lm-eval hands over where its user named none."""

OF_HARNESS = (
    "add_bos_token",
    "chat_template_args",
    "enable_thinking",
    "max_length",
    "prefix_token_id",
    "think_end_token",
    "truncation",
)
"""Arguments of lm-eval's own `hf` model that mean here what they mean there."""

OF_OFFRAMP = (
    "pretrained",
    "policy",
    "kv",
    "heads",
    "draft_length",
    "task",
    "dtype",
    "transforms",
    "trust_remote_code",
    "batch_size",
    "max_batch_size",
    "device",
)


@dataclass(frozen=True)
class Arguments:
    """What to evaluate and how to decode it.

    model: what to load, checked as far as possible without a weight, or a model that is loaded. device:
    as `offramp.models.devices.find_device` gives it. dtype: as it fits the device.
    """

    model: ModelFiles | Model
    options: DecodingOptions
    device: str
    dtype: str
    transforms: tuple[Transform, ...]
    trust_remote_code: bool


def refuse_unknown(names: Iterable[str], policy: Any) -> None:
    """Raise InputError for an argument that is none, with a hint if a policy's text was cut at a comma."""
    unknown = [name for name in names if name not in (*OF_OFFRAMP, *OF_HARNESS)]
    if not unknown:
        return
    fix = suggest(unknown[0], (*OF_OFFRAMP, *OF_HARNESS))
    if isinstance(policy, str) and ":" in policy:
        whole = {"pretrained": "MODEL", "policy": f"{policy},{unknown[0]}=..."}
        fix = (
            "a policy whose text has commas needs the arguments as JSON, "
            f"--model_args '{json.dumps(whole)}', or the path of a policy.json; else {fix}"
        )
    raise InputError(f"unknown model argument {unknown[0]!r}", where=WHERE, fix=fix)


def _device(given: Any) -> str:
    """The device that is meant: "auto" for lm-eval's own default where that is not here."""
    asked = str(given or AUTO)
    return AUTO if asked in DEFAULTS_OF_LM_EVAL and not device_count("cuda") else asked


def read_arguments(given: Mapping[str, Any]) -> Arguments:
    """The arguments of `OfframpLM` that are offramp's own, by OF_OFFRAMP, read and checked.

    Raises InputError (PolicyError and ModelError among them) for a model that cannot be found, a policy that
    is unknown, is an oracle or does not fit the model's stated number of layers, heads that cannot be read,
    an unknown strategy, dtype or transform, a batch of more than one, or arguments of loading with a model
    that is loaded.
    """
    _require_single(given.get("batch_size"), "batch_size")
    _require_single(given.get("max_batch_size"), "max_batch_size")
    dtype = str(given.get("dtype") or AUTO)
    transforms = _transforms(given.get("transforms"))
    options = DecodingOptions.read(
        given.get("policy"),
        kv=None if given.get("kv") is None else str(given["kv"]),
        heads=given.get("heads"),
        draft_length=given.get("draft_length"),
    ).for_task(given.get("task"))
    if isinstance(given.get("pretrained"), Model):
        return _of_loaded(given["pretrained"], options, given)
    trusted = bool(given.get("trust_remote_code") or False)
    asked = find_model(
        _name(given.get("pretrained")),
        transforms,
        dtype=dtype,
        trust_remote_code=trusted,
        device=_device(given.get("device")),
    )
    source = asked.source
    layers = None if transforms else stated_layers(read_config(source.folder))
    if layers is not None:  # its config says how many there are
        check_policy(options.policy, layers, options.heads)
    options.check_files(asked.dtype)
    return Arguments(source, options, asked.device, asked.dtype, transforms, trusted)


OF_LOADING = ("dtype", "device", "transforms", "trust_remote_code")


def _of_loaded(model: Model, options: DecodingOptions, given: Mapping[str, Any]) -> Arguments:
    """The arguments with a model that is loaded already."""
    late = [name for name in OF_LOADING if given.get(name)]
    if late:
        raise InputError(
            f"{late[0]} says how to load, and {model.shown_name} is loaded already",
            where=WHERE,
            fix="leave it out, or give the model's name",
        )
    return Arguments(model, options, str(model.stack.device), model.dtype, (), False)


def _transforms(given: Any) -> tuple[Transform, ...]:
    """One transform's text, or a list of them in their order."""
    if not given:
        return ()
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        raise InputError(
            f"transforms cannot be {given!r}", where=WHERE, fix="give one, such as int8, or a list of texts"
        )
    return parse_transforms(texts)


def _name(given: Any) -> str:
    if given is None or given == "":
        raise InputError(
            "no model was named",
            where=WHERE,
            fix="give pretrained=smollm2, a folder, a .gguf file, or a Hub id",
        )
    return str(given)


def _require_single(given: Any, name: str) -> None:
    if given is not None and str(given) != "1":
        raise InputError(
            f"{name} cannot be {given!r}: each text goes its own depth, so they are decoded one by one",
            where=f"--{name}",
            fix=f"leave it out, or give --{name} 1",
        )
