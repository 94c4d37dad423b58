"""Whether a timing may be believed: named checks, each with its reason and what to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from offramp.decoding.bench.ratios import SAMPLES_NEEDED
from offramp.decoding.bench.results import Contender, Interval, Validity

UNEQUAL = 0.02
"""How far the interval of two identical contenders may reach from 1."""
WIDEST_SPREAD = 0.10
"""Quartiles of the ratios of two identical contenders, taken side by side, over their median."""
OTHER_LOAD = 0.3
"""Processors that others may keep busy beyond those that our threads leave free."""
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
    """What the checks look at.

    contenders: those timed. a_a, a_a_spread: median with interval, and distance of the quartiles over the
    median, of the ratios of two identical contenders. pairs: how many ratios. differences: the first one of
    every contender whose output is not the full model's. circumstances: see `circumstances.describe`.
    """

    contenders: tuple[Contender, ...]
    a_a: Interval
    a_a_spread: float
    pairs: int
    differences: Mapping[str, Difference]
    circumstances: Mapping[str, Any]


@dataclass(frozen=True)
class Check:
    """One condition. find: the sentence that says how it fails, None if it holds. fix: what to do.

    warns: whether failing is only said, and leaves the timing valid.
    """

    name: str
    find: Callable[[Evidence], str | None]
    fix: str
    warns: bool = False


def _samples(evidence: Evidence) -> str | None:
    if evidence.pairs >= SAMPLES_NEEDED:
        return None
    return (
        f"there are too few samples for an interval: {evidence.pairs} of each contender, {SAMPLES_NEEDED} "
        "are needed"
    )


def _identical(evidence: Evidence) -> str | None:
    low, high = evidence.a_a.low, evidence.a_a.high
    if low is None or high is None or (low >= 1.0 - UNEQUAL and high <= 1.0 + UNEQUAL):
        return None  # without an interval there are too few samples, which is said already
    return (
        f"two identical contenders come out unequal: ratio {evidence.a_a.value:.3f} [{low:.3f}, {high:.3f}], "
        f"allowed {1.0 - UNEQUAL:g} to {1.0 + UNEQUAL:g}"
    )


def _noise(evidence: Evidence) -> str | None:
    if evidence.a_a_spread <= WIDEST_SPREAD:
        return None
    return (
        f"the machine is noisy: identical runs side by side spread by {evidence.a_a_spread:.0%} between "
        f"their quartiles, allowed {WIDEST_SPREAD:.0%}"
    )


def _others(evidence: Evidence) -> str | None:
    circumstances = evidence.circumstances
    free = max(0, (circumstances["cores"] or 1) - circumstances["threads"])
    load = circumstances["other_load"]
    if load <= free + OTHER_LOAD:
        return None
    return (
        f"other work kept {load:.1f} processors busy, {free + OTHER_LOAD:g} are tolerable beside "
        f"{circumstances['threads']} threads of ours"
    )


def _waiting(evidence: Evidence) -> str | None:
    found = evidence.circumstances["omp_wait_policy"]
    if (found or "").lower() == PASSIVE:
        return None
    return f"OMP_WAIT_POLICY is {found or 'not set'}: waiting threads spin, and slow a busy machine down"


def _outputs(evidence: Evidence) -> str | None:
    found = []
    for contender in evidence.contenders:
        difference = evidence.differences.get(contender.name)
        if contender.output_must_match and difference is not None:
            found.append(
                f"{contender.name} must give the full model's output, but new token {difference.place + 1} "
                f"of prompt {difference.prompt + 1} is {difference.token} instead of {difference.expected}"
            )
    return "; ".join(found) or None


def _layers(evidence: Evidence) -> str | None:
    found = []
    for contender in evidence.contenders:
        claimed, counted = contender.claimed_layers_per_token, contender.layers_per_token
        if claimed is not None and claimed != counted:
            found.append(
                f"{contender.name} says that it ran {claimed:.4g} layers a token, but {counted:.4g} ran"
            )
    return "; ".join(found) or None


CHECKS: tuple[Check, ...] = (
    Check("outputs", _outputs, "this is a defect: report it with the model and the prompt"),
    Check("layers", _layers, "this is a defect: report it with the model and the policy"),
    Check("samples", _samples, "measure more rounds or prompts"),
    Check("identical contenders", _identical, "measure more rounds, on a quieter machine"),
    Check("noise", _noise, "stop other work, or measure more new tokens at a time"),
    Check("other work", _others, "wait until the machine is quiet, or give torch fewer threads"),
    Check("waiting threads", _waiting, "set OMP_WAIT_POLICY=passive before Python starts", warns=True),
)
"""In the order in which reasons are given: wrong results first, then noise."""


def judge(evidence: Evidence) -> tuple[Validity, tuple[str, ...], tuple[str, ...]]:
    """The verdict, every reason against it with what to do, and warnings that leave it valid."""
    reasons: list[str] = []
    warnings: list[str] = []
    for check in CHECKS:
        sentence = check.find(evidence)
        if sentence is not None:
            (warnings if check.warns else reasons).append(f"{sentence} ({check.fix})")
    return "INVALID" if reasons else "VALID", tuple(reasons), tuple(warnings)
