"""A whole request beside an encoder: what runs once before its tokens, and what exits could gain at most."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, TypeVar, cast

import numpy as np

from offramp.costs.counting import layer_bytes, layer_flops, request_bytes, request_flops
from offramp.costs.machine import Machine, machine_prices
from offramp.costs.timings import TimingsProfile
from offramp.defaults import BYTES
from offramp.kit.numbers import NotNegative, Positive, Whole
from offramp.models.shape import ModelShape
from offramp.policies.prices import costs_of
from offramp.tracing.trace import Trace

How = Literal["timed", "derived", "counted"]
Counted = Literal["bytes", "flops"]
NAMES: dict[Counted, str] = {"bytes": BYTES, "flops": "FLOPs"}
Figure = TypeVar("Figure")


@dataclass(frozen=True, kw_only=True)
class WholeRequest:
    """What a request takes in plain decoding, an encoder once, then its tokens: seconds, bytes or FLOPs."""

    READ_OFF: ClassVar[tuple[str, ...]] = ("once_share", "ceiling")

    machine: str
    """Its name, "bytes moved" or "FLOPs"."""
    tokens: Positive
    """Of an answer: the mean over the trace's documents."""
    once: NotNegative
    """Of the encoder, and of K and V of its output for every decoder layer; of an image-text model of what
    sees, and of the prompt."""
    how: How
    """Whether that was timed in place, is derived from prices of layers, or counted."""
    plain: Positive
    """Of a token."""
    halfway: NotNegative
    """Of one that leaves at `exit`, with checks and the repair of K and V for nothing."""
    exit: Whole
    """That nearest half depth."""

    def speed(self, decoding: float, over: float = 1.0) -> float:
        """How many times as fast a request is whose tokens are so many times as fast.

        over: what a token takes of what both speeds are over, as a share of plain decoding's.
        """
        tokens = self.tokens * self.plain * over
        return (self.once + tokens) / (self.once + tokens / decoding)

    def needed(self, gain: float) -> float:
        """The gain in decoding at which a request gains so much; infinite where none is enough."""
        tokens = self.tokens * self.plain
        left = (self.once + tokens) / (1.0 + gain) - self.once
        return tokens / left - 1.0 if left > 0.0 else math.inf

    @property
    def once_share(self) -> float:
        """Share of a plainly decoded request that is over before its first token."""
        return self.once / (self.once + self.tokens * self.plain)

    @property
    def ceiling(self) -> float:
        """Speed of a request of which every token leaves half-way, checks and repairs for nothing."""
        return (self.once + self.tokens * self.plain) / (self.once + self.tokens * self.halfway)

    def refuses(self, worth: float) -> bool:
        """Whether so little could be gained that nothing need be searched."""
        return self.ceiling < 1.0 + worth


def of_request(request: WholeRequest | None, figure: Figure, speed: float | None = None) -> Figure:
    """A speed of tokens (an estimate, or what else has a value and limits) as of requests, if there are any.

    speed: where it is a credit, that of the same tokens over plain decoding. The share of a request that its
    tokens take is taken as exact; counted in bytes it is too large, and there is no lower limit.
    """
    limits = {name: getattr(figure, name, None) for name in ("value", "low", "high")}
    if request is None or limits["value"] is None:
        return figure
    over = 1.0 if speed is None else limits["value"] / speed
    changed: Any = {name: value and request.speed(value, over) for name, value in limits.items()}
    if request.how == "counted":
        changed["low"] = None
    return cast(Figure, replace(cast(Any, figure), **changed))


def request_of(trace: Trace, by: Machine | Counted | None, batch: int = 1) -> WholeRequest | None:
    """A request of a trace on a machine, or counted, by default in bytes; None where nothing is encoded.

    Raises InputError for a trace without tokens, or one that the machine cannot price.
    """
    if trace.shape.encoder is None:
        return None
    by = by or "bytes"
    costs, exit = costs_of(trace, by, batch), max(1, trace.layers // 2)
    once, how = _once(by, trace.shape, trace.shape.encoder.positions)
    return WholeRequest(
        machine=NAMES[by] if isinstance(by, str) else by.name,
        tokens=trace.token_count / len(np.unique(trace.document)),
        once=once,
        how=how,
        plain=costs.plain / batch,
        halfway=(costs.overhead + float(costs.layers[:exit].sum()) + costs.head) / batch,
        exit=exit,
    )


def request_notes(trace: Trace, speedup: float) -> tuple[str, ...]:
    """What must be said of a speed of tokens where an encoder runs before them. speedup: in FLOPs."""
    request = request_of(trace, "flops")
    if request is None or trace.shape.encoder is None:
        return ()
    encoder = trace.shape.encoder
    read = f"{encoder.positions:,.1f} positions"
    before = f"the encoder and K and V of the {read} that it reads"
    if encoder.picture_flops is not None:
        before = f"what sees and a prompt of {read}"
    return (
        f"speeds are of decoding: before it, {before} cost as much as "
        f"{request.once / request.plain:,.1f} plain tokens (FLOPs), so that a request of "
        f"{request.tokens:,.1f} tokens is {request.speed(speedup):.3f} × as fast",
    )


def _once(by: Machine | Counted, shape: ModelShape, positions: float) -> tuple[float, How]:
    """What runs once a request.

    Where it was not timed, its FLOPs at the pace of a step of the decoder's layers with as many rows as there
    are positions, or as the machine prices; its bytes at the pace of one row, for which all weights are read.
    """
    if isinstance(by, str):
        return (request_bytes if by == "bytes" else request_flops)(shape), "counted"
    timed = by.request_seconds(positions) if isinstance(by, TimingsProfile) else None
    if timed is not None:
        return timed, "timed"
    most = by.largest_batch if isinstance(by, TimingsProfile) else math.inf
    rows = int(max(1, min(positions, most)))
    alone = replace(shape, encoder=None)  # products alone: at the first position, with nothing encoded
    seconds = float(machine_prices(by, alone, 0.0, batch=rows).layers.sum())
    if rows == 1:
        return seconds * request_bytes(shape) / float(layer_bytes(alone, 0.0).sum()), "derived"
    return seconds * request_flops(shape) / float(layer_flops(alone, 0.0, rows).sum()), "derived"
