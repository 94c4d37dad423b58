"""Quality floors, and what a token and a document lose under a policy, in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

import numpy as np
from annotated_types import Gt, Le
from numpy.typing import NDArray

from offramp.commands import number_text
from offramp.errors import InputError
from offramp.kit.arguments import settle_fields
from offramp.kit.numbers import LARGEST_NUMBER, Positive
from offramp.kit.rules import Beside
from offramp.scoring.documents import document_rows, fact_of, require_numbers
from offramp.tracing.trace import FactArray, Trace

FloorKind = Literal["agreement", "reference_agreement", "nll", "kl"]
PLACES = {"kind": "floor= (--floor)", "value": "floor= (--floor)", "clip": "clip= (--floor-clip)"}
"""Where each part of a floor is given."""

FloorAnswer = Literal["holds", "broken", "not decided"]


LEAST = 1e-6
"""The least risk that a floor may allow."""


@dataclass(frozen=True)
class Floor:
    """A quality floor: what the user will not give up.

    kind: "agreement" or "reference_agreement" (shares of tokens; the latter with the untransformed full
    model, or with the reference that was traced), "nll" (increase) or "kl" (nats). value: as the user gave
    it. clip: B, the loss in nats at which a token's loss is cut ("nll", "kl"). risk: the largest mean loss
    allowed, in [0, 1]: 1 - value of a share, value / clip of the others.
    """

    kind: FloorKind
    value: Annotated[
        float,
        Gt(0),
        Le(LARGEST_NUMBER),
        Beside(
            lambda value, given: value < 1.0 or given.kind in NATS,
            "a share of agreement below 1",
            "choose a number between 0 and 1; 1 itself can never be certified from a sample",
        ),
        Beside(
            lambda value, given: (
                (1.0 - value if given.kind in SHARES else value / (given.clip or CLIP)) >= LEAST
            ),
            "looser than that: no sample could certify it",
            "choose a share below 0.999999, or more nats",
        ),
    ]
    clip: Annotated[
        Positive | None,
        Beside(
            lambda clip, given: clip is None or given.kind in NATS,
            "left out at a floor on agreement",
            "leave clip= (--floor-clip) out",
        ),
        Beside(
            lambda clip, given: given.kind in SHARES or (clip is not None and clip > given.value),
            "above the {value} nats of the floor",
            "choose a limit above the floor",
        ),
    ] = None

    def __post_init__(self) -> None:
        settle_fields(self, where=lambda name: PLACES[name])

    @property
    def risk(self) -> float:
        """Largest mean loss allowed, as a share of the largest possible loss."""
        return 1.0 - self.value if self.clip is None else self.value / self.clip

    def __str__(self) -> str:
        """As on the command line: agreement=0.99."""
        return f"{self.kind}={number_text(self.value)}"


CLIP = 1.0
"""Nats at which a token's loss is cut for the floors "nll" and "kl", unless another limit is given."""

KINDS: tuple[FloorKind, ...] = get_args(FloorKind)

REFERENCE: FloorKind = "reference_agreement"

SHARES: tuple[FloorKind, ...] = ("agreement", REFERENCE)
"""Floors that bound a share of tokens: those that can be executed."""

NATS: dict[FloorKind, str] = {"nll": "NLL increase", "kl": "KL to the full model"}
"""What a floor in nats bounds."""


def make_floor(floor: Floor | Mapping[str, float], clip: float | None = None) -> Floor:
    """A checked floor: {"agreement": 0.99}, {"reference_agreement": 0.95}, {"nll": 0.02} or {"kl": 0.02}.

    clip: for nll and kl, the nats at which a token's loss is cut, 1 by default.

    Raises InputError for another kind, for none or several, for a value out of range, or a clip that does
    not lie above it.
    """
    if not isinstance(floor, Floor):
        if len(floor) != 1:
            raise InputError(
                f"{len(floor)} floors were given",
                where="floor= (--floor)",
                fix="give one, as in agreement=0.99",
            )
        kind, value = next(iter(floor.items()))
        floor = Floor(kind, value, CLIP if clip is None and kind in NATS else clip)  # type: ignore[arg-type]
    return floor


def parse_floor(text: str, clip: float | None = None) -> Floor:
    """A floor as on the command line: agreement=0.99. Raises InputError for a text that is none."""
    kind, equals, number = text.partition("=")
    try:
        value = float(number) if equals else math.nan
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise InputError(
            f"{text!r} is no floor", where="floor= (--floor)", fix="write agreement=0.99, nll=0.02 or kl=0.02"
        )
    return make_floor({kind.strip(): value}, clip)


def risk_to_quality(floor: Floor, risk: float) -> float:
    """A mean loss in [0, 1] in the floor's own unit: agreement as a share, the others in nats."""
    return 1.0 - risk if floor.clip is None else risk * floor.clip


def loss_text(floor: Floor, loss: float, digits: str = "g") -> str:
    """A mean loss in [0, 1] in words: a share of tokens that differ, or nats."""
    if floor.clip is None:
        return f"{loss:{digits}}"
    return f"{loss * floor.clip:{digits}} nats (clipped at {floor.clip:g})"


def token_losses(trace: Trace, floor: Floor) -> NDArray[np.float32]:
    """What each token loses at each exit, in [0, 1]: float32 [tokens, exits].

    agreement: whether the exit's top-1 differs from the full model's. reference_agreement: whether it differs
    from the untransformed full model's, as it may at exit L too, where nothing else is lost. nll: the
    increase of -log p of the observed token, cut to [0, B] nats, over B. kl: KL(p_L || p_exit), cut likewise.

    Raises InputError for a fact that the trace lacks or that is not a number, and for a trace of a model
    without transforms, which has no other reference than itself.
    """
    if floor.clip is None:
        top1 = fact_of(trace, "top1")
        wanted = trace.full_top1 if floor.kind == "agreement" else reference_top1(trace)
        return np.asarray(top1 != wanted[:, None], dtype=np.float32)
    if floor.kind == "nll":
        values = _numbers(trace, "nll", finite=True)
        values = values - values[:, -1:]
    else:
        values = _numbers(trace, "kl_to_final").copy()
        values[:, -1] = 0.0
    return np.asarray(np.clip(values, 0.0, floor.clip) / np.float32(floor.clip), dtype=np.float32)


def reference_top1(trace: Trace) -> NDArray[np.int32]:
    """The reference's top-1 at every token: int32 [tokens]. Raises InputError for a trace without one."""
    if trace.reference_top1 is None:
        raise InputError(
            "the trace is of a model without transforms: there is no untransformed one to agree with, and no "
            "other reference was given",
            where=f"--floor reference_agreement, {trace.folder or 'the trace'}",
            fix="write agreement= instead of reference_agreement=; trace a model that was trained with its "
            "original: offramp trace MODEL --reference ORIGINAL",
        )
    return trace.reference_top1


def _numbers(trace: Trace, name: str, *, finite: bool = False) -> FactArray:
    """A fact without a NaN, or without an infinity either where differences are taken."""
    values = fact_of(trace, name)
    broken = ~np.isfinite(values) if finite else np.isnan(values)
    require_numbers(trace, name, np.asarray(broken.any(axis=1)))
    return values


def document_weights(trace: Trace) -> NDArray[np.float64]:
    """Weights of the tokens in the mean loss over documents, each document one share: float64 [tokens]."""
    rows = document_rows(trace)
    return np.repeat(1.0 / (rows.count * rows.lengths.astype(np.float64)), rows.lengths)


def document_losses(
    trace: Trace, losses: NDArray[np.float32], exits: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Mean loss of each document's tokens at the exits they took: float64 [documents], canonical order.

    losses: float32 [tokens, exits of the trace]. exits: int64 [tokens], layers.
    """
    rows = document_rows(trace)
    columns = np.searchsorted(trace.exits, exits)
    return np.asarray(rows.sums(losses[np.arange(trace.token_count), columns]) / rows.tokens)
