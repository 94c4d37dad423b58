"""A stopwatch for work that an accelerator does later than it is told: moments in the order of that work."""

from __future__ import annotations

import time
from typing import Any

import torch

from offramp.models.devices import CPU

Moment = Any
"""Seconds of the processor's clock, or an event among the work of an accelerator."""


class Clock:
    """Notes moments, and says afterwards how far they lie apart.

    On a processor a moment is the time of its clock. On an accelerator it is an event between what was given
    to it before and what comes after: nothing waits for it, so that a step is timed as it runs without. Where
    the program itself waits for a result between two moments (the facts that a policy reads), the later one
    is noted after the wait, which so belongs to the seconds between them.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._of_device = device.type != CPU

    def moment(self) -> Moment:
        """Now; on an accelerator once it gets there."""
        if not self._of_device:
            return time.perf_counter()
        return recorded_event(self.device)

    def seconds(self, sooner: Moment, later: Moment) -> float:
        """Between two moments, the later of which is waited for."""
        if not self._of_device:
            return float(later - sooner)
        later.synchronize()
        return float(sooner.elapsed_time(later)) / 1e3


HOST = Clock(torch.device(CPU))
"""Of work that is done when it returns."""


def recorded_event(device: torch.device) -> Any:
    """An event that keeps its time, behind all that an accelerator was given so far."""
    if device.type == "mps":
        event = torch.mps.event.Event(enable_timing=True)
        event.record()
        return event
    module = getattr(torch, device.type)
    event = module.Event(enable_timing=True)
    event.record(module.current_stream(device))
    return event
