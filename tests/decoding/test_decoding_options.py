"""How to decode, read once: what is refused, in which words, and what a caller's sources mean."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from generation_cases import tiny_llama

import offramp
from offramp.decoding.options import DecodingOptions
from offramp.errors import InputError, PolicyError
from offramp.policies.grammar import parse_policy
from offramp.policies.replay import check_options
from offramp.policies.rules.fixed import Never
from offramp.policies.steps import read_draft_length
from offramp.tuning.pricing import pricing_of
from policy_traces import make_trace

POLICY = "static:exit=2"


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"kv": "copy"}, "unknown strategy 'copy' for K and V"),
        ({"batching": "lock"}, "unknown batching 'lock'"),
        ({"draft_length": 0}, "a draft length of 0 is not possible"),
        ({"draft_length": "often"}, "a draft length of 'often' is not possible"),
        ({"draft_length": "9" * 5000}, "is not possible"),
        ({"new_tokens": 0}, "max_new_tokens cannot be 0"),
    ],
)
def test_what_no_decoder_knows_is_refused(given: dict[str, Any], what: str) -> None:
    with pytest.raises(InputError, match=what):
        DecodingOptions(parse_policy(POLICY), **given)
    with pytest.raises(InputError, match=what):
        DecodingOptions.read(POLICY, **given)
    with pytest.raises(InputError, match=what):
        replace(DecodingOptions.read(POLICY), **given)


def test_replay_prices_and_decoding_refuse_a_strategy_in_the_same_words() -> None:
    said = []
    for refused in (
        lambda: DecodingOptions.read(POLICY, kv="propagat"),
        lambda: check_options("propagat", 1, "lockstep", 4),
        lambda: pricing_of(make_trace(layers=4), None, 1, "propagat"),
        lambda: offramp.generate(tiny_llama(), "the cat", policy=POLICY, kv="propagat"),
    ):
        with pytest.raises(PolicyError, match="did you mean 'propagate'") as error:
            refused()
        said.append(str(error.value))
    assert len(set(said)) == 1


@pytest.mark.parametrize(("given", "means"), [(3, 3), ("3", 3), ("auto", "auto"), (None, 4)])
def test_a_draft_length_is_a_number_or_auto(given: Any, means: int | str) -> None:
    assert DecodingOptions.read(POLICY, draft_length=given).draft_length == means


def test_only_a_decoder_adapts_the_draft_length() -> None:
    with pytest.raises(PolicyError, match="'auto' is not possible"):
        read_draft_length("auto", adapts=False)


def test_a_policy_per_task_decides_as_for_an_unknown_one_until_the_task_is_chosen() -> None:
    options = DecodingOptions.read("tasks:names=code+chat,policies=[static:exit=1]+[static:exit=3]")
    assert not options.policy.needs(4)
    assert list(options.for_task("chat").policy.needs(4)) == [3]
    assert list(options.for_task("code:short").policy.needs(4)) == [1]
    assert options.for_task(None).policy == Never()


def test_an_oracle_is_refused_before_any_model() -> None:
    with pytest.raises(PolicyError, match="is an oracle"):
        DecodingOptions.read("oracle:which=first_match")


def test_without_exits_nothing_else_changes() -> None:
    options = DecodingOptions.read(POLICY, kv="recompute", batching="rebatch", new_tokens=7)
    assert options.name == "static:exit=2 (recompute)"
    assert options.full_model == DecodingOptions(Never(), batching="rebatch", new_tokens=7)


def test_maps_are_asked_for_before_the_model_is_loaded() -> None:
    with pytest.raises(InputError, match="there are no K,V maps"):
        DecodingOptions.read(POLICY, kv="mapped").check_files("float32")
