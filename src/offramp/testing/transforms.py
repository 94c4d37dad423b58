"""The contract of a transform, for authors of plug-ins to run on theirs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from offramp.errors import InputError
from offramp.kit.arguments import checked
from offramp.models.shape import DTYPES
from offramp.models.transforms.transform import Transform, parse_transform

if TYPE_CHECKING:
    from torch import Tensor

    from offramp.models.model import Model

STEPS = 4
"""Tokens decoded one by one with a cache."""

CACHED = {"float32": 1e-4, "bfloat16": 2.0**-4, "float16": 2.0**-7}
"""Of the largest logit: how far those with a cache may lie from those without, by dtype."""


@checked
def check_transform(transform: Transform, load: Callable[[], Model] | None = None) -> Transform:
    """Hold a transform against what tracing, decoding and reports rely on; returns the transform.

    Its text reads back as an equal transform; it says that this machine can do it; the result names it last
    in its identity, which is another than before, with the same base; shape and stack have one entry a
    layer; its logits are finite, the same for two models that were loaded alike, and the same, within
    rounding, with a cache; exit L reproduces them; and it is refused a second time.

    load: gives a model that it can be applied to, anew at every call; by default a small random Llama of 6
    layers, in float32 if the transform can do that. Raises InputError naming the first rule that is broken,
    and whatever the transform raises.
    """
    _check_text(transform)
    transform.check()
    if load is None:
        load = _example_for(transform)
    before = load().identity
    model = transform.apply(load())
    if model.transforms != (*before.transforms, transform.text):
        raise _broken(transform, f"the identity names {model.transforms}, not its text last")
    if model.identity.base_fingerprint != before.base_fingerprint:
        raise _broken(transform, "it changes the fingerprint of the base")
    if model.identity.fingerprint == before.fingerprint:
        raise _broken(transform, "the transformed model has the fingerprint of the one before")
    if len(model.shape.layers) != len(model.stack):
        raise _broken(
            transform, f"the shape has {len(model.shape.layers)} layers, the stack {len(model.stack)}"
        )
    _check_logits(transform, model, transform.apply(load()))
    try:
        transform.apply(model)
    except InputError:
        return transform
    raise _broken(transform, "it can be applied twice")


def _check_text(transform: Transform) -> None:
    name = transform.text.partition(":")[0]
    if name != transform.name:
        raise _broken(transform, f"its text begins with {name!r} instead of its name {transform.name!r}")
    again = parse_transform(transform.text)
    if again != transform or again.text != transform.text:
        raise _broken(transform, f"its text {transform.text!r} reads back as {again!r}")


def _check_logits(transform: Transform, model: Model, other: Model) -> None:
    import torch

    from offramp.models.discovery import find_stack, probe_ids
    from offramp.models.tensors import largest_difference, largest_finite

    ids = probe_ids(model.hf)
    with torch.no_grad():
        logits = model.hf(input_ids=ids, use_cache=False).logits
        if not torch.isfinite(logits).all():
            raise _broken(transform, "the transformed model gives logits that are not finite")
        if not torch.equal(logits, other.hf(input_ids=ids, use_cache=False).logits):
            raise _broken(transform, "two models that were loaded alike become different ones")
        cached = _decoded(model, ids)
    if not largest_difference(cached, logits) <= CACHED[model.dtype] * largest_finite(logits):
        raise _broken(transform, "tokens that are decoded with a cache get other logits")
    found = find_stack(model.hf, name=model.name)  # raises if exit L is not exact
    if found.layers != model.stack.layers:
        raise _broken(transform, "its stack does not hold the layers that the transformed model runs")


def _decoded(model: Model, ids: Tensor) -> Tensor:
    """Logits of all positions, the last STEPS of them decoded one by one."""
    import torch

    from offramp.models.calls import continued

    prompt = ids.shape[1] - STEPS
    output = model.hf(input_ids=ids[:, :prompt], use_cache=True)
    parts = [output.logits]
    for place in range(prompt, ids.shape[1]):
        cache = continued(output)
        output = model.hf(input_ids=ids[:, place : place + 1], **cache, use_cache=True)
        parts.append(output.logits)
    return torch.cat(parts, dim=1)


def _example_for(transform: Transform) -> Callable[[], Model]:
    """The example in the first dtype that the transform can do."""
    try:
        transform.check(DTYPES[0])
    except InputError:
        return functools.partial(example_model, DTYPES[1])
    return example_model


def example_model(dtype: str = "float32") -> Model:
    """A small random Llama with a tokenizer of a few words, the same at every call."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers

    from offramp.models.identity import ModelIdentity
    from offramp.models.loading import build_model
    from offramp.models.process import quiet_transformers

    with quiet_transformers():
        from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    words = {f"w{number}": number for number in range(64)}
    backend = Tokenizer(models.WordLevel(words, unk_token="w2"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend, bos_token="w0", eos_token="w1"
    )
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=0,
        eos_token_id=1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hf = LlamaForCausalLM(config).to(getattr(torch, dtype))
    identity = ModelIdentity("example", "example", "example", "offramp.testing.transforms", "Apache-2.0")
    return build_model(hf, tokenizer, name="example", identity=identity, dtype=dtype)


def _broken(transform: Transform, what: str) -> InputError:
    return InputError(
        what,
        where=transform.text,
        fix="see offramp.models.transforms.transform.Transform for the contract",
    )
