"""One untimed decoding by every contender: layers counted by hooks, memory watched, outputs compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from offramp.decoding.bench.contenders import FAILURES, why
from offramp.decoding.bench.counting import LayerCount
from offramp.decoding.bench.entrant import Decoded, Entrant, PromptBatch, left_out
from offramp.decoding.bench.memory import start_peak
from offramp.decoding.bench.results import Contender
from offramp.errors import ModelError, OfframpError
from offramp.models.stack import ExitStack

TRIAL_TOKENS = 12
"""New tokens of a trial, at most."""


@dataclass(frozen=True)
class Trial:
    """One untimed decoding of the first batch of prompts.

    counted: rows times layers that hooks saw. peak_memory_bytes: above what was held before, None if unknown.
    """

    decoded: Decoded
    counted: int
    peak_memory_bytes: int | None


def try_out(
    entrants: Sequence[Entrant],
    prompts: PromptBatch,
    new_tokens: int,
    stack: ExitStack,
    *,
    warm_up_tokens: int,
) -> tuple[dict[str, Trial], list[Contender]]:
    """Trials by name, and the contenders that failed in theirs. warm_up_tokens: decoded before, none if 0.

    Raises what a required one raises; an error of transformers' as a ModelError.
    """
    trials, failed = {}, []
    tokens = min(new_tokens, TRIAL_TOKENS)
    for entrant in entrants:
        try:
            # What a decoder sets up once (which layers can be cut, say) would be counted as layers of its
            # first tokens.
            if warm_up_tokens:
                entrant.decode(prompts, min(tokens, warm_up_tokens))
            trials[entrant.name] = _trial(entrant, prompts, tokens, stack)
        except OfframpError as error:
            if entrant.required:
                raise
            failed.append(left_out(entrant.name, entrant.role, why(error)))
        except FAILURES as error:
            if entrant.required:
                raise ModelError(
                    f"{entrant.name} fails on this model: {why(error)}",
                    where=str(stack.hf.config.name_or_path),
                    fix="this model cannot be timed; trace and replay it instead",
                ) from error
            failed.append(left_out(entrant.name, entrant.role, why(error)))
    return trials, failed


def _trial(entrant: Entrant, prompts: PromptBatch, new_tokens: int, stack: ExitStack) -> Trial:
    count = LayerCount(stack)
    peak = start_peak(torch.device(prompts.ids.device))
    with count.attached():
        decoded = entrant.decode(prompts, new_tokens)
    return Trial(decoded, count.rows, peak())
