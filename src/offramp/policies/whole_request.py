"""A whole request beside an encoder: what runs once before its tokens, and what exits could gain of it at most."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from offramp.costs.counting import layer_bytes, layer_flops, request_bytes, request_flops
from offramp.costs.machine import Machine, machine_prices
from offramp.costs.timings import TimingsProfile
from offramp.defaults import BYTES
from offramp.kit.numbers import NotNegative, Positive
from offramp.models.shape import ModelShape
from offramp.policies.prices import costs_of
from offramp.tracing.trace import Trace

How = Literal["timed", "derived", "counted"]
"""What is known of a request's encoder: timed in place, derived from the prices of the decoder's layers, or in
bytes moved."""


@dataclass(frozen=True, kw_only=True)
class WholeRequest:
    """What one request of a trace takes in plain decoding: an encoder once, then its tokens.

    In seconds on a machine, or in bytes moved without one.
    """

    READ_OFF: ClassVar[tuple[str, ...]] = ("once_share", "ceiling")

    machine: str
    """Its name, or "bytes moved"."""
    tokens: Positive
    """Of an answer: the mean over the trace's documents."""
    once: NotNegative
    """Of the encoder, and of K and V of its output for every decoder layer."""
    how: How
    plain: Positive
    """Of a token of plain decoding."""
    halfway: NotNegative
    """Of a token that leaves at `exit`, with checks and the repair of K and V for nothing."""
    exit: int
    """That nearest half depth."""

    def speed(self, decoding: float, over: float = 1.0) -> float:
        """How many times as fast a request is whose tokens are `decoding` times as fast; the encoder is not.

        over: seconds of a token of what both speeds are over, as a share of plain decoding's.
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


def request_of(trace: Trace, machine: Machine | None, batch: int = 1) -> WholeRequest | None:
    """A request of a trace on a machine, in bytes moved without one; None where nothing is encoded.

    batch: sequences decoded side by side, each with an encoder's run of its own.

    Raises InputError for a trace without tokens, or one that the machine cannot price.
    """
    shape = trace.shape
    if shape.encoder is None:
        return None
    costs = costs_of(trace, machine or "bytes", batch)
    exit = max(1, trace.layers // 2)
    once, how = once_of(machine, shape)
    return WholeRequest(
        machine=BYTES if machine is None else machine.name,
        tokens=trace.token_count / len(np.unique(trace.document)),
        once=once,
        how=how,
        plain=costs.plain / batch,
        halfway=(costs.overhead + float(costs.layers[:exit].sum()) + costs.head) / batch,
        exit=exit,
    )


def once_of(machine: Machine | None, shape: ModelShape) -> tuple[float, How]:
    """What runs once a request, on a machine or in bytes moved, and how that is known.

    Where it was not timed, its FLOPs at the pace of a step of the decoder's layers with as many rows as the
    encoder has positions, or as the machine prices; of one row alone, whose weights are read for it alone, its
    bytes at that pace.
    """
    if machine is None:
        return request_bytes(shape), "counted"
    assert shape.encoder is not None
    positions, most = shape.encoder.positions, math.inf
    if isinstance(machine, TimingsProfile):
        timed = machine.request_seconds(positions)
        if timed is not None:
            return timed, "timed"
        most = machine.largest_batch
    rows = int(max(1, min(positions, most)))
    # Products alone: at the first position, with nothing encoded to attend to.
    alone = replace(shape, encoder=None)
    seconds = float(machine_prices(machine, alone, 0.0, batch=rows).layers.sum())
    if rows == 1:
        return seconds * request_bytes(shape) / float(layer_bytes(alone, 0.0).sum()), "derived"
    return seconds * request_flops(shape) / float(layer_flops(alone, 0.0, rows).sum()), "derived"
