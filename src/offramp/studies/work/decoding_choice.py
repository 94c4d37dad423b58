"""What is decoded for real on one text: which policies, and how many tokens of each prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from offramp.policies.figures import PLAIN_DECODING
from offramp.policies.policy import ExitPolicy
from offramp.studies.work.league import Ranking, fastest_exiting
from offramp.tuning.tuned import Tuned
from offramp.tuning.verdict import from_main, judged_policy
from offramp.tuning.verdict_words import percent_down

CHARGED_KV = "propagate"
MOST_NEW_TOKENS = 12
BESIDE = 5
"""Never exit, `generate()`, one of them again, the head cut to the short list, and prompt lookup: beside the
policies."""
PLAIN_TRIED = 3
"""Never exit and `generate()`, in steps and in one call: tried first, and in the pilot."""
FEWEST_PROMPTS = 4
"""That there should be time for: with fewer, intervals are wide."""
PROMPT_WORTH, PAUSE_SECONDS = 2.5, 0.05
"""A prompt takes as long as so many plain tokens, and between two decodings there is a pause. New tokens take
on average about as long as plain ones."""
LONGEST = 6.0
"""So many times the seconds that are asked for the smallest measurement that there is may take."""


@dataclass(frozen=True)
class Choice:
    """One policy to decode. kv: its strategy for K and V, "" for whichever the model's family allows. why:
    how it came to be chosen, in words.

    predicted: its net speedup, None where the ranking does not have it. floor: that it was chosen for.
    """

    family: str
    policy: ExitPolicy
    kv: str
    why: str
    floor: float
    predicted: float | None = None


def best_of_ranking(ranking: Ranking, *, floor: float, count: int) -> list[Choice]:
    """The fastest distinct policies of a ranking that a decoder can follow and that exit, at one floor.

    The same policy may be the best of several families: it counts once.
    """
    able = [
        Choice(entry.family, entry.policy, "", "one of the ranking's fastest", entry.floor, speed)
        for entry in ranking.entries
        if entry.reachable
        and entry.exits_early
        and math.isclose(entry.floor, floor)
        and (speed := entry.net_speedup.value) is not None
    ]
    distinct: dict[ExitPolicy, Choice] = {}
    for choice in sorted(able, key=lambda choice: (-(choice.predicted or 0.0), str(choice.policy))):
        distinct.setdefault(choice.policy, choice)
    return list(distinct.values())[:count]


def of_verdicts(ranking: Ranking, tuned: Sequence[Tuned]) -> list[Choice]:
    """The policies of a workload's verdicts, that of the main floor or of the nearest to it first.

    Of a floor where nothing is certified, the candidate that was tried last; where nothing was tuned, the
    policy that replay proposes. Without any, the fastest of the ranking that exits; empty if none does.
    """
    found: dict[tuple[ExitPolicy, str], Choice] = {}
    for answer in sorted(tuned, key=lambda answer: from_main(answer.floor.value)):
        judged, floor = judged_policy(answer), percent_down(answer.floor.value)
        if judged is not None and judged not in found:
            certified = answer.standing == "certified"
            why = f"certified at {floor} agreement" if certified else f"what was tried for {floor} agreement"
            found[judged] = _choice(*judged, why, answer.floor.value)
    for verdict in () if tuned else sorted(ranking.verdicts, key=lambda one: from_main(one.floor)):
        replayed = (verdict.policy, verdict.kv or CHARGED_KV)
        if verdict.policy != PLAIN_DECODING and replayed not in found:
            why = f"the replay's policy at {percent_down(verdict.floor)} agreement"
            found[replayed] = _choice(*replayed, why, verdict.floor)
    if found:
        return list(found.values())
    entry = fastest_exiting(ranking.entries)
    if entry is None:
        return []
    why = (
        f"the best choice at {percent_down(entry.floor)} agreement is never to exit; this is the fastest "
        "policy of the ranking that exits"
    )
    return [_choice(entry.policy, CHARGED_KV, why, entry.floor)]


def _choice(policy: ExitPolicy, kv: str, why: str, floor: float) -> Choice:
    return Choice(policy.kind, policy, kv, why, floor)


def within_budget(
    choices: Sequence[Choice], plain_seconds: float, budget: float
) -> tuple[Sequence[Choice], int]:
    """The policies that fit into a budget of seconds, and the new tokens of each prompt.

    All of them; else the first alone, which may take a few times as long. None if that would not do.
    """
    from offramp.decoding.openings import FEWEST_NEW_TOKENS

    for some in (choices, choices[:1]):
        new_tokens = new_tokens_for(len(some), plain_seconds, budget)
        if new_tokens >= FEWEST_NEW_TOKENS:
            return some, new_tokens
    if seconds_for(1, plain_seconds, FEWEST_NEW_TOKENS) <= LONGEST * budget:
        return choices[:1], FEWEST_NEW_TOKENS
    return (), 0


def new_tokens_for(policies: int, plain_seconds: float, budget: float) -> int:
    """New tokens per prompt with which so many policies are timed within a budget of seconds.

    plain_seconds: of one token of plain decoding. At most MOST_NEW_TOKENS; may be none.
    """
    for new_tokens in range(MOST_NEW_TOKENS, 0, -1):
        if seconds_for(policies, plain_seconds, new_tokens) <= budget:
            return new_tokens
    return 0


def seconds_for(policies: int, plain_seconds: float, new_tokens: int, prompts: int = FEWEST_PROMPTS) -> float:
    """About how long measuring so many policies takes on some prompts.

    All of them, and what stands beside, decode each prompt once in turns, and one prompt before, untimed,
    after a warm-up; a pilot of plain decoders comes before. What comes after the times: see
    `seconds_after`.
    """
    from offramp.timing.contenders import SHORT
    from offramp.timing.trial import PILOT_TOKENS, PILOT_VISITS, TRIAL_TOKENS

    visits = prompts * (policies + BESIDE)
    tried = policies + PLAIN_TRIED
    piloted = PILOT_VISITS * PLAIN_TRIED
    tokens = visits * new_tokens + tried * (min(new_tokens, TRIAL_TOKENS) + SHORT.warm_up_tokens)
    tokens += piloted * min(new_tokens, PILOT_TOKENS)
    decodings = visits + 2 * tried + piloted
    timing = decodings * PAUSE_SECONDS + plain_seconds * (PROMPT_WORTH * decodings + tokens)
    return timing + seconds_after(policies, plain_seconds, new_tokens, prompts)


def seconds_after(
    policies: int, plain_seconds: float, new_tokens: int, prompts: int = FEWEST_PROMPTS
) -> float:
    """About how long it takes to time the parts of each policy's tokens on one prompt, and to let the full
    model read every answer of a policy, of the cut head, and its own."""
    read = (policies + 2) * prompts
    parts = policies * (PROMPT_WORTH + new_tokens)
    return plain_seconds * (parts + PROMPT_WORTH * read) + policies * PAUSE_SECONDS


def prompts_within(policies: int, plain_seconds: float, new_tokens: int, budget: float) -> int:
    """About how many prompts are timed and judged within a budget of seconds."""
    fewest, one_more = (
        seconds_for(policies, plain_seconds, new_tokens, FEWEST_PROMPTS + more) for more in (0, 1)
    )
    return FEWEST_PROMPTS + max(0, math.floor((budget - fewest) / (one_more - fewest)))
