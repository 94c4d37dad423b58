"""Memory that this process can use, sizes of memory as people write them, and the threads of torch."""

from __future__ import annotations

import re
from pathlib import Path

import psutil

from offramp.errors import InputError

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")

WORKING_SHARE = 1.1
"""Of its weights' bytes, what a loaded model takes: with activations, logits and Python itself."""


def available_memory(groups: Path = CGROUPS, own: Path = OWN_CGROUP) -> int:
    """Bytes that this process can still use: what the machine has free, or what its control groups leave it.

    groups, own: where Linux lists the limits of control groups (containers), and the groups of this process.
    """
    rooms = [int(psutil.virtual_memory().available)]
    paths = own.read_text().splitlines() if own.is_file() else []
    for line in paths:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            rooms += _rooms(groups, path, limit="memory.max", used="memory.current", idle="inactive_file")
        elif "memory" in controllers.split(","):
            rooms += _rooms(
                groups / "memory",
                path,
                limit="memory.limit_in_bytes",
                used="memory.usage_in_bytes",
                idle="total_inactive_file",
            )
    return max(min(rooms), 0)


def _rooms(root: Path, path: str, *, limit: str, used: str, idle: str) -> list[int]:
    """What each control group from `path` up to the root leaves; idle pages of files count as free."""
    rooms = []
    inner = root / path.strip("/")
    for group in (inner, *inner.parents):
        if not group.is_relative_to(root):
            break
        stated = (group / limit).read_text().strip() if (group / limit).is_file() else "max"
        if stated != "max":
            lines = (group / "memory.stat").read_text().splitlines()
            statistics = dict(line.split() for line in lines)
            rooms.append(int(stated) - int((group / used).read_text()) + int(statistics.get(idle, 0)))
    return rooms


def machine_memory(groups: Path = CGROUPS, own: Path = OWN_CGROUP) -> int:
    """Bytes that there are for all processes here: the machine's, or what its control groups allow."""
    sizes = [int(psutil.virtual_memory().total)]
    for line in own.read_text().splitlines() if own.is_file() else []:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            sizes += _limits(groups, path, "memory.max")
        elif "memory" in controllers.split(","):
            sizes += _limits(groups / "memory", path, "memory.limit_in_bytes")
    return min(sizes)


def _limits(root: Path, path: str, limit: str) -> list[int]:
    """The limit of each control group from `path` up to the root that has one."""
    inner = root / path.strip("/")
    files = [group / limit for group in (inner, *inner.parents) if group.is_relative_to(root)]
    stated = [file.read_text().strip() for file in files if file.is_file()]
    return [int(text) for text in stated if text != "max"]


UNITS = {
    "": 1,
    "b": 1,
    **{unit: 1000**power for power, unit in enumerate(("kb", "mb", "gb", "tb"), start=1)},
    **{unit: 1024**power for power, unit in enumerate(("kib", "mib", "gib", "tib"), start=1)},
    **{unit: 1000**power for power, unit in enumerate(("k", "m", "g", "t"), start=1)},
}


def parse_size(text: str, option: str) -> int:
    """Bytes of "4GB", "1.5 GiB", "800MB" or "4000000000"; GB is 10^9 bytes, GiB 2^30.

    Raises InputError that names the option.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    unit = None if found is None else UNITS.get(found[2].lower())
    size = 0 if found is None or unit is None else round(float(found[1]) * unit)
    if size < 1:
        raise InputError(
            f"{text!r} is not an amount of memory", where=option, fix="write 4GB, 800MB or 1.5GiB"
        )
    return size


def shown_size(size: int) -> str:
    """Bytes in the largest decimal unit that gives 1 or more: "14.5 GB"."""
    for unit in ("tb", "gb", "mb", "kb"):
        if size >= UNITS[unit]:
            return f"{size / UNITS[unit]:,.1f} {unit.upper() if unit != 'kb' else 'kB'}"
    return f"{size} bytes"


def use_threads(count: int) -> None:
    """Let torch compute with so many threads from now on: the order of its sums depends on them."""
    import torch

    torch.set_num_threads(count)
