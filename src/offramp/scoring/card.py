"""The score card of one trace: what `offramp.score` returns and the report shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.display import ShownAsHtml
from offramp.errors import InputError, refused_as
from offramp.kit.arguments import checked
from offramp.kit.defaults import EAS_ALPHA
from offramp.kit.typed import finite_json, from_json
from offramp.scoring.estimate import Estimate
from offramp.scoring.readings import Readings
from offramp.tracing.described_heads import RAW

Curve = NDArray[np.float64]


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
    intervals: (low, high) by curve name: the means over tokens and what follows from them; empty below 20
    documents.
    """

    exits: NDArray[np.int64]
    depth_fraction: Curve
    values: Mapping[str, Curve]
    intervals: Mapping[str, tuple[Curve, Curve]]

    def to_json(self) -> Any:
        """A JSON object; NaN becomes null."""
        limits = {name: {"low": low, "high": high} for name, (low, high) in self.intervals.items()}
        return finite_json({**vars(self), "intervals": limits})

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> LayerCurves:
        """The curves that `to_json` made JSON of."""
        intervals = {
            name: (_curve(limits["low"]), _curve(limits["high"]))
            for name, limits in value["intervals"].items()
        }
        curves = {name: _curve(curve) for name, curve in value["values"].items()}
        return cls(np.array(value["exits"]), _curve(value["depth_fraction"]), curves, intervals)


@dataclass(frozen=True)
class ReliabilityDiagram:
    """Confidence (max_prob) against agreement with the full model, in equal-width bins of one exit.

    edges: float64 [bins + 1]; count: int64 [bins]; confidence, agreement: float64 [bins], NaN in empty bins.
    """

    exit: int
    edges: Curve
    count: NDArray[np.int64]
    confidence: Curve
    agreement: Curve

    def to_json(self) -> Any:
        """A JSON object; NaN (an empty bin) becomes null."""
        return finite_json(vars(self))

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ReliabilityDiagram:
        """The diagram that `to_json` made JSON of."""
        edges, confidence, agreement = (_curve(value[name]) for name in ("edges", "confidence", "agreement"))
        return cls(value["exit"], edges, np.array(value["count"], dtype=np.int64), confidence, agreement)


@dataclass(frozen=True)
class EasVariant:
    """The study's Early-exit Adaptability Score for one similarity, between its floor and its ceiling.

    ceiling: with similarity 1 at every exit. floor: with the similarity to another token's logits. Both None
    when there is no exit before the last.
    """

    similarity: str
    alpha: float
    score: Estimate
    ceiling: float | None
    floor: float | None

    def to_json(self) -> dict[str, Any]:
        """A JSON object with the five fields."""
        return asdict(self)


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

    representation: Estimate
    increment: Estimate
    calibration: Estimate
    literal_calibration: Estimate
    composite: Estimate
    initial_information: Estimate
    first_match_skip: Estimate
    saturation_skip: Estimate
    ceiling: float
    head_share: float
    mean_position: float
    documents: int
    tokens: int
    curves: LayerCurves
    reliability: tuple[ReliabilityDiagram, ...]
    eas_variants: tuple[EasVariant, ...]
    compute_eas: Callable[[str, float], EasVariant]
    candidates: Mapping[str, float | None]
    notes: tuple[str, ...]
    reference_agreement: Estimate | None = None
    read_through: str = RAW
    readings: Readings | None = None

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
        """EAS with a chosen similarity ("logit", "centred_logit", "hidden") and weight alpha in (0, 1]."""
        return self.compute_eas(similarity, alpha)

    def to_json(self) -> dict[str, Any]:
        """A JSON object with every figure and curve; NaN becomes null."""
        return {
            **{name: getattr(self, name).to_json() for name in ESTIMATES},
            **{name: getattr(self, name) for name in NUMBERS},
            "reference_agreement": self.reference_agreement and self.reference_agreement.to_json(),
            "candidates": dict(self.candidates),
            "curves": self.curves.to_json(),
            "reliability": [diagram.to_json() for diagram in self.reliability],
            "eas": [variant.to_json() for variant in self.eas_variants],
            "notes": list(self.notes),
            "read_through": self.read_through,
            "readings": self.readings and self.readings.to_json(),
        }

    @classmethod
    @checked
    def from_json(cls, value: Mapping[str, Any]) -> ScoreCard:
        """The card that `to_json` made JSON of; of EAS it has the variants that are written there.

        Raises InputError for anything else.
        """
        with refused_as(
            InputError,
            "this is not the JSON of a score card",
            *(LookupError, TypeError, ValueError, AttributeError),
            where="value=",
            fix="give what ScoreCard.to_json gave",
        ):
            return cls._read(value)

    @classmethod
    def _read(cls, value: Mapping[str, Any]) -> ScoreCard:
        estimates: dict[str, Any] = {
            name: from_json(Estimate, value[name]) for name in ESTIMATES if not name.startswith("time_")
        }
        reference = value["reference_agreement"]
        variants = tuple(
            EasVariant(**{**one, "score": from_json(Estimate, one["score"])}) for one in value["eas"]
        )

        def kept(similarity: str, alpha: float) -> EasVariant:
            for one in variants:
                if (one.similarity, one.alpha) == (similarity, alpha):
                    return one
            raise InputError(
                f"of EAS there is no variant of {similarity!r} and alpha {alpha:g} in this file",
                where="a score card read from JSON",
                fix="score the trace: offramp.score(trace).eas(similarity, alpha)",
            )

        return cls(
            **estimates,
            **{name: value[name] for name in NUMBERS},
            curves=LayerCurves.from_json(value["curves"]),
            reliability=tuple(ReliabilityDiagram.from_json(one) for one in value["reliability"]),
            eas_variants=variants,
            compute_eas=kept,
            candidates=dict(value["candidates"]),
            notes=tuple(value["notes"]),
            reference_agreement=None if reference is None else from_json(Estimate, reference),
            read_through=value.get("read_through", RAW),
            readings=Readings.from_json(value["readings"]) if value.get("readings") else None,
        )


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

NUMBERS: tuple[str, ...] = ("ceiling", "head_share", "mean_position", "documents", "tokens")


def _shown(estimate: Estimate) -> str:
    """A value, or why there is none."""
    if estimate.value is not None:
        return f"{estimate.value:.3f}"
    return "undefined" + (f" ({estimate.undefined})" if estimate.undefined else "")


def _curve(values: Sequence[float | None]) -> Curve:
    return np.array(values, dtype=np.float64)  # None becomes NaN


STUDY = "arXiv 2603.23701"


@dataclass(frozen=True)
class PublishedScore:
    """An Early-exit Adaptability Score that the study reports; its similarity and alpha are unpublished."""

    model: str
    eas: float
    source: str = STUDY


PUBLISHED_EAS: tuple[PublishedScore, ...] = (
    PublishedScore("Llama2-7B", 0.52),
    PublishedScore("Llama3-8B", 0.46),
    PublishedScore("LayerSkip-Llama3-8B", 0.54),
    PublishedScore("Qwen2-7B", 0.36),
    PublishedScore("Qwen3-8B", 0.51),
    PublishedScore("GPT-OSS-20B", 0.59),
)
