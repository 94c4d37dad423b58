"""A meter that keeps the time of every layer, projection and probe of one decoding step apart."""

from __future__ import annotations

import time

from offramp.decoding.engine.meter import Meter

LAYERS, REPAIR, PROBES, HEADS = "layers", "K,V repair", "probes", "heads"


class StepMeter(Meter):
    """Times one step of the decoder's own loop.

    by_layer: seconds of each layer (1 = the first), run or only its K and V left behind. left: the layers of
    which only K and V were left. by_exit: seconds of the probe at each exit.
    """

    def __init__(self) -> None:
        super().__init__(timing=True)
        self.by_layer: dict[int, float] = {}
        self.left: set[int] = set()
        self.by_exit: dict[int, float] = {}
        self._open: tuple[int, float] | None = None
        self._exit = 0

    def count(self, part: str, place: int = 0, rows: int = 1, probe: str = "") -> None:
        """Something begins that runs once for so many rows (a probe has just ended)."""
        super().count(part, place, rows, probe)
        if part in ("layers", "K,V projection"):
            now = time.perf_counter()
            self._close(now)
            self._open = (place, now)
            if part == "K,V projection":
                self.left.add(place)
        elif part == "probe":
            self._exit = place

    def lap(self, part: str) -> None:
        """What ran since the last lap belongs to this part of time, and to the place that was counted."""
        before = self.seconds[part]
        super().lap(part)
        if part in (LAYERS, REPAIR):
            self._close(self._last)
        elif part == PROBES and self._exit:
            self.by_exit[self._exit] = self.seconds[part] - before
            self._exit = 0

    def _close(self, now: float) -> None:
        if self._open is not None:
            place, began = self._open
            self.by_layer[place] = self.by_layer.get(place, 0.0) + now - began
            self._open = None
