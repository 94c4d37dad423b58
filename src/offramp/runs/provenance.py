"""Where a run's numbers come from: versions, fingerprints, machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterable
from typing import Any

import psutil
import torch

from offramp.costs.hardware import processor_name
from offramp.models.devices import CPU, device_name
from offramp.tracing.request import library_versions


def describe_software(transforms: Iterable[str]) -> dict[str, Any]:
    """Versions of Python and of the libraries that compute. transforms: of the model, as texts."""
    own = {name: importlib.metadata.version(name) for name in ("offramp", "pyarrow")}
    return {"python": platform.python_version(), **library_versions(transforms), **own}


def describe_machine(device: str = CPU) -> dict[str, Any]:
    """Processor, cores, threads, memory and load, and the device that computes, with its name."""
    name = {} if device == CPU else {"device_name": device_name(device)}
    return {
        "device": device,
        **name,
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_average": round(os.getloadavg()[0], 2),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "not set"),
    }
