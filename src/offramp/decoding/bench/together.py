"""Settings measured together: tried out, then timed in turns, then summed up with what they share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from offramp.decoding.bench.budget import Budget, Limits
from offramp.decoding.bench.circumstances import Load, describe
from offramp.decoding.bench.contenders import Extent, Setting
from offramp.decoding.bench.defects import warnings_of
from offramp.decoding.bench.entrant import Decoded
from offramp.decoding.bench.entry import Entry
from offramp.decoding.bench.groups import Group, time_groups
from offramp.decoding.bench.results import BenchResult, Cluster
from offramp.decoding.bench.summary import Figures, judge_twins, twins_of
from offramp.errors import OfframpError
from offramp.files import sha256_of_text
from offramp.models.gguf_file import quiet_transformers

Progress = Callable[[int, int], None]
"""Called with the hundredths of the seconds that are spent, and 100."""


@dataclass(frozen=True)
class Measurement:
    """A bench result, and what was decoded: by contender's name, then by batch of prompts, once each."""

    result: BenchResult
    setting: Setting
    decoded: Mapping[str, Mapping[int, Decoded]]


def run_together(
    settings: Sequence[Setting],
    *,
    extent: Extent,
    limits: Limits,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Measurement | OfframpError]:
    """`run` for several settings of one model at once, or what made one of them fail.

    Each has its own prompts and policies; their batches of prompts take turns, the pilot that finds the
    fastest plain decoder is the first one's, and the same decoder timed twice is compared over all of them.
    """
    budget = Budget(limits.seconds)

    def visited() -> None:
        if progress is not None and limits.seconds is not None:
            progress(min(round(100 * budget.used), 100), 100)

    with quiet_transformers():
        load, entries = Load(), [Entry.of(setting, extent) for setting in settings]
        for place, entry in enumerate(entries):
            # Settings share a model, and what is set up once.
            entry.try_out(0 if place else extent.warm_up_tokens)
            if extent.peers and entry.error is None:
                entry.invite_peers(budget, extent.warm_up_tokens)
            visited()
        pilot = None
        for entry in entries:
            if entry.error is None:
                pilot = entry.take_part(extent, limits, budget, pilot, seed)
        groups = [entry.group for entry in entries if entry.group is not None]
        time_groups(groups, budget=budget, looks=limits.looks, seed=seed, visited=visited)
        figures = {place: entry.figures() for place, entry in enumerate(entries) if entry.failure is None}
        twins = _pooled([twins_of([one.contender for one in found]) for found in figures.values()])
        return [
            entry.failure
            or _measurement(entry, figures[place], twins, _circumstances(entry, load, limits, seed), budget)
            for place, entry in enumerate(entries)
        ]


def _pooled(twins: Sequence[Sequence[Cluster]]) -> tuple[Cluster, ...]:
    """Clusters of several settings, whose prompts are different ones."""
    most = max((len(clusters) for clusters in twins), default=0)
    return tuple(
        replace(cluster, prompt=place * most + cluster.prompt)
        for place, clusters in enumerate(twins)
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
    twins: Sequence[Cluster],
    circumstances: Mapping[str, object],
    budget: Budget,
) -> Measurement:
    setting, (group, pilot) = entry.setting, entry.timed
    assert group.stopped is not None  # or it would still be timed
    contenders, defects, a_a = judge_twins(figures, twins)
    notes = [pilot.note, *(one.note for one in entry.entrants if one.note is not None)]
    own = twins_of(contenders)
    if len(twins) > len(own):
        notes.append(f"the same decoder twice is compared on all texts together: {len(twins)} prompts")
    batches = {place for place, _ in group.visits}
    main, rows = setting.cells[0], len(setting.prompts[0].ids)
    result = BenchResult(
        model=setting.model.shown_name,
        policy=str(main.policy),
        kv=main.kv,
        batch=rows,
        batching=main.batching,
        new_tokens=setting.new_tokens,
        prompts=min(setting.distinct, rows * len(batches)),
        rounds=-(-len(group.visits) // len(batches)),
        worth=group.worth,
        plain=group.plain,
        contenders=(*contenders, *entry.missing),
        defects=tuple(defects),
        a_a=a_a,
        stopped=group.stopped,
        seconds_spent=budget.spent,
        circumstances=circumstances,
        notes=(*notes, *warnings_of(circumstances)),
    )
    return Measurement(result, setting, decoded_of(group))


def decoded_of(group: Group) -> dict[str, dict[int, Decoded]]:
    """What each contender decoded, by batch of prompts: the first time of each."""
    found: dict[str, dict[int, Decoded]] = {}
    for place, visit in group.visits:
        for name, timed in visit.items():
            found.setdefault(name, {}).setdefault(place, timed.decoded)
    return found
