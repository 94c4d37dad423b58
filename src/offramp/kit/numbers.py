"""How large a number may be that people give: on the command line, in Python and in files they write.

Whatever is computed with such a number stays finite, and can be written to JSON and arrays.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le, Lt

LARGEST_COUNT = 10**15
"""Of tokens, documents, steps, layers and whatever else is counted."""
LARGEST_SEED = 2**63 - 1
LARGEST_FITTING_SEED = 2**32 - 1
"""That scikit-learn takes."""
LARGEST_NUMBER = 1e30
"""Of rates, shares, times of a machine and all other numbers, on either side of 0."""
SMALLEST_NUMBER = 1e-30
"""Of what must be above 0, and may be divided by."""
LONGEST_COPY = 1024
"""Of tokens that are copied from a text at once: all are weighed, and checked, for each new one."""
MOST_RUNS = 2 * LONGEST_COPY
"""Of the full model's layers for one token, wrong drafts included: two kinds of drafts at most."""
MOST_LAYERS = 10_000
LONGEST_SECONDS = 366 * 86_400.0
LONGEST_MINUTES = LONGEST_SECONDS / 60

Layers = Annotated[int, Ge(1), Le(MOST_LAYERS)]
Count = Annotated[int, Ge(1), Le(LARGEST_COUNT)]
Whole = Annotated[int, Ge(0), Le(LARGEST_SEED)]
Copied = Annotated[int, Ge(0), Le(LONGEST_COPY)]
FittingSeed = Annotated[int, Ge(0), Le(LARGEST_FITTING_SEED)]
Threads = Annotated[int, Ge(1), Le(1024)]
TimedTokens = Annotated[int, Ge(4), Le(LARGEST_COUNT)]
Share = Annotated[float, Gt(0), Lt(1)]
Proportion = Annotated[float, Ge(0), Le(1)]
Minutes = Annotated[float, Gt(0), Le(LONGEST_MINUTES)]
Seconds = Annotated[float, Gt(0), Le(LONGEST_SECONDS)]
Number = Annotated[float, Ge(-LARGEST_NUMBER), Le(LARGEST_NUMBER)]
Positive = Annotated[float, Ge(SMALLEST_NUMBER), Le(LARGEST_NUMBER)]
NotNegative = Annotated[float, Ge(0), Le(LARGEST_NUMBER)]
"""Types of numbers, for arguments, fields of requests (`offramp.kit.arguments`) and entries of files
(`offramp.kit.given_file`): who has one of these needs no check of its own."""


LIMITS: Mapping[Any, tuple[str, Callable[[Any, Any], bool], str]] = {
    Ge: ("ge", operator.ge, "at least {:g}"),
    Gt: ("gt", operator.gt, "above {:g}"),
    Le: ("le", operator.le, "{:,} at most"),
    Lt: ("lt", operator.lt, "below {:g}"),
}
"""Of each kind of limit: where it holds its bound, when a number is within, and what it must be."""


def within(number: float, limits: Sequence[Any]) -> str | None:
    """What a number must be that is outside one of these limits, in words; None for one within all."""
    if number != number:
        return "a finite number"
    for limit in limits:
        bound, holds, words = LIMITS[type(limit)]
        if not holds(number, getattr(limit, bound)):
            return words.format(getattr(limit, bound))
    return None


def whole_number(text: str, least: int = 1, most: int = LARGEST_COUNT) -> int | None:
    """A whole number that people write, of these limits; None for any other text.

    Python itself reads no more than some thousand digits, and raises an error of its own for more.
    """
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(most))):
        return None
    number = int(text)
    return number if least <= number <= most else None


def whole_runs(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """First and last of each run without a gap in rising whole numbers: 1, 2, 3, 7 give (1, 3) and (7, 7)."""
    runs = itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])
    members = ([number for _, number in run] for _, run in runs)
    return [(run[0], run[-1]) for run in members]


def shown_number(number: float) -> str:
    """A number of any size in a message: Python writes out whole ones of a few thousand digits at most."""
    bits = number.bit_length() if isinstance(number, int) else 0
    return f"{number}" if bits < 200 else f"a number of {bits} bits"


SIZES = {"TB": 1e12, "GB": 1e9, "MB": 1e6, "kB": 1e3}


def shown_size(size: int) -> str:
    """Bytes in the largest decimal unit that gives 1 or more: "14.5 GB"."""
    for unit, count in SIZES.items():
        if size >= count:
            return f"{size / count:,.1f} {unit}"
    return f"{size} bytes"
