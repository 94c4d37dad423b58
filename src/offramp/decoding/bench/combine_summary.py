"""From what combinations decoded to their figures: speed, product and interaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from offramp.decoding.bench.acceleration import EXITS, SPECULATE, decoder_of, transforms_of
from offramp.decoding.bench.clusters import combined_clusters, ratio_of
from offramp.decoding.bench.combine_contenders import Planned
from offramp.decoding.bench.combined import PLAIN_NAME, Combination, CombineResult, OnTop, Quality
from offramp.decoding.bench.contenders import ONE_CALL, Setting
from offramp.decoding.bench.defects import warnings_of
from offramp.decoding.bench.entrant import Entrant
from offramp.decoding.bench.groups import Group
from offramp.decoding.bench.pilot import Pilot
from offramp.decoding.bench.results import Cluster, Contender, Interval
from offramp.decoding.bench.summary import (
    Answers,
    Figures,
    Part,
    figures_of,
    judge_twins,
    only_piloted,
    twins_of,
)
from offramp.decoding.bench.trials import Trial


@dataclass(frozen=True)
class Timed:
    """What took turns and what it decoded.

    planned: every combination but the plain one. plain: plain decoders of the untransformed model, of which
    the pilot chose one. trials: by contender's name. left_out: those that are not among them.
    """

    planned: tuple[Planned, ...]
    plain: tuple[Entrant, ...]
    pilot: Pilot
    trials: Mapping[str, Trial]
    group: Group
    left_out: tuple[Contender, ...]
    seconds_spent: float
    circumstances: Mapping[str, Any]

    def answers(self, name: str) -> Answers:
        """New tokens that a contender gave, by batch of prompts."""
        visits = [(place, found[name]) for place, found in self.group.visits if name in found]
        return {place: one.decoded.tokens for place, one in reversed(visits)}

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
    """Figures and answers. qualities: by combination's name."""
    figures = _figures(base, timed)
    contenders, defects, a_a = judge_twins(figures, twins_of([one.contender for one in figures]))
    by_name = {one.name: one for one in contenders}
    group, plain, known = timed.group, timed.pilot.plain, {one.name for one in timed.planned}
    combinations = [
        Combination(PLAIN_NAME, (), replace(by_name[plain], name=PLAIN_NAME), quality=qualities[PLAIN_NAME]),
        *(_combination(one, timed, by_name, qualities.get(one.name)) for one in timed.planned),
    ]
    batches = {place for place, _ in group.visits}
    said = [one.note for one in _entrants(timed) if one.note is not None]
    return CombineResult(
        model=base.model.name,
        accelerations=dict(accelerations),
        workload=workload,
        new_tokens=base.new_tokens,
        prompts=min(base.distinct, len(batches)),
        rounds=-(-len(group.visits) // len(batches)),
        worth=group.worth,
        plain=plain,
        combinations=tuple(combinations),
        others=(
            *(one for one in contenders if one.name not in known),
            *(one for one in timed.left_out if one.name not in known),
        ),
        defects=tuple(defects),
        a_a=a_a,
        stopped=group.stopped or "seconds",
        seconds_spent=timed.seconds_spent,
        floor=floor,
        circumstances=timed.circumstances,
        excluded=excluded,
        notes=(*notes, timed.pilot.note, *said, *warnings_of(timed.circumstances)),
    )


def _entrants(timed: Timed) -> list[Entrant]:
    return [one.found for one in timed.planned if isinstance(one.found, Entrant) and one.name in timed.trials]


def _figures(base: Setting, timed: Timed) -> list[Figures]:
    """Of everyone that was tried, plain decoders first."""
    group, plain = timed.group, timed.pilot.plain
    full, trial = timed.answers(plain), timed.trials[ONE_CALL].decoded
    taking = {one.name for one in group.entrants}
    found = []
    for entrant in timed.plain:
        part = Part(base, entrant, timed.trials[entrant.name], full, trial)
        if entrant.name in taking:
            found.append(figures_of(part, group))
        elif entrant.name in timed.pilot.seconds:
            found.append(only_piloted(part, timed.pilot, group))
    for entrant in group.entrants:
        if entrant.role == "a/a":
            found.append(figures_of(Part(base, entrant, timed.trials[plain], full, trial), group))
    own = {
        one.key: one.name
        for one in timed.planned
        if decoder_of(one.parts) is None and one.name in timed.trials
    }
    for one in timed.planned:
        if isinstance(one.found, Entrant) and one.name in timed.trials:
            # What a lossless decoder must give is its own model's answer, whatever was done to the model.
            name = own.get(one.key)
            reference = full if name is None else timed.answers(name)
            trial_reference = trial if name is None else timed.trials[name].decoded
            policy = one.setting.main.policy if decoder_of(one.parts) in (EXITS, SPECULATE) else None
            part = Part(one.setting, one.found, timed.trials[one.name], reference, trial_reference, policy)
            found.append(figures_of(part, group))
    return found


def _combination(
    one: Planned, timed: Timed, contenders: Mapping[str, Contender], quality: Quality | None
) -> Combination:
    names = [part.name for part in one.parts]
    transforms = one.setting.model.identity.transforms if transforms_of(one.parts) else ()
    found = timed.contender(one)
    if isinstance(found, Contender):
        return Combination(one.name, tuple(names), found, transforms, one.policy)
    contender = contenders[one.name]
    if quality is not None:
        contender = replace(contender, executed_agreement=quality.free_running.agreement)
    combination = Combination(one.name, tuple(names), contender, transforms, one.policy, quality=quality)
    if len(names) < 2:
        return combination
    clusters = {name: known.clusters for name, known in contenders.items()}
    singles = [clusters[name] for name in names if name in clusters]
    if len(singles) == len(names):
        combination = replace(
            combination,
            product=product_of(singles),
            interaction=interaction_of(singles, contender.clusters),
        )
    return replace(combination, on_top=tuple(_on_top(names, clusters, contender.clusters)))


def product_of(singles: Sequence[Sequence[Cluster]]) -> Interval:
    """Product of the speedups of single parts, prompt by prompt."""
    return ratio_of(combined_clusters(*((1.0, single) for single in singles)))


def interaction_of(singles: Sequence[Sequence[Cluster]], together: Sequence[Cluster]) -> Interval:
    """Speedup of all parts together over the product of the single ones, prompt by prompt."""
    return ratio_of(combined_clusters((1.0, together), *((-1.0, single) for single in singles)))


def _on_top(
    names: Sequence[str], clusters: Mapping[str, Sequence[Cluster]], together: Sequence[Cluster]
) -> list[OnTop]:
    """What each part adds to the rest, where the rest was timed."""
    found = []
    for part in names:
        rest = " + ".join(name for name in names if name != part)
        if rest in clusters:
            found.append(OnTop(part, ratio_of(combined_clusters((1.0, together), (-1.0, clusters[rest])))))
    return found
