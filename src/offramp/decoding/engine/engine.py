"""The engine: a model driven layer by layer, what its family can do, and what it ran, counted and timed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from offramp.decoding.engine.products import head_logits
from offramp.models.devices import CPU
from offramp.models.stack import ExitStack
from offramp.policies.cost_breakdown import Item, Usage

Moment = Any
"""Seconds of the processor's clock, or an event among the work of an accelerator."""


class DeviceClock:
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


HOST = DeviceClock(torch.device(CPU))
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
    clock: of the device that runs it.
    usage: items by how often they ran; an item's rows are sequences times positions that ran at once.
    executed: rows times layers, prompt included: what hooks on the layers count. seconds: by PARTS_OF_TIME,
    of the steps after the prompt; all zero unless `timing`.
    """

    def __init__(self, timing: bool = False, clock: DeviceClock = HOST) -> None:
        self.timing = timing
        self.clock = clock
        self.usage: Usage = Usage()
        self.executed = 0
        self.prompt_layers = 0
        self.in_prompt = True
        self._seconds = dict.fromkeys(PARTS_OF_TIME, 0.0)
        self._laps: list[tuple[str, Moment, Moment]] = []
        self._last: Moment = None

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
        if self.timing:
            self._add_laps()
            self._last = self.clock.moment()

    def lap(self, part: str) -> None:
        """What ran since the last lap belongs to this part of time."""
        if self.timing and not self.in_prompt:
            now = self.clock.moment()
            self._laps.append((part, self._last, now))
            self._last = now

    @property
    def seconds(self) -> Mapping[str, float]:
        """Seconds by part of time so far."""
        self._add_laps()
        return self._seconds

    def _add_laps(self) -> None:
        """Look at the moments that were noted: between two steps, when all of them are over."""
        for part, sooner, later in self._laps:
            self._seconds[part] += self.clock.seconds(sooner, later)
        self._laps.clear()


ABILITIES: Mapping[str, str] = {
    "never_exit": "logits and greedy tokens of the loop without exits are the model's own",
    "propagate": "a skipped layer leaves the K and V (or the moved state) of its exit's hidden state",
    "mapped": "the same, each skipped layer of a state of its own",
    "recompute": "skipped layers run later, several positions at once, as if they had run in time",
    "speculate": "positions can be drafted by the first layers, verified by the rest, and taken back",
    "monotone": "the first layers go on alone when the rest is never needed again",
    "lockstep": "each row of a left-padded batch gets the logits it has alone",
    "rebatch": "layers run for some rows of a batch while the others only leave their K and V",
    "drop": "rows of a batch that are over leave it, and the others go on",
}
"""What a family may be able to do: the loop itself, the KV strategies, and what can be done with a batch."""

SAME_AS = {"mapped": "propagate"}
"""Abilities that a family has if it has another one: layers that leave K and V of one state do of any."""


class Abilities:
    """Each ability is None if the family can do it exactly, else the reason in a sentence.

    trial: tries one ability by name. answers: kept between engines of one model.
    """

    def __init__(
        self, trial: Callable[[str], str | None], answers: dict[str, str | None] | None = None
    ) -> None:
        self._trial = trial
        self._answers = {} if answers is None else answers
        self._lock = threading.Lock()

    def reason(self, ability: str) -> str | None:
        """Why the family cannot do one of ABILITIES, None if it can; tried when first asked for."""
        ability = SAME_AS.get(ability, ability)
        with self._lock:
            if ability not in self._answers:
                self._answers[ability] = self._trial(ability)
            return self._answers[ability]


@dataclass(frozen=True)
class KeptState:
    """What one layer leaves behind for later tokens."""

    entries: tuple[int, ...]
    """Places in the cache's list of layers; a layer that attends to another layer's K and V has none."""
    recurrent: bool
    """A tensor is replaced rather than grown: the state only moves by running the layer."""
    updates: int
    """After how many updates of the cache all of it is written, so that the layer can stop there; 0 if it
    cannot."""
    elsewhere: bool
    """Something is kept outside the cache's list, in the layer's modules, say."""
    attends: bool
    """Whether it writes K and V at all."""


@dataclass(frozen=True, kw_only=True)
class Drive:
    """How a model is driven layer by layer, as it was measured."""

    cache_name: str
    """Under which the model takes a cache."""
    takes_positions: bool
    """Whether it takes `position_ids`."""
    kept: tuple[KeptState, ...]
    """What each layer leaves behind."""
    transposed: bool = False
    """Whether the output head's product is faster with the weights on the left."""


@dataclass(frozen=True, kw_only=True)
class Engine(Drive):
    """A model ready to be driven layer by layer (see `offramp.decoding.engine.build.engine_of`)."""

    stack: ExitStack
    abilities: Abilities
    """What the family can do, and why not."""
    linears: tuple[tuple[nn.Linear, ...], ...] = ()
    """Per layer, those whose products of a few rows are faster so (`offramp.decoding.engine.products`); empty
    if they are not."""

    @property
    def layers(self) -> int:
        """L, the number of layers and of exits."""
        return len(self.stack)

    @property
    def masks_steps(self) -> bool:
        """Whether it takes the attention mask after the prompt too: a model without attention does not."""
        return any(state.attends for state in self.kept)

    @property
    def recurrent(self) -> tuple[int, ...]:
        """Layers, counted from 0, that keep a state which only moves by running them."""
        return tuple(layer for layer, state in enumerate(self.kept) if state.recurrent)

    @property
    def dtype(self) -> str:
        """Of the weights, as `offramp.models.model.Model.dtype` says it."""
        return str(next(self.hf.parameters()).dtype).removeprefix("torch.")

    def logits(self, hidden: Tensor) -> Tensor:
        """The full model's logits of states after layer L: [rows, n, hidden] -> [rows, n, vocabulary]."""
        if self.transposed:
            return head_logits(self.stack, self.stack.tail_forward(hidden), True)
        return self.stack.readout(hidden)

    @property
    def hf(self) -> Any:
        """transformers' model."""
        return self.stack.hf
