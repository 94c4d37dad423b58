"""How many threads decode the fastest here: one token at a time, memory is what is waited for."""

from __future__ import annotations

import statistics
from dataclasses import replace
from functools import partial

import torch

from offramp.decoding.generation.prompts import PromptBatch
from offramp.models.calls import UNFIT_ERRORS
from offramp.models.conditioned import probing
from offramp.models.devices import CPU
from offramp.models.model import Model
from offramp.models.process import with_threads
from offramp.timing.decoder import PADDING, PlainRunning, Stepping

PROMPT, TOKENS, FEWEST_TOKENS = 16, 12, 4
"""Tokens of the prompt, and of each number of threads at most and at least."""
SECONDS = 4.0
"""Of one comparison, about, if that is more than the fewest tokens take."""
AS_FAST = 1.03
"""Fewer threads are as fast where a token takes at most so many times as long: the others are left to other
work, and nobody waits for a thread that another program holds up."""


def fewest_threads(model: Model) -> int:
    """The fewest of torch's threads with which the model decodes as fast as with all of them.

    Halved as long as that is so. All of them of a model on an accelerator, and where it cannot generate.
    """
    most = fewest = torch.get_num_threads()
    if model.stack.device.type != CPU:
        return most
    try:
        while fewest > 1 and _as_fast(model, fewest // 2, fewest):
            fewest //= 2
    except UNFIT_ERRORS:  # whoever times it next says why
        return most
    return fewest


def _as_fast(model: Model, few: int, many: int) -> bool:
    """Whether plain decoding takes as long with a few threads, token by token in turn."""
    ids = [place % model.shape.vocabulary_size for place in range(PROMPT)]
    prompts = replace(PromptBatch.of([ids], PADDING, model.hf.device), given=())  # any source will do
    with probing(model.hf):
        running = {}
        for threads in (few, many):
            with with_threads(threads):
                running[threads] = Stepping(partial(PlainRunning, model), prompts, 2 + TOKENS)
                running[threads].take(1)
        while not running[few].over:
            for threads, decoding in running.items():
                with with_threads(threads):
                    decoding.take(1)
            spent = sum(sum(decoding.blocks) for decoding in running.values())
            if spent > SECONDS and len(running[few].blocks) > FEWEST_TOKENS:
                break
    seconds = {threads: statistics.median(decoding.blocks[1:]) for threads, decoding in running.items()}
    return seconds[few] <= AS_FAST * seconds[many]
