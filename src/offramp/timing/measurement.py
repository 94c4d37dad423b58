"""Settings measured together: tried out, piloted, timed in turns, and summed up with what they share."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from offramp.errors import OfframpError
from offramp.files import sha256_of_text
from offramp.kit.defaults import SEED
from offramp.models.process import quiet_transformers
from offramp.timing.answers import Budget, Limits
from offramp.timing.contenders import (
    ONE_CALL,
    Extent,
    Setting,
    again,
    candidates_of,
    peers_of,
)
from offramp.timing.decoder import Decoded, Decoder
from offramp.timing.defects import Load, a_a_clusters_of, describe, judge_a_a, warnings_of
from offramp.timing.figures import (
    Figures,
    Part,
    figures_of,
    only_piloted,
)
from offramp.timing.results import SHORT_LIST, BenchResult, Cluster, Contender
from offramp.timing.trial import PILOT_VISITS, Pilot, Trial, choose_plain, given_plain, try_out
from offramp.timing.turns import Group, time_groups

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


@dataclass
class Entry:
    """A setting with its contenders, on its way through a measurement.

    settings: of contenders on other models than the setting's, by name. references: whose output a lossless
    contender must give, by its name, where that is not the plain decoder's. together: as of a `Group`. error:
    what ended it before it was timed.
    """

    setting: Setting
    decoders: list[Decoder]
    missing: list[Contender]
    settings: Mapping[str, Setting] = field(default_factory=dict)
    references: Mapping[str, str] = field(default_factory=dict)
    together: bool = False
    trials: dict[str, Trial] = field(default_factory=dict)
    pilot: Pilot | None = None
    group: Group | None = None
    error: OfframpError | None = None

    @classmethod
    def of(cls, setting: Setting, extent: Extent) -> Entry:
        """With all contenders that can be tried."""
        found = list(candidates_of(setting, extent))
        decoders = [one for one in found if isinstance(one, Decoder)]
        return cls(setting, decoders, [one for one in found if isinstance(one, Contender)])

    @property
    def failure(self) -> OfframpError | None:
        """What ended it, None if it was timed."""
        return self.error or (None if self.group is None else self.group.error)

    @property
    def timed(self) -> tuple[Group, Pilot]:
        """What was timed, and what was held against."""
        assert self.group is not None  # it has no failure
        assert self.pilot is not None
        return self.group, self.pilot

    @property
    def decoded(self) -> dict[str, dict[int, Decoded]]:
        """What each contender decoded, by batch of prompts: the first time of each."""
        found: dict[str, dict[int, Decoded]] = {}
        for place, visit in self.timed[0].visits:
            for name, timed in visit.items():
                found.setdefault(name, {}).setdefault(place, timed.decoded)
        return found

    def setting_of(self, name: str) -> Setting:
        """That of one contender."""
        return self.settings.get(name, self.setting)

    def try_out(self, warm_up_tokens: int) -> None:
        """One untimed decoding by everyone; who fails is left out, or ends the entry."""
        self._try(self.decoders, warm_up_tokens)

    def invite_peers(self, budget: Budget, extent: Extent) -> None:
        """Try out what users would pick instead, if that takes no more than a share of the seconds."""
        took = [one.decoded.first_seconds + one.decoded.seconds for one in self.trials.values()]
        most = math.inf if budget.seconds is None else PEERS_SHARE * budget.seconds
        found = list(peers_of(self.setting, sum(took) / len(took), most, extent.invited))
        self.missing += [one for one in found if isinstance(one, Contender)]
        peers = [one for one in found if isinstance(one, Decoder)]
        self.decoders += peers
        self._try(peers, extent.warm_up_tokens)

    def _try(self, decoders: Sequence[Decoder], warm_up_tokens: int) -> None:
        try:
            # Layers are counted on the model that a contender decodes with.
            for _, alike in itertools.groupby(decoders, lambda one: id(self.setting_of(one.name).model)):
                some = list(alike)
                trials, failed = try_out(
                    some,
                    self.setting.prompts[0],
                    self.setting.new_tokens,
                    self.setting_of(some[0].name).model.stack,
                    warm_up_tokens=warm_up_tokens,
                )
                self.trials |= trials
                self.missing += failed
        except OfframpError as error:
            self.error = error
            return
        self.decoders = [decoder for decoder in self.decoders if decoder.name in self.trials]

    def take_part(
        self, extent: Extent, limits: Limits, budget: Budget, pilot: Pilot | None, seed: int
    ) -> Pilot | None:
        """Choose the plain decoder that is timed twice, unless a pilot has, and line up the others."""
        setting = self.setting
        plain = [one for one in self.decoders if one.role == "plain"]
        try:
            if extent.plain is not None:
                pilot = given_plain(plain, extent.plain)
            elif pilot is None:
                visits = PILOT_VISITS if budget.used < PILOT_FROM else 1
                pilot = choose_plain(plain, setting.prompts[0], setting.new_tokens, visits=visits, seed=seed)
            else:
                given_plain(plain, pilot.plain)
        except OfframpError as error:
            self.error = error
            return pilot
        self.pilot = pilot
        baseline = next(one for one in plain if one.name == pilot.plain)
        # Which one is the fastest is known when all of them have taken turns.
        others = [one for one in plain if one.start is not None and one is not baseline]
        asked = [one for one in self.decoders if one.role in QUESTIONED]
        beside = [one for one in self.decoders if one.role in BESIDE]
        self.group = Group(
            [*asked, baseline, again(baseline), *others, *beside],
            extent.plain,
            [one.name for one in asked],
            setting.prompts,
            setting.new_tokens,
            limits.worth,
            limits.rounds,
            self.together,
        )
        return pilot

    def figures(self) -> list[Figures]:
        """Of all that took part, and of plain decoders that were in the pilot only."""
        group, pilot = self.timed
        decoded = self.decoded
        timed = [figures_of(self._part(one, decoded), group) for one in group.decoders if one.name in decoded]
        aside = [one for one in self.decoders if one.name not in decoded and one.name in pilot.seconds]
        return [*timed, *(only_piloted(self._part(one, None), pilot, group) for one in aside)]

    def _part(self, decoder: Decoder, decoded: Mapping[str, Mapping[int, Decoded]] | None) -> Part:
        """decoded: None for a contender that was not timed."""
        group, _ = self.timed
        own = self.references.get(decoder.name)
        own = own if own in self.trials else None
        expected = {} if decoded is None else decoded[own or group.plain]
        return Part(
            self.setting_of(decoder.name),
            decoder,
            self.trials[decoder.repeats or decoder.name],
            {place: one.tokens for place, one in expected.items()},
            self.trials[own or ONE_CALL].decoded,
        )

    def shared(
        self,
        figures: Sequence[Figures],
        a_a_clusters: Sequence[Cluster],
        circumstances: Mapping[str, Any],
        notes: Sequence[str] = (),
    ) -> tuple[tuple[Contender, ...], dict[str, Any]]:
        """The contenders as answered, and what a result of any kind says of the measurement.

        a_a_clusters: of the plain decoder against itself, over all that was measured together. notes: further
        ones.
        """
        group, pilot = self.timed
        contenders, defects, a_a = judge_a_a(
            [one.contender for one in figures],
            [sentence for one in figures for sentence in one.defects],
            a_a_clusters,
        )
        batches = {place for place, _ in group.visits}
        said = [one.note for one in self.decoders if one.note is not None]
        return contenders, {
            "new_tokens": self.setting.new_tokens,
            "prompts": min(self.setting.distinct, len(self.setting.prompts[0].ids) * len(batches)),
            "rounds": -(-len(group.visits) // len(batches)),
            "worth": group.worth,
            "plain": group.plain,
            "defects": defects,
            "a_a": a_a,
            "stopped": group.stopped,
            "circumstances": circumstances,
            "notes": (*pilot.notes, *said, *notes, *warnings_of(circumstances)),
        }


@dataclass(frozen=True)
class Measurement:
    """A bench result, and what was decoded: by contender's name, then by batch of prompts, once each."""

    result: BenchResult
    setting: Setting
    decoded: Mapping[str, Mapping[int, Decoded]]


def time_entries(
    entries: Sequence[Entry],
    *,
    extent: Extent,
    limits: Limits,
    budget: Budget,
    seed: int = SEED,
    progress: Progress | None = None,
) -> None:
    """Try out, pilot and time all entries; what each is worth, or why it failed, is then theirs to say.

    Their batches of prompts take turns; the pilot that finds the plain decoder to time twice is the first's.
    budget: of the seconds, which counts since it was made.
    """

    def visited() -> None:
        if progress is not None and limits.seconds is not None:
            progress(round(min(100 * budget.used, 100)), 100)

    for place, entry in enumerate(entries):
        # Settings share a model, and what is set up once.
        entry.try_out(0 if place else extent.warm_up_tokens)
        if extent.peers and entry.error is None:
            entry.invite_peers(budget, extent)
        visited()
    pilot = None
    for entry in entries:
        if entry.error is None:
            pilot = entry.take_part(extent, limits, budget, pilot, seed)
    groups = [entry.group for entry in entries if entry.group is not None]
    time_groups(groups, budget=budget, looks=limits.looks, seed=seed, visited=visited)


def run_together(
    settings: Sequence[Setting],
    *,
    extent: Extent,
    limits: Limits,
    seed: int = SEED,
    progress: Progress | None = None,
) -> list[Measurement | OfframpError]:
    """`run` for several settings of one model at once, or what made one of them fail.

    Each has its own prompts and policies; the same decoder timed twice is compared over all of them.
    """
    with quiet_transformers():
        load, budget = Load(), Budget(limits.seconds)
        entries = [Entry.of(setting, extent) for setting in settings]
        time_entries(entries, extent=extent, limits=limits, budget=budget, seed=seed, progress=progress)
        spent = budget.spent
        figures = {place: entry.figures() for place, entry in enumerate(entries) if entry.failure is None}
        a_a_clusters = _pooled(
            [a_a_clusters_of([one.contender for one in found]) for found in figures.values()]
        )
        return [
            entry.failure
            or _measurement(
                entry, figures[place], a_a_clusters, _circumstances(entry, load, limits, seed), spent
            )
            for place, entry in enumerate(entries)
        ]


def _pooled(a_a_clusters: Sequence[Sequence[Cluster]]) -> tuple[Cluster, ...]:
    """Clusters of several settings, whose prompts are different ones."""
    most = max((len(clusters) for clusters in a_a_clusters), default=0)
    return tuple(
        replace(cluster, prompt=place * most + cluster.prompt)
        for place, clusters in enumerate(a_a_clusters)
        for cluster in clusters
    )


def _circumstances(entry: Entry, load: Load, limits: Limits, seed: int) -> dict[str, object]:
    setting = entry.setting
    further = {
        "seed": seed,
        "budget_seconds": limits.seconds,
        "policy_fingerprints": {cell.name: sha256_of_text(str(cell.policy)) for cell in setting.cells},
        "heads_fingerprint": None if setting.main.heads is None else setting.main.heads.fingerprint,
    }
    return describe(setting.model, load, further)


def _measurement(
    entry: Entry,
    figures: Sequence[Figures],
    a_a_clusters: Sequence[Cluster],
    circumstances: Mapping[str, object],
    spent: float,
) -> Measurement:
    setting, main = entry.setting, entry.setting.main
    pooled = len(a_a_clusters) > len(a_a_clusters_of([one.contender for one in figures]))
    said = f"the same decoder twice is compared on all texts together: {len(a_a_clusters)} prompts"
    contenders, shared = entry.shared(figures, a_a_clusters, circumstances, [said] if pooled else [])
    result = BenchResult(
        model=setting.model.shown_name,
        policy=str(main.policy),
        kv=main.kv,
        batch=len(setting.prompts[0].ids),
        batching=main.batching,
        contenders=(*contenders, *entry.missing),
        seconds_spent=spent,
        **shared,
    )
    return Measurement(result, setting, entry.decoded)
