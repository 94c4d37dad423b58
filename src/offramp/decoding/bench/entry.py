"""One setting on its way through a measurement: tried out, piloted, timed, summed up."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from offramp.decoding.bench.budget import Budget, Limits
from offramp.decoding.bench.contenders import (
    NEVER,
    ONE_CALL,
    Extent,
    Setting,
    again,
    candidates_of,
    peers_of,
)
from offramp.decoding.bench.entrant import Entrant
from offramp.decoding.bench.groups import Group
from offramp.decoding.bench.pilot import PILOT_VISITS, Pilot, choose_plain, given_plain
from offramp.decoding.bench.results import Contender
from offramp.decoding.bench.summary import Figures, Part, figures_of, only_piloted
from offramp.decoding.bench.trials import Trial, try_out
from offramp.errors import OfframpError

PEERS_SHARE = 0.15
"""Of the seconds, that peers may take before they are timed: they have a draft length to be searched."""
PILOT_FROM = 0.25
"""A pilot that begins when more than this share of the seconds is spent is short."""


@dataclass
class Entry:
    """A setting with its contenders. error: what ended it before it was timed."""

    setting: Setting
    entrants: list[Entrant]
    missing: list[Contender]
    trials: dict[str, Trial] = field(default_factory=dict)
    pilot: Pilot | None = None
    group: Group | None = None
    error: OfframpError | None = None

    @classmethod
    def of(cls, setting: Setting, extent: Extent) -> Entry:
        """With all contenders that can be tried."""
        found = list(candidates_of(setting, extent))
        entrants = [one for one in found if isinstance(one, Entrant)]
        return cls(setting, entrants, [one for one in found if isinstance(one, Contender)])

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

    def try_out(self, warm_up_tokens: int) -> None:
        """One untimed decoding by everyone; who fails is left out, or ends the entry."""
        self._try(self.entrants, warm_up_tokens)

    def invite_peers(self, budget: Budget, extent: Extent) -> None:
        """Try out what users would pick instead, if that takes no more than a share of the seconds."""
        took = [one.decoded.first_seconds + one.decoded.seconds for one in self.trials.values()]
        most = math.inf if budget.seconds is None else PEERS_SHARE * budget.seconds
        found = list(peers_of(self.setting, sum(took) / len(took), most, extent.invited))
        self.missing += [one for one in found if isinstance(one, Contender)]
        peers = [one for one in found if isinstance(one, Entrant)]
        self.entrants += peers
        self._try(peers, extent.warm_up_tokens)

    def _try(self, entrants: Sequence[Entrant], warm_up_tokens: int) -> None:
        setting = self.setting
        try:
            trials, failed = try_out(
                entrants,
                setting.prompts[0],
                setting.new_tokens,
                setting.model.stack,
                warm_up_tokens=warm_up_tokens,
            )
        except OfframpError as error:
            self.error = error
            return
        self.trials |= trials
        self.missing += failed
        self.entrants = [entrant for entrant in self.entrants if entrant.name in self.trials]

    def take_part(
        self, extent: Extent, limits: Limits, budget: Budget, pilot: Pilot | None, seed: int
    ) -> Pilot | None:
        """Choose the plain decoder, unless a pilot has, and line up the others beside it."""
        setting = self.setting
        plain = [one for one in self.entrants if one.role == "plain"]
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
        never = [one for one in plain if one.name == NEVER and extent.never and one is not baseline]
        cells = [one for one in self.entrants if one.role == "policy"]
        peers = [one for one in self.entrants if one.role == "peer"]
        self.group = Group(
            [*cells, baseline, again(baseline), *never, *peers],
            pilot.plain,
            [one.name for one in cells],
            setting.prompts,
            setting.new_tokens,
            limits.worth,
            limits.rounds,
        )
        return pilot

    def figures(self) -> list[Figures]:
        """Of all that took part, and of plain decoders that were in the pilot only."""
        group, pilot = self.timed
        reference = {place: found[group.plain].decoded.tokens for place, found in group.visits}
        seen = {name for _, found in group.visits for name in found}
        timed = [figures_of(self._part(one, reference), group) for one in group.entrants if one.name in seen]
        aside = [one for one in self.entrants if one.name not in seen and one.name in pilot.seconds]
        return [*timed, *(only_piloted(self._part(one, {}), pilot, group) for one in aside)]

    def _part(self, entrant: Entrant, reference: Mapping[int, tuple[tuple[int, ...], ...]]) -> Part:
        _, pilot = self.timed
        name = pilot.plain if entrant.role == "a/a" else entrant.name
        cell = next((cell for cell in self.setting.cells if cell.name == entrant.name), None)
        return Part(
            self.setting,
            entrant,
            self.trials[name],
            reference,
            self.trials[ONE_CALL].decoded,
            None if cell is None else cell.policy,
        )
