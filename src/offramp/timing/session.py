"""A measurement: contenders tried out, a first look at plain decoders, turns, and the figures of each."""

from __future__ import annotations

import ctypes
import gc
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import torch

from offramp.decoding.generation.prompts import PromptBatch
from offramp.decoding.openings import FEWEST_NEW_TOKENS
from offramp.defaults import FEWEST_PROMPTS, FEWEST_VISITS, SEED
from offramp.errors import InputError, ModelError, OfframpError
from offramp.models.devices import CPU
from offramp.policies.prices import sizes_of_heads
from offramp.scoring.estimate import Estimate
from offramp.timing.contenders import FAILURES, GENERATE, ONE_CALL, Extent, again, searched_of, why
from offramp.timing.decoder import DecodedBatch, Decoder, LayerCount, Price, Setting, left_out, parted
from offramp.timing.defects import Difference, MachineLoad, defects_of, describe, judge_a_a, warnings_of
from offramp.timing.forecast import counted_plain, counted_policy, records_of
from offramp.timing.ratios import ONE, Pair, cluster_of, ratio_of, seconds_over
from offramp.timing.results import NO_TIME, PLAIN, Contender, Counted
from offramp.timing.stopping import Budget, TimeLimits, answer_of, resolution_of
from offramp.timing.turns import RARELY, Turns, Visit, pairs_of, unpriced, visit
from offramp.tracing.progress import say

SPARE = 1.25
"""So many times the seconds given a timing may take; where it takes longer, that is said before it."""
TRIAL_SHARE = 0.25
"""Of the seconds that are left when contenders are tried out: who would come later is left out."""
SEARCH_SHARE = 0.25
"""Of the seconds, that searching the best draft lengths may take."""
PILOT_FROM = 0.25
"""A pilot that begins when more than this share of the seconds is spent is short."""

LAST_TO_GO = 3
"""From this place of `spared` on fewer tokens are decoded before one is left out."""

QUESTIONED = ("policy", "combination")
"""Roles of contenders whose speed is asked about."""

Progress = Callable[[int, int], None]
"""Called with the hundredths of the seconds that are spent, and 100."""

Figures = tuple[Contender, Sequence[str]]
"""A contender with what is wrong with it, in sentences."""

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_HIGH_WATER_MARK = "5"


@contextmanager
def new_garbage_alone() -> Iterator[None]:
    """Collect once what there is, and then only look through what is made from here on.

    All that torch and transformers import is looked through in a quarter of a second, by every contender.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def start_peak(device: torch.device) -> Callable[[], int | None]:
    """Start to watch; what is returned gives the peak since then, in bytes above the start, None if unknown.

    On an accelerator the largest sum of tensors, where its allocator keeps that. On Linux the process's
    high-water mark of resident memory (VmHWM of proc(5), reset by writing 5 to clear_refs), to the page;
    blocks that the allocator kept from earlier work and hands out again do not show, so what it keeps is
    given back first where it can be.
    """
    gc.collect()
    if device.type in ("cuda", "xpu"):
        module = getattr(torch, device.type)
        module.reset_peak_memory_stats(device)
        held = module.memory_allocated(device)
        return lambda: int(module.max_memory_allocated(device)) - held
    if device.type != CPU:
        return lambda: None
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
    if trim is not None:
        trim(0)
    try:
        CLEAR.write_text(RESET_HIGH_WATER_MARK)
    except OSError:  # not Linux, or not allowed
        return lambda: None
    before = _status("VmRSS")
    return lambda: max(_status("VmHWM") - before, 0)


def _status(name: str) -> int:
    """A size in /proc/self/status, in bytes."""
    lines = STATUS.read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


TRIAL_TOKENS = 12
"""New tokens of a trial, at most."""


@dataclass(frozen=True)
class TriedOut:
    """One untimed decoding of the first batch of prompts."""

    decoded: DecodedBatch
    counted: int
    """Rows times layers that hooks saw."""
    peak_memory_bytes: int | None
    """Above what was held before, None if unknown."""
    seconds: float
    """From its first token's prompt to the end, with all that is done around it."""

    def seconds_for(self, new_tokens: int) -> float:
        """About what decoding so many tokens takes."""
        found = self.decoded
        timed, made = found.first_seconds + found.seconds, len(found.tokens[0])
        each = found.seconds / max(1, made - found.first_tokens)
        around = max(1.0, self.seconds / timed) if timed > 0.0 else 1.0
        return around * (found.first_seconds + each * max(0, new_tokens - found.first_tokens))


def spared(decoder: Decoder) -> int:
    """Who is left out first where there is no time for all: the lower, the sooner; 0 for who never is.

    First what drafts with exits, then plain decoders beside our loop and `generate()`; then fewer tokens are
    decoded; then further policies and combinations go, last what needs no exits, since a speed is one over
    the best of those.
    """
    if decoder.required or decoder.name == GENERATE:
        return 0
    if decoder.full_depth and decoder.role not in QUESTIONED:
        return 4
    return {PLAIN: 2, **dict.fromkeys(QUESTIONED, 3)}.get(decoder.role, 1)


def leaving(decoders: Sequence[Decoder]) -> list[Decoder]:
    """Who may be left out, the first to go first: of several alike the last one, never the first question."""
    asked = [decoder for decoder in decoders if decoder.role in QUESTIONED][:1]
    able = [decoder for decoder in reversed(decoders) if spared(decoder) and decoder not in asked]
    return sorted(able, key=spared)


@new_garbage_alone()
def try_out(
    decoders: Sequence[Decoder], setting: Setting, *, warm_up_tokens: int, budget: Budget
) -> tuple[dict[str, TriedOut], list[Contender]]:
    """Trials by name, and the contenders that failed in theirs, or that there was no time for.

    warm_up_tokens: decoded before.

    Raises what a required one raises; an error of transformers' as a ModelError.
    """
    trials, failed = {}, []
    tokens, prompts = min(setting.new_tokens, TRIAL_TOKENS), setting.prompts[0]
    able, end = leaving(decoders), budget.until(TRIAL_SHARE)
    # Who is left out last is tried first.
    for decoder in [*(decoder for decoder in decoders if decoder not in able), *reversed(able)]:
        if decoder in able and budget.spent > end:
            failed.append(no_time(decoder))
            continue
        model = (decoder.on or setting).model
        try:
            # What a decoder sets up once (which layers can be cut, say) would be counted as layers of its
            # first tokens.
            decoder.decode(prompts, min(tokens, warm_up_tokens))
            count, peak = LayerCount(model.stack), start_peak(torch.device(prompts.ids.device))
            began = budget.spent
            with count.attached():
                decoded = decoder.decode(prompts, tokens)
            trials[decoder.name] = TriedOut(decoded, count.rows, peak(), budget.spent - began)
        except FAILURES as error:
            if not decoder.required:
                failed.append(left_out(decoder.name, decoder.role, why(error), full_depth=decoder.full_depth))
            elif isinstance(error, OfframpError):
                raise
            else:
                raise ModelError(
                    f"{decoder.name} fails on this model: {why(error)}",
                    where=str(model.hf.config.name_or_path),
                    fix="this model cannot be timed; trace and replay it instead",
                ) from error
    return trials, failed


def no_time(decoder: Decoder) -> Contender:
    """Left out because others took the time."""
    return left_out(decoder.name, decoder.role, NO_TIME, full_depth=decoder.full_depth)


PILOT_TOKENS, PILOT_VISITS = 8, 2
MARGIN = 0.05
"""By how much `generate()` in one call must beat the fastest in steps to be the baseline instead: what so few
whole decodings can tell apart."""


@dataclass(frozen=True)
class Pilot:
    """The plain decoder that came out the fastest."""

    plain: str
    seconds: dict[str, float]
    """Per token of each."""
    notes: tuple[str, ...] = ()
    """What else it showed."""


def choose_plain(
    decoders: Sequence[Decoder],
    prompts: PromptBatch,
    new_tokens: int,
    *,
    visits: int = PILOT_VISITS,
    seed: int = SEED,
    seconds_per_token: float = 0.0,
) -> Pilot:
    """Time plain decoders in turns, and take the fastest. seconds_per_token: as of `visit`.

    Of those that decode in steps the one with the shortest blocks; `generate()` in one call only if it is
    faster than that by more than `MARGIN`, since it cannot take turns.

    Raises what a decoder raises.
    """
    order = random.Random(seed)
    tokens = min(new_tokens, PILOT_TOKENS)
    timed = [visit(decoders, prompts, tokens, order, seconds_per_token) for _ in range(visits)]
    seconds = {decoder.name: _seconds([decoded[decoder.name] for decoded in timed]) for decoder in decoders}
    in_steps = [decoder.name for decoder in decoders if decoder.start is not None]
    plain = min(in_steps, key=lambda name: seconds[name])
    said = []
    if ONE_CALL in seconds:
        if _over(timed, ONE_CALL, plain) < 1.0 / (1.0 + MARGIN):
            plain = ONE_CALL
            said.append(f"{plain} was clearly the fastest in a pilot; it cannot take turns in blocks")
        if GENERATE in seconds:
            more = _over(timed, ONE_CALL, GENERATE) - 1.0
            way = "more" if more > 0.0 else "less"
            said.append(f"in one call generate() took {100 * abs(more):.1f} % {way} than in steps")
    return Pilot(plain, seconds, tuple(said))


def given_plain(decoders: Sequence[Decoder], name: str) -> Pilot:
    """The plain decoder that was chosen elsewhere. Raises InputError if it is not at hand."""
    names = [decoder.name for decoder in decoders]
    if name not in names:
        raise InputError(
            f"there is no plain decoder {name!r} here",
            where="plain",
            fix=f"choose one of: {', '.join(names)}",
        )
    return Pilot(name, {})


def _seconds(timed: Sequence[DecodedBatch]) -> float:
    """Per token: median over blocks, which a burst of other work spoils; of whole decodings without any."""
    return median(
        [seconds for decoded in timed for seconds in decoded.blocks or (decoded.seconds_per_token,)]
    )


def _over(visits: Sequence[Visit], above: str, below: str) -> float:
    """Seconds of the one over seconds of the other, whole decodings side by side."""
    pairs = [pair for decoded in visits for pair in pairs_of(decoded[above], decoded[below])]
    return math.exp(cluster_of(0, 0, pairs).log_ratio)


class Session:
    """The contenders of a setting on their way through a measurement.

    decoders: that were tried out, in that order. missing: those that are left out, with their reasons.
    together: as of `Turns`. budget: that began when the model was loaded, None for one from now on. judged,
    parts_of: whether answers are judged afterwards, and on how many prompts each policy is decoded once more.
    price, prices: as of `Turns`.
    spent: seconds, from the budget's begin to the last block.
    """

    def __init__(
        self,
        setting: Setting,
        extent: Extent,
        limits: TimeLimits,
        *,
        together: bool = False,
        seed: int = SEED,
        progress: Progress | None = None,
        budget: Budget | None = None,
        judged: bool = False,
        parts_of: int = 0,
        price: Price = unpriced,
        prices: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        self.setting, self.extent, self.limits, self.seed = setting, extent, limits, seed
        self.decoders: list[Decoder] = []
        self.missing: list[Contender] = []
        self.spent = 0.0
        self._together, self._progress = together, progress
        self._load, self._budget = MachineLoad(), budget or Budget(limits.seconds)
        self._judged, self._parts_of, self._price, self._prices = judged, parts_of, price, prices or {}
        self._trials: dict[str, TriedOut] = {}
        self._said: list[str] = []

    def run(self, candidates: Iterable[Decoder | Contender]) -> None:
        """Time them. Raises what a required one raises, InputError if the plain decoder that was chosen for
        all is none of them.
        """
        # 1. Everybody decodes once, untimed; who fails is left out, or ends it.
        self._try_out(candidates)
        self._try_out(self._searched())
        self._tell()
        beyond = self._plan()
        # 2. A first look at the plain decoders says which of them is timed twice.
        plain = [decoder for decoder in self.decoders if decoder.role == PLAIN]
        about = min(self._trials[one.name].decoded.seconds_per_token for one in plain)
        if self.extent.plain is not None:
            self._pilot = given_plain(plain, self.extent.plain)
        else:
            visits = PILOT_VISITS if self._budget.used < PILOT_FROM else 1
            prompts, new_tokens = self.setting.prompts[0], self.setting.new_tokens
            self._pilot = choose_plain(
                plain, prompts, new_tokens, visits=visits, seed=self.seed, seconds_per_token=about
            )
        # 3. All take turns. Which plain decoder is the fastest is known when all of them have.
        baseline = next(decoder for decoder in plain if decoder.name == self._pilot.plain)
        others = [decoder for decoder in plain if decoder.start is not None and decoder is not baseline]
        asked = [decoder for decoder in self.decoders if decoder.role in QUESTIONED]
        beside = [decoder for decoder in self.decoders if decoder.role not in (PLAIN, *QUESTIONED)]
        self._turns = Turns(
            [*asked, baseline, again(baseline), *others, *beside],
            self.extent.plain,
            [decoder.name for decoder in asked],
            self.setting.prompts,
            self.setting.new_tokens,
            self.limits.worth,
            self.limits.rounds,
            self._together,
            self.extent.races,
            self._price,
            about,
            self._prices,
        )
        self._turns.take(
            self._budget,
            looks=self.limits.looks,
            seed=self.seed,
            visited=self._tell,
            afterwards=self._afterwards,
            fewest=self._fewest,
            beyond=beyond,
        )
        self.spent = self._budget.spent

    @property
    def _fewest(self) -> int:
        """Visits that an answer needs, as far as there are prompts; of no seconds at all the least."""
        some = min(FEWEST_PROMPTS, len(self.setting.prompts)) if self._budget.seconds else 0
        return max(FEWEST_VISITS, some)

    def _plan(self) -> float:
        """Leave out whom there is no time for, and say so where even the least takes too long.

        All that is to come is priced by the trials. Returns the seconds that the least may take beyond those
        given.
        """
        seconds, asked = self._budget.seconds, self.setting.new_tokens
        if not seconds:
            return 0.0
        for decoder in [*leaving(self.decoders), None]:
            if decoder is None or spared(decoder) >= LAST_TO_GO:
                self._shorten()
            if decoder is None or self._budget.has(self._needed()):
                break
            self.decoders.remove(decoder)
            self.missing.append(no_time(decoder))
        made, least = self.setting.new_tokens, self._budget.spent + self._needed()
        if made < asked:
            self._said.append(f"{made} new tokens instead of {asked}, for which there was no time")
        if least <= SPARE * seconds:
            return (SPARE - 1.0) * seconds
        self._said.append(
            f"the smallest timing takes about {least:.0f} s, not the {seconds:g} s given: "
            f"{len(self.decoders)} contenders decode {made} tokens after each of {self._fewest} prompts"
        )
        say(self._said[-1])
        return math.inf

    def _shorten(self) -> None:
        """Decode as many tokens as there is time for, by halves, and no fewer than FEWEST_NEW_TOKENS."""
        while (made := self.setting.new_tokens) > FEWEST_NEW_TOKENS and not self._budget.has(self._needed()):
            fewer = max(FEWEST_NEW_TOKENS, made // 2)
            cells = tuple(replace(cell, new_tokens=fewer) for cell in self.setting.cells)
            self.setting = replace(self.setting, cells=cells)

    def _needed(self) -> float:
        """Seconds of the pilot, of the fewest visits, and of what comes after them."""
        plain = [decoder for decoder in self.decoders if decoder.role == PLAIN]
        tokens, there = self.setting.new_tokens, len(self.setting.prompts)
        visits = min(self._fewest, (self.limits.rounds or FEWEST_VISITS) * there)
        piloted = sum(self._seconds_for(one, min(tokens, PILOT_TOKENS)) for one in plain)
        in_turns = [one for one in self.decoders if one.role != PLAIN or one.start is not None]
        again = max(self._seconds_for(one, tokens) for one in plain)
        visit = sum(self._seconds_for(one, tokens) for one in in_turns)
        visit += again / (RARELY if self.extent.races else 1)
        return PILOT_VISITS * piloted + visits * visit + self._afterwards(min(visits, there))

    def _seconds_for(self, decoder: Decoder, new_tokens: int) -> float:
        """Of decoding one of the prompts, by its trial."""
        return self._trials[decoder.name].seconds_for(new_tokens)

    def _afterwards(self, prompts: int) -> float:
        """Seconds of judging so many prompts' answers, and of the parts of policies.

        An answer is read by the full model like a prompt that is longer by it, once by itself and once beside
        the full model's own. What a combination with exits chooses is decoded again.
        """
        tokens, batch = self.setting.new_tokens, self.setting.prompts[0]
        read = self._trials[ONE_CALL].decoded.first_seconds * (1.0 + tokens / batch.ids.shape[1])
        found = 0.0
        for decoder in self.decoders:
            if self._judged and decoder.role in QUESTIONED:
                again = decoder.role != "policy" and not decoder.full_depth
                found += prompts * (2.0 * read + again * self._seconds_for(decoder, tokens))
            if decoder.role == "policy":
                found += min(self._parts_of, prompts) * self._seconds_for(decoder, tokens)
        return found

    def _try_out(self, candidates: Iterable[Decoder | Contender]) -> None:
        decoders, missing = parted(candidates)
        trials, failed = try_out(
            decoders, self.setting, warm_up_tokens=self.extent.warm_up_tokens, budget=self._budget
        )
        self._trials |= trials
        self.missing += [*missing, *failed]
        self.decoders += [decoder for decoder in decoders if decoder.name in trials]

    def _searched(self) -> Iterable[Decoder | Contender]:
        """Those that are searched for, if that takes no more than a share of the seconds."""
        tried = [trial.decoded for trial in self._trials.values()]
        took = [decoded.first_seconds + decoded.seconds for decoded in tried]
        seconds = self._budget.seconds
        most = math.inf if seconds is None else min(SEARCH_SHARE * seconds, seconds - self._budget.spent)
        return searched_of(self.setting, self.extent, sum(took) / len(took), most)

    def _tell(self) -> None:
        if self._progress is not None and self._budget.seconds is not None:
            self._progress(round(min(100 * self._budget.used, 100)), 100)

    @cached_property
    def decoded(self) -> dict[str, dict[int, DecodedBatch]]:
        """What each contender decoded, by batch of prompts: the first time of each."""
        found: dict[str, dict[int, DecodedBatch]] = {}
        for place, visited in self._turns.visits:
            for name, decoded in visited.items():
                found.setdefault(name, {}).setdefault(place, decoded)
        return found

    @property
    def plain(self) -> str:
        """The plain decoder that all are held against."""
        return self._turns.plain

    def fields(self, further: Mapping[str, Any]) -> dict[str, Any]:
        """What a result of any kind says: of all that took part (`contenders`) and of the measurement.

        further: circumstances beside the machine's.
        """
        turns, pilot = self._turns, self._pilot
        figures = [self._in_turns(decoder) for decoder in turns.decoders if decoder.name in self.decoded] + [
            self._only_piloted(decoder)
            for decoder in self.decoders
            if decoder.name not in self.decoded and decoder.name in pilot.seconds
        ]
        contenders, defects, a_a = judge_a_a(
            [contender for contender, _ in figures], [sentence for _, wrong in figures for sentence in wrong]
        )
        own = {"seed": self.seed, "budget_seconds": self.limits.seconds}
        circumstances = describe(self.setting.model, self._load, {**own, **further})
        batches = {place for place, _ in turns.visits}
        said = [decoder.note for decoder in self.decoders if decoder.note is not None]
        said += [
            f"{name} was slower than {faster} on {len(self.decoded[name])} prompts, and was timed on no more"
            for name, faster in turns.beaten.items()
        ]
        return {
            "contenders": contenders,
            "new_tokens": self.setting.new_tokens,
            "prompts": min(self.setting.distinct, self.setting.batch * len(batches)),
            "rounds": -(-len(turns.visits) // len(batches)),
            "worth": turns.worth,
            "plain": turns.plain,
            "defects": defects,
            "a_a": a_a,
            "stopped": turns.stopped,
            "seconds_spent": self.spent,
            "circumstances": circumstances,
            "notes": (*self._said, *pilot.notes, *said, *warnings_of(circumstances)),
        }

    def _in_turns(self, decoder: Decoder) -> Figures:
        """One contender that was timed."""
        turns, name = self._turns, decoder.name
        timed = [(place, found[name]) for place, found in turns.visits if name in found]
        over, series = decoder.repeats or turns.plain, turns.series[name]
        seconds, ratio = self._seconds_of(over), ONE
        if name != over:
            found = series.over_plain(over) if decoder.repeats is None else series.ratio(over)
            assert found is not None  # both were visited
            ratio = found
        contender, defects = self._described(
            decoder, timed, seconds if name == over else seconds_over(seconds, ratio)
        )
        contender = replace(
            contender,
            answer="defect" if defects else answer_of(ratio, turns.worth, series.clusters(over)),
            ratio=ratio,
            resolution=resolution_of(ratio),
            level=series.level,
            clusters=() if name in turns.beaten else series.clusters(over),
            prices=series.prices,
            samples=tuple(decoded.seconds_per_token for _, decoded in timed),
            first_token_seconds=median(decoded.first_seconds for _, decoded in timed),
            counted=self._counted(decoder, [decoded for _, decoded in timed]),
        )
        return contender, defects

    def _only_piloted(self, decoder: Decoder) -> Figures:
        """A plain decoder that cannot take turns, and was not clearly the fastest of the pilot."""
        seconds, plain = self._pilot.seconds, self._turns.plain
        ratio = Estimate(seconds[plain] / seconds[decoder.name])
        contender, defects = self._described(decoder, [], seconds_over(self._seconds_of(plain), ratio))
        return replace(contender, ratio=ratio), defects

    def _described(
        self, decoder: Decoder, timed: Sequence[tuple[int, DecodedBatch]], seconds: Estimate[float]
    ) -> Figures:
        """What is known of any contender: defects, and what its trial ran. seconds: per token."""
        trial = self._trials[decoder.repeats or decoder.name]
        same, difference = self._compared(decoder, trial, timed)
        claimed = trial.decoded.claimed_layers
        defects = defects_of(decoder.name, decoder.output_must_match, difference, claimed, trial.counted)
        layers = (decoder.on or self.setting).model.layers
        contender = Contender(
            name=decoder.name,
            role=decoder.role,
            answer="defect" if defects else "unresolved",
            seconds_per_token=seconds,
            tokens_per_second=1.0 / seconds.value,
            peak_memory_bytes=trial.peak_memory_bytes,
            layers_per_token=self._layers_per_token(layers, trial.decoded, trial.counted),
            claimed_layers_per_token=self._layers_per_token(layers, trial.decoded, claimed),
            same_output=same,
            output_must_match=decoder.output_must_match,
            full_depth=decoder.full_depth,
        )
        return contender, defects

    def _seconds_of(self, name: str) -> Estimate[float]:
        """Of a plain decoder, per token: mean over prompts of the mean of blocks."""
        pairs: dict[int, list[Pair]] = {}
        for place, found in self._turns.visits:
            blocks = found[name].blocks or (found[name].seconds_per_token,)
            pairs.setdefault(place, []).extend((1.0, seconds) for seconds in blocks)
        return seconds_over(ONE, ratio_of([cluster_of(0, place, blocks) for place, blocks in pairs.items()]))

    def _layers_per_token(self, layers: int, decoded: DecodedBatch, ran: int | None) -> float | None:
        """Layers of a fed new token, from rows times layers of a trial (ran), the prompt's run taken away.

        The last new token is never fed. An assistant's own run over the prompt counts as work on new tokens.
        None where nothing says, and of what decodes elsewhere: the model's layers ran for nothing of it.
        """
        if not ran:
            return None
        prompt = self.setting.prompts[0].ids
        fed = len(prompt) * (len(decoded.tokens[0]) - 1)
        return (ran - prompt.numel() * layers) / fed

    def _counted(self, decoder: Decoder, timed: Sequence[DecodedBatch]) -> Counted | None:
        """What a token runs, None where nothing says."""
        setting, records = decoder.on or self.setting, records_of(timed)
        if records:
            fitted = sizes_of_heads(setting.main.heads, mapped=True)
            return counted_policy(records, setting.model.shape, fitted, short_list=decoder.short_list)
        # Who claims anything without a record runs the whole model for every token.
        claims = self._trials[decoder.repeats or decoder.name].decoded.claimed_layers is not None
        return counted_plain(setting) if claims else None

    def _compared(
        self, decoder: Decoder, trial: TriedOut, timed: Sequence[tuple[int, DecodedBatch]]
    ) -> tuple[float, Difference | None]:
        """Share of rows that always equal what a lossless decoder gives, and the first token of any that does
        not."""
        own = decoder.own_plain if decoder.own_plain in self._trials else None
        expected = self.decoded[own or self._turns.plain] if timed else {}
        starts, count = dict[int, int](), 0
        for place in sorted(expected):
            starts[place] = count
            count += len(expected[place].tokens)
        unequal: dict[int, Difference] = {}

        def hold(first: int, found: DecodedBatch, right: DecodedBatch) -> None:
            for row, (tokens, wanted) in enumerate(zip(found.tokens, right.tokens, strict=True), start=first):
                at = next(
                    (at for at, pair in enumerate(zip(tokens, wanted, strict=True)) if pair[0] != pair[1]),
                    None,
                )
                if at is not None:
                    unequal.setdefault(row, Difference(row, at, tokens[at], wanted[at]))

        hold(0, trial.decoded, self._trials[own or ONE_CALL].decoded)
        for place, decoded in timed:
            hold(starts[place], decoded, expected[place])
        return 1.0 - len(unequal) / max(count, 1), unequal[min(unequal)] if unequal else None
