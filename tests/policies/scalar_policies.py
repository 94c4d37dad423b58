"""Exit policies written out token by token in plain Python: what the vectorised ones must equal.

Each takes a document and the parameters, and gives the exit of each token.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Document:
    """read: (fact, token, exit) -> its value."""

    read: Callable[[str, int, int], float]
    tokens: int
    layers: int
    prompt_entropy: float


AT_MOST = ("entropy", "kl_to_previous", "js_to_previous")
UNBOUNDED = ("entropy", "logit_gap")
OPENING = ("kl_to_previous", "js_to_previous", "top_k_overlap", "candidate_score")

TIE = 1e-9
"""Of log odds, as the rule has it: what is reached exactly counts, however it is rounded."""


def passes(document: Document, signal: str, token: int, exit: int, threshold: float) -> bool:
    fact = "hidden_cosine_to_previous" if signal == "hidden_cosine" else signal
    value = document.read(fact, token, exit)
    return value <= threshold if signal in AT_MOST else value >= threshold


def firing(signal: str, exits: list[int]) -> list[int]:
    """The exits where a token may leave: all but an opening one."""
    return exits[1:] if signal in OPENING else exits


def thresholds(document: Document, *, signal: str, values: list[float], exits: list[int]) -> list[int]:
    chosen = []
    for token in range(document.tokens):
        exit_taken = document.layers
        for exit, value in zip(exits, values, strict=True):
            if exit in firing(signal, exits) and passes(document, signal, token, exit, value):
                exit_taken = exit
                break
        chosen.append(exit_taken)
    return chosen


def decaying(
    document: Document, *, signal: str, value: float, exits: list[int], decay: float, length: int
) -> list[int]:
    chosen = []
    for token in range(document.tokens):
        fading = math.exp(-decay * token / length)
        limit = 0.9 * value + 0.1 * value * fading
        if signal in AT_MOST:
            limit = 1.1 * value - 0.1 * value * fading
        taken = [exit for exit in firing(signal, exits) if passes(document, signal, token, exit, limit)]
        chosen.append(taken[0] if taken else document.layers)
    return chosen


def dynamic(
    document: Document,
    *,
    signal: str,
    value: float,
    exits: list[int],
    complexity: str,
    slope: float,
    centre: float,
) -> list[int]:
    chosen: list[int] = []
    entropies: list[float] = []
    for token in range(document.tokens):
        known = {
            "position": float(token),
            "prompt_entropy": document.prompt_entropy,
            "running_entropy": sum(entropies) / len(entropies) if entropies else centre,
        }[complexity]
        high = math.inf if signal in UNBOUNDED else 1.0
        limit = min(max(value + slope * (known - centre), 0.0), high)
        taken = [exit for exit in firing(signal, exits) if passes(document, signal, token, exit, limit)]
        chosen.append(taken[0] if taken else document.layers)
        entropies.append(document.read("entropy", token, chosen[-1]))
    return chosen


def patience(document: Document, *, times: int, exits: list[int], fact: str) -> list[int]:
    chosen = []
    for token in range(document.tokens):
        said = [document.read(fact, token, exit) for exit in exits]
        taken = [
            exits[place]
            for place in range(times, len(exits))
            if len({said[before] for before in range(place - times, place + 1)}) == 1
        ]
        chosen.append(taken[0] if taken else document.layers)
    return chosen


def sustained(document: Document, *, signal: str, value: float, times: int, exits: list[int]) -> list[int]:
    chosen = []
    usable = firing(signal, exits)
    for token in range(document.tokens):
        passed = [passes(document, signal, token, exit, value) for exit in usable]
        taken = [
            usable[place]
            for place in range(times - 1, len(usable))
            if all(passed[place - times + 1 : place + 1])
        ]
        chosen.append(taken[0] if taken else document.layers)
    return chosen


def monotone(document: Document, *, signal: str, value: float, exits: list[int]) -> list[int]:
    chosen: list[int] = []
    for token in range(document.tokens):
        before = chosen[-1] if chosen else document.layers
        taken = [exit for exit in exits if exit < before and passes(document, signal, token, exit, value)]
        chosen.append(taken[0] if taken else before)
    return chosen


def filtered(
    document: Document, *, filter: tuple[str, float, int], signal: str, value: float, exits: list[int]
) -> list[int]:
    """A threshold, asked about what passes a check (signal, value, exit) before."""
    asked = thresholds(document, signal=signal, values=[value] * len(exits), exits=exits)
    by, limit, at = filter
    return [
        exit if passes(document, by, token, at, limit) else document.layers
        for token, exit in enumerate(asked)
    ]


def schedule(tokens: int, *, first: int, last: int, length: int) -> list[int]:
    return [
        last if token >= length - 1 else first - math.floor((first - last) * token / (length - 1))
        for token in range(tokens)
    ]


def votes(
    document: Document, *, need: int, voters: list[tuple[str, float, list[int]]], times: int, exits: list[int]
) -> list[int]:
    """Thresholds `voters` (signal, value, exits), and one vote of patience over `exits`."""
    chosen = []
    for token in range(document.tokens):
        exit_taken = document.layers
        for exit in range(1, document.layers):
            count = sum(
                exit in asked and passes(document, signal, token, exit, value)
                for signal, value, asked in voters
            )
            if exit in exits:
                place = exits.index(exit)
                last = [
                    document.read("top1", token, other) for other in exits[max(place - times, 0) : place + 1]
                ]
                count += len(last) == times + 1 and len(set(last)) == 1
            if count >= need:
                exit_taken = exit
                break
        chosen.append(exit_taken)
    return chosen


def _log_density(seen: list[float], at: float) -> float:
    """Of the Beta distribution with the mean and the (population) variance of what was seen."""
    mean, variance = statistics.fmean(seen), statistics.pvariance(seen)
    concentration = mean * (1 - mean) / variance - 1
    alpha, beta = mean * concentration, (1 - mean) * concentration
    normaliser = math.lgamma(alpha) + math.lgamma(beta) - math.lgamma(alpha + beta)
    return (alpha - 1) * math.log(at) + (beta - 1) * math.log(1 - at) - normaliser


def adaptive(document: Document, *, signal: str, target: float, warmup: int, exits: list[int]) -> list[int]:
    agreed, disagreed = [0.25, 0.75], [0.25, 0.75]
    limit = math.inf
    chosen = []
    for token in range(document.tokens):
        taken = [exit for exit in exits if token >= warmup and document.read(signal, token, exit) >= limit]
        chosen.append(taken[0] if taken else document.layers)
        if taken:
            continue
        for exit in exits:
            same = document.read("top1", token, exit) == document.read("top1", token, document.layers)
            (agreed if same else disagreed).append(document.read(signal, token, exit))
        limit = math.inf
        for step in range(199, 0, -1):
            good = math.log(len(agreed)) + _log_density(agreed, step / 200)
            bad = math.log(len(disagreed)) + _log_density(disagreed, step / 200)
            if good - bad < math.log(target / (1 - target)) - TIE:
                break
            limit = step / 200
    return chosen


def bandit(
    document: Document, *, signal: str, value: float, exits: list[int], cost: float, exploration: float
) -> list[int]:
    arms = [document.layers, *exits[::-1]]
    rewards: dict[int, list[float]] = {arm: [] for arm in arms}
    chosen = []
    for token in range(document.tokens):
        untried = [arm for arm in arms if not rewards[arm]]
        if untried:
            arm = untried[0]
        else:
            index = {
                arm: sum(got) / len(got) + exploration * math.sqrt(math.log(token) / len(got))
                for arm, got in rewards.items()
            }
            arm = max(arms, key=lambda arm: (index[arm], arm))
        leaves = arm < document.layers and document.read(signal, token, arm) >= value
        taken = arm if leaves else document.layers
        rewards[arm].append(document.read(signal, token, taken) - cost * taken / document.layers)
        chosen.append(taken)
    return chosen


def oracle(document: Document, *, which: str) -> list[int]:
    chosen = []
    for token in range(document.tokens):
        right = [
            document.read("top1", token, exit) == document.read("top1", token, document.layers)
            for exit in range(1, document.layers + 1)
        ]
        if which == "first_match":
            chosen.append(right.index(True) + 1)
        else:
            chosen.append(next(exit for exit in range(1, document.layers + 1) if all(right[exit - 1 :])))
    return chosen
