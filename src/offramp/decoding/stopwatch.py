"""The stopwatch within one decoding step: when each layer, the head and each probe ended."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from offramp.models.calls import first_tensor, hidden_argument
from offramp.models.stack import ExitStack

Probe = Callable[[Tensor, Tensor], Any]
"""Called with a layer's output and its input; what it returns is not looked at."""

CALIBRATION_CALLS = 400


@dataclass(frozen=True)
class StepTimes:
    """Seconds of the parts of one decoding step, timed while it ran.

    position: of the decoded token (0 = first). layers: one entry per layer executed, in order; none of a step
    that was timed only as a whole. head: from the last layer's end to the chosen token. probes: by name.
    whole: the step from its token to the next.
    """

    position: int
    layers: tuple[float, ...]
    head: float
    probes: Mapping[str, float]
    whole: float

    @property
    def unprobed(self) -> float:
        """The step without its probes."""
        return self.whole - sum(self.probes.values())

    @property
    def overhead(self) -> float:
        """What is left of the step: embedding, masks, positions, and the program around the layers."""
        return self.unprobed - sum(self.layers) - self.head


class Stopwatch:
    """Hooks that note when the parts of a step end, and run probes right after their layers.

    Layer l's time runs from the end of layer l - 1 (of its probe, if it has one) to its own end, so that it
    holds the loop around it. cost: seconds that one note takes, subtracted from every layer.
    """

    def __init__(self, stack: ExitStack) -> None:
        self.stack = stack
        self.cost = note_cost()
        self.probe_after: Mapping[int, tuple[str, Probe]] = {}
        self.start()

    def start(self, probe_after: Mapping[int, tuple[str, Probe]] | None = None) -> None:
        """Begin a step. probe_after: name and probe to run after some layers (0 = the first)."""
        self.probe_after = probe_after or {}
        self.layers: list[float] = []
        self.probes: dict[str, float] = {}
        self.head_ended: float | None = None
        self.last = 0.0
        self.before: Tensor | None = None

    @property
    def executed(self) -> int:
        """Layers that ended in this step."""
        return len(self.layers)

    def times(self, position: int, started: float, returned: float, chosen: float, ended: float) -> StepTimes:
        """The finished step, from when the model returned its logits and when the token was chosen."""
        head_ended = returned if self.head_ended is None else self.head_ended
        return StepTimes(
            position=position,
            layers=tuple(max(seconds - self.cost, 0.0) for seconds in self.layers),
            head=head_ended - self.last + chosen - returned,
            probes=dict(self.probes),
            whole=ended - started - self.cost * self.executed,
        )

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks on the layers and the head; removed whatever happens."""
        handles = []
        try:
            for layer in dict.fromkeys(self.stack.layers):
                handles.append(layer.register_forward_hook(self._layer_ended))
            handles.append(
                self.stack.layers[0].register_forward_pre_hook(self._first_began, with_kwargs=True)
            )
            transform = self.stack.transform
            # What a model does to its logits belongs to the head: it then ends when the model returns.
            if self.stack.head is not None and transform is not None and transform.kind == "identity":
                handles.append(self.stack.head.register_forward_hook(self._head_ended))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _first_began(self, layer: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if not self.layers:
            self.before = hidden_argument(arguments, keywords)
            self.last = time.perf_counter()

    def _layer_ended(self, layer: nn.Module, arguments: Any, output: Any) -> None:
        now = time.perf_counter()
        index = len(self.layers)
        self.layers.append(now - self.last)
        hidden = first_tensor(output)
        if index in self.probe_after:
            name, probe = self.probe_after[index]
            began = time.perf_counter()
            probe(hidden, hidden if self.before is None else self.before)
            now = time.perf_counter()
            self.probes[name] = now - began
        self.before = hidden
        self.last = now

    def _head_ended(self, head: nn.Module, arguments: Any, output: Any) -> None:
        self.head_ended = time.perf_counter()


def note_cost() -> float:
    """Seconds that one hook which reads the clock adds to a module's call: a median."""

    def seconds(module: nn.Module) -> float:
        samples = []
        for _ in range(CALIBRATION_CALLS):
            began = time.perf_counter()
            module(None)
            samples.append(time.perf_counter() - began)
        return statistics.median(samples)

    noted: list[float] = []
    plain, hooked = nn.Identity(), nn.Identity()
    hooked.register_forward_hook(lambda module, arguments, output: noted.append(time.perf_counter()))
    return max(seconds(hooked) - seconds(plain), 0.0)
