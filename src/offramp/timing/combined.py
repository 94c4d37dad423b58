"""What timing combinations of accelerations gives: speed, product, interaction and quality of each.

Plain data without torch, for reports, files and machines.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from offramp.decoding.free_running import FreeRunning
from offramp.kit.sealed_file import SealedFile
from offramp.scoring.estimate import Estimate
from offramp.timing.results import Contender, InTurns

PLAIN_NAME = "plain"

Effect = Literal["help each other", "get in each other's way", "multiply"]

NEAR = 0.1
"""How far the interval of an interaction may reach from 1 for gains that multiply."""


@dataclass(frozen=True)
class Quality:
    """How good a combination's answers are, judged by the untransformed full model; means over prompts.

    free_running: of the answers that it gave itself. forced_agreement: share of the tokens of the
    untransformed model's own answer that it chooses too when it is given all of that answer before them; at
    full depth a token also counts if its logit is the largest but for one rounding step of the dtype.
    """

    free_running: FreeRunning
    forced_agreement: Estimate[float]

    @property
    def shared(self) -> Estimate[float]:
        """Share of an answer before the first token that is not the untransformed model's."""
        found = self.free_running
        length = found.new_tokens / found.prompts
        limits = (found.tokens_before_divergence.low, found.tokens_before_divergence.high)
        low, high = (None if limit is None else limit / length for limit in limits)
        return Estimate(found.tokens_before_divergence.value / length, low, high)


@dataclass(frozen=True)
class OnTop:
    """What one part adds to the others of a combination: their seconds over those of all, side by side."""

    part: str
    speedup: Estimate[float]


@dataclass(frozen=True)
class Combination:
    """One way to decode faster, or several at once.

    name: its parts joined by " + ", "plain" without any. parts: names of accelerations. transforms: what the
    model's identity says was done to it. policy: that decides exits or drafts on this model. contender: its
    timing; the ratio is to the fastest plain decoder of the untransformed model. product: of the speedups of
    each part alone; interaction: the speedup of all together over that, prompt by prompt, so that the plain
    decoder's noise cancels as far as it can; None for fewer than two parts, or where a part was left out.
    on_top: of each part; empty under the same conditions. quality: None if it was not judged.
    """

    name: str
    parts: tuple[str, ...]
    contender: Contender
    transforms: tuple[str, ...] = ()
    policy: str | None = None
    product: Estimate[float] | None = None
    interaction: Estimate[float] | None = None
    on_top: tuple[OnTop, ...] = ()
    quality: Quality | None = None

    @property
    def speedup(self) -> Estimate[float] | None:
        """Over plain decoding of the untransformed model; None if it was left out."""
        return self.contender.ratio

    @property
    def effect(self) -> Effect | None:
        """What the interaction's interval says; None without one, or if it is too wide to say anything."""
        found = self.interaction
        if found is None or found.low is None or found.high is None:
            return None
        if found.high < 1.0:
            return "get in each other's way"
        if found.low > 1.0:
            return "help each other"
        return "multiply" if found.low >= 1.0 - NEAR and found.high <= 1.0 + NEAR else None


@dataclass(frozen=True, kw_only=True)
class CombineResult(InTurns):
    """One measurement of accelerations, alone and together, that all took turns.

    accelerations: by name, as they were asked for. plain: the fastest plain decoder of the untransformed
    model. combinations: "plain" first, then by number of parts. others: the further plain decoders, and the
    fastest a second time. excluded: combinations that make no sense, in sentences. floor: forced agreement
    below which nothing is advised.
    """

    accelerations: Mapping[str, str]
    workload: str
    combinations: tuple[Combination, ...]
    others: tuple[Contender, ...]
    floor: float
    excluded: tuple[str, ...] = ()

    def combination(self, *parts: str) -> Combination | None:
        """The combination of exactly these parts, in any order; None if there is none."""
        wanted = frozenset(parts)
        return next((one for one in self.combinations if frozenset(one.parts) == wanted), None)


@dataclasses.dataclass(frozen=True)
class _Combined:
    result: CombineResult


COMBINED = SealedFile(
    _Combined,
    "this is no file of offramp bench --combine",
    "measure again: offramp bench MODEL --combine int8 --combine exits --policy P -o FILE",
    version=2,
    kind="combined",
)


def write_combined(path: Path, result: CombineResult) -> None:
    """Keep a result of accelerations together, likewise."""
    COMBINED.write(path, _Combined(result))


def read_combined(path: Path) -> CombineResult:
    """The result of a file that `write_combined` wrote. Raises DamagedFileError for any other content."""
    return COMBINED.read(path).result
