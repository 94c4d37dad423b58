"""The score card of one trace: what `offramp.score` returns and the report shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from offramp.defaults import EAS_ALPHA
from offramp.display import ShownAsHtml
from offramp.errors import InputError, refused_as
from offramp.heads.described import RAW
from offramp.kit.arguments import checked
from offramp.kit.numbers import MOST_LAYERS, Count, NotNegative, Number, Proportion, Whole
from offramp.kit.typed import FloatArray, IntArray, InvalidRecordError, finite_json, from_json
from offramp.scoring.estimate import Estimate

Curve = NDArray[np.float64]


@dataclass(frozen=True)
class Limits:
    """The 95 % limits of a curve over the exits, float64 [exits]."""

    low: FloatArray
    high: FloatArray


@dataclass(frozen=True)
class LayerCurves:
    """Per-exit curves, each float64 [exits]; NaN where a figure is undefined at that exit.

    depth_fraction: x, the share of the layers' FLOPs spent up to the exit.
    values: curve by name. Means over tokens: agreement, kl_to_final, entropy, nll, max_prob, margin,
    final_logprob, logit_cosine, centred_logit_cosine, shuffled_logit_cosine, hidden_cosine_to_final,
    hidden_cosine_to_previous, block_influence (1 - hidden_cosine_to_previous), update_norm, brier,
    recalibrated_brier (absent with one document), reference_agreement (agreement with the untransformed full
    model, of a transformed model only); from them increment (nats, R before the exit minus R at it) and
    remaining_information (min(R, R_0) / R_0). Others: final_rank_median, ece_agreement, ece_token, auroc,
    aurc.
    intervals: by curve name: the means over tokens and what follows from them; empty below 20
    documents.
    """

    exits: IntArray
    depth_fraction: FloatArray
    values: Mapping[str, FloatArray]
    intervals: Mapping[str, Limits]

    def __post_init__(self) -> None:
        """Refuse curves of other exits, with a ValueError."""
        limits = (limit for both in self.intervals.values() for limit in (both.low, both.high))
        shapes = {curve.shape for curve in (self.depth_fraction, *self.values.values(), *limits)}
        if shapes != {self.exits.shape} or self.exits.ndim != 1:
            raise ValueError("a curve has not one value for each exit")
        if not np.all(np.diff(self.exits, prepend=0) > 0) or self.exits.max(initial=0) > MOST_LAYERS:
            raise ValueError(f"the exits of the curves do not ascend within 1 to {MOST_LAYERS:,}")
        if not np.all((self.depth_fraction > 0) & (self.depth_fraction <= 1)):
            raise ValueError("depths are no shares of the layers")
        agreement = self.values.get("agreement")
        if agreement is not None and not np.all((agreement >= 0) & (agreement <= 1)):
            raise ValueError("agreement is no share of the tokens")


@dataclass(frozen=True)
class ReliabilityDiagram:
    """Confidence (max_prob) against agreement with the full model, in equal-width bins of one exit.

    edges: float64 [bins + 1]; count: int64 [bins]; confidence, agreement: float64 [bins], NaN in empty bins.
    """

    exit: Count
    edges: FloatArray
    count: IntArray
    confidence: FloatArray
    agreement: FloatArray


@dataclass(frozen=True)
class EasVariant:
    """The study's Early-exit Adaptability Score for one similarity, between its floor and its ceiling.

    ceiling: with similarity 1 at every exit. floor: with the similarity to another token's logits. Both None
    when there is no exit before the last.
    """

    similarity: str
    alpha: Number
    score: Estimate
    ceiling: Number | None
    floor: Number | None


@dataclass(frozen=True)
class ReadScores:
    """The components of a score card that depend most on what reads an exit, in one reading."""

    representation: Estimate
    increment: Estimate


COMPONENTS = ("representation", "increment")
"""Their names on a score card."""


@dataclass(frozen=True)
class PairedReadings:
    """A model's exits read by its own head (raw), and through fitted heads: the same tokens, exits and draws.

    raw: what the head can read. fitted: what the representation holds, as far as these heads find it.
    gained: fitted less raw, paired over documents. closed: representation quality gained, as a share of what
    lies between the raw one and the ceiling; negative where the heads read less. ceiling: 1 - x_1. through:
    the heads, in words. documents: that all of it is taken on. left_out: those that the heads' fitting saw,
    and that are in none of these figures.
    """

    raw: ReadScores
    fitted: ReadScores
    gained: ReadScores
    closed: Estimate
    ceiling: Number
    through: str
    documents: Whole
    left_out: Whole


@dataclass(frozen=True)
class ScoreCard(ShownAsHtml):
    """Every score of one trace, with the curves behind them.

    representation, increment, calibration, composite: in [0, 1], higher = more suitable.
    literal_calibration: the study's wording, 1 - ECE of max_prob against the observed token, mean over exits
    below L.
    initial_information: R_0 in nats. ceiling: 1 - x_1. head_share: share of a token's FLOPs in the head.
    first_match_skip, saturation_skip: oracle skip ratios (unreachable bounds); time_ceiling_first_match and
    time_ceiling_saturation: the same x (1 - head share), the share of time they could save at most.
    reference_agreement: share of tokens on which exit L of a transformed model says what the untransformed
    full model says: what the transform itself costs. None without transforms.
    candidates: every figure that might predict realised savings, by name; None where undefined. Higher means
    more suitable, except for mean_kl (mean over exits < L, nats) and block_influence (mean of 1 -
    hidden_cosine_to_previous), where lower does.
    notes: sentences a reader must see beside the figures. read_through: what reads the exits below L, in
    words. readings: the two components that depend most on that, raw and through heads, where a trace of the
    same tokens in the other reading was at hand; all other figures are of the one trace.
    """

    READ_OFF: ClassVar[tuple[str, ...]] = ("time_ceiling_first_match", "time_ceiling_saturation")
    NOT_KEPT: ClassVar[tuple[str, ...]] = ("compute_eas",)

    representation: Estimate
    increment: Estimate
    calibration: Estimate
    literal_calibration: Estimate
    composite: Estimate
    initial_information: Estimate
    first_match_skip: Estimate
    saturation_skip: Estimate
    ceiling: Number
    head_share: Proportion
    mean_position: NotNegative
    documents: Whole
    tokens: Whole
    curves: LayerCurves
    reliability: tuple[ReliabilityDiagram, ...]
    eas_variants: tuple[EasVariant, ...]
    candidates: Mapping[str, Number | None]
    notes: tuple[str, ...]
    reference_agreement: Estimate | None = None
    read_through: str = RAW
    readings: PairedReadings | None = None
    compute_eas: Callable[[str, float], EasVariant] | None = field(default=None, repr=False, compare=False)

    def __repr__(self) -> str:
        names = ("representation", "increment", "calibration", "composite")
        shown = [f"{name} {_shown(getattr(self, name))}" for name in names]
        return f"ScoreCard({', '.join(shown)}; {self.tokens:,} tokens of {self.documents:,} documents)"

    @property
    def time_ceiling_first_match(self) -> Estimate:
        """Share of time that the first-match oracle saves: its skip ratio x (1 - head share)."""
        return self.first_match_skip.scaled(1.0 - self.head_share)

    @property
    def time_ceiling_saturation(self) -> Estimate:
        """Share of time that the saturation oracle saves: its skip ratio x (1 - head share)."""
        return self.saturation_skip.scaled(1.0 - self.head_share)

    def eas(self, similarity: str = "centred_logit", alpha: float = EAS_ALPHA) -> EasVariant:
        """EAS with a chosen similarity ("logit", "centred_logit", "hidden") and weight alpha in (0, 1].

        A card that was read from JSON has those of `eas_variants` alone, and raises InputError for others.
        """
        if self.compute_eas is not None:
            return self.compute_eas(similarity, alpha)
        for variant in self.eas_variants:
            if (variant.similarity, variant.alpha) == (similarity, alpha):
                return variant
        raise InputError(
            f"of EAS there is no variant of {similarity!r} and alpha {alpha:g} in this file",
            where="a score card read from JSON",
            fix="score the trace: offramp.score(trace).eas(similarity, alpha)",
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON object with every figure and curve; NaN becomes null."""
        found: dict[str, Any] = finite_json(self)
        return found

    @classmethod
    @checked
    def from_json(cls, value: Mapping[str, Any]) -> ScoreCard:
        """The card that `to_json` made JSON of. Raises InputError for anything else."""
        what, fix = "this is not the JSON of a score card", "give what ScoreCard.to_json gave"
        with refused_as(InputError, what, InvalidRecordError, where="value=", fix=fix):
            card = from_json(cls, value)
        return card


ESTIMATES: tuple[str, ...] = (
    "representation",
    "increment",
    "calibration",
    "literal_calibration",
    "composite",
    "initial_information",
    "first_match_skip",
    "saturation_skip",
    "time_ceiling_first_match",
    "time_ceiling_saturation",
)


def _shown(estimate: Estimate) -> str:
    """A value, or why there is none."""
    if estimate.value is not None:
        return f"{estimate.value:.3f}"
    return "undefined" + (f" ({estimate.undefined})" if estimate.undefined else "")


STUDY = "arXiv 2603.23701"


PUBLISHED_EAS: Mapping[str, float] = {
    "Llama2-7B": 0.52,
    "Llama3-8B": 0.46,
    "LayerSkip-Llama3-8B": 0.54,
    "Qwen2-7B": 0.36,
    "Qwen3-8B": 0.51,
    "GPT-OSS-20B": 0.59,
}
"""Early-exit Adaptability Scores of the study, by model; its similarity and alpha are not published."""
