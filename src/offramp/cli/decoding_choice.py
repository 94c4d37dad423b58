"""What `offramp run` decodes for real: which policies, on which prompts, and how many tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from offramp.decoding.bench.contenders import SHORT
from offramp.decoding.bench.traced_prompts import PROMPTS
from offramp.report.answers import fastest_exiting, nearest_floor
from offramp.report.decoded import Origin
from offramp.report.formats import whole_percent
from offramp.report.headline import main_verdict
from offramp.report.run_result import WorkloadResult

CHARGED_KV = "propagate"
GRID_DEPTHS = (0.5, 0.75)
DRAFT_LENGTH = 1
"""Drafts before a verification: ordinary models reject most drafts, so that longer ones cost time."""
GRID_STRATEGIES = ("propagate", "recompute", "speculate")

MOST_NEW_TOKENS = 32
PLAIN_CONTENDERS = 3
"""Never exit and its twin, and `generate()`: beside every text's policies."""
BUDGET_SECONDS, LIMIT_SECONDS = 118.0, 300.0
"""Of the whole measurement; of the smallest there is, beyond which nothing is timed."""
PROMPT_WORTH, PAUSE_SECONDS = 2.5, 0.05
"""A prompt takes as long as so many plain tokens, and between two decodings there is a pause. New tokens take
on average as long as plain ones: what the grid's shallow exits save, rejected drafts cost."""


@dataclass(frozen=True)
class Choice:
    """One policy to decode; fields as in `offramp.report.decoded.DecodedPolicy`."""

    policy: str
    kv: str
    origin: Origin
    why: str
    floor: float | None = None


def chosen_policy(result: WorkloadResult) -> Choice | None:
    """The policy of a workload's main verdict, else the tuner's, else the fastest that exits at all.

    None if no policy of the league exits.
    """
    verdict = main_verdict(result)
    if verdict is not None and verdict.policy != "never":
        why = f"the verdict's policy at {whole_percent(verdict.floor)} agreement"
        return Choice(verdict.policy, CHARGED_KV, "chosen", why, verdict.floor)
    on_agreement = [tuned for tuned in result.tuned if tuned.floor.kind == "agreement"]
    if on_agreement:
        floor = nearest_floor([tuned.floor.value for tuned in on_agreement])
        tuned = next(tuned for tuned in on_agreement if tuned.floor.value == floor)
        if tuned.policy_text != "never":
            why = f"the tuner's policy at {whole_percent(floor)} agreement"
            return Choice(tuned.policy_text, tuned.kv, "chosen", why, floor)
    entry = fastest_exiting(result.league)
    if entry is None:
        return None
    why = (
        f"the best choice at {whole_percent(entry.floor)} agreement is never to exit; this is the fastest "
        "policy of the league that exits"
    )
    return Choice(entry.policy, CHARGED_KV, "chosen", why, entry.floor)


def grid(layers: int) -> list[Choice]:
    """Static exits at about half and three quarters of the layers, with each strategy."""
    exits = sorted({exit for exit in (round(layers * depth) for depth in GRID_DEPTHS) if 1 <= exit < layers})
    return [
        Choice(f"static:exit={exit}", kv, "grid", f"static exit after layer {exit}")
        for exit in exits
        for kv in GRID_STRATEGIES
    ]


def new_tokens_for(cells: Sequence[int], plain_seconds: float) -> int:
    """New tokens per prompt with which measuring so many policies on each text takes BUDGET_SECONDS.

    plain_seconds: of one token of plain decoding. At most MOST_NEW_TOKENS; may be none.
    """
    fixed = seconds_for(cells, plain_seconds, 0)
    each = seconds_for(cells, plain_seconds, 1) - fixed
    return max(0, min(math.floor((BUDGET_SECONDS - fixed) / each), MOST_NEW_TOKENS))


def seconds_for(cells: Sequence[int], plain_seconds: float, new_tokens: int) -> float:
    """About how long measuring so many policies on each text takes.

    Every contender decodes each prompt once in turns, and one prompt before, untimed; the parts of a policy's
    tokens are timed on one prompt more. Contenders of the first text warm up. The full model reads every
    answer of a policy, and its own.
    """
    contenders = [count + PLAIN_CONTENDERS for count in cells]
    decodings = sum(contenders) * (PROMPTS + 1) + sum(cells)
    warm_ups, read = sum(contenders[:1]), (sum(cells) + len(cells)) * PROMPTS
    prompts = PROMPT_WORTH * (decodings + warm_ups + read)
    tokens = decodings * new_tokens + warm_ups * SHORT.warm_up_tokens
    return decodings * PAUSE_SECONDS + plain_seconds * (prompts + tokens)
