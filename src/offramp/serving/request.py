"""`Load`: what `offramp load` and `offramp.load` are asked for, and what its texts mean."""

from __future__ import annotations

import csv
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from annotated_types import Ge, Le

from offramp.defaults import LOCAL, SEED, WORTH
from offramp.errors import InputError
from offramp.files import read_given_text
from offramp.kit.arguments import settle_fields
from offramp.kit.numbers import LARGEST_NUMBER, SMALLEST_NUMBER, Count, Positive, Whole, whole_number
from offramp.kit.output_file import clear_for, require_json_file
from offramp.kit.request import Options, Request, Writes, argument, as_call, flags, one_word, python_only
from offramp.kit.rules import Beside, Margin, Must, only_if, only_with, shown
from offramp.models.devices import AUTO, DtypeName
from offramp.models.shape import require_context
from offramp.policies.names import StrategyName
from offramp.tracing.asked import Executing, Placed

if TYPE_CHECKING:
    from offramp.costs.machine import Machine
    from offramp.models.model import Model
    from offramp.policies.policy import ExitPolicy
    from offramp.serving.contenders import Ladder
    from offramp.serving.results import LoadResult
    from offramp.serving.simulator import Demand
    from offramp.tracing.trace import Trace
    from offramp.tuning.tuned import Tuned

AUTO_RATES = "auto"
RATES_TRIED = 10
"""Where that is asked for."""
OF_A_LOAD = ("arrivals", "lengths", "rows", "budget", "rule", "slo", "requests", "seeds")
"""Options that say what arrives and how it is served: results repeat them, studies may give them."""
Rule = Literal["gain", "lockstep"]
"""When rows leave that were let go: where the step gets faster by it, or only all together."""
COLUMNS = ("arrival", "prompt_tokens", "output_tokens")
"""Of a file of arrivals: seconds, and tokens of prompt and answer; the first may stand alone."""
LONGEST = 1_000_000
"""Tokens of a prompt or an answer at most."""
Tokens = Annotated[int, Ge(1), Le(LONGEST)]
MOST_RECORDED = 1_000_000
"""Requests in a file of arrivals, as many as a rate is tried with at most."""
LOWEST_RATE, HIGHEST_RATE = 1e-4, 1e6
"""Requests per second: one in three hours, and more than any server takes. Below, seconds lose digits."""
Rate = Annotated[float, Ge(LOWEST_RATE), Le(HIGHEST_RATE)]
predicting = only_if(lambda asked: not asked.execute, "with --execute, which serves on this machine")


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
        named = {field.name for field in fields(cls) if not isinstance(field.default, tuple)}
        numbers: dict[str, float] = {}
        for part in text.split(","):
            name, _, value = part.partition("=")
            number = number_in(value)
            if number is None or name in numbers or name not in named:
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
    """Seconds that a service promises of each request (see `offramp.serving.predict`); None: nothing."""

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


def number_in(text: str) -> float | None:
    """The finite number that a text is, in plain digits; None for any other text."""
    plain = re.fullmatch(r"\s*[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?\s*", text, re.ASCII | re.IGNORECASE)
    value = float(text) if plain else math.inf
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
    reader = csv.reader(read_given_text(path, "file of arrivals").splitlines(), strict=True)
    try:
        header, *rows = [*itertools.islice(reader, MOST_RECORDED + 2)] or [[]]
    except csv.Error as error:
        raise _unread(path, reader.line_num, str(error)) from error
    if len(rows) > MOST_RECORDED:
        raise _unread(path, reader.line_num, f"it holds more than {MOST_RECORDED:,} requests")
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
    found = tuple(rate for rate in rates if rate is not None and LOWEST_RATE <= rate <= HIGHEST_RATE)
    if not found or len(found) < len(rates) or list(found) != sorted(set(found)):
        said = shown(text if isinstance(text, str) else list(text))
        what = f"rates must be rising, each {LOWEST_RATE:g} to {HIGHEST_RATE:g} requests/s, not {said}"
        raise InputError(what, where="--rates", fix="write rising rates, each once, as 0.5,1,2,4, or auto")
    return found


@dataclass(frozen=True, kw_only=True)
class ServerLimits(Options):
    """How a server serves."""

    rows: Annotated[int, Ge(1), Le(1024)] = 16
    """Requests that are served side by side, at most."""
    budget: Annotated[Count, Beside(lambda tokens, asked: tokens >= asked.rows, "{rows} or more")] = 256
    """Tokens of a step, at most: one of each row that decodes, the rest of prompts, which are cut to it."""
    rule: Rule = "gain"
    """When rows leave that were let go: gain (where the step gets faster by it) or lockstep (only all)."""
    padded: Annotated[
        bool | None,
        flags("--padded/--paged"),
        only_if(lambda asked: asked.padded or not asked.execute, "with --execute, which serves padded"),
    ] = None
    """Whether attention reads the longest row's context for every row. By default on local, and not on other
    machines, whose kernels are of servers."""


@dataclass(frozen=True, kw_only=True)
class Load(ServerLimits, Executing, Placed, Request):
    """From how many requests per second on does early exit pay, and up to how many?

    Predicted from a trace, without its model. With --execute requests are really served, the full model's and
    the policies' servers side by side in turns, and the prediction is held against that.
    """

    subject: Annotated[str | Path | Trace | Model, argument, flags(metavar="TRACE|MODEL")] = field(
        kw_only=False
    )
    """A folder that offramp trace or offramp run wrote; with --execute also a model, traced first."""
    policy: Annotated[str | Sequence[str | ExitPolicy | Tuned], flags("--policy", "-p")] = ()
    """static:exit=20, threshold:... or a policy.json; may be given several times."""
    ladder: str | Ladder | None = None
    """Policies by how many requests wait or are served when one is admitted: 0:never,8:policy.json."""
    rates: Annotated[str | Sequence[Rate], one_word] = AUTO_RATES
    """Requests per second, rising: 0.5,1,2,4. By default from hardly any load to more than can be served."""
    arrivals: str = "poisson"
    """How requests come: poisson, gamma:cv=4 (in bursts), or csv:FILE with arrival, prompt_tokens and
    output_tokens, stretched to each rate. A file's first request starts the clock and is not served."""
    lengths: str = "prompt=64,output=32,sigma=0.5"
    """Median tokens of prompts and answers, and the spread of their logarithm."""
    kv: Annotated[StrategyName, Must(lambda kv: kv == "propagate", "propagate: rows join and leave")] = (
        "propagate"
    )
    """Skipped layers' K and V: propagate, which rows that join and leave can do."""
    slo: str | None = None
    """Seconds that a request may take, for its goodput: ttft=2,tpot=0.1 (or e2el=...)."""
    hardware: Annotated[str | Machine, predicting] = LOCAL
    """The machine to predict for: local, one of offramp list hardware, aic:..., or a .toml."""
    requests: Annotated[int, Ge(20), Le(MOST_RECORDED)] = 400
    """That arrive at each rate, for each seed."""
    seeds: Annotated[int, Ge(1), Le(1000)] = 3
    """Demands drawn for each rate; intervals are over them."""
    seed: Whole = SEED
    """The first of them."""
    worth: Margin = WORTH
    """What exits must gain to be worth it."""
    execute: bool = False
    """Serve requests with the model."""
    model: Annotated[str | Model | None, only_with("execute")] = None  # type: ignore[assignment]
    device: Annotated[str, only_with("execute")] = AUTO
    dtype: Annotated[DtypeName, only_with("execute")] = AUTO
    transforms: Annotated[str | Sequence[Any], flags("--transform"), only_with("execute")] = ()
    trust_remote_code: Annotated[bool, only_with("execute")] = False
    workload: Annotated[str | None, flags("--workload", "-w"), only_with("execute")] = None
    """With --execute and a model: what it is traced on, by default prose."""
    output: Annotated[Path | None, Writes(Load.require_own)] = None
    """Write everything to a .json file; the command also writes a page beside it."""
    progress: Annotated[bool, python_only] = False
    """Say on standard error what goes on."""

    def settle(self) -> dict[str, Any]:
        """Rates as numbers, policies as a tuple."""
        rates: Any = self.rates if self.rates == AUTO_RATES else read_rates(self.rates)
        several = isinstance(self.policy, Sequence) and not isinstance(self.policy, str)
        own: Any = self.policy if several else (self.policy,) if self.policy else ()
        return {**super().settle(), "rates": rates, "policy": tuple(own)}

    def check(self) -> None:
        """Refuse what cannot be served, before anything is loaded."""
        from offramp.serving.contenders import admitted

        super().check()
        _ = self.how_arrive, self.how_long, self.objectives
        if not (self.policy or self.ladder):
            fix = "give --policy static:exit=20, or --ladder"
            raise InputError("no policy is given", where="--policy", fix=fix)
        for policy in self.every_policy:
            admitted(policy)

    def require_own(self, output: Path) -> None:
        """Refuse a file that is no load, and a page beside it of something else."""
        from offramp.serving.results import LOADS

        require_json_file(output, "a load", LOADS.wrote, page=True)

    @property
    def policies(self) -> tuple[str | ExitPolicy | Tuned, ...]:
        """As they were given."""
        return tuple(self.policy)

    @property
    def every_policy(self) -> tuple[str | ExitPolicy | Tuned, ...]:
        """Those of the ladder's rungs too."""
        return (*self.policies, *(policy for _, policy in (self.steps.rungs if self.steps else ())))

    @cached_property
    def steps(self) -> Ladder | None:
        """The ladder. Raises InputError for what is none."""
        from offramp.serving.contenders import Ladder

        return Ladder.read(self.ladder) if isinstance(self.ladder, str) else self.ladder

    @cached_property
    def how_arrive(self) -> Arrivals:
        """`arrivals`, read. Raises InputError."""
        return read_arrivals(self.arrivals)

    @cached_property
    def how_long(self) -> RequestLengths:
        """`lengths`, read. Raises InputError."""
        return RequestLengths.read(self.lengths)

    @cached_property
    def objectives(self) -> Mapping[str, float]:
        """Seconds that `slo` promises, by name. Raises InputError."""
        return Objectives.read(self.slo).promised if self.slo is not None else {}

    @property
    def every_seed(self) -> range:
        """Of the demands at a rate."""
        return range(self.seed, self.seed + self.seeds)

    def demand(self, rate: float, seed: int) -> Demand:
        """What arrives at a rate."""
        from offramp.serving.simulator import demand_of

        return demand_of(self.how_arrive, self.how_long, rate, self.requests, seed)

    @cached_property
    def longest_request(self) -> tuple[int, int]:
        """Tokens of prompt and answer of the longest request, the same at every rate."""
        demands = (self.demand(1.0, seed) for seed in self.every_seed)
        places = ((of, int((of.prompt + of.output).argmax())) for of in demands)
        return max(((int(of.prompt[at]), int(of.output[at])) for of, at in places), key=sum)

    def require_room(self, context: int | None) -> None:
        """Refuse requests that are longer than a model's context. Raises InputError."""
        where, fix = "--lengths", "ask for shorter ones: lower prompt, output or sigma"
        if self.how_arrive.lengths:
            where, fix = "--arrivals", "leave longer ones out of the file"
        require_context(context, *self.longest_request, where, fix)

    def carry_out(self) -> LoadResult:
        """Predict, and serve if that was asked for.

        Raises InputError, PolicyError among them, for what does not fit the trace or the machine; ModelError
        for a model that cannot be served.
        """
        from offramp.serving.predict import predicted
        from offramp.serving.results import LOADS

        if self.execute:
            from offramp.serving.served import served_answer

            result = served_answer(self)
        else:
            result = predicted(self)
        if self.output is not None:
            clear_for(self.output, self.require_own)
            LOADS.write(self.output, result)
        return result


load = as_call(Load)
"""`offramp.load`: contenders under load, asked for from Python."""
