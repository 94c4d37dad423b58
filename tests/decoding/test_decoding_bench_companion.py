"""What a token runs, counted, against sums by hand from the price lists."""

from __future__ import annotations

import pytest
from generation_cases import generate_batch, tiny_llama

from offramp.costs.token import token_costs
from offramp.decoding.measurement.decoder import batches_of, own_config, plain_config
from offramp.decoding.measurement.forecast import counted_plain, counted_policy
from offramp.policies.grammar import parse_policy

NEW_TOKENS, PROMPT = 9, [5, 6, 7, 8]
POSITION = len(PROMPT) + (NEW_TOKENS - 2) / 2
"""Mean of those of the eight fed new tokens."""


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("kv", ["propagate", "recompute"])
def test_a_static_exit_by_hand(kv: str, batch: int) -> None:
    model = tiny_llama()
    policy = parse_policy("static:exit=3")
    prompts = batches_of([PROMPT] * batch, batch)[0]
    with own_config(model.hf, plain_config(NEW_TOKENS)):
        run = generate_batch(
            model, prompts.ids, policy=policy, kv=kv, max_new_tokens=NEW_TOKENS, eos_token_id=None
        )
    found = counted_policy([run], model.shape, lens=False)
    assert (found.layers, found.heads, found.probes) == (3.0, 1.0, 0.0)
    for unit, value in (("flops", found.flops), ("bytes", found.bytes)):
        costs = token_costs(model.shape, POSITION, unit, batch=batch)
        expected = costs.layers[:3].sum() + costs.exit_head
        if kv == "propagate":
            expected += costs.key_value[3]
        assert value == pytest.approx(float(expected) / batch)


@pytest.mark.parametrize("batch", [1, 2])
def test_plain_decoding_is_every_layer_and_one_head(batch: int) -> None:
    model = tiny_llama()
    found = counted_plain(batches_of([PROMPT] * batch, batch), NEW_TOKENS, model.shape)
    assert (found.layers, found.heads, found.probes) == (4.0, 1.0, 0.0)
    assert found.bytes == token_costs(model.shape, POSITION, "bytes", batch=batch).plain / batch
    assert found.flops == token_costs(model.shape, POSITION, "flops").plain


def test_plain_decoding_is_a_policy_that_never_leaves() -> None:
    model = tiny_llama()
    never = parse_policy("never")
    prompts = batches_of([PROMPT], 1)
    run = generate_batch(model, prompts[0].ids, policy=never, max_new_tokens=NEW_TOKENS, eos_token_id=None)
    found = counted_policy([run], model.shape, lens=False)
    plain = counted_plain(prompts, NEW_TOKENS, model.shape)
    assert (found.layers, found.heads, found.probes) == (plain.layers, plain.heads, plain.probes)
    assert (found.flops, found.bytes) == (pytest.approx(plain.flops), pytest.approx(plain.bytes))
