"""The curves over layers of a score card: what each is called, its unit, and what it says."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from offramp.report.formats import NumberFormat, percent, plain_tick

rounded = partial(percent, digits=0)


@dataclass(frozen=True)
class CurveKind:
    """A curve: its key in a card, name, unit on the axis, and what it says.

    note: "" of one that a comparison does not draw. share: from 0 to 1, in percent.
    """

    key: str
    name: str
    unit: str
    note: str = ""
    share: bool = False

    @property
    def number(self) -> NumberFormat:
        """How its values are written."""
        return rounded if self.share else plain_tick


KINDS = (
    CurveKind(
        "agreement",
        "Agreement",
        "share of tokens",
        "How often the exit's most probable token is the full model's. Steep and early is good for exits.",
        share=True,
    ),
    CurveKind("reference_agreement", "Agreement with the untransformed model", "share of tokens", share=True),
    CurveKind(
        "remaining_information",
        "Information still missing",
        "share of R₀",
        "What of the information about the final prediction has not arrived yet.",
        share=True,
    ),
    CurveKind("increment", "Information gained", "nats"),
    CurveKind("kl_to_final", "KL to the full model", "nats", "How far the exit's distribution still is."),
    CurveKind("entropy", "Entropy", "nats", "How undecided the exit is."),
    CurveKind("nll", "NLL of the text", "nats", "How badly the exit predicts the text's own tokens."),
    CurveKind(
        "max_prob",
        "Confidence",
        "mean probability",
        "How sure the exit is. Where it exceeds agreement the exit is overconfident.",
        share=True,
    ),
    CurveKind("margin", "Margin", "difference of probabilities"),
    CurveKind("final_logprob", "Log-probability of the full model's token", "nats"),
    CurveKind("final_rank_median", "Median rank of the full model's token", "rank"),
    CurveKind("logit_cosine", "Cosine of logits", "cosine"),
    CurveKind(
        "centred_logit_cosine",
        "Cosine of centred logits",
        "cosine",
        "The exit's logits beside the full model's, the vocabulary's mean removed.",
    ),
    CurveKind("shuffled_logit_cosine", "Cosine of logits, shuffled (chance)", "cosine"),
    CurveKind(
        "hidden_cosine_to_final",
        "Cosine of the hidden state",
        "cosine",
        "The hidden state beside the last one.",
    ),
    CurveKind("hidden_cosine_to_previous", "Cosine of the hidden state with the layer before", "cosine"),
    CurveKind(
        "block_influence",
        "Block influence",
        "1 − cosine",
        "How much each layer turns the hidden state. Small: the layer could be left out.",
    ),
    CurveKind("update_norm", "Size of each layer's update", "ratio", "Its norm over what it reads."),
    CurveKind("brier", "Brier score", "squared error"),
    CurveKind(
        "recalibrated_brier",
        "Brier score, recalibrated",
        "squared error",
        "What confidence says about agreement at its best. Lower is better.",
    ),
    CurveKind(
        "ece_agreement",
        "Calibration error (ECE)",
        "error",
        "Raw confidence against agreement. It is biased upwards in small samples.",
    ),
    CurveKind("ece_token", "Calibration error against the text", "error"),
    CurveKind("auroc", "AUROC", "area", "Does confidence rank exits: 0.5 is guessing, 1 is perfect."),
    CurveKind("aurc", "AURC", "area"),
)
CURVES = {kind.key: kind for kind in KINDS}
