"""When requests arrive, how long their prompts and answers are, and what each may take."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from offramp.errors import InputError
from offramp.files import read_given_text
from offramp.kit.numbers import LARGEST_NUMBER, SMALLEST_NUMBER, whole_number

Times = NDArray[np.float64]
Integers = NDArray[np.int64]

COLUMNS = ("arrival", "prompt_tokens", "output_tokens")
"""Of a file of arrivals: seconds, and tokens of prompt and answer; the first may stand alone."""
OBJECTIVES = ("ttft", "tpot", "e2el")
"""What a service can promise of each request (see `offramp.serving.figures`)."""
LONGEST = 1_000_000
"""Tokens of a prompt or an answer at most."""


@dataclass(frozen=True)
class RequestLengths:
    """Tokens of prompts and answers: lognormal about two medians, `sigma` that of their logarithm."""

    prompt: int = 64
    output: int = 32
    sigma: float = 0.5


@dataclass(frozen=True)
class Arrivals:
    """How requests come: gaps of a gamma distribution of some coefficient of variation, or those of a file.

    seconds: of a file, when each came, rising. lengths: of one that holds them, tokens of prompt and answer.
    """

    cv: float = 1.0
    seconds: tuple[float, ...] = ()
    lengths: tuple[tuple[int, ...], ...] = ()


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


def named_numbers(text: str, names: Sequence[str], where: str, fix: str) -> dict[str, float]:
    """Numbers by name, as `a=1,b=2` gives them. Raises InputError for anything else."""
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        number = number_in(value)
        if name not in names or number is None or name in found:
            raise InputError(f"{part!r} means nothing in {where} {text}", where=where, fix=fix)
        found[name] = number
    return found


def read_arrivals(text: str) -> Arrivals:
    """What `--arrivals` says: `poisson`, `gamma:cv=4` or `csv:FILE`.

    Raises InputError for anything else, and for a file that is not as `COLUMNS` say.
    """
    kind, _, rest = text.partition(":")
    if text == "poisson":
        return Arrivals()
    if kind == "csv" and rest:
        return _recorded(Path(rest))
    fix = "write poisson, gamma:cv=4 (0.01 to 100) or csv:FILE"
    if kind != "gamma":
        raise InputError(f"{text!r} does not say how requests arrive", where="--arrivals", fix=fix)
    cv = named_numbers(rest, ("cv",), "--arrivals", fix)["cv"]
    if not 0.01 <= cv <= 100:
        raise InputError(f"cv is {cv:g}, not 0.01 to 100", where="--arrivals", fix=fix)
    return Arrivals(cv)


def _recorded(path: Path) -> Arrivals:
    lines = [*csv.reader(read_given_text(path, "file of arrivals").splitlines()), []]
    header, rows = lines[0], lines[1:-1]
    seconds: list[float] = []
    lengths: list[tuple[int, ...]] = []
    wrong = ""
    if header not in ([COLUMNS[0]], list(COLUMNS)):
        wrong, rows = f"its first line is {','.join(header)!r}, not the names of its columns", []
    elif len(rows) < 3:
        wrong, rows = f"it holds {len(rows)} requests, and 3 are the fewest with two gaps", []
    for row in rows:
        at = number_in(row[0]) if row else None
        counts = [whole_number(cell.strip(), most=LONGEST) for cell in row[1:]]
        if len(row) != len(header) or not all(cell.strip() for cell in row):
            wrong = f"it has {sum(map(bool, row))} of {len(header)} columns"
        elif at is None or not 0 <= at <= LARGEST_NUMBER:
            wrong = f"{row[0]!r} is no time in seconds, 0 or later"
        elif seconds and at < seconds[-1]:
            wrong = f"{at:g} s comes after {seconds[-1]:g} s: it is not sorted"
        elif None in counts:
            wrong = f"{','.join(row[1:])!r} are no tokens, each 1 to {LONGEST:,}"
        else:
            seconds.append(at)
            lengths.append(tuple(count for count in counts if count is not None))
            continue
        break
    if not wrong and seconds[-1] - seconds[0] < SMALLEST_NUMBER:
        wrong = "all its requests come at one time"
    if wrong:
        raise InputError(
            f"the file of arrivals cannot be read: {wrong}",
            where=f"{path}, line {min(len(seconds), len(rows) - 1) + 2}",
            fix=f"begin with a line {','.join(COLUMNS)} (or {COLUMNS[0]} alone), then one for each request",
        )
    return Arrivals(seconds=tuple(seconds), lengths=tuple(lengths) if len(header) > 1 else ())


def read_lengths(text: str) -> RequestLengths:
    """What `--lengths` says: `prompt=64,output=32,sigma=0.5`, any of them left out.

    Raises InputError for anything else.
    """
    fix = "write prompt=64,output=32,sigma=0.5: medians in tokens, the spread of their logarithm up to 3"
    given = named_numbers(text, ("prompt", "output", "sigma"), "--lengths", fix)
    sigma = given.pop("sigma", RequestLengths.sigma)
    for tokens in given.values():
        if not (1 <= tokens <= LONGEST and tokens == int(tokens)):
            raise InputError(f"{tokens:g} is no number of tokens", where="--lengths", fix=fix)
    if not 0 <= sigma <= 3:
        raise InputError(f"sigma is {sigma:g}, not 0 to 3", where="--lengths", fix=fix)
    return RequestLengths(**{name: int(tokens) for name, tokens in given.items()}, sigma=sigma)


def read_objectives(text: str) -> dict[str, float]:
    """What `--slo` says: `ttft=2,tpot=0.1`, in seconds. Raises InputError for anything else."""
    fix = f"write the seconds that a request may take, as ttft=2,tpot=0.1; there are {', '.join(OBJECTIVES)}"
    found = named_numbers(text, OBJECTIVES, "--slo", fix)
    for name, seconds in found.items():
        if seconds <= 0:
            raise InputError(f"{name} is {seconds:g}, not above 0", where="--slo", fix=fix)
    return found


def check_rates(rates: Sequence[float]) -> None:
    """Refuse rates that are none, or do not rise. Raises InputError."""
    fix = "write rising rates, each once, as 0.5,1,2,4, or auto"
    wrong = [rate for rate in rates if not SMALLEST_NUMBER <= rate <= LARGEST_NUMBER]
    if wrong or list(rates) != sorted(set(rates)):
        must = f"above 0, not {wrong[0]:g}" if wrong else f"rising, not {', '.join(map(str, rates))}"
        raise InputError(f"rates must be {must}", where="--rates", fix=fix)
