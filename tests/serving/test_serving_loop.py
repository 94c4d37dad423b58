"""Served requests against `generate`: tokens and row-layers, at full depth and with two policies."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from slow_server import prices

import offramp
from offramp.decoding.engine.build import engine_of
from offramp.models.model import Model
from offramp.policies.grammar import parse_policy
from offramp.serving.batching import BatchedRequests, require_batching
from offramp.serving.contenders import POLICY, LoadContender, Rung
from offramp.serving.loop import ServedLoop
from offramp.serving.request import ServerLimits
from offramp.serving.served import LoadServed, in_turns
from offramp.serving.simulator import Demand, simulate

VOCABULARY, LAYERS, REQUESTS = 97, 4, 8


def small(family: str) -> Model:
    """A tiny random model of a family, whose layers change the state a lot."""
    import transformers

    shape: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    kinds = {
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM, {}),
        "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM, {"head_dim": 8}),
        "gemma3": (
            transformers.Gemma3TextConfig,
            transformers.Gemma3ForCausalLM,
            {
                "head_dim": 8,
                "sliding_window": 8,
                "query_pre_attn_scalar": 8,
                "layer_types": ["sliding_attention", "full_attention"] * 2,
            },
        ),
    }
    config, model, more = kinds[family]
    torch.manual_seed(0)
    return offramp.wrap(model(config(**shape, **more)).eval().requires_grad_(False))


def serving(policy: str) -> LoadContender:
    """A policy as a server takes it: what was replayed of it plays no part."""
    read = parse_policy(policy)
    needs = read.needs(LAYERS)
    nothing = np.zeros(1, dtype=np.int64)
    kept = np.ones((len(needs) + 1, 1), dtype=np.bool_)
    rung = Rung(read, nothing, dict(needs), kept, tuple(needs), LAYERS)
    return LoadContender(policy, POLICY, (rung,))


def requests() -> tuple[Demand, list[list[int]]]:
    """Prompts longer than a step or a window, and of one token; some come while others are served."""
    draw = np.random.default_rng(4)
    prompts = np.array([5, 19, 1, 12, 7, 23, 2, 9])
    outputs = np.array([9, 6, 14, 3, 11, 8, 1, 10])
    arrival = 1e-3 * np.array([0, 0, 0, 1, 1, 30, 30, 60.0])
    texts = [draw.integers(3, VOCABULARY, length).tolist() for length in prompts]
    return Demand(arrival, prompts, outputs, np.zeros((REQUESTS, 2))), texts


POLICIES = (
    "never",
    "threshold:signal=max_prob,value=0.12,exits=1+2+3",
    "threshold:signal=margin,value=0.03,exits=2+3",
)
SURER = {"0.12": "0.6", "0.03": "0.4"}
"""Of Gemma, whose logits are larger."""


def policy_of(model: Model, policy: str) -> str:
    if "Gemma" in model.name:
        for value, surer in SURER.items():
            policy = policy.replace(f"value={value}", f"value={surer}")
    return policy


@pytest.fixture(scope="module", params=["llama", "qwen3", "gemma3"])
def model(request: pytest.FixtureRequest) -> Model:
    return small(request.param)


def served(model: Model, loop: ServedLoop | None, rows: int = 3, budget: int = 6) -> LoadServed:
    demand, prompts = requests()
    batch = BatchedRequests(model.hf, rows=rows, budget=budget, tokens=64)
    server = LoadServed(demand, prompts, batch, loop, iter(np.arange(1e6) * 1e-3).__next__)
    for _ in server.run():
        pass
    return server


@pytest.mark.parametrize("policy", POLICIES)
def test_tokens_and_row_layers_are_those_of_generate(model: Model, policy: str) -> None:
    policy = policy_of(model, policy)
    loop = ServedLoop(engine_of(model), serving(policy))
    server = served(model, loop)
    expected, layers = {}, 0
    for place, (prompt, output) in enumerate(zip(server.prompts, server.demand.output, strict=True)):
        ids = torch.tensor([list(prompt)])
        found = offramp.generate(model, ids, policy=policy, kv="propagate", max_new_tokens=int(output))
        expected[str(place)] = list(found.tokens)
        layers += found.layers_executed
        assert server.layers[place] == sum(found.exits[1:])
    assert server.batch.answers == expected
    assert loop.meter.executed == layers
    if policy != "never":
        assert 0.1 < np.mean([exit < LAYERS for log in loop.log for exit in log.exits]) < 0.9


@pytest.mark.parametrize(("rows", "budget"), [(1, 4), (3, 6), (4, 30), (8, 9)])
def test_requests_join_and_end_when_the_simulator_says_so(model: Model, rows: int, budget: int) -> None:
    """The schedule is transformers' own: where every step takes as long, both have each token at one time."""
    plain = serving("never")
    server = served(model, ServedLoop(engine_of(model), plain), rows, budget)
    nothing, constant = np.zeros((1, rows + 1, 2)), np.full(rows + 1, 1e-3)
    by = replace(
        prices(layers=LAYERS, rows=rows, prompt=lambda tokens, past: 0.0, overhead=constant, first_token=0.0),
        layers=nothing,
        repair=nothing,
        final=0.0 * constant,
    )
    answers = [np.zeros(int(output), dtype=np.int64) for output in server.demand.output]
    found = simulate(server.demand, answers, plain, by, ServerLimits(rows=rows, budget=budget))
    for ours, theirs in zip(found.times, server.times, strict=True):
        assert ours == pytest.approx(theirs)


def test_as_transformers_own(model: Model) -> None:
    own, ours = served(model, None), served(model, ServedLoop(engine_of(model), serving("never")))
    assert own.batch.answers == ours.batch.answers
    assert [len(times) for times in own.times] == [len(times) for times in ours.times]


def test_lockstep_leaves_together_or_not_at_all(model: Model) -> None:
    loop = ServedLoop(engine_of(model), serving(policy_of(model, POLICIES[1])), rule="lockstep")
    served(model, loop)
    exits = [log.exits for log in loop.log if log.exits]
    assert all(len(set(of)) == 1 for of in exits)
    assert {of[0] for of in exits} > {LAYERS}


def test_gain_leaves_where_it_saves_time_only(model: Model) -> None:
    contender = serving(policy_of(model, POLICIES[1]))
    free = prices((1, 2, 3), layers=LAYERS, rows=3)
    dear = replace(free, exit_head=free.exit_head + 1e6)
    full = served(model, ServedLoop(engine_of(model), serving("never")))
    refusing = ServedLoop(engine_of(model), contender, prices=dear)
    assert served(model, refusing).batch.answers == full.batch.answers
    assert not any(log.left != (0, 0, 0) for log in refusing.log)
    gladly = ServedLoop(engine_of(model), contender, prices=free)
    assert served(model, gladly).batch.answers != full.batch.answers


def test_a_ladder_keeps_the_rung_of_admission(model: Model) -> None:
    bold, cautious = serving("static:exit=2"), serving("never")
    rungs = (cautious.rungs[0], replace(bold.rungs[0], queue=3))
    ladder = LoadContender("ladder", "ladder", rungs)
    server = served(model, ServedLoop(engine_of(model), ladder))
    depth = np.where(server.rung == 0, LAYERS, 2) * (server.demand.output - 1)
    assert server.layers.tolist() == depth.tolist()
    assert set(server.rung.tolist()) == {0, 1}


def test_servers_in_turns_do_not_meet(model: Model) -> None:
    demand, prompts = requests()
    alone = [served(model, ServedLoop(engine_of(model), serving(policy))) for policy in POLICIES[:2]]
    together = {}
    for policy in POLICIES[:2]:
        batch = BatchedRequests(model.hf, rows=3, budget=6, tokens=64)
        loop = ServedLoop(engine_of(model), serving(policy))
        together[policy] = LoadServed(demand, prompts, batch, loop, iter(np.arange(1e6) * 1e-3).__next__)
    in_turns(together, seed=0)
    for one, other in zip(alone, together.values(), strict=True):
        assert one.batch.answers == other.batch.answers


def test_what_is_no_batching_is_refused_with_the_versions_that_passed() -> None:
    hf = small("llama").hf
    with pytest.raises(offramp.OfframpError, match="tokens differ") as error:
        require_batching(hf, lambda: "tokens differ")
    assert "5.24" in error.value.fix

    def missing() -> str | None:
        raise AttributeError("no attribute '_create_batch_processor'")

    with pytest.raises(offramp.OfframpError, match="_create_batch_processor"):
        require_batching(hf, missing)
    require_batching(hf, lambda: None)
    hf.config._attn_implementation = "eager"
    with pytest.raises(offramp.OfframpError, match="sdpa"):
        require_batching(hf, lambda: None)
