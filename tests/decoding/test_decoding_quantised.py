"""A quantised model decodes like any other: the engine drives its layers, and hooks see them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

import offramp
from offramp.decoding.engine.build import engine_of
from offramp.decoding.engine.engine import ABILITIES
from offramp.errors import InputError
from offramp.models.model import Model
from offramp.models.transforms.quantise import Int4, Int8, Quantised
from offramp.testing.transforms import example_model
from offramp.workloads.workload import Document, Workload

PROMPT = torch.tensor([[5, 9, 33, 7, 21, 40, 12, 3, 60, 17, 8, 29]])
NEW = 10


def quantised(transform: Quantised, dtype: str) -> Model:
    try:
        transform.check(dtype)
    except InputError as error:
        pytest.skip(error.what)
    return transform.apply(example_model(dtype))


@pytest.fixture(
    scope="module",
    params=[(Int8(), "float32"), (Int8(), "bfloat16"), (Int4(), "float32"), (Int4(), "bfloat16")],
    ids=["int8-float32", "int8-bfloat16", "int4-float32", "int4-bfloat16"],
)
def model(request: pytest.FixtureRequest) -> Model:
    return quantised(*request.param)


def generate(model: Model, **options: Any) -> Any:
    return offramp.generate(model, PROMPT, max_new_tokens=NEW, **options)


def test_without_exits_it_gives_the_tokens_of_transformers(model: Model) -> None:
    expected = model.hf.generate(PROMPT, max_new_tokens=NEW, do_sample=False)[0, PROMPT.shape[1] :]
    assert generate(model).tokens == expected.tolist()
    assert generate(model, policy=offramp.parse_policy("never")).tokens == expected.tolist()


def test_every_way_to_decode_is_exact_on_it(model: Model) -> None:
    abilities = engine_of(model).abilities
    assert {ability: abilities.reason(ability) for ability in ABILITIES} == dict.fromkeys(ABILITIES)


@pytest.mark.parametrize("kv", ["propagate", "recompute", "speculate"])
def test_policies_run_with_every_strategy(model: Model, kv: str) -> None:
    result = generate(
        model, policy=offramp.parse_policy("threshold:signal=margin,value=0.02,exits=2+4"), kv=kv
    )
    assert len(result.tokens) == NEW
    if kv == "speculate":
        assert result.tokens == generate(model).tokens


def test_skipped_layers_project_k_and_v_only(model: Model) -> None:
    """Hooks see the quantised modules; a skipped layer computes neither attention nor feed-forward."""
    calls: Counter[tuple[int, str]] = Counter()
    handles = []
    for index, layer in enumerate(model.stack.layers):
        for name in ("self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj"):

            def count(*arguments: Any, key: tuple[int, str] = (index, name)) -> None:
                calls[key] += 1

            handles.append(layer.get_submodule(name).register_forward_hook(count))
    policy = offramp.parse_policy("static:exit=2")
    generate(model, policy=policy)  # what is found out once about a model also runs its layers
    calls.clear()
    result = generate(model, policy=policy, kv="propagate")
    for handle in handles:
        handle.remove()
    # The prompt runs whole, and the last token is never fed.
    steps = NEW - 1
    assert list(result.exits[1:]) == [2] * steps
    for index in range(6):
        deep = 1 + (steps if index < 2 else 0)
        assert calls[index, "self_attn.k_proj"] == calls[index, "self_attn.v_proj"] == 1 + steps
        assert calls[index, "self_attn.o_proj"] == calls[index, "mlp.up_proj"] == deep


def test_its_trace_and_its_decoder_agree() -> None:
    """In float32 replay takes the exits on a trace that the decoder takes on the same tokens."""
    model = quantised(Int8(), "float32")
    policy = offramp.parse_policy("threshold:signal=max_prob,value=0.03,exits=2+4")
    text = " ".join(f"w{number}" for number in range(3, 40))
    work = Workload(
        name="words", documents=(Document("one", text),), mode="text", licence="none", source="here"
    )
    trace = offramp.trace(model, work, tokens=30, reference=example_model())
    assert trace.provenance["request"]["model"]["transforms"] == ["int8"]
    ids = model.encode(text)
    forced = offramp.generate(
        model,
        torch.tensor([ids[:8]]),
        policy=policy,
        kv="recompute",
        max_new_tokens=12,
        force_tokens=ids[8:20],
    )
    exits = offramp.replay(trace, policy).exits
    assert list(forced.exits[1:]) == exits[8:19].tolist()
    assert len(set(forced.exits[1:])) > 1
