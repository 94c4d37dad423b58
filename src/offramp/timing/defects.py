"""What is wrong with a measurement (noise is no defect), and the circumstances that it was made in."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch

from offramp.costs.machine_registry import processor_name
from offramp.costs.timings import OTHER_LOAD, too_busy
from offramp.models.devices import CPU, device_name
from offramp.models.model import Model
from offramp.scoring.estimate import Estimate
from offramp.timing.ratios import freedom_of, ratio_of
from offramp.timing.results import A_A, Contender
from offramp.tracing.request import library_versions

A_A_LEVEL = 0.99
"""Of the interval of two identical contenders: a sound timing leaves out 1 once in a hundred times."""
A_A_FREEDOM = 3
"""Degrees of freedom that it takes: of two or three prompts a chance agreement makes the interval narrow."""
PASSIVE = "passive"


@dataclass(frozen=True)
class Difference:
    """The first new token of a prompt that is not the full model's."""

    prompt: int
    place: int
    """From 0."""
    token: int
    expected: int


def defects_of(
    name: str, output_must_match: bool, difference: Difference | None, claimed: int | None, counted: int
) -> list[str]:
    """One sentence for each defect of a contender, with what to do.

    difference: the first from the output that it must give, None without any. claimed, counted: rows times
    layers of its trial, by its own account (None where it says nothing) and by hooks.
    """
    found = []
    if output_must_match and difference is not None:
        found.append(
            f"{name} must give the full model's output, but new token {difference.place + 1} of prompt "
            f"{difference.prompt + 1} is {difference.token} instead of {difference.expected} (report it with "
            "the model and the prompt)"
        )
    if claimed is not None and claimed != counted:
        found.append(
            f"{name} says that it ran {claimed:,} layers for the tokens of a trial, but {counted:,} ran "
            "(report it with the model and the policy)"
        )
    return found


def judge_a_a(
    contenders: Sequence[Contender], defects: Sequence[str]
) -> tuple[tuple[Contender, ...], tuple[str, ...], Estimate[float]]:
    """Contenders, all defects, and the ratio of the plain decoder to itself, at `A_A_LEVEL`.

    Where that is no 1, nothing is answered.
    """
    a_a_clusters = next((contender.clusters for contender in contenders if contender.role == A_A), ())
    a_a = ratio_of(a_a_clusters, A_A_LEVEL) if a_a_clusters else Estimate(1.0)
    unequal = a_a_defect(a_a, freedom_of(a_a_clusters))
    if unequal is None:
        return tuple(contenders), tuple(defects), a_a
    unanswered = tuple(replace(contender, answer="defect") for contender in contenders)
    return unanswered, (*defects, unequal), a_a


def a_a_defect(a_a: Estimate[float], freedom: int = A_A_FREEDOM) -> str | None:
    """Whether the same decoder twice came out unequal: its ratio at `A_A_LEVEL`, as a sentence.

    freedom: degrees of freedom of the interval.
    """
    if a_a.low is None or a_a.high is None or a_a.low <= 1.0 <= a_a.high or freedom < A_A_FREEDOM:
        return None
    return (
        f"the same decoder twice comes out unequal: ratio {a_a.value:.3f} [{a_a.low:.3f}, {a_a.high:.3f}] at "
        "99 %, so that no time here can be believed (measure again: chance does this once in a hundred times)"
    )


def warnings_of(circumstances: Mapping[str, Any]) -> list[str]:
    """What makes times noisy or slow on this machine; intervals are wider by it, not wrong."""
    found = []
    busy = too_busy(circumstances, circumstances[OTHER_LOAD])
    if busy is not None:
        found.append(f"{busy}: intervals are wider by it")
    waits = circumstances["omp_wait_policy"]
    if (waits or "").lower() != PASSIVE:
        found.append(
            f"OMP_WAIT_POLICY is {waits or 'not set'}: waiting threads spin, and slow a busy machine down "
            "(set OMP_WAIT_POLICY=passive before Python starts)"
        )
    return found


GOVERNORS = "/sys/devices/system/cpu"
IDLE = ("idle", "iowait", "guest", "guest_nice")
"""Times of /proc/stat in which a processor is free; guests' are within user time."""


class MachineLoad:
    """Watches what the machine does beside this process, from now on."""

    def __init__(self) -> None:
        self.before = os.getloadavg()[0]
        self._began = time.monotonic()
        self._busy, self._own = _busy_seconds(), _own_seconds()

    def describe(self) -> dict[str, Any]:
        """Load averages before and after (our own threads included), and `other_load`.

        other_load: processors that anything but this process kept busy, on average since the start.
        """
        passed = max(time.monotonic() - self._began, 1e-9)
        others = (_busy_seconds() - self._busy) - (_own_seconds() - self._own)
        return {
            "load_average": [round(self.before, 2), round(os.getloadavg()[0], 2)],
            OTHER_LOAD: round(max(others / passed, 0.0), 3),
        }


def _busy_seconds() -> float:
    times = psutil.cpu_times()._asdict()
    return float(sum(seconds for name, seconds in times.items() if name not in IDLE))


def _own_seconds() -> float:
    times = psutil.Process().cpu_times()
    return float(times.user + times.system)


def describe(model: Model, load: MachineLoad, further: Mapping[str, Any]) -> dict[str, Any]:
    """All of it as JSON values; `further` is added."""
    device = str(model.stack.device)
    return {
        "processor": processor_name(),
        "accelerator": None if device == CPU else device_name(device),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "governor": governor(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        **load.describe(),
        "dtype": model.dtype,
        "python": platform.python_version(),
        "versions": {
            "offramp": importlib.metadata.version("offramp"),
            **library_versions(),
        },
        "model_fingerprint": model.identity.fingerprint,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **further,
    }


def governor(folder: str = GOVERNORS) -> str | None:
    """How the kernel chooses the processors' frequency: every governor in use, None if it is not shown."""
    found = set()
    for path in sorted(Path(folder).glob("cpu[0-9]*/cpufreq/scaling_governor")):
        try:
            found.add(path.read_text().strip())
        except OSError:  # this one is not shown
            continue
    return "+".join(sorted(found)) or None
