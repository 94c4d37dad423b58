"""From what combinations decoded to their figures: speed, product, interaction, and a verdict on the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from offramp.decoding.bench.acceleration import decoder_of, transforms_of
from offramp.decoding.bench.combine_contenders import Planned
from offramp.decoding.bench.combined import PLAIN_NAME, Combination, CombineResult, OnTop, Quality
from offramp.decoding.bench.contenders import GENERATE, Setting
from offramp.decoding.bench.entrant import Entrant
from offramp.decoding.bench.gains import Seconds, gains_of
from offramp.decoding.bench.ratios import median, median_ratio, spread
from offramp.decoding.bench.results import Contender
from offramp.decoding.bench.summary import answers_of, figures_of, twin_ratios
from offramp.decoding.bench.turns import Samples, Trial
from offramp.decoding.bench.validity import Difference, Evidence, judge

Answers = tuple[tuple[int, ...], ...]
"""New tokens of every prompt."""


@dataclass(frozen=True)
class Timed:
    """What took turns and what it decoded.

    planned: every combination but the plain one. plain: plain decoders of the untransformed model, and one of
    them once more. trials, samples: by contender's name. left_out: those that are not among them.
    """

    planned: tuple[Planned, ...]
    plain: tuple[Entrant, ...]
    trials: Mapping[str, Trial]
    samples: Samples
    left_out: tuple[Contender, ...]
    rounds_asked: int
    budget_seconds: float | None
    circumstances: Mapping[str, Any]

    def seconds(self, name: str) -> Seconds:
        """Seconds per token, in the order of rounds and prompts."""
        return [one.seconds_per_token for one in self.samples[name]]

    @property
    def fastest_plain(self) -> str:
        """The plain decoder of the untransformed model with the smallest median."""
        names = [one.name for one in self.plain if one.role == "plain"]
        return min(names, key=lambda name: median(self.seconds(name)).value)

    def answers(self, name: str, batches: int) -> tuple[Answers, ...]:
        """New tokens that a contender gave, by batch of prompts."""
        return tuple(one.tokens for one in answers_of(self.trials[name], self.samples[name], batches))

    def contender(self, one: Planned) -> Entrant | Contender:
        """A combination's entrant, or why it was left out."""
        if isinstance(one.found, Contender) or one.name in self.trials:
            return one.found
        return next(missing for missing in self.left_out if missing.name == one.name)


def summarise_combined(
    base: Setting,
    timed: Timed,
    qualities: Mapping[str, Quality],
    *,
    accelerations: Mapping[str, str],
    excluded: tuple[str, ...],
    workload: str,
    floor: float,
    notes: tuple[str, ...],
) -> CombineResult:
    """Figures and verdict. qualities: by combination's name."""
    figures = _Figures(base, timed)
    plain = timed.fastest_plain
    combinations = [
        Combination(
            PLAIN_NAME, (), replace(figures.contenders[plain], name=PLAIN_NAME), quality=qualities[PLAIN_NAME]
        ),
        *(_combination(one, figures, qualities.get(one.name)) for one in timed.planned),
    ]
    ratios = twin_ratios(timed.samples)
    a_a, pairs = median(ratios.tolist()), len(ratios)
    evidence = Evidence(
        tuple(figures.contenders.values()),
        a_a,
        spread(ratios),
        pairs,
        figures.differences,
        timed.circumstances,
    )
    validity, reasons, warnings = judge(evidence)
    rounds = pairs // len(base.prompts)
    said = [*notes, *warnings, *(one.note for one in _entrants(timed) if one.note is not None)]
    if rounds < timed.rounds_asked:
        said.append(f"{rounds} of {timed.rounds_asked} rounds fitted into {timed.budget_seconds:g} seconds")
    known = {one.name for one in timed.planned}
    return CombineResult(
        model=base.model.name,
        accelerations=dict(accelerations),
        workload=workload,
        new_tokens=base.new_tokens,
        prompts=base.distinct,
        rounds=rounds,
        validity=validity,
        reasons=reasons,
        plain=plain,
        combinations=tuple(combinations),
        others=(
            *(figures.contenders[one.name] for one in timed.plain),
            *(one for one in timed.left_out if one.name not in known),
        ),
        a_a=a_a,
        floor=floor,
        circumstances=timed.circumstances,
        excluded=excluded,
        notes=tuple(said),
    )


def _entrants(timed: Timed) -> list[Entrant]:
    return [one.found for one in timed.planned if isinstance(one.found, Entrant) and one.name in timed.trials]


class _Figures:
    """Contenders and differences of everyone that was timed, by name."""

    def __init__(self, base: Setting, timed: Timed) -> None:
        self.timed, self.plain = timed, timed.seconds(timed.fastest_plain)
        self.contenders: dict[str, Contender] = {}
        self.differences: dict[str, Difference] = {}
        batches = len(base.prompts)
        full = timed.answers(GENERATE, batches)
        for entrant in timed.plain:
            self._add(base, entrant, full)
        own = {
            one.key: timed.answers(one.name, batches)
            for one in timed.planned
            if decoder_of(one.parts) is None and one.name in timed.trials
        }
        for one in timed.planned:
            if isinstance(one.found, Entrant) and one.name in timed.trials:
                # What a lossless decoder must give is its own model's answer, whatever was done to the model.
                self._add(one.setting, one.found, own.get(one.key, full))

    def _add(self, setting: Setting, entrant: Entrant, full: Sequence[Answers]) -> None:
        found, difference = figures_of(
            setting,
            entrant,
            self.timed.trials[entrant.name],
            self.timed.samples[entrant.name],
            full=full,
            plain=self.plain,
        )
        self.contenders[entrant.name] = found
        if difference is not None:
            self.differences[entrant.name] = difference


def _combination(one: Planned, figures: _Figures, quality: Quality | None) -> Combination:
    timed, names = figures.timed, [part.name for part in one.parts]
    transforms = one.setting.model.identity.transforms if transforms_of(one.parts) else ()
    found = timed.contender(one)
    if isinstance(found, Contender):
        return Combination(one.name, tuple(names), found, transforms, one.policy)
    combination = Combination(
        one.name, tuple(names), figures.contenders[one.name], transforms, one.policy, quality=quality
    )
    if len(names) < 2:
        return combination
    singles = [name for name in names if name in timed.samples]
    together = timed.seconds(one.name)
    if len(singles) == len(names):
        gains = gains_of(figures.plain, [timed.seconds(name) for name in singles], together)
        combination = replace(combination, product=gains.product, interaction=gains.interaction)
    return replace(combination, on_top=tuple(_on_top(names, timed, together)))


def _on_top(names: Sequence[str], timed: Timed, together: Seconds) -> list[OnTop]:
    """What each part adds to the rest, where the rest was timed."""
    found = []
    for part in names:
        rest = " + ".join(name for name in names if name != part)
        if rest in timed.samples:
            found.append(OnTop(part, median_ratio(timed.seconds(rest), together)))
    return found
