"""The `local` machine: every part of a decoding step timed in place, on this model and this machine."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import itertools
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from offramp.costs.local_store import LOCAL, STEPS, disturbed, machine_facts
from offramp.costs.timings import TimingsProfile
from offramp.decoding.bench.circumstances import Load
from offramp.decoding.plain import PlainTiming, time_plain_decoding
from offramp.decoding.session import Session
from offramp.decoding.stream import prompt_ids
from offramp.decoding.timing_tables import build_tables
from offramp.errors import InputError, ModelError
from offramp.models.model import Model

# Each size up to that of a draft of four tokens with the token after it: products of two or three rows can
# take longer than those of four, so that nothing is read off between them.
BATCHES = (1, 2, 3, 4, 5, 8)
POSITIONS = (64, 448)
SHORTEST_CONTEXT = 8
FEWEST_ROUNDS, MOST_ROUNDS = 3, 64
GENERATE_PROMPT, GENERATED = 32, 16
# Budgets from this one on time plain `generate()` at the end too; shorter ones once, on half as many tokens.
LONG_BUDGET = 30.0
# How far timed parts may add up to something else than whole steps without a clock inside them.
ROUGH = 0.1
OWN_LOOP, FORWARD = "decoding loop", "forward pass"
BUSY = (
    "the parts add up to a whole step only roughly: something else kept the processor busy; measure again "
    "when it is quiet"
)


def measure_hardware(
    model: Model,
    *,
    budget_seconds: float = 45.0,
    batches: Sequence[int] = BATCHES,
    progress: Callable[[float], None] | None = None,
) -> TimingsProfile:
    """Time layers, head, probes, lens, K,V repair and the program around them, within real decoding steps.

    Every step is one of the decoder's own loop, one token per sequence with a cache of a realistic length, so
    that each layer finds the weights of all others in the processor's caches, as in decoding; where that loop
    cannot run the model, its own forward pass is timed, and a note says so. No policy is timed: plain steps
    with and without a clock inside them, steps with probes where nobody leaves, and steps whose upper layers
    only leave K and V. Configurations (batch sizes, positions, kinds of step) take turns in random order; a
    price is a mean over the middle half of its samples, scaled so that the parts add up to whole steps
    (`offramp.decoding.timing_tables.build_tables`). A note says if the machine was busy with something else.
    budget_seconds: how long it may take; a slow model takes longer, for the fewest rounds that give a median.
    progress: called with the share of the budget used.

    Raises ModelError if the model cannot decode with a cache; InputError for batch sizes that do not rise
    from 1 or more, or a budget that is not positive.
    """
    model.require_loaded("timing")
    began = time.monotonic()
    batches = tuple(batches)
    if not batches or batches[0] < 1 or any(later <= batch for batch, later in itertools.pairwise(batches)):
        raise InputError(
            f"the batch sizes {batches} do not rise from 1 or more", where="batches", fix="try 1, 2, 4, 8"
        )
    if not budget_seconds > 0:
        raise InputError(f"a budget of {budget_seconds} seconds is none", where="budget", fix="try 45")

    def used() -> float:
        return time.monotonic() - began

    session = Session(model, batches, timing_positions(model.context_length))
    load = Load()
    ready = used()
    long = budget_seconds >= LONG_BUDGET
    generate = [_time_generate(model, GENERATED if long else GENERATED // 2)]
    reserved = used() - ready if long else 0.0
    session.warm_up()
    for rounds in range(1, MOST_ROUNDS + 1):
        round_began = used()
        session.round()
        if progress is not None:
            progress(min(used() / budget_seconds, 1.0))
        next_ends = used() + (used() - round_began) + reserved
        if rounds >= FEWEST_ROUNDS and next_ends > budget_seconds:
            break
    if long:
        generate.append(_time_generate(model, GENERATED))
    return _profile(session, generate, rounds=rounds, seconds=used(), load=load)


def timing_positions(context: int | None) -> tuple[int, int]:
    """The two positions that are timed: 64 and 448, or what the context allows.

    Raises ModelError if the context is too short for two.
    """
    if context is None:
        return POSITIONS
    if context < SHORTEST_CONTEXT:
        raise ModelError(
            f"the model's context of {context} positions is too short to be timed at two lengths",
            where="context",
            fix=f"use a model with a context of {SHORTEST_CONTEXT} positions or more",
        )
    return min(POSITIONS[0], context // 4), min(POSITIONS[1], context * 3 // 4)


def _time_generate(model: Model, new_tokens: int) -> PlainTiming | str:
    """Plain `generate()`, or why it has no time."""
    prompt = prompt_ids(model, 1, GENERATE_PROMPT)[0].tolist()
    try:
        return time_plain_decoding(model, prompt, new_tokens=new_tokens, repeats=2)
    except ModelError as error:
        return error.what


def _profile(
    session: Session, generate: Sequence[PlainTiming | str], *, rounds: int, seconds: float, load: Load
) -> TimingsProfile:
    model = session.model
    machine = machine_facts(torch.get_num_threads())
    tables = build_tables(session.samples)
    notes = list(tables.notes)
    if session.why_no_loop is not None:
        notes.append(
            f"timed in the model's own forward pass, not in the decoder's loop: {session.why_no_loop}"
        )
    details: dict[str, Any] = {
        "model": {"name": model.shown_name, "fingerprint": model.identity.fingerprint},
        "machine": machine,
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers")},
        "measured_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
        **load.describe(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "not set"),
        "positions": list(session.positions),
        "rounds": rounds,
        "seconds": round(seconds, 3),
        "timer_seconds": session.stopwatch.cost,
        "samples": session.samples.summary(),
        STEPS: OWN_LOOP if session.loop is not None else FORWARD,
        "notes": notes,
    }
    profile = TimingsProfile(
        name=LOCAL,
        source=f"timed in place on {model.shown_name}: {machine['processor']}, {machine['threads']} threads",
        dtype=model.dtype,
        layers_count=model.layers,
        batches=session.batches,
        sizes=session.sizes,
        details=details,
        **tables.arrays,
    )
    check = {
        "parts_over_step": {str(batch): ratio for batch, ratio in tables.parts_over_step.items()},
        **_beside_generate(profile, model, generate),
    }
    if any(abs(ratio - 1.0) > ROUGH for ratio in tables.parts_over_step.values()):
        notes.append(BUSY)
    busy = disturbed(profile)
    if busy is not None:
        notes.append(f"{busy}: these timings are used now, and not kept")
    return dataclasses.replace(profile, details={**details, "check": check, "notes": notes})


def _beside_generate(
    profile: TimingsProfile, model: Model, generate: Sequence[PlainTiming | str]
) -> dict[str, Any]:
    """The profile's plain step beside transformers' own `generate()`, at batch 1."""
    timed = [timing for timing in generate if isinstance(timing, PlainTiming)]
    if not timed:
        return {"generate_not_timed": generate[0]}
    samples = [sample for timing in timed for sample in timing.samples]
    position = GENERATE_PROMPT + timed[0].new_tokens / 2
    plain = profile.token_costs(model.shape, position, batch=1).plain
    seconds = float(np.median(samples))
    return {
        "generate_seconds_per_token": seconds,
        "generate_samples": samples,
        "plain_step_seconds": plain,
        "plain_step_over_generate": plain / seconds,
    }
