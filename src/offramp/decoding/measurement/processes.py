"""Results of several fresh processes as one: what a process does to all of its times is noise, too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from offramp.decoding.measurement.answers import ONE, answer_of, over_fastest, ratio_of, resolution_of
from offramp.decoding.measurement.credit import clusters_over, ratios_of
from offramp.decoding.measurement.defects import a_a_clusters_of, a_a_defect, judge_a_a
from offramp.decoding.measurement.results import A_A, PLAIN, BenchResult, Cluster, Contender, Interval


def merged(results: Sequence[BenchResult]) -> BenchResult:
    """One result of the same measurement in several processes; everything but times is the first one's.

    Clusters are of process and prompt, so that a ratio's interval allows for both. Each process must have
    made no looks of its own. Their fastest plain decoders may differ: that of all of them together counts.

    Raises ValueError without results.
    """
    if not results:
        raise ValueError("there is nothing to merge")
    first = results[0]
    # Over the plain decoder that came out the fastest in the first process, then over that of all.
    together = replace(first, contenders=tuple(_merged(one, results) for one in first.contenders))
    plain = _fastest_plain(together)
    contenders = tuple(_answered(one, together, plain) for one in together.contenders)
    defects = tuple(dict.fromkeys(sentence for result in results for sentence in _own_defects(result)))
    contenders, defects, a_a = judge_a_a(contenders, defects, a_a_clusters_of(contenders))
    return replace(
        first,
        plain=plain,
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


def _merged(first: Contender, results: Sequence[BenchResult]) -> Contender:
    """All that every process found, over the first one's plain decoder. first: as the first one found it."""
    twice, plain = first.role == A_A, results[0].plain
    own = [
        (process, result, contender)
        for process, result in enumerate(results)
        for contender in result.contenders
        if (contender.role == A_A if twice else contender.name == first.name)
    ]
    clusters = tuple(
        replace(cluster, process=process)
        for process, result, contender in own
        if contender.left_out is None and contender.name != plain
        for cluster in (contender.clusters if twice else clusters_over(result, contender.name, plain))
    )
    found = [contender for _, _, contender in own]
    return replace(
        first,
        answer="defect" if _wrong(found) else first.answer,
        clusters=clusters,
        samples=tuple(sample for contender in found for sample in contender.samples),
        seconds_per_token=_seconds(found),
    )


def _fastest_plain(result: BenchResult) -> str:
    """Of the plain decoders that took turns."""
    speeds = {name: _speed(result, name) for name in _in_turns(result)}
    return max(speeds, key=lambda name: speeds[name])


def _in_turns(result: BenchResult) -> list[str]:
    return [
        contender.name
        for contender in result.contenders
        if contender.role == PLAIN and (contender.clusters or contender.name == result.plain)
    ]


def _speed(result: BenchResult, name: str) -> float:
    """Over the result's plain decoder."""
    return 1.0 if name == result.plain else ratio_of(result.contender(name).clusters).value


def _answered(contender: Contender, result: BenchResult, plain: str) -> Contender:
    """The contender over the fastest plain decoder of all processes."""
    if contender.name == plain:
        return replace(contender, ratio=ONE, resolution=resolution_of(ONE), clusters=())
    if not contender.clusters and contender.name != result.plain:  # left out, or of a pilot
        ratio = contender.ratio
        rebased = None if ratio is None else Interval(ratio.value / _speed(result, plain))
        return replace(contender, ratio=rebased)
    twice = contender.role == A_A
    clusters = contender.clusters if twice else tuple(clusters_over(result, contender.name, plain))
    ratio = ratio_of(clusters, contender.level)
    if not twice:
        others = [name for name in _in_turns(result) if name != contender.name]
        found = over_fastest(others, ratios_of(result, contender), contender.level, fastest=plain)
        assert found is not None  # all of them took turns
        ratio = found[1]
    answer = contender.answer if contender.answer == "defect" else answer_of(ratio, result.worth)
    return replace(contender, answer=answer, ratio=ratio, resolution=resolution_of(ratio), clusters=clusters)


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
