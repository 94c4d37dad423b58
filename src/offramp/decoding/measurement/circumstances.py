"""The circumstances of a timing: machine, threads, load by others, versions, fingerprints."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import torch

from offramp.costs.hardware import processor_name
from offramp.models.model import Model
from offramp.tracing.request import library_versions

GOVERNORS = "/sys/devices/system/cpu"
IDLE = ("idle", "iowait", "guest", "guest_nice")
"""Times of /proc/stat in which a processor is free; guests' are within user time."""


class Load:
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
            "other_load": round(max(others / passed, 0.0), 3),
        }


def _busy_seconds() -> float:
    times = psutil.cpu_times()._asdict()
    return float(sum(seconds for name, seconds in times.items() if name not in IDLE))


def _own_seconds() -> float:
    times = psutil.Process().cpu_times()
    return float(times.user + times.system)


def describe(model: Model, load: Load, further: Mapping[str, Any]) -> dict[str, Any]:
    """All of it as JSON values; `further` is added."""
    cuda = model.hf.device.type == "cuda"
    return {
        "processor": processor_name(),
        "accelerator": torch.cuda.get_device_name(model.hf.device) if cuda else None,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "governor": governor(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        **load.describe(),
        "dtype": model.dtype,
        "python": platform.python_version(),
        "versions": {
            "offramp": importlib.metadata.version("offramp"),
            **library_versions(model.identity.transforms),
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
