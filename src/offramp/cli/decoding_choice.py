"""What `offramp run` decodes for real: which policies, on which prompts, and how many tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from offramp.decoding.measurement.contenders import SHORT
from offramp.decoding.measurement.trial import PILOT_TOKENS, PILOT_VISITS, TRIAL_TOKENS
from offramp.report.formats import whole_percent
from offramp.report.ranking import HEADLINE_FLOOR, fastest_exiting
from offramp.report.run_result import WorkloadResult

CHARGED_KV = "propagate"
MOST_NEW_TOKENS = 32
MOST_ROUNDS = 3
"""On a fast model every prompt is decoded so often, and no more."""
BESIDE = 3.5
"""The fastest plain decoder, the same again, never exit, and in every second turn prompt lookup: beside every
text's policies."""
PLAIN_TRIED = 3
"""Never exit and `generate()`, in steps and in one call: tried on every text, and in the pilot."""
FEWEST_PROMPTS = 4
"""Of each text, that there should be time for: with fewer, intervals are wide."""
BUDGET_SECONDS, LIMIT_SECONDS = 66.0, 300.0
"""Of the whole measurement, unless --decode-budget says otherwise; of the smallest there is, beyond which
nothing is timed (with --decode-budget, nothing beyond that is)."""
PROMPT_WORTH, PAUSE_SECONDS = 2.5, 0.05
"""A prompt takes as long as so many plain tokens, and between two decodings there is a pause. New tokens take
on average about as long as plain ones."""


@dataclass(frozen=True)
class Choice:
    """One policy to decode; fields as in `offramp.report.run_result.DecodedPolicy`."""

    policy: str
    kv: str
    why: str
    floor: float | None = None


def chosen_policies(result: WorkloadResult) -> list[Choice]:
    """The policies of a workload's verdicts, that of the main floor or of the nearest to it first.

    Of a floor whose certificate is open, the candidate that was tried. Without any: the most cautious
    candidate that certifying came to, which the floor may have refused; where nothing was executed, the
    fastest of the league that exits. Empty if no policy of the league exits.
    """
    found: dict[tuple[str, str], Choice] = {}
    for verdict in sorted(result.verdicts, key=lambda one: abs(one.floor - HEADLINE_FLOOR)):
        floor, tried = whole_percent(verdict.floor), verdict.tried
        cell, why = (verdict.policy, verdict.kv or CHARGED_KV), f"the verdict's policy at {floor} agreement"
        if tried is not None:
            cell, why = (tried.policy, tried.kv), f"what was tried for {floor} agreement, not certified yet"
        if cell[0] != "never" and cell not in found:
            found[cell] = Choice(*cell, why, verdict.floor)
    if found:
        return list(found.values())
    for tuned in sorted(result.tuned, key=lambda one: abs(one.floor.value - HEADLINE_FLOOR)):
        tried = next((one for one in tuned.candidates if one.draft_length is None), None)
        if tried is not None:
            why = (
                f"nothing is certified at {whole_percent(tuned.floor.value)} agreement; this is the most "
                "cautious policy that was a candidate for it"
            )
            return [Choice(tried.policy, tried.kv, why, tuned.floor.value)]
    entry = fastest_exiting(result.league)
    if entry is None:
        return []
    why = (
        f"the best choice at {whole_percent(entry.floor)} agreement is never to exit; this is the fastest "
        "policy of the league that exits"
    )
    return [Choice(entry.policy, CHARGED_KV, why, entry.floor)]


def new_tokens_for(cells: Sequence[int], plain_seconds: float, budget: float = BUDGET_SECONDS) -> int:
    """New tokens per prompt with which so many policies on each text are timed within a budget of seconds.

    plain_seconds: of one token of plain decoding. At most MOST_NEW_TOKENS; may be none.
    """
    for new_tokens in range(MOST_NEW_TOKENS, 0, -1):
        if seconds_for(cells, plain_seconds, new_tokens) <= budget:
            return new_tokens
    return 0


def seconds_for(cells: Sequence[int], plain_seconds: float, new_tokens: int) -> float:
    """About how long measuring so many policies on each text takes on FEWEST_PROMPTS prompts of it.

    All of them, and what stands beside, decode each prompt once in turns, and one prompt before, untimed,
    after a warm-up on the first text; the pilot finds the fastest plain decoder. What comes after the times:
    see `seconds_after`.
    """
    trial = min(new_tokens, TRIAL_TOKENS)
    visits = FEWEST_PROMPTS * sum(count + BESIDE for count in cells)
    trials = sum(count + PLAIN_TRIED for count in cells)
    warm_ups = sum(count + PLAIN_TRIED for count in cells[:1])
    piloted = PILOT_VISITS * PLAIN_TRIED
    tokens = visits * new_tokens + trials * trial + warm_ups * SHORT.warm_up_tokens
    tokens += piloted * min(new_tokens, PILOT_TOKENS)
    decodings = visits + trials + warm_ups + piloted
    timing = decodings * PAUSE_SECONDS + plain_seconds * (PROMPT_WORTH * decodings + tokens)
    return timing + seconds_after(cells, plain_seconds, new_tokens)


def seconds_after(cells: Sequence[int], plain_seconds: float, new_tokens: int) -> float:
    """About how long it takes to time the parts of each policy's tokens on one prompt, and to let the full
    model read every answer of a policy, and its own."""
    read = (sum(cells) + len(cells)) * FEWEST_PROMPTS
    parts = sum(cells) * (PROMPT_WORTH + new_tokens)
    return plain_seconds * (parts + PROMPT_WORTH * read) + sum(cells) * PAUSE_SECONDS
