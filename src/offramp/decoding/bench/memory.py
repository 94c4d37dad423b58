"""Peak memory of one decoding, above what was held before it."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_HIGH_WATER_MARK = "5"


def start_peak(device: torch.device) -> Callable[[], int | None]:
    """Start to watch; what is returned gives the peak since then, in bytes above the start, None if unknown.

    On CUDA the largest sum of tensors. On Linux the process's high-water mark of resident memory (VmHWM of
    proc(5), reset by writing 5 to clear_refs), to the page; blocks that the allocator kept from earlier work
    and hands out again do not show, so what it keeps is given back first where it can be.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        return lambda: int(torch.cuda.max_memory_allocated(device)) - held
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
    if trim is not None:
        trim(0)
    try:
        CLEAR.write_text(RESET_HIGH_WATER_MARK)
    except OSError:  # not Linux, or not allowed
        return lambda: None
    before = _status("VmRSS")
    return lambda: max(_status("VmHWM") - before, 0)


def _status(name: str) -> int:
    """A size in /proc/self/status, in bytes."""
    lines = STATUS.read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
