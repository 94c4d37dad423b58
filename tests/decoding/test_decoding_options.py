"""How to decode, read once: what is refused, in which words, and what a caller's sources mean."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from generation_cases import tiny_llama
from map_cases import maps_for
from random_heads import random_output_heads
from reading_cases import random_heads

import offramp
from offramp.decoding import options
from offramp.decoding.options import DecodingOptions
from offramp.errors import InputError, PolicyError
from offramp.heads.described import describe_heads
from offramp.heads.exit_heads import ExitHeads
from offramp.policies.grammar import parse_policy
from offramp.policies.rules.fixed import Never
from offramp.tuning.tuned import Tuned
from policy_traces import make_trace

POLICY = "static:exit=2"


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"kv": "copy"}, "unknown strategy for K and V 'copy'"),
        ({"batching": "lock"}, "unknown batching 'lock'"),
        ({"draft_length": 0}, "draft length must be at least 1, not 0"),
        ({"draft_length": "often"}, "draft length cannot be str 'often'"),
        ({"draft_length": 2.5}, "draft length cannot be float 2.5"),
        ({"draft_length": True}, "draft length cannot be bool True"),
        ({"new_tokens": 0}, "new tokens must be at least 1, not 0"),
    ],
)
def test_what_no_decoder_knows_is_refused(given: dict[str, Any], what: str) -> None:
    with pytest.raises(InputError, match=what):
        DecodingOptions(parse_policy(POLICY), **given)
    with pytest.raises(InputError, match=what):
        DecodingOptions.read(POLICY, **given)
    with pytest.raises(InputError, match=what):
        replace(DecodingOptions.read(POLICY), **given)


def test_every_call_refuses_a_strategy_in_the_same_words() -> None:
    said = []
    trace = make_trace(layers=4)
    for refused in (
        lambda: DecodingOptions.read(POLICY, kv="propagat"),
        lambda: offramp.replay(trace, POLICY, kv="propagat"),
        lambda: offramp.predict(POLICY, trace, kv="propagat"),
        lambda: offramp.tune(trace, {"agreement": 0.9}, kv="propagat"),
        lambda: offramp.generate(tiny_llama(), "the cat", policy=POLICY, kv="propagat"),
    ):
        with pytest.raises(InputError, match="did you mean 'propagate'") as error:
            refused()
        said.append(str(error.value))
    assert len(set(said)) == 1


@pytest.mark.parametrize(("given", "means"), [(3, 3), ("auto", "auto"), (None, 4)])
def test_a_draft_length_is_a_number_or_auto(given: Any, means: int | str) -> None:
    assert DecodingOptions.read(POLICY, draft_length=given).draft_length == means


def test_only_a_decoder_adapts_the_draft_length() -> None:
    with pytest.raises(InputError, match="draft length cannot be str 'auto'"):
        offramp.replay(make_trace(), POLICY, kv="speculate", draft_length="auto")  # type: ignore[arg-type]


def test_a_policy_per_task_decides_as_for_an_unknown_one_until_the_task_is_chosen() -> None:
    asked = DecodingOptions.read("tasks:names=code+chat,policies=[static:exit=1]+[static:exit=3]")
    assert not asked.policy.needs(4)
    assert list(asked.for_task("chat").policy.needs(4)) == [3]
    assert list(asked.for_task("code:short").policy.needs(4)) == [1]
    assert asked.for_task(None).policy == Never()


def test_an_oracle_is_refused_before_any_model() -> None:
    with pytest.raises(PolicyError, match="is an oracle"):
        DecodingOptions.read("oracle:which=first_match")


def test_without_exits_nothing_else_changes() -> None:
    asked = DecodingOptions.read(POLICY, kv="recompute", batching="rebatch", new_tokens=7)
    assert asked.name == "static:exit=2 (recompute)"
    assert asked.full_model == DecodingOptions(Never(), batching="rebatch", new_tokens=7)


def test_maps_are_asked_for_before_the_model_is_loaded() -> None:
    with pytest.raises(InputError, match="there are no K,V maps"):
        DecodingOptions.read(POLICY, kv="mapped").check_files("float32")


def test_a_tuned_policy_decodes_as_it_was_tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = TunedFor(None, kv="recompute")
    named = parse_policy(POLICY)
    assert DecodingOptions.read(named).kv == "propagate"
    monkeypatch.setattr(options, "read_policy_source", lambda source: (named, tuned))
    assert DecodingOptions.read("policy.json").kv == "recompute"
    for other in ("speculate", "propagate"):
        with pytest.warns(UserWarning, match=f"K and V by recompute, and decodes with {other}"):
            assert DecodingOptions.read("policy.json", kv=other).kv == other
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DecodingOptions.read("policy.json", kv="recompute")
        monkeypatch.undo()
        DecodingOptions.read(named, kv="propagate")


class TunedFor(Tuned):
    """As much of a policy that was tuned with some heads as the checks read."""

    heads_file = None
    provenance: Mapping[str, Any] = {}

    def __init__(
        self, heads: ExitHeads | None, kv: str = "propagate", fingerprint: str | None = None
    ) -> None:
        model = {
            "name": "tiny",
            "fingerprint": fingerprint or tiny_llama().identity.fingerprint,
            "heads": None if heads is None else describe_heads(heads),
        }
        vars(self).update(kv=kv, model=model)


def tuned_options(
    tuned: TunedFor, policy: str, heads: ExitHeads | None, kv: str = "propagate"
) -> DecodingOptions:
    return DecodingOptions(parse_policy(policy), kv, heads, tuned=tuned)


@functools.cache
def some_heads(name: str) -> ExitHeads | None:
    """Heads of the tiny model by what they hold."""
    model, exits = tiny_llama(), (1, 2, 3)
    if name == "none":
        return None
    if "output" in name:
        return random_output_heads(model, exits, seed=len(name))
    lens = random_heads(model, exits, lens="lens" in name, facts=(), seed=len(name))
    if "maps" not in name:
        return lens
    maps = maps_for(model, seed=len(name))
    return replace(lens, kv_maps=maps.kv_maps) if "lens" in name else maps


EXITS = "threshold:signal=margin,value=0.5,exits=1+2"
OF_SHORT_LIST = "threshold:signal=restricted_margin,value=0.5,exits=1"


@pytest.mark.parametrize(
    ("tuned_with", "policy", "given", "kv", "refused"),
    [
        # Heads matter where exits are read through them, or the short list is theirs.
        ("bare", EXITS, "none", "propagate", None),
        ("lens", "never", "none", "propagate", None),
        ("lens", EXITS, "none", "propagate", "tuned with the exit heads .*, but is to decode without"),
        (
            "bare",
            OF_SHORT_LIST,
            "none",
            "propagate",
            "tuned with the exit heads .*, but is to decode without",
        ),
        ("none", OF_SHORT_LIST, "bare", "propagate", "tuned without any"),
        ("output", EXITS, "output", "propagate", None),
        ("output", EXITS, "none", "propagate", "tuned with the exit heads"),
        ("output", EXITS, "other output", "propagate", "tuned with the exit heads"),
        # Maps change nothing of what exits are read by.
        ("maps", EXITS, "maps", "mapped", None),
        ("maps", EXITS, "other maps", "propagate", None),
        ("maps", EXITS, "none", "recompute", None),
        ("none", EXITS, "maps", "mapped", None),
        ("maps", EXITS, "other maps", "mapped", "tuned with the K,V maps"),
        ("lens", EXITS, "lens", "propagate", None),
        ("lens and maps", EXITS, "lens and maps", "mapped", None),
        ("lens and maps", EXITS, "maps", "mapped", "tuned with the exit heads|tuned with the K,V maps"),
        ("maps", EXITS, "lens and maps", "mapped", "tuned without any|tuned with the K,V maps"),
    ],
)
def test_a_policy_is_bound_to_the_heads_it_was_tuned_with_where_they_matter(
    tuned_with: str, policy: str, given: str, kv: str, refused: str | None
) -> None:
    tuned = TunedFor(some_heads(tuned_with), "mapped" if "maps" in tuned_with else "propagate")
    asked = tuned_options(tuned, policy, some_heads(given), kv)
    if refused is None:
        asked.check_model(tiny_llama())
        return
    with pytest.raises(PolicyError, match=refused):
        asked.check_model(tiny_llama())
    if given != "none":  # what the model alone would tell is told before it is loaded
        with pytest.raises(PolicyError, match=refused):
            asked.check_files("float32")


def test_another_models_policy_or_heads_are_refused() -> None:
    own = some_heads("bare")
    assert own is not None
    other = replace(own, model={**own.model, "fingerprint": "f" * 64})
    tuned = TunedFor(own, fingerprint="f" * 64)
    with pytest.raises(InputError, match="tuned for another model, tiny"):
        tuned_options(tuned, POLICY, None).check_model(tiny_llama())
    with pytest.raises(InputError, match="fitted on"):
        DecodingOptions(parse_policy(EXITS), heads=other).check_model(tiny_llama())
    # Before it is loaded nobody knows which of the two is wrong.
    tuned_options(tuned, OF_SHORT_LIST, own).check_files("float32")
    tuned_options(TunedFor(own), OF_SHORT_LIST, None).check_files("float32")
