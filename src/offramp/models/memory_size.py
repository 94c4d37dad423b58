"""Sizes of memory as people write them."""

from __future__ import annotations

import re

from offramp.errors import InputError

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
