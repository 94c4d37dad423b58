"""What is wrong with a measurement: outputs, layer counts, or the timing itself. Noise is no defect."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from offramp.decoding.measurement.results import Interval

A_A_LEVEL = 0.99
"""Of the interval of two identical contenders: a sound timing leaves out 1 once in a hundred times."""
A_A_FREEDOM = 3
"""Degrees of freedom that it takes: of two or three prompts a chance agreement makes the interval narrow."""
OTHER_LOAD = 0.3
"""Processors that others may keep busy beyond those that our threads leave free, before it is said."""
PASSIVE = "passive"


@dataclass(frozen=True)
class Difference:
    """The first new token of a prompt that is not the full model's. place: from 0."""

    prompt: int
    place: int
    token: int
    expected: int


@dataclass(frozen=True)
class Evidence:
    """What one contender is held to.

    difference: the first from the full model's output, None without any. claimed, counted: rows times layers
    of the trial, by the decoder's own account (None where it says nothing) and by hooks; tokens: that were
    decoded in it, for words.
    """

    name: str
    output_must_match: bool
    difference: Difference | None
    claimed: int | None
    counted: int


def defects_of(evidence: Evidence) -> list[str]:
    """One sentence for each defect of a contender, with what to do."""
    return [sentence for check in CHECKS if (sentence := check(evidence)) is not None]


def _output(evidence: Evidence) -> str | None:
    difference = evidence.difference
    if not evidence.output_must_match or difference is None:
        return None
    return (
        f"{evidence.name} must give the full model's output, but new token {difference.place + 1} of prompt "
        f"{difference.prompt + 1} is {difference.token} instead of {difference.expected} (report it with the "
        "model and the prompt)"
    )


def _layers(evidence: Evidence) -> str | None:
    if evidence.claimed is None or evidence.claimed == evidence.counted:
        return None
    return (
        f"{evidence.name} says that it ran {evidence.claimed:,} layers for the tokens of a trial, but "
        f"{evidence.counted:,} ran (report it with the model and the policy)"
    )


CHECKS: Sequence[Callable[[Evidence], str | None]] = (_output, _layers)
"""What every contender is held to: one entry each."""


def a_a_defect(a_a: Interval, freedom: int = A_A_FREEDOM) -> str | None:
    """Whether the same decoder twice came out unequal: its ratio at `A_A_LEVEL`, as a sentence.

    freedom: degrees of freedom of the interval.
    """
    if a_a.low is None or a_a.high is None or a_a.low <= 1.0 <= a_a.high or freedom < A_A_FREEDOM:
        return None
    return (
        f"the same decoder twice comes out unequal: ratio {a_a.value:.3f} [{a_a.low:.3f}, {a_a.high:.3f}] at "
        "99 %, so that no time here can be believed (measure again: chance does this once in a hundred times)"
    )


def warnings_of(circumstances: Mapping[str, Any]) -> list[str]:
    """What makes times noisy or slow on this machine; intervals are wider by it, not wrong."""
    found = []
    free = max(0, (circumstances["cores"] or 1) - circumstances["threads"])
    load = circumstances["other_load"]
    if load > free + OTHER_LOAD:
        found.append(
            f"other work kept {load:.1f} processors busy, {free + OTHER_LOAD:g} are tolerable beside "
            f"{circumstances['threads']} threads of ours: intervals are wider by it"
        )
    waits = circumstances["omp_wait_policy"]
    if (waits or "").lower() != PASSIVE:
        found.append(
            f"OMP_WAIT_POLICY is {waits or 'not set'}: waiting threads spin, and slow a busy machine down "
            "(set OMP_WAIT_POLICY=passive before Python starts)"
        )
    return found
