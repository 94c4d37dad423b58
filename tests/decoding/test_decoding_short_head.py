"""An output head cut to a short list: the plain loop that masks logits, replay, bill, and what is refused."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from generation_cases import PROMPTS, counted_layers, generate_batch, reference_logits, tiny_llama
from reading_cases import build_family, random_heads, tiny_model
from strategy_cases import greedy, ids_of
from torch import Tensor

import offramp
from offramp.costs.machine_registry import find_machine
from offramp.decoding.exit_readout.exit_facts import OutputHead
from offramp.decoding.generation.loop import Scorer
from offramp.decoding.generation.prompts import prompt_batch
from offramp.decoding.generation.result import BatchGeneration
from offramp.decoding.options import DecodingOptions
from offramp.errors import InputError, PolicyError
from offramp.heads.exit_heads import ExitHeads
from offramp.policies.binding import require_base
from offramp.policies.cost_breakdown import break_down
from offramp.policies.decisions import Decisions, probed_facts
from offramp.policies.prices import prices_at, prices_by_rows
from offramp.policies.rules.short_list import with_short_head
from offramp.policies.steps import count_plain, count_steps
from tiny_models import LAYERS, write_documents

NEW = 10
EXITS = "threshold:signal=restricted_margin,value=0.02,exits=1+2+3"
NEVER = "shortlist:policy=[never],at=all"
EARLY = f"shortlist:policy=[{EXITS}],at=all"
POLICIES = [NEVER, EARLY, "shortlist:policy=[static:exit=2],at=all", f"monotone:policy=[{EARLY}]"]


@functools.cache
def heads(lens: bool = False) -> ExitHeads:
    """A short list of half the vocabulary, with or without a lens below the last exit."""
    model = tiny_llama()
    listed = tuple(range(0, model.shape.vocabulary_size, 2))
    return random_heads(model, (1, 2, 3), lens=lens, facts=(), shortlist=listed)


@functools.cache
def trace(lens: bool = False) -> offramp.Trace:
    path = write_documents(Path(tempfile.mkdtemp()) / "documents.jsonl", documents=4, words=12)
    return offramp.trace(
        tiny_llama(), f"jsonl:{path}#text", tokens=80, exits="all", signals=("restricted",), heads=heads(lens)
    )


def decode(policy: str, rows: int = 1, batching: str = "lockstep", **options: Any) -> BatchGeneration:
    model = tiny_llama()
    prompts = prompt_batch(model, list(PROMPTS[:rows]), chat=False)
    options = {"heads": heads(), "max_new_tokens": NEW, "batching": batching} | options
    return generate_batch(model, prompts.ids, prompts.mask, policy=policy, **options)


def masked(logits: Tensor) -> Tensor:
    """The same logits, of the short list's tokens only."""
    listed = heads().shortlist
    assert listed is not None
    allowed = torch.full_like(logits, -torch.inf)
    tokens = torch.from_numpy(listed.astype(np.int64))
    return allowed.index_copy_(-1, tokens, logits[..., tokens])


def reference(prompt: str, exits: np.ndarray, tokens: list[int]) -> list[int]:
    """What a plain forward of the same text chooses, each position read at its exit, off the list."""
    model = tiny_llama()
    ids = model.encode(prompt)
    depth = [LAYERS] * (len(ids) - 1) + exits.tolist()
    logits = reference_logits(model.hf, model.stack.layers, [*ids, *tokens[:-1]], depth)
    return masked(logits[len(ids) - 1 :]).argmax(-1).tolist()


WAYS = [(1, "lockstep"), (4, "lockstep"), (4, "rebatch")]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("rows", "batching"), WAYS)
def test_tokens_are_those_of_a_forward_read_off_the_list_and_the_whole_head_is_never_computed(
    policy: str, rows: int, batching: str
) -> None:
    model = tiny_llama()
    with counted_layers(model.hf, [model.stack.head]) as calls:
        found = decode(policy, rows, batching, eos_token_id=None)
    assert not calls
    assert {item.part for item in found.usage} & {"exit head", "final head"} == set()
    for prompt, row in zip(PROMPTS, found.rows, strict=False):
        assert row.tokens == reference(prompt, row.exits, row.tokens)
        assert not any(token % 2 for token in row.tokens)
    with counted_layers(model.hf, [model.stack.head]) as calls:
        whole = decode("never", len(PROMPTS), eos_token_id=None)
    assert calls
    assert any(token % 2 for row in whole.rows for token in row.tokens)  # the list leaves something out


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("rows", "batching"), WAYS)
def test_what_runs_is_what_replay_charges_and_its_gain_sums_up(policy: str, rows: int, batching: str) -> None:
    forced = torch.arange(rows * NEW).reshape(rows, NEW) * 7 % 50 + 3
    found = decode(policy, rows, batching, force_tokens=forced)
    exits = np.concatenate([row.exits[1:] for row in found.rows])
    steps = np.tile(np.arange(NEW - 1), rows)
    needs = probed_facts(offramp.parse_policy(policy), LAYERS)
    decisions = Decisions(exits, needs, short_list=True, short_head=True)
    assert found.usage == count_steps(decisions, steps, LAYERS, repair=True)
    plain = decode("never", rows, batching, force_tokens=forced)
    assert plain.usage == count_plain(steps, LAYERS)
    shape, tokens = tiny_llama().shape, rows * (NEW - 1)
    for at in (prices_at(trace(), "bytes"), prices_by_rows(find_machine("h100"), shape, 8.0)):
        breakdown = break_down(found.usage, plain.usage, at, tokens)
        gain = breakdown.gain
        assert gain.total == pytest.approx(1.0 - breakdown.total / breakdown.plain, abs=1e-12)
        heads_of_plain = [line.total for line in breakdown.plain_lines if line.part == "final head"]
        heads_of_list = [line.total for line in breakdown.lines if line.part == "short head"]
        assert gain.head == pytest.approx((sum(heads_of_plain) - sum(heads_of_list)) / breakdown.plain)


@pytest.mark.parametrize(("policy", "kv"), [(NEVER, "propagate"), (NEVER, "recompute"), (EARLY, "recompute")])
@pytest.mark.parametrize("lens", [False, True])
def test_forced_decoding_is_replay(policy: str, kv: str, lens: bool) -> None:
    """Exits and tokens of every document; with early exits where K and V are exact, at full depth always."""
    model, traced = tiny_llama(), trace(lens)
    expected = offramp.replay(traced, policy, kv=kv)
    assert (len(set(expected.exits.tolist())) > 1) == (policy == EARLY)
    listed, agrees = traced.fact("restricted_top1"), []
    for document in np.unique(traced.document):
        rows = np.flatnonzero(traced.document == document)
        text = [*traced.token[rows].tolist(), int(traced.next_token[rows[-1]])]
        forced = {"heads": heads(lens), "force_tokens": [text]}
        found = offramp.generate(model, [[0]], policy=policy, kv=kv, **forced)[0]
        assert found.exits[1:].tolist() == expected.exits[rows].tolist()
        said = listed[rows, found.exits[1:] - 1]
        assert found.chosen[1:] == said.tolist()
        assert found.chosen[0] % 2 == 0
        agrees += (said == traced.top1[rows, -1]).tolist()
    assert expected.agreement == pytest.approx(np.mean(agrees))
    assert 0.0 < expected.agreement < 1.0


@pytest.mark.parametrize("name", ["gemma2", "granite", "mamba"])
def test_families(name: str) -> None:
    """Logits that are scaled or capped after the head, recurrent layers."""
    model = tiny_model(build_family(name), name=name, head_scale=20.0)
    layers = model.stack.layers
    listed = torch.arange(0, model.shape.vocabulary_size, 3)
    given = random_heads(model, (2,), lens=False, facts=(), shortlist=tuple(listed.tolist()))
    ids = ids_of(model.hf, 9)
    for policy, exit in ((NEVER, len(layers)), ("shortlist:policy=[static:exit=2],at=all", 2)):
        early = offramp.early_exit(policy, heads=given)
        tokens = greedy(model.hf, ids, NEW, custom_generate=early, eos_token_id=None)[0].tolist()
        exits = [len(layers)] * ids.shape[1] + [exit] * (NEW - 1)
        fed = [*ids[0].tolist(), *tokens[:-1]]
        logits = reference_logits(model.hf, layers, fed, exits)[ids.shape[1] - 1 :]
        assert tokens == listed[logits[:, listed].argmax(-1)].tolist()
        assert early.last is not None
        assert not {"exit head", "final head"} & {item.part for item in early.last.usage}


def test_an_exit_is_read_off_the_list_as_before_at_exits() -> None:
    at_exits = f"shortlist:policy=[{EXITS}]"
    found = decode(at_exits, 4, "rebatch", eos_token_id=None)
    parts = {item.part for item in found.usage}
    assert {"probe", "final head"} <= parts
    assert not {"exit head", "short head"} & parts  # the probe of the list is the output
    deep = [
        token
        for row in found.rows
        for token, exit in zip(row.tokens, row.exits, strict=True)
        if exit == LAYERS
    ]
    assert any(token % 2 for token in deep)


def test_what_a_short_head_cannot_do_is_refused() -> None:
    with pytest.raises(PolicyError, match="verifies drafts"):
        decode(EARLY, kv="speculate")
    with pytest.raises(PolicyError, match="gives other tokens no probability"):
        Scorer(tiny_llama(), DecodingOptions(offramp.parse_policy(NEVER), heads=heads()))
    learning = with_short_head(offramp.parse_policy("adaptive:signal=max_prob,target=0.9,warmup=1,exits=1+2"))
    with pytest.raises(PolicyError, match="whole head"):
        decode(str(learning))


def test_the_list_of_other_heads_is_another_policy() -> None:
    """A policy that never leaves early reads the list all the same, so its heads matter."""
    traced = trace()
    tuned_for = {**traced.request["model"], "heads": None}
    with pytest.raises(PolicyError, match="without exit heads"):
        require_base(tuned_for, offramp.parse_policy(NEVER), traced)
    require_base(tuned_for, offramp.parse_policy("never"), traced)


def test_a_head_that_is_not_one_layer_has_no_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OutputHead, "linear", property(lambda self: False))
    with pytest.raises(InputError, match="output head cannot give"):
        decode(NEVER)
