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
    # 1. Over the fastest plain decoder of the first process, which says which is the fastest of all.
    over_first = _over(results, first.plain)
    speeds = {name: _speed(over_first, name) for name in _plain_in_turns(over_first)}
    plain = max(speeds, key=lambda name: speeds[name])
    # 2. Over that one.
    together = _over(results, plain)
    contenders = [_answered(contender, together, speeds[plain]) for contender in together.contenders]
    # 3. Defects of any process; that of the A/A is judged over all of them.
    defects = [
        sentence for result in results for sentence in result.defects if sentence != a_a_defect(result.a_a)
    ]
    judged, defects_of_all, a_a = judge_a_a(contenders, list(dict.fromkeys(defects)))
    return replace(
        first,
        plain=plain,
        contenders=judged,
        defects=defects_of_all,
        a_a=a_a,
        prompts=max(result.prompts for result in results),
        seconds_spent=math.fsum(result.seconds_spent for result in results),
        processes=len(results),
        notes=tuple(dict.fromkeys(note for result in results for note in result.notes)),
    )


def _over(results: Sequence[BenchResult], plain: str) -> BenchResult:
    """The first result with what every process found of each contender, over one plain decoder."""
    contenders = tuple(_of_all(contender, results, plain) for contender in results[0].contenders)
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
    wrong = any(
        (contender.output_must_match and contender.same_output != 1.0)
        or contender.claimed_layers_per_token not in (None, contender.layers_per_token)
        for contender in found
    )
    timed = [contender.seconds_per_token for contender in found]
    seconds = [estimate.value for estimate in timed if estimate is not None]
    by_process = [cluster_of(process, 0, [(1.0, value)]) for process, value in enumerate(seconds)]
    return replace(
        first,
        answer="defect" if wrong else first.answer,
        clusters=clusters,
        samples=tuple(sample for contender in found for sample in contender.samples),
        seconds_per_token=seconds_over(ONE, ratio_of(by_process)) if seconds else None,
    )


def _plain_in_turns(result: BenchResult) -> list[str]:
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
        others = [name for name in _plain_in_turns(together) if name != contender.name]
        found = over_fastest(others, ratios_of(together, contender), contender.level, fastest=plain)
        assert found is not None  # all of them took turns
        ratio = found[1]
    answer = contender.answer if contender.answer == "defect" else answer_of(ratio, together.worth)
    return replace(contender, answer=answer, ratio=ratio, resolution=resolution_of(ratio))


def _clusters_over(result: BenchResult, name: str, plain: str) -> tuple[Cluster, ...]:
    """Those of one contender over a plain decoder: log(a/b) - log(a/c) is log(c/b)."""
    clusters, others = result.contender(name).clusters, result.contender(plain).clusters
    if plain == result.plain:
        return clusters
    if name == result.plain:
        return tuple(replace(cluster, log_ratio=-cluster.log_ratio) for cluster in others)
    over = {(cluster.process, cluster.prompt): cluster for cluster in others}
    return tuple(
        replace(cluster, log_ratio=cluster.log_ratio - over[place].log_ratio)
        for cluster in clusters
        if (place := (cluster.process, cluster.prompt)) in over
    )
