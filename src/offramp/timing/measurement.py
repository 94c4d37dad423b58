"""A measurement: contenders tried out, a first look at plain decoders, turns, and the figures of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from statistics import median
from typing import Any

from offramp.kit.defaults import SEED
from offramp.policies.policy_cost import sizes_of_heads
from offramp.scoring.estimate import Estimate
from offramp.timing.answers import (
    ONE,
    Budget,
    Pair,
    TimeLimits,
    answer_of,
    cluster_of,
    ratio_of,
    resolution_of,
    seconds_over,
)
from offramp.timing.contenders import ONE_CALL, Extent, again, peers_of
from offramp.timing.decoder import DecodedBatch, Decoder, Setting, parted
from offramp.timing.defects import Difference, Load, defects_of, describe, judge_a_a, warnings_of
from offramp.timing.forecast import counted_plain, counted_policy, records_of
from offramp.timing.results import PLAIN, SHORT_LIST, Contender, Counted
from offramp.timing.trial import PILOT_VISITS, TriedOut, choose_plain, given_plain, try_out
from offramp.timing.turns import Turns

PEERS_SHARE = 0.25
"""Of the seconds, that peers may take before they are timed: they have a draft length to be searched."""
PILOT_FROM = 0.25
"""A pilot that begins when more than this share of the seconds is spent is short."""

QUESTIONED = ("policy", "combination")
"""Roles of contenders whose speed is asked about."""

BESIDE = ("peer", SHORT_LIST)
"""Roles of contenders that are neither plain nor asked about."""

Progress = Callable[[int, int], None]
"""Called with the hundredths of the seconds that are spent, and 100."""

Figures = tuple[Contender, Sequence[str]]
"""A contender with what is wrong with it, in sentences."""


class Session:
    """The contenders of a setting on their way through a measurement, whose seconds count from now on.

    decoders: that were tried out, in that order. missing: those that are left out, with their reasons.
    together: as of `Turns`. spent: seconds, from now to the last block.
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
    ) -> None:
        self.setting, self.extent, self.limits, self.seed = setting, extent, limits, seed
        self.decoders: list[Decoder] = []
        self.missing: list[Contender] = []
        self.spent = 0.0
        self._together, self._progress = together, progress
        self._load, self._budget = Load(), Budget(limits.seconds)
        self._trials: dict[str, TriedOut] = {}

    def run(self, candidates: Iterable[Decoder | Contender]) -> None:
        """Time them. Raises what a required one raises, InputError if the plain decoder that was chosen for
        all is none of them.
        """
        # 1. Everybody decodes once, untimed; who fails is left out, or ends it.
        self._try_out(candidates)
        if self.extent.peers:
            self._try_out(self._peers())
        self._tell()
        # 2. A first look at the plain decoders says which of them is timed twice.
        plain = [one for one in self.decoders if one.role == PLAIN]
        if self.extent.plain is not None:
            self._pilot = given_plain(plain, self.extent.plain)
        else:
            visits = PILOT_VISITS if self._budget.used < PILOT_FROM else 1
            prompts, new_tokens = self.setting.prompts[0], self.setting.new_tokens
            self._pilot = choose_plain(plain, prompts, new_tokens, visits=visits, seed=self.seed)
        # 3. All take turns. Which plain decoder is the fastest is known when all of them have.
        baseline = next(one for one in plain if one.name == self._pilot.plain)
        others = [one for one in plain if one.start is not None and one is not baseline]
        asked = [one for one in self.decoders if one.role in QUESTIONED]
        beside = [one for one in self.decoders if one.role in BESIDE]
        self._turns = Turns(
            [*asked, baseline, again(baseline), *others, *beside],
            self.extent.plain,
            [one.name for one in asked],
            self.setting.prompts,
            self.setting.new_tokens,
            self.limits.worth,
            self.limits.rounds,
            self._together,
        )
        self._turns.take(self._budget, looks=self.limits.looks, seed=self.seed, visited=self._tell)
        self.spent = self._budget.spent

    def _try_out(self, candidates: Iterable[Decoder | Contender]) -> None:
        decoders, missing = parted(candidates)
        trials, failed = try_out(decoders, self.setting, warm_up_tokens=self.extent.warm_up_tokens)
        self._trials |= trials
        self.missing += [*missing, *failed]
        self.decoders += [decoder for decoder in decoders if decoder.name in trials]

    def _peers(self) -> Iterable[Decoder | Contender]:
        """What users would pick instead, if that takes no more than a share of the seconds."""
        took = [one.decoded.first_seconds + one.decoded.seconds for one in self._trials.values()]
        seconds = self._budget.seconds
        most = math.inf if seconds is None else PEERS_SHARE * seconds
        return peers_of(self.setting, sum(took) / len(took), most, self.extent.invited)

    def _tell(self) -> None:
        if self._progress is not None and self._budget.seconds is not None:
            self._progress(round(min(100 * self._budget.used, 100)), 100)

    @cached_property
    def decoded(self) -> dict[str, dict[int, DecodedBatch]]:
        """What each contender decoded, by batch of prompts: the first time of each."""
        found: dict[str, dict[int, DecodedBatch]] = {}
        for place, visit in self._turns.visits:
            for name, decoded in visit.items():
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
        aside = [one for one in self.decoders if one.name not in self.decoded and one.name in pilot.seconds]
        figures = [self._in_turns(one) for one in turns.decoders if one.name in self.decoded]
        figures += [self._only_piloted(one) for one in aside]
        contenders, defects, a_a = judge_a_a(
            [contender for contender, _ in figures], [sentence for _, wrong in figures for sentence in wrong]
        )
        own = {"seed": self.seed, "budget_seconds": self.limits.seconds}
        circumstances = describe(self.setting.model, self._load, {**own, **further})
        batches = {place for place, _ in turns.visits}
        said = [one.note for one in self.decoders if one.note is not None]
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
            "notes": (*pilot.notes, *said, *warnings_of(circumstances)),
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
            answer="defect" if defects else answer_of(ratio, turns.worth),
            ratio=ratio,
            resolution=resolution_of(ratio),
            level=series.level,
            clusters=series.clusters(over),
            samples=tuple(one.seconds_per_token for _, one in timed),
            first_token_seconds=median(one.first_seconds for _, one in timed),
            counted=self._counted(decoder, [one for _, one in timed]),
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
        """
        if ran is None:
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
        return counted_plain(setting.prompts, setting.new_tokens, setting.model.shape) if claims else None

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
        for place, one in timed:
            hold(starts[place], one, expected[place])
        return 1.0 - len(unequal) / max(count, 1), unequal[min(unequal)] if unequal else None
