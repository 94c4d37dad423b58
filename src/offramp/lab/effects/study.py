"""All that the runs of the lab's study tell, as docs/lab/preregistered.md has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from offramp.lab.effects.effect import PERMUTATIONS
from offramp.lab.effects.factorial import CORNERS
from offramp.lab.effects.families import (
    Family,
    arm_families,
    factor_families,
    kind_family,
    score_family,
    size_family,
    trend_families,
)
from offramp.lab.effects.gate import Gate, find_gate
from offramp.lab.effects.matching import left_out
from offramp.lab.effects.runs import BLOCKS, Run
from offramp.lab.effects.score_validity import ScoreValidity


@dataclass(frozen=True)
class LabFindings:
    """What a study's runs tell. left_out: runs that do not count, with the reason.

    families: by their number, in the order of the page; none where the gate is not passed. validity: of
    family 6.
    """

    runs: tuple[Run, ...]
    gate: Gate
    left_out: Mapping[str, str]
    families: Mapping[str, Family] = field(default_factory=dict)
    validity: ScoreValidity | None = None

    def of(self, *blocks: str) -> tuple[Run, ...]:
        """The runs of some blocks that count."""
        return tuple(run for run in self.runs if run.block in blocks and run.name not in self.left_out)


def analyse(runs: Sequence[Run], *, permutations: int = PERMUTATIONS, seed: int = 0) -> LabFindings:
    """Everything that the runs of a study tell; only the gate where it is not passed."""
    out = left_out(runs)
    found = LabFindings(tuple(runs), find_gate(runs, out), out)
    if not found.gate.passed:
        return found
    factorial, kinds, sizes = found.of("1", "2"), found.of("3"), found.of("6")
    corner = tuple(run for run in factorial if run.signs == CORNERS["Llama-like"])
    groups = ((factorial, factorial), ((*corner, *kinds), kinds), ((*corner, *sizes), sizes))
    score, validity = score_family(groups, permutations)
    families = {
        **factor_families(factorial, permutations, seed),
        "3": kind_family(corner, kinds),
        **arm_families(found.of("4", "5"), permutations),
        "6": score,
        **trend_families(factorial, permutations, seed),
        "sizes": size_family(corner, sizes),
    }
    return LabFindings(found.runs, found.gate, out, families, validity)


PLANNED = dict(zip(BLOCKS, (4, 16, 4, 8, 18, 12, 4), strict=True))
"""Runs of each block in the design."""
