"""Results of several fresh processes as one: what a process does to all of its times is noise, too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from offramp.decoding.measurement.answers import answer_of, ratio_of, resolution_of
from offramp.decoding.measurement.defects import a_a_clusters_of, a_a_defect, judge_a_a
from offramp.decoding.measurement.results import BenchResult, Cluster, Contender, Interval


def merged(results: Sequence[BenchResult]) -> BenchResult:
    """One result of the same measurement in several processes; everything but times is the first one's.

    Clusters are of process and prompt, so that a ratio's interval allows for both. Each process must have
    held everything against the same plain decoder and made no looks of its own.

    Raises ValueError without results.
    """
    if not results:
        raise ValueError("there is nothing to merge")
    first = results[0]
    contenders = tuple(_merged(one.name, results) for one in first.contenders)
    defects = tuple(dict.fromkeys(sentence for result in results for sentence in _own_defects(result)))
    contenders, defects, a_a = judge_a_a(contenders, defects, a_a_clusters_of(contenders))
    return replace(
        first,
        contenders=contenders,
        defects=defects,
        a_a=a_a,
        prompts=max(result.prompts for result in results),
        seconds_spent=math.fsum(result.seconds_spent for result in results),
        processes=len(results),
        notes=tuple(dict.fromkeys(note for result in results for note in result.notes)),
    )


def _own_defects(result: BenchResult) -> list[str]:
    """Defects of contenders; that of the A/A is judged over all processes."""
    a_a_clusters = a_a_defect(result.a_a)
    return [sentence for sentence in result.defects if sentence != a_a_clusters]


def _merged(name: str, results: Sequence[BenchResult]) -> Contender:
    own = [one for result in results for one in result.contenders if one.name == name]
    first = own[0]
    clusters = tuple(
        replace(cluster, process=process)
        for process, result in enumerate(results)
        for one in result.contenders
        if one.name == name
        for cluster in one.clusters
    )
    if not clusters:
        return first
    ratio = ratio_of(clusters)
    return replace(
        first,
        answer="defect" if _wrong(own) else answer_of(ratio, results[0].worth),
        ratio=ratio,
        resolution=resolution_of(ratio),
        clusters=clusters,
        samples=tuple(sample for one in own for sample in one.samples),
        seconds_per_token=_seconds(own),
    )


def _wrong(own: Sequence[Contender]) -> bool:
    """Whether outputs or layer counts were wrong in any process."""
    return any(
        (one.output_must_match and one.same_output != 1.0)
        or one.claimed_layers_per_token not in (None, one.layers_per_token)
        for one in own
    )


def _seconds(own: Sequence[Contender]) -> Interval | None:
    """Geometric mean over processes, with its interval."""
    logs = [math.log(one.seconds_per_token.value) for one in own if one.seconds_per_token is not None]
    return ratio_of([Cluster(process, 0, log, 1) for process, log in enumerate(logs)]) if logs else None
