"""Results of several fresh processes as one: what a process does to all of its times is noise, too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from offramp.scoring.estimate import Estimate
from offramp.timing.answers import (
    ONE,
    answer_of,
    cluster_of,
    over_fastest,
    ratio_of,
    ratios_of,
    resolution_of,
    seconds_over,
)
from offramp.timing.defects import a_a_defect, judge_a_a
from offramp.timing.results import A_A, PLAIN, BenchResult, Cluster, Contender


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
    over_first = _merged(results, first.plain)
    plain = _fastest_plain(over_first)
    together = _merged(results, plain)
    contenders = tuple(_answered(one, together, _speed(over_first, plain)) for one in together.contenders)
    defects = tuple(dict.fromkeys(sentence for result in results for sentence in _own_defects(result)))
    contenders, defects, a_a = judge_a_a(contenders, defects)
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


def _merged(results: Sequence[BenchResult], plain: str) -> BenchResult:
    """The first result with what every process found of each contender, over one plain decoder."""
    contenders = tuple(_of_all(one, results, plain) for one in results[0].contenders)
    return replace(results[0], plain=plain, contenders=contenders)


def _of_all(first: Contender, results: Sequence[BenchResult], plain: str) -> Contender:
    """All that every process found of a contender. first: as the first one found it."""
    twice = first.role == A_A
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
        for cluster in (contender.clusters if twice else _clusters_over(result, contender.name, plain))
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


def _answered(contender: Contender, together: BenchResult, plain_speed: float) -> Contender:
    """The contender with its ratio over the fastest plain decoder of all processes.

    plain_speed: of that one, over the first process's.
    """
    plain = together.plain
    if contender.name == plain:
        return replace(contender, ratio=ONE, resolution=resolution_of(ONE))
    if not contender.clusters:  # left out, or of a pilot
        ratio = contender.ratio
        return replace(contender, ratio=None if ratio is None else Estimate(ratio.value / plain_speed))
    ratio = ratio_of(contender.clusters, contender.level)
    if contender.role != A_A:
        others = [name for name in _in_turns(together) if name != contender.name]
        found = over_fastest(others, ratios_of(together, contender), contender.level, fastest=plain)
        assert found is not None  # all of them took turns
        ratio = found[1]
    answer = contender.answer if contender.answer == "defect" else answer_of(ratio, together.worth)
    return replace(contender, answer=answer, ratio=ratio, resolution=resolution_of(ratio))


def _wrong(own: Sequence[Contender]) -> bool:
    """Whether outputs or layer counts were wrong in any process."""
    return any(
        (one.output_must_match and one.same_output != 1.0)
        or one.claimed_layers_per_token not in (None, one.layers_per_token)
        for one in own
    )


def _seconds(own: Sequence[Contender]) -> Estimate[float] | None:
    """Mean over processes, with its interval."""
    seconds = [one.seconds_per_token.value for one in own if one.seconds_per_token is not None]
    if not seconds:
        return None
    speed = ratio_of([cluster_of(process, 0, [(1.0, value)]) for process, value in enumerate(seconds)])
    return seconds_over(ONE, speed)


def _clusters_over(result: BenchResult, name: str, plain: str) -> tuple[Cluster, ...]:
    """Those of one contender over a plain decoder: log(a/b) - log(a/c) is log(c/b)."""
    clusters, others = result.contender(name).clusters, result.contender(plain).clusters
    if plain == result.plain:
        return clusters
    if name == result.plain:
        return tuple(replace(other, log_ratio=-other.log_ratio) for other in others)
    over = {(other.process, other.prompt): other for other in others}
    return tuple(
        replace(cluster, log_ratio=cluster.log_ratio - over[place].log_ratio)
        for cluster in clusters
        if (place := (cluster.process, cluster.prompt)) in over
    )
