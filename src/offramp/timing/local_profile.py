"""The `local` machine: a model's decoding steps timed in place, kept, and held against steps of now."""

from __future__ import annotations

import datetime
import importlib.metadata
import math
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from offramp.costs.machine_registry import (
    OWN_LOOP,
    STEPS,
    load_local_profile,
    machine_facts,
    save_local_profile,
)
from offramp.costs.probes import ProbeSizes
from offramp.costs.timings import OTHER_LOAD, TimingsProfile, busy_machine, too_busy
from offramp.decoding.engine.build import cache_keyword, engine_of
from offramp.decoding.generation.generate import FULL_MODEL
from offramp.decoding.generation.prompts import PromptBatch
from offramp.defaults import HARDWARE_SECONDS, LOCAL, PROFILE_SECONDS
from offramp.errors import BusyMachineError, ModelError
from offramp.kit.given import Given
from offramp.kit.numbers import Seconds
from offramp.kit.rules import Rising
from offramp.models.conditioned import PROBE, Condition, Conditioned, probing
from offramp.models.devices import CPU, synchronise
from offramp.models.model import Model, in_evaluation
from offramp.models.pictured import Pictured, probe_picture
from offramp.models.process import use_threads
from offramp.scoring.estimate import Estimate
from offramp.timing.decoder import DecodedBatch, LoopRunning, Stepping, generate_repeatedly
from offramp.timing.defects import MachineLoad
from offramp.timing.ratios import median
from offramp.timing.threads import fewest_threads
from offramp.timing.timed_steps import (
    PLAIN,
    PROBED,
    WHOLE,
    KindOfStep,
    LoopSteps,
    StepTimes,
    Stream,
    prefill,
    probe_sizes,
    prompt_ids,
    widen,
)
from offramp.timing.timing_tables import StepSamples, build_tables, whole_at
from offramp.tracing.progress import say, stage

# Each size up to that of a draft of four tokens with the token after it: products of two or three rows can
# take longer than those of four, so that nothing is read off between them.
BATCHES = (1, 2, 3, 4, 5, 8)
# An accelerator multiplies a few rows in the time of one: what matters is where that ends.
WIDE_BATCHES = (1, 2, 4, 8, 16, 32, 64)
POSITIONS = (64, 448)
SHORTEST_CONTEXT = 8
FEWEST_ROUNDS, MOST_ROUNDS = 3, 64
GENERATE_PROMPT, GENERATED = 32, 16
# Budgets from this one on time plain `generate()` at the end too; shorter ones once, on half as many tokens.
LONG_BUDGET = 30.0
# How far timed parts may add up to something else than whole steps without a clock inside them.
ROUGH = 0.1
ENCODER_TURNS = 5
PROMPT_TEXT = "What does the picture show, and how many things are in it? " * 4
"""Behind the probe's picture, for a prompt of another length."""
PATIENCE = 30.0
"""Seconds that it waits in all for others to leave the machine alone."""
LOOKING = 1.0
"""Seconds of one look at what others do, or a tenth of a budget that is shorter than ten such looks."""
BUSY = (
    "the parts add up to a whole step only roughly: something else kept the processor busy; measure again "
    "when it is quiet"
)


@in_evaluation
def measure_hardware(
    model: Model,
    *,
    budget_seconds: Seconds = HARDWARE_SECONDS,
    batches: Rising | None = None,
    progress: Callable[[float], None] | None = None,
) -> TimingsProfile:
    """Time layers, head, probes, lens, K,V repair and the program around them, within real decoding steps.

    Every step is one of the decoder's own loop, one token per sequence with a cache of a realistic length, so
    that each layer finds the weights of all others in the processor's caches, as in decoding; a model that
    this loop cannot run cannot be timed. No policy is timed: plain steps with and without a clock inside
    them, steps with probes where nobody leaves, and steps whose upper layers only leave K and V.
    Configurations (batch sizes, positions, kinds of step) take turns in random order; a price is a mean over
    the middle half of its samples, scaled so that the parts add up to whole steps
    (`offramp.timing.timing_tables.build_tables`).
    While others keep the machine busy it waits, for `PATIENCE` seconds at most, and times what was disturbed
    once more.
    Layers, head and probes are timed by events where the model is on an accelerator, within a step that waits
    for nothing but what it decides by; whole steps end when all is done.
    batches: sizes to time, rising; by default `usual_batches`. budget_seconds: how long it may take; a slow
    model takes longer, for the fewest rounds that give a median.
    progress: called with the share of the budget used.

    Raises ModelError if the model cannot decode with a cache, or not in that loop; BusyMachineError if others
    do not leave the machine alone, since such times are not fit to decide (`TimingsProfile.unfit`);
    InputError for batch sizes that do not rise from 1 or more, or a budget that is not positive.
    """
    model.require_loaded("timing")
    batches = usual_batches(model) if batches is None else tuple(batches)

    def profiler() -> MachineProfiler:
        with probing(model.hf):
            return MachineProfiler(model, batches, timing_positions(model.context_length))

    first, look = profiler(), min(LOOKING, budget_seconds / 10)
    patience = _wait_until_quiet(PATIENCE, look)
    profile = _timed(first, budget_seconds, progress)
    if profile.unfit is not None:
        _wait_until_quiet(patience, look)
        profile = _timed(profiler(), budget_seconds, progress)
    if profile.unfit is not None:
        raise busy_machine(profile.unfit)
    return profile


def _wait_until_quiet(patience: float, look: float) -> float:
    """Wait until others leave the machine alone, and give the seconds of patience that are left.

    look: seconds of one look. Raises BusyMachineError when the patience is at an end.
    """
    facts = machine_facts(torch.get_num_threads())
    ends, said = time.monotonic() + patience, False
    while True:
        load = MachineLoad()
        time.sleep(look)
        busy = too_busy(facts, load.describe()[OTHER_LOAD])
        left = ends - time.monotonic()
        if busy is None:
            return max(left, 0.0)
        if left <= 0.0:
            raise busy_machine(busy)
        if not said:
            say(f"waiting up to {patience:.0f} s for the machine to be quiet: {busy}")
            said = True


def _timed(
    profiler: MachineProfiler, budget_seconds: float, progress: Callable[[float], None] | None
) -> TimingsProfile:
    """One timing, whatever others do meanwhile, which its details say."""
    began, model = time.monotonic(), profiler.model

    def used() -> float:
        return time.monotonic() - began

    load = MachineLoad()
    ready, long = used(), budget_seconds >= LONG_BUDGET
    encoder = _time_encoder(model) if isinstance(model.hf, Conditioned) else _time_prompts(model)
    with probing(model.hf):
        generate = [_time_generate(model, GENERATED if long else GENERATED // 2)]
        reserved = used() - ready if long else 0.0
        profiler.warm_up()
        for rounds in range(1, MOST_ROUNDS + 1):
            round_began = used()
            profiler.round()
            if progress is not None:
                progress(min(used() / budget_seconds, 1.0))
            next_ends = used() + (used() - round_began) + reserved
            if rounds >= FEWEST_ROUNDS and next_ends > budget_seconds:
                break
        if long:
            generate.append(_time_generate(model, GENERATED))
    profile = _profile(profiler, generate, rounds=rounds, seconds=used(), load=load)
    return replace(profile, encoder_seconds=encoder)


def usual_batches(model: Model) -> tuple[int, ...]:
    """The batch sizes that are timed if none are given."""
    return BATCHES if model.stack.device.type == CPU else WIDE_BATCHES


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


def _time_encoder(model: Model) -> tuple[tuple[float, float], ...]:
    """Seconds of an encoder and of K and V of its output for every layer, by the positions that it gives.

    At two lengths of random token ids that take turns, or at the probe's where it reads none: the median time
    from the source to the first token, less that of the next token, which finds K and V made.
    """
    hf, token, keyword = model.hf, prompt_ids(model, 1, 1), cache_keyword(model)
    window = min((size for size in (hf.source_window, model.context_length) if size), default=None)
    lengths = timing_positions(window) if hf.inner.main_input_name == "input_ids" else (0,)
    found: dict[float, list[float]] = {}
    for length in (1 + ENCODER_TURNS) * lengths:
        hf.encodings.clear()  # so that it is encoded here
        ids, began = prompt_ids(model, 1, length)[0].tolist(), time.perf_counter()
        with model.given([Given(tokens=tuple(ids))]) if ids else probing(hf):
            once = _seconds_once(model, keyword, (token, token), began)
            found.setdefault(hf.condition.encodings[0].positions, []).append(once)
    return _medians(found)


def _seconds_once(model: Model, keyword: str, steps: Sequence[torch.Tensor], began: float) -> float:
    """Seconds since then until the first of two steps was made, less those of the next one.

    keyword: of the cache. steps: token ids, int64 [1, positions].
    """
    times, cache = [began], dict[str, Any]()
    for ids in steps:
        cache = {keyword: model.hf(input_ids=ids, use_cache=True, **cache)[keyword]}
        synchronise(model.stack.device)
        times.append(time.perf_counter())
    return max(times[1] - times[0] - (times[2] - times[1]), 0.0)


def _medians(found: Mapping[float, Sequence[float]]) -> tuple[tuple[float, float], ...]:
    """By positions, rising, the median of all seconds but the first."""
    return tuple((positions, float(np.median(seconds[1:]))) for positions, seconds in sorted(found.items()))


def _time_prompts(model: Model) -> tuple[tuple[float, float], ...] | None:
    """The same of what an image-text model makes of a picture and its prompt, by the prompt's positions; None
    for a model that is given no pictures. At two lengths of text beside a picture of no meaning."""
    if not isinstance(model.hf, Pictured) or model.shape.encoder is None:
        return None
    hf, keyword, found = model.hf, cache_keyword(model), dict[float, list[float]]()
    for text in (1 + ENCODER_TURNS) * ("", PROMPT_TEXT):
        asked = hf.asked(probe_picture(), text)
        ids = asked["input_ids"].to(hf.device)
        hf.encodings.clear()  # so that it is encoded here
        began = time.perf_counter()
        with hf.under(Condition((hf.encoding(PROBE, partial(dict, asked)),))):
            once = _seconds_once(model, keyword, (ids, ids[:, -1:]), began)
        found.setdefault(float(ids.shape[1]), []).append(once)
    return _medians(found)


def _time_generate(model: Model, new_tokens: int) -> list[DecodedBatch] | str:
    """Plain `generate()`, or why it has no time."""
    prompt = prompt_ids(model, 1, GENERATE_PROMPT)[0].tolist()
    try:
        return generate_repeatedly(model, prompt, new_tokens=new_tokens, repeats=2)
    except ModelError as error:
        return error.what


def _profile(
    profiler: MachineProfiler,
    generate: Sequence[list[DecodedBatch] | str],
    *,
    rounds: int,
    seconds: float,
    load: MachineLoad,
) -> TimingsProfile:
    model = profiler.model
    machine = machine_facts(torch.get_num_threads(), str(model.stack.device))
    tables = build_tables(profiler.samples)
    notes = list(tables.notes)
    details: dict[str, Any] = {
        "model": {
            "name": model.shown_name,
            "fingerprint": model.identity.fingerprint,
            **model.asked_attention,
        },
        "machine": machine,
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers")},
        "measured_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "not set"),
        "positions": list(profiler.positions),
        "rounds": rounds,
        "seconds": round(seconds, 3),
        "samples": profiler.samples.summary(),
        STEPS: OWN_LOOP,
        "notes": notes,
    }
    profile = TimingsProfile(
        name=LOCAL,
        source=f"timed in place on {model.shown_name}: {machine['processor']}, {machine['threads']} threads",
        dtype=model.dtype,
        layers_count=model.layers,
        batches=profiler.batches,
        sizes=profiler.sizes,
        details=details,
        **tables.arrays,
    )
    check = {
        "parts_over_step": {str(batch): ratio for batch, ratio in tables.parts_over_step.items()},
        **_beside_generate(profile, model, generate),
    }
    if any(abs(ratio - 1.0) > ROUGH for ratio in tables.parts_over_step.values()):
        notes.append(BUSY)
    further = {**load.describe(), "check": check, "notes": notes}
    return replace(profile, details={**details, **further})


def _beside_generate(
    profile: TimingsProfile, model: Model, generate: Sequence[list[DecodedBatch] | str]
) -> dict[str, Any]:
    """The profile's plain step beside transformers' own `generate()`, at batch 1."""
    timed = [decoded for repeats in generate if not isinstance(repeats, str) for decoded in repeats]
    if not timed:
        return {"generate_not_timed": generate[0]}
    samples = [decoded.seconds_per_token for decoded in timed]
    position = GENERATE_PROMPT + (len(timed[0].tokens[0]) - 1) / 2
    plain = profile.token_costs(model.shape, position, batch=1).plain
    seconds = float(np.median(samples))
    return {
        "generate_seconds_per_token": seconds,
        "generate_samples": samples,
        "plain_step_seconds": plain,
        "plain_step_over_generate": plain / seconds,
    }


# One sequence is what most decoding runs: its times are to be the surest.
TURNS_OF_THE_FEWEST = 3
# Steps of one cache before it is filled anew, so that its position stays near the one asked for.
GROWTH = 128


class MachineProfiler:
    """Streams of several batch sizes and positions that take turns, and the samples taken so far.

    loop: the decoder's own steps. Raises ModelError for a model that the loop cannot run.
    """

    def __init__(self, model: Model, batches: tuple[int, ...], positions: tuple[int, int]) -> None:
        self.model = model
        self.batches = batches
        self.positions = positions
        self.keyword = cache_keyword(model)
        self.sizes = probe_sizes(model)
        self.loop = _decoder_steps(model, self.sizes)
        self.random = random.Random(0)
        self.waiting: dict[int, list[str]] = {}
        self.rounds = 0
        self.samples = StepSamples(model.shape, batches, positions)
        self.singles = {position: prefill(model, self.keyword, 1, position) for position in positions}
        self.streams = {
            (batch, position): widen(self.singles[position], batch)
            for batch in batches
            for position in positions
        }

    def kinds(self) -> list[KindOfStep]:
        """The kinds of step of one round."""
        cuts = sorted({0, self.model.layers // 2}) if self.loop.cuttable else []
        names = (WHOLE, PLAIN, PROBED)
        return [*map(KindOfStep, names), *[KindOfStep(f"cut {cut}", cut) for cut in cuts]]

    def warm_up(self) -> None:
        """One probed step of every stream, not kept."""
        for key in self.streams:
            self._run(self._fresh(key), KindOfStep(PROBED))

    def round(self) -> None:
        """Steps of every kind at every batch size, in random order.

        Several sequences cut layers at one of the positions only, which take turns.
        """
        turns = [
            (key, kind)
            for key in self.streams
            for kind in self.kinds()
            for _ in range(self._turns(*key, kind))
        ]
        self.random.shuffle(turns)
        for (batch, position), kind in turns:
            self.samples.add(batch, position, kind.name, self._run(self._fresh((batch, position)), kind))
        self.rounds += 1

    def _turns(self, batch: int, position: int, kind: KindOfStep) -> int:
        """How often a kind of step has its turn in this round."""
        if batch == self.batches[0]:
            return TURNS_OF_THE_FEWEST
        return int(kind.cut_from is None or self.positions[self.rounds % 2] == position)

    def _run(self, stream: Stream, kind: KindOfStep) -> StepTimes:
        """One step, its probes at exits drawn anew."""
        if kind.name != PROBED:
            return self.loop.run(stream, kind)
        waiting = self.waiting.setdefault(stream.batch, [])
        return self.loop.run(stream, kind, self.loop.probing.draw(self.random, waiting))

    def _fresh(self, key: tuple[int, int]) -> Stream:
        """The stream, filled anew if it grew too far from its position or has no room left."""
        batch, position = key
        end = position + GROWTH
        if self.model.context_length is not None:
            end = min(end, self.model.context_length)
        if self.streams[key].length >= end:
            self.streams[key] = widen(self.singles[position], batch)
        return self.streams[key]


def _decoder_steps(model: Model, sizes: ProbeSizes) -> LoopSteps:
    """Steps of the decoder's own loop. Raises ModelError where it cannot run this model, with the reason."""
    try:
        engine = engine_of(model)
        reason = engine.abilities.reason("never_exit")
    except ModelError as error:
        reason = error.what
    if reason is not None:
        raise ModelError(
            f"the model cannot be timed: {reason}",
            where=model.name,
            fix="trace and replay it, and judge it on a roofline profile: offramp list hardware",
        )
    return LoopSteps(model, engine, sizes)


TOKENS = 12
"""Decoded at a time; more only while the answer is open."""
MOST_TIMES = 3
FARTHEST = 1.03
"""A profile that is off by more is measured again."""


@dataclass(frozen=True)
class StepCheck:
    """The profile's plain step beside steps of now, at the same position and batch size."""

    ratio: Estimate[float]
    """The profile's seconds over those of now, with 95 % limits, of the noise on both sides."""
    seconds: float
    """Of a plain step now."""
    tokens: int
    """How many steps were made."""

    @property
    def holds(self) -> bool:
        """Whether it is not certain to be off by more than 3 %."""
        low, high = _limits(self.ratio)
        return low <= FARTHEST and high >= 1.0 / FARTHEST

    @property
    def settled(self) -> bool:
        """Whether more steps would say nothing else."""
        low, high = _limits(self.ratio)
        return not self.holds or (low >= 1.0 / FARTHEST and high <= FARTHEST)

    @property
    def sentence(self) -> str:
        """What was found."""
        low, high = _limits(self.ratio)
        found = (
            f"a plain token takes {1e3 * self.seconds:.3g} ms now, "
            f"{1e3 * self.ratio.value * self.seconds:.3g} ms by the kept timings (ratio "
            f"{self.ratio.value:.3f}, {low:.3f} to {high:.3f})"
        )
        return found if self.holds else f"{found}: off by more than {FARTHEST - 1:.0%}"


def _limits(ratio: Estimate[float]) -> tuple[float, float]:
    """Of few steps, whose median has none, anything may be true."""
    low, high = ratio.low, ratio.high
    return (0.0, math.inf) if low is None or high is None else (low, high)


def check_profile(model: Model, profile: TimingsProfile) -> StepCheck:
    """Decode a few plain tokens, by the loop that the profile timed, and compare.

    profile: as `measure_hardware` gives it, of this model.

    Raises ModelError if the model cannot decode.
    """
    position, batch = int(profile.details["positions"][0]), profile.batches[0]
    room = TOKENS if model.context_length is None else model.context_length - position - 2
    count = max(1, min(TOKENS, room))
    price = profile.token_costs(model.shape, position + (count + 1) / 2, batch=batch).plain
    samples: list[float] = []
    for _ in range(MOST_TIMES):
        samples += plain_steps(model, batch, position, count)
        found = _compared(profile, price, samples)
        if found.settled:
            break
    return found


def _compared(profile: TimingsProfile, price: float, samples: list[float]) -> StepCheck:
    now = median(samples)
    ratio = Estimate(price / now.value)
    if now.low is not None and now.high is not None:
        noise = 1.0 + math.hypot((now.high - now.low) / (2 * now.value), _noise_of(profile))
        ratio = Estimate(ratio.value, ratio.value / noise, ratio.value * noise)
    return StepCheck(ratio, now.value, len(samples))


def _noise_of(profile: TimingsProfile) -> float:
    """Relative half-width of a 95 % interval of the profile's own whole steps.

    1.57 distances of the quartiles over the root of their number: McGill, Tukey and Larsen 1978, The American
    Statistician 32, 12.
    """
    samples = profile.details["samples"][str(profile.batches[0])]
    timed = [samples[whole_at(position)] for position in profile.details["positions"]]
    count = sum(steps["count"] for steps in timed)
    spread = sum((steps["high"] - steps["low"]) / steps["median"] for steps in timed) / len(timed)
    return float(1.57 * spread / math.sqrt(count))


def plain_steps(model: Model, batch: int, position: int, count: int) -> list[float]:
    """Seconds of plain steps of so many sequences, from position + 1 on."""
    ids = prompt_ids(model, batch, position)
    # The first new token is the prompt's; the step after it may still warm up.
    options = replace(FULL_MODEL, new_tokens=count + 2)
    with probing(model.hf):
        stepping = Stepping(
            lambda prompts, new_tokens: LoopRunning(model, prompts, options),
            PromptBatch(ids, torch.ones_like(ids)),
            options.new_tokens,
        )
    while not stepping.over:
        stepping.take(1)
    return [seconds * batch for seconds in stepping.finish().blocks[1:]]


@dataclass(frozen=True)
class LocalProfile:
    """Timings to predict with."""

    profile: TimingsProfile
    note: str
    """How they were come by, in a sentence."""


def profile_of_now(
    model: Model,
    kept: TimingsProfile | None,
    *,
    seconds: float,
    batches: tuple[int, ...] | None = None,
    details: Mapping[str, Any] | None = None,
) -> LocalProfile:
    """Kept timings held against a few plain tokens of now; new ones, which are then kept, if they are off.

    kept: None if there are none. seconds, batches: of a new timing. details: that new ones state beside.
    Where others keep the machine busy, so that nothing can be timed, the kept ones of a quieter time stay.

    Raises ModelError for a model that cannot be timed, BusyMachineError if nothing is kept and the machine is
    not quiet.
    """
    check = None if kept is None else check_profile(model, kept)
    if kept is not None and check is not None and check.holds:
        return LocalProfile(kept, check.sentence)
    before = "" if check is None else f"{check.sentence}; "
    try:
        timed = measure_hardware(model, batches=batches, budget_seconds=seconds)
    except BusyMachineError as error:
        if kept is None:
            raise
        return LocalProfile(kept, f"{before}{error.what}: the kept ones are of a quieter time, and stay")
    if details:
        timed = replace(timed, details={**timed.details, **details})
    save_local_profile(timed)
    return LocalProfile(timed, f"{before}timed just now")


def kept_profile(model: Model) -> LocalProfile:
    """The kept timings of a model, measured again if they are off from a few plain tokens of now.

    Raises InputError if none are kept; ModelError if the model cannot decode.
    """
    kept = load_local_profile(
        model.identity.fingerprint,
        model.dtype,
        device=str(model.stack.device),
        attention=model.attention,
        model=model.described,
    )
    return profile_now(model, kept)


def profile_now(model: Model, kept: TimingsProfile | None) -> LocalProfile:
    """Timings at hand, held against a few plain tokens of now; new ones where there are none or they are off.

    Torch uses the threads that the timings are of from then on. Raises ModelError if the model cannot decode,
    BusyMachineError if nothing is at hand and others are busy.
    """
    use_threads(fewest_threads(model) if kept is None else kept.details["machine"]["threads"])
    if kept is None:
        with stage("timing layers, head and probes on this machine", PROFILE_SECONDS):
            return profile_of_now(model, None, seconds=PROFILE_SECONDS)
    with stage("holding the kept timings against a few plain tokens, and timing anew if off"):
        return profile_of_now(model, kept, seconds=PROFILE_SECONDS, batches=kept.batches)
