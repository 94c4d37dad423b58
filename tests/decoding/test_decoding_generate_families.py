"""Early exit inside transformers' own `generate`, on models of several families and on a real one."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from generation_cases import counted_layers, reference_logits

import offramp
from models.family_configs import VOCABULARY, build_family
from offramp.decoding.engine.build import engine_of
from offramp.models.model import Model

NEW = 7
FAMILIES = ("gpt2", "gemma2", "mixtral", "deepseek_v3", "opt", "mamba", "jamba", "bamba")


@functools.cache
def family(name: str) -> Any:
    return build_family(name)


def prompt_ids(batch: int = 1, length: int = 9) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(4))


def decode(hf: Any, ids: torch.Tensor, early: Any, **options: Any) -> torch.Tensor:
    given = {
        "attention_mask": torch.ones_like(ids),
        "do_sample": False,
        "pad_token_id": 0,
        "eos_token_id": None,
    }
    return hf.generate(ids, custom_generate=early, max_new_tokens=NEW, **(given | options))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_full_model_is_transformers_own(name: str) -> None:
    hf, ids = family(name), prompt_ids()
    assert torch.equal(decode(hf, ids, offramp.early_exit(None)), decode(hf, ids, None))


@pytest.mark.parametrize("kv", ["propagate", "monotone"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_static_exit_is_the_slow_reference(name: str, kv: str) -> None:
    hf, ids = family(name), prompt_ids()
    layers = engine_of(hf).stack.layers
    early = offramp.early_exit("static:exit=2", kv=kv)
    decode(hf, ids, early)  # tries abilities
    with counted_layers(hf, layers) as counts:
        out = decode(hf, ids, early)[0].tolist()
    assert early.last is not None
    exits = [len(layers)] * ids.shape[1] + [2] * (NEW - 1)
    logits = reference_logits(hf, layers, out[:-1], exits)
    assert out[ids.shape[1] :] == logits[ids.shape[1] - 1 :].argmax(-1).tolist()
    assert sum(counts) == early.last.layers_executed == early.last.rows[0].layers_executed
    above = sum(engine_of(hf).recurrent[2:]) if kv == "propagate" else 0
    assert sum(counts) == len(layers) * ids.shape[1] + (2 + above) * (NEW - 1)


def test_rebatch_is_refused_where_states_are_recurrent() -> None:
    hf, ids = family("mamba"), prompt_ids(batch=2)
    with pytest.raises(offramp.InputError, match="rebatch"):
        decode(hf, ids, offramp.early_exit("static:exit=2", batching="rebatch"))


@pytest.mark.real_model
@pytest.mark.parametrize("policy", ["never", "threshold:signal=margin,value=0.5,exits=15+20+25"])
def test_the_default_model(smollm2: Model, policy: str) -> None:
    model = smollm2
    found = offramp.generate(model, "The capital of France is", policy=policy, max_new_tokens=8)
    prompt = model.encode("The capital of France is")
    exits = [model.layers] * (len(prompt) - 1) + found.exits.tolist()
    logits = reference_logits(model.hf, model.stack.layers, prompt + found.tokens[:-1], exits)
    assert found.tokens == logits[len(prompt) - 1 :].argmax(-1).tolist()
    assert (found.skip_ratio > 0) == (policy != "never")
