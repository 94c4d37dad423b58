"""What a generation ran, item by item, and where its time went."""

from __future__ import annotations

import time
from collections.abc import Mapping

from offramp.policies.cost_breakdown import Item, Usage

PARTS_OF_TIME = ("layers", "probes", "K,V repair", "heads", "overhead")
"""What measured and predicted seconds are split into."""

PART_OF_ITEM: Mapping[str, str] = {
    "layers": "layers",
    "probe": "probes",
    "K,V projection": "K,V repair",
    "K,V map": "K,V repair",
    "exit head": "heads",
    "short head": "heads",
    "final head": "heads",
    "overhead": "overhead",
}
"""The part of time that an item of a cost breakdown belongs to."""


class Meter:
    """Counts what runs, as items of a cost breakdown (`policies.cost_breakdown`); times it if asked to.

    Everything after the prompt is counted; the prompt's layers are kept apart in `prompt_layers`.
    usage: items by how often they ran; an item's rows are sequences times positions that ran at once.
    executed: rows times layers, prompt included: what hooks on the layers count. seconds: by PARTS_OF_TIME,
    of the steps after the prompt; all zero unless `timing`.
    """

    def __init__(self, timing: bool = False) -> None:
        self.timing = timing
        self.usage: Usage = Usage()
        self.executed = 0
        self.prompt_layers = 0
        self.in_prompt = True
        self.seconds = dict.fromkeys(PARTS_OF_TIME, 0.0)
        self._last = 0.0

    def count(self, part: str, place: int = 0, rows: int = 1, probe: str = "") -> None:
        """Something ran once for so many rows."""
        if part == "layers":
            self.executed += rows
            if self.in_prompt:
                self.prompt_layers += rows
        if not self.in_prompt:
            self.usage[Item(part, place, rows, probe)] += 1

    def start(self) -> None:
        """The prompt has run; time counts from now on."""
        self.in_prompt = False
        self._last = time.perf_counter()

    def lap(self, part: str) -> None:
        """What ran since the last lap belongs to this part of time."""
        if self.timing and not self.in_prompt:
            now = time.perf_counter()
            self.seconds[part] += now - self._last
            self._last = now
