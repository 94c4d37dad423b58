"""A policy in a few words: "exit 20+25 if margin ≥ 0.9". Its text in the grammar stays what is copied."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from offramp.errors import PolicyError
from offramp.policies.grammar import parse_policy
from offramp.policies.policy import ExitPolicy
from offramp.policies.rules.around import Around, Filtered
from offramp.policies.rules.combined import Votes
from offramp.policies.rules.fixed import Never, Oracle, Schedule, StaticExit
from offramp.policies.rules.patience import Patience, Sustained
from offramp.policies.rules.short_list import ShortList
from offramp.policies.rules.threshold import OnSignal, Threshold, Thresholds
from offramp.policies.signals import SIGNALS

MOST_NAMED = 4
"""Of so many exits each is named."""

SHORT_HEAD = "short list at full depth"
"""Plain decoding with its output head cut to the short list."""


OTHERS = {"generate(prompt_lookup_num_tokens)": "prompt lookup"}
"""Decoders without a policy that users know under another name than a measurement's."""


@cache
def short_name(policy: ExitPolicy | str) -> str:
    """The name of a policy or of its text, or of another decoder; a text that is neither stays as it is."""
    if isinstance(policy, ExitPolicy):
        return _named(policy)
    text = policy
    if text.endswith(".json") or text in OTHERS:
        return OTHERS.get(text, text)
    try:
        return _named(parse_policy(text))
    except PolicyError:
        return text


def _named(policy: ExitPolicy) -> str:
    match policy:
        case Never():
            return "never exit"
        case StaticExit(exit):
            return f"always exit {exit}"
        case Schedule(first, last):
            return f"exit {first} falling to {last}"
        case Oracle(which):
            return f"oracle, {which.replace('_', ' ')}"
        case ShortList(inner) if inner.full_depth:
            return SHORT_HEAD
        case ShortList(inner):
            return f"{_named(inner)}, short list{' everywhere' if policy.short_head else ''}"
        case Threshold():
            return _on_signal(policy)
        case Thresholds(signal, values, exits):
            limits = f"{min(values):.4g} to {max(values):.4g}"
            return f"{_exits(exits)} if {_signal(signal)} {_sign(signal)} {limits}"
        case Patience(times, exits):
            return f"{_exits(exits)} if {times + 1} checks agree"
        case Sustained(_, _, times, exits):
            signal = f"{_signal(policy.signal)} {_sign(policy.signal)} {policy.value:.4g}"
            return f"{_exits(exits)} if {times} times {signal}"
        case Filtered(signal, value, exit, inner):
            return f"{_named(inner)}, filtered at {exit} by {_signal(signal)} {value:.4g}"
        case Votes(need, of):
            return f"{need} of: {'; '.join(map(_named, of))}"
        case OnSignal():
            return f"{policy.kind}: {_on_signal(policy)}"
        case Around():
            return f"{policy.kind}: {_named(policy.policy)}"
    checked: Sequence[int] | str | None = getattr(policy, "exits", None)
    return policy.kind if checked is None else f"{policy.kind}: {_exits(checked)}"


def _on_signal(policy: OnSignal) -> str:
    limit = f"{_sign(policy.signal)} {policy.value:.4g}"
    return f"{_exits(policy.exits)} if {_signal(policy.signal)} {limit}"


def _signal(name: str) -> str:
    return name.replace("_", " ")


def _sign(name: str) -> str:
    return "≥" if SIGNALS[name].exit_when == "at least" else "≤"


def _exits(exits: Sequence[int] | str) -> str:
    if isinstance(exits, str):
        return f"{exits} exits"
    if len(exits) <= MOST_NAMED:
        return f"exit {'+'.join(map(str, exits))}"
    return f"{len(exits)} exits {exits[0]} to {exits[-1]}"
