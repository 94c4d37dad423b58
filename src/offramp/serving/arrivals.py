"""When requests arrive, how long their prompts and answers are, and what each may take."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, ClassVar, Self

import numpy as np
from annotated_types import Ge, Le
from numpy.typing import NDArray

from offramp.errors import InputError
from offramp.files import read_given_text
from offramp.kit.arguments import settle_fields
from offramp.kit.numbers import LARGEST_NUMBER, SMALLEST_NUMBER, Positive, whole_number

Times = NDArray[np.float64]
Integers = NDArray[np.int64]

COLUMNS = ("arrival", "prompt_tokens", "output_tokens")
"""Of a file of arrivals: seconds, and tokens of prompt and answer; the first may stand alone."""
LONGEST = 1_000_000
"""Tokens of a prompt or an answer at most."""
Tokens = Annotated[int, Ge(1), Le(LONGEST)]


@dataclass(frozen=True)
class NamedNumbers:
    """Numbers that an option gives by name, as a=1,b=2; each has to be as its annotation says."""

    option: ClassVar[str]
    example: ClassVar[str]

    def __post_init__(self) -> None:
        settle_fields(self, where=lambda name: f"{self.option}, {name}")

    @classmethod
    def read(cls, text: str) -> Self:
        """Those of a text, the others by default. Raises InputError for anything else."""
        numbers: dict[str, float] = {}
        for part in text.split(","):
            name, _, value = part.partition("=")
            number = number_in(value)
            if number is None or name in numbers or name not in {field.name for field in fields(cls)}:
                what, fix = f"{part!r} means nothing in {cls.option} {text}", f"write {cls.example}"
                raise InputError(what, where=cls.option, fix=fix)
            numbers[name] = int(number) if number.is_integer() else number
        return cls(**numbers)


@dataclass(frozen=True)
class RequestLengths(NamedNumbers):
    """Tokens of prompts and answers: lognormal about two medians, `sigma` that of their logarithm."""

    option = "--lengths"
    example = "prompt=64,output=32,sigma=0.5: medians in tokens, and the spread of their logarithm"

    prompt: Tokens = 64
    output: Tokens = 32
    sigma: Annotated[float, Ge(0), Le(3)] = 0.5


@dataclass(frozen=True)
class Objectives(NamedNumbers):
    """Seconds that a service promises of each request (see `offramp.serving.figures`); None: nothing."""

    option = "--slo"
    example = "the seconds that a request may take, as ttft=2,tpot=0.1; there are ttft, tpot and e2el"

    ttft: Positive | None = None
    tpot: Positive | None = None
    e2el: Positive | None = None

    @property
    def promised(self) -> dict[str, float]:
        """Those that are, by name."""
        return {name: seconds for name, seconds in vars(self).items() if seconds is not None}


@dataclass(frozen=True)
class Arrivals(NamedNumbers):
    """How requests come: gaps of a gamma distribution with a coefficient of variation, or those of a file."""

    option = "--arrivals gamma:"
    example = "poisson, gamma:cv=4 (0.01 to 100) or csv:FILE"

    cv: Annotated[float, Ge(0.01), Le(100)] = 1.0
    seconds: tuple[float, ...] = ()
    """Of a file, when each came, rising."""
    lengths: tuple[tuple[int, ...], ...] = ()
    """Of a file that holds them, tokens of prompt and answer."""


@dataclass(frozen=True)
class Demand:
    """Requests in the order in which they arrive.

    arrival: float64 [requests], seconds, rising. prompt, output: int64 [requests], tokens. text: float64
    [requests, 2] in [0, 1), of which document at hand the answer is, and where in it the answer begins.
    """

    arrival: Times
    prompt: Integers
    output: Integers
    text: Times

    def __len__(self) -> int:
        return len(self.arrival)


def demand_of(arrivals: Arrivals, lengths: RequestLengths, rate: float, count: int, seed: int) -> Demand:
    """What arrives at `rate` requests per second; of one seed all but the times is the same at every rate.

    Of a file its gaps and lengths from a request on, stretched to the rate, over and over.
    """
    draw = np.random.default_rng(seed)
    text, spread = draw.random((count, 2)), np.exp(lengths.sigma * draw.standard_normal((2, count)))
    medians = np.array([[lengths.prompt], [lengths.output]])
    prompt, output = np.clip(np.rint(medians * spread), 1, 8 * medians).astype(np.int64)
    if not arrivals.seconds:
        shape = 1.0 / arrivals.cv**2
        return Demand(np.cumsum(draw.gamma(shape, 1.0 / (rate * shape), count)), prompt, output, text)
    gaps = np.diff(arrivals.seconds)
    start = int(draw.integers(len(gaps)))
    own = np.resize(np.roll(gaps, -start), count) / (gaps.mean() * rate)
    if arrivals.lengths:
        given = np.array(arrivals.lengths[1:], dtype=np.int64)
        prompt, output = (np.resize(np.roll(column, -start), count) for column in given.T)
    return Demand(np.cumsum(own), prompt, output, text)


def number_in(text: str) -> float | None:
    """The finite number that a text is, None for any other text."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def read_arrivals(text: str) -> Arrivals:
    """What `--arrivals` says: `poisson`, `gamma:cv=4` or `csv:FILE`.

    Raises InputError for anything else, and for a file that is not as `COLUMNS` say.
    """
    kind, _, rest = text.partition(":")
    if text == "poisson":
        return Arrivals()
    if kind == "gamma":
        return Arrivals.read(rest)
    if kind == "csv" and rest:
        return _recorded(Path(rest))
    what, fix = f"{text!r} does not say how requests arrive", f"write {Arrivals.example}"
    raise InputError(what, where="--arrivals", fix=fix)


def _recorded(path: Path) -> Arrivals:
    header, *rows = [*csv.reader(read_given_text(path, "file of arrivals").splitlines())] or [[]]
    if header not in ([COLUMNS[0]], list(COLUMNS)):
        raise _unread(path, 1, f"its first line is {','.join(header)!r}, not the names of its columns")
    if len(rows) < 3:
        raise _unread(path, 1, f"it holds {len(rows)} requests, and 3 are the fewest with two gaps")
    seconds: list[float] = []
    lengths: list[tuple[int, ...]] = []
    for line, row in enumerate(rows, 2):
        cells = [cell.strip() for cell in row]
        if len(cells) != len(header) or not all(cells):
            raise _unread(path, line, f"it has {sum(map(bool, cells))} of {len(header)} columns")
        at, counts = number_in(cells[0]), [whole_number(cell, most=LONGEST) for cell in cells[1:]]
        if at is None or not 0 <= at <= LARGEST_NUMBER:
            raise _unread(path, line, f"{cells[0]!r} is no time in seconds, 0 or later")
        if seconds and at < seconds[-1]:
            raise _unread(path, line, f"{at:g} s comes after {seconds[-1]:g} s: it is not sorted")
        if None in counts:
            raise _unread(path, line, f"{','.join(cells[1:])!r} are no tokens, each 1 to {LONGEST:,}")
        seconds.append(at)
        lengths.append(tuple(count for count in counts if count is not None))
    if seconds[-1] - seconds[0] < SMALLEST_NUMBER:
        raise _unread(path, len(seconds) + 1, "all its requests come at one time")
    return Arrivals(seconds=tuple(seconds), lengths=tuple(lengths) if len(header) > 1 else ())


def _unread(path: Path, line: int, why: str) -> InputError:
    fix = f"begin with a line {','.join(COLUMNS)} (or {COLUMNS[0]} alone), then one for each request"
    return InputError(f"the file of arrivals cannot be read: {why}", where=f"{path}, line {line}", fix=fix)


def read_rates(text: str | Sequence[float]) -> tuple[float, ...]:
    """What `--rates` says: rising rates, each once. Raises InputError for anything else."""
    rates = [number_in(str(word)) for word in (text.split(",") if isinstance(text, str) else text)]
    found = tuple(rate for rate in rates if rate is not None and SMALLEST_NUMBER <= rate <= LARGEST_NUMBER)
    if not found or len(found) < len(rates) or list(found) != sorted(set(found)):
        what = f"rates must be rising, each above 0, not {text if isinstance(text, str) else list(text)}"
        raise InputError(what, where="--rates", fix="write rising rates, each once, as 0.5,1,2,4, or auto")
    return found
