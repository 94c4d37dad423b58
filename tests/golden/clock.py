"""Time that passes only when a model computes, so that timings are the same on every machine."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

from tiny_models import VOCABULARY

SECONDS = {"Attention": 6e-3, "MLP": 14e-3, "MoeBlock": 14e-3, "Mamba2Mixer": 20e-3}
"""Of one call of a module whose class is called so at the end: parts of layers."""
HEAD_SECONDS = 5e-3
JITTER = 0.05
"""Share of a step's time that is drawn, from a fixed seed: intervals then have a width."""
TICK = 1e-9
"""Seconds that reading the clock takes, so that nothing takes none."""


class Clock:
    """Seconds since it began. Layers and output heads take some, and so does sleeping."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._draws = random.Random(0)
        self._own = threading.current_thread()
        self._sleep = time.sleep

    def read(self) -> float:
        if threading.current_thread() is self._own:
            self.now += TICK
        return self.now

    def sleep(self, seconds: float) -> None:
        """Other threads, such as one that says that this process lives, sleep as ever."""
        if threading.current_thread() is self._own:
            self.now += seconds
        else:
            self._sleep(seconds)

    def work(self, seconds: float) -> None:
        """Let a step of about so many seconds pass."""
        self.now += seconds * (1.0 + JITTER * (self._draws.random() - 0.5))

    def hear(self, module: Any, inputs: object) -> None:
        """Called before each module of torch runs."""
        name = type(module).__name__
        seconds = next((seconds for end, seconds in SECONDS.items() if name.endswith(end)), None)
        if seconds is not None:
            self.work(seconds)
        elif getattr(module, "out_features", None) == VOCABULARY:
            self.work(HEAD_SECONDS)


@contextlib.contextmanager
def clocked() -> Iterator[Clock]:
    """Let all that reads the time read a clock of its own within the block."""
    from torch.nn.modules.module import register_module_forward_pre_hook

    clock = Clock()
    hook = register_module_forward_pre_hook(clock.hear)
    fakes = {"perf_counter": clock.read, "monotonic": clock.read, "sleep": clock.sleep}
    try:
        with contextlib.ExitStack() as stack:
            for name, fake in fakes.items():
                stack.enter_context(mock.patch.object(time, name, fake))
            yield clock
    finally:
        hook.remove()
