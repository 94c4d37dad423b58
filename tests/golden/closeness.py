"""Whether two goldens of the tolerant form say the same: words and whole numbers exactly, floats nearly."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

SHARE = 1e-3
"""By which two floats may differ."""
NOISE = 1e-7
"""By which two floats of JSON may differ however small they are."""
OF_ARRAY = 5e-4
"""By which two numbers of an array's line may differ, as a share of the line's largest."""
LEARNED = re.compile(r"network|gate|loss|disagreement|auroc|calibration")
"""What steps of an optimiser, or counts of bins, make of rounding: such floats and arrays may differ more."""
LEARNED_SHARE, LEARNED_NOISE, LEARNED_OF_ARRAY = 0.03, 1e-5, 0.1
SHOWN_SHARE = 0.025
"""A decimal in a text may differ by one unit in its last place, if that is no larger share of it."""
DECIMAL = re.compile(r"(?<![\w.])[-−]?\d[\d,]*\.\d+(?:e[-+]?\d+)?|(?<![\w.])-?\d+e[-+]?\d+")
LINES = 12
"""Lines of a difference that are shown."""


def difference(name: str, stored: str, found: str) -> str:
    """What differs between a stored golden and what was found, "" if nothing does."""
    if stored == found:
        return ""
    if name.endswith(".json"):
        problems = [*json_differences(json.loads(stored), json.loads(found))]
    else:
        close = array_lines_close if name.endswith(".arrays") else texts_close
        problems = [*text_differences(stored, found, close)]
    more = [] if len(problems) <= LINES else [f"and {len(problems) - LINES} lines more"]
    return "\n".join([*problems[:LINES], *more])


def json_differences(stored: Any, found: Any, where: str = "") -> Iterator[str]:
    """Each place where two JSON values differ, in a line."""
    if isinstance(stored, dict) and isinstance(found, dict):
        for key in [*stored, *(key for key in found if key not in stored)]:
            if key not in stored or key not in found:
                yield f"{where}.{key}: {'gone' if key in stored else 'new'}"
            else:
                yield from json_differences(stored[key], found[key], f"{where}.{key}")
    elif isinstance(stored, list) and isinstance(found, list):
        if len(stored) != len(found):
            yield f"{where}: {len(stored)} entries, now {len(found)}"
        for place, (before, now) in enumerate(zip(stored, found, strict=False)):
            yield from json_differences(before, now, f"{where}[{place}]")
    elif type(stored) is not type(found) or not values_close(stored, found, where):
        yield f"{where}: {stored!r}, now {found!r}"


def values_close(stored: Any, found: Any, where: str) -> bool:
    """Whether two plain JSON values of one type are the same. where: their path of keys."""
    if isinstance(stored, float):
        share, noise = (LEARNED_SHARE, LEARNED_NOISE) if LEARNED.search(where) else (SHARE, NOISE)
        both_undefined = math.isnan(stored) and math.isnan(found)
        return both_undefined or math.isclose(stored, found, rel_tol=share, abs_tol=noise)
    return texts_close(stored, found) if isinstance(stored, str) else bool(stored == found)


def text_differences(stored: str, found: str, close: Callable[[str, str], bool]) -> Iterator[str]:
    """Lines that are gone (-) and new (+)."""
    before, now = stored.splitlines(), found.splitlines()
    matcher = difflib.SequenceMatcher(None, before, now, autojunk=False)
    for kind, first, last, start, end in matcher.get_opcodes():
        gone, new = before[first:last], now[start:end]
        if kind == "equal" or (len(gone) == len(new) and all(map(close, gone, new))):
            continue
        yield from (f"- {line}" for line in gone)
        yield from (f"+ {line}" for line in new)


def texts_close(stored: str, found: str) -> bool:
    """Whether two texts differ in the last digits of decimals alone."""
    if stored == found:
        return True
    if DECIMAL.sub("#", stored) != DECIMAL.sub("#", found):
        return False
    return all(map(decimals_close, DECIMAL.findall(stored), DECIMAL.findall(found)))


def decimals_close(stored: str, found: str) -> bool:
    """Whether two decimals as they are shown are the same number, rounded here and there."""
    before, now = number_of(stored), number_of(found)
    place = max(last_place(stored), last_place(found))
    allowed = place if place <= SHOWN_SHARE * abs(before) else 0.0
    return math.isclose(before, now, rel_tol=SHARE, abs_tol=1.001 * allowed)


def array_lines_close(stored: str, found: str) -> bool:
    """Whether two lines about an array are the same: shape exactly, values by the size of the largest."""
    before, now = stored.split(" "), found.split(" ")
    if len(before) != len(now):
        return False
    numbers = [as_number(word) for word in before]
    largest = max((abs(number) for number in numbers if number is not None), default=0.0)
    share, of_array = (0.0, LEARNED_OF_ARRAY) if LEARNED.search(before[0]) else (SHARE, OF_ARRAY)
    for old, new, number in zip(before, now, numbers, strict=True):
        other = as_number(new)
        if old != new and (
            number is None
            or other is None
            or not math.isclose(number, other, rel_tol=share, abs_tol=of_array * largest)
        ):
            return False
    return True


def as_number(word: str) -> float | None:
    """A word that is a number; one with a bracket or comma belongs to a shape."""
    try:
        number = float(word)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def number_of(text: str) -> float:
    return float(text.replace(",", "").replace("−", "-"))


def last_place(text: str) -> float:
    """One unit in the last place of a decimal."""
    mantissa, _, exponent = text.partition("e")
    return float(10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2])))
