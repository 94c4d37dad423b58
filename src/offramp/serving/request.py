"""`Load`: what `offramp load` and `offramp.load` are asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Le

from offramp.defaults import LOCAL, SEED, WORTH
from offramp.errors import InputError, PolicyError
from offramp.kit.numbers import Count, Positive, Whole
from offramp.kit.request import Request, argument, as_call, flags, one_word, python_only
from offramp.kit.rules import Beside, Margin, Must, only_with
from offramp.models.devices import AUTO, DtypeName
from offramp.policies.names import StrategyName
from offramp.tracing.asked import Executing, Placed

if TYPE_CHECKING:
    from offramp.costs.machine import Machine
    from offramp.models.model import Model
    from offramp.policies.policy import ExitPolicy
    from offramp.serving.arrivals import Arrivals, RequestLengths
    from offramp.serving.contenders import Ladder
    from offramp.serving.results import LoadResult
    from offramp.tracing.trace import Trace
    from offramp.tuning.tuned import Tuned

AUTO_RATES = "auto"
RATES_TRIED = 10
"""Where that is asked for."""
OF_A_LOAD = ("arrivals", "lengths", "rows", "budget", "rule", "slo", "requests", "seeds")
"""Options that say what arrives and how it is served: results repeat them, studies may give them."""
Rule = Literal["gain", "lockstep"]
"""When rows leave that were let go: where the step gets faster by it, or only all together."""


@dataclass(frozen=True, kw_only=True)
class Load(Executing, Placed, Request):
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
    rates: Annotated[str | Sequence[Positive], one_word] = AUTO_RATES
    """Requests per second, rising: 0.5,1,2,4. By default from hardly any load to more than can be served."""
    arrivals: str = "poisson"
    """How requests come: poisson, gamma:cv=4 (in bursts), or csv:FILE with arrival, prompt_tokens and
    output_tokens, stretched to each rate."""
    lengths: str = "prompt=64,output=32,sigma=0.5"
    """Median tokens of prompts and answers, and the spread of their logarithm."""
    rows: Annotated[int, Ge(1), Le(1024)] = 16
    """Requests that are served side by side, at most."""
    budget: Annotated[Count, Beside(lambda tokens, asked: tokens >= asked.rows, "{rows} or more")] = 256
    """Tokens of a step, at most: one of each row that decodes, the rest of prompts, which are cut to it."""
    rule: Rule = "gain"
    """When rows leave that were let go: gain (where the step gets faster by it) or lockstep (only all)."""
    kv: Annotated[StrategyName, Must(lambda kv: kv == "propagate", "propagate: rows join and leave")] = (
        "propagate"
    )
    """Skipped layers' K and V: propagate, which rows that join and leave can do."""
    slo: str | None = None
    """Seconds that a request may take, for its goodput: ttft=2,tpot=0.1 (or e2el=...)."""
    hardware: str | Machine = LOCAL
    """The machine to predict for: local, one of offramp list hardware, aic:..., or a .toml."""
    padded: Annotated[bool | None, flags("--padded/--paged")] = None
    """Whether attention reads the longest row's context for every row. By default on local, and not on other
    machines, whose kernels are of servers."""
    requests: Annotated[int, Ge(20), Le(1_000_000)] = 400
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
    output: Annotated[Path | None, flags("-o", "--output")] = None
    """Write everything to a .json file; the command also writes a page beside it."""
    progress: Annotated[bool, python_only] = False
    """Say on standard error what goes on."""

    def settle(self) -> dict[str, Any]:
        """Rates as numbers, policies as a tuple."""
        from offramp.serving.arrivals import read_rates

        rates: Any = self.rates if self.rates == AUTO_RATES else read_rates(self.rates)
        several = isinstance(self.policy, Sequence) and not isinstance(self.policy, str)
        own: Any = self.policy if several else (self.policy,) if self.policy else ()
        return {**super().settle(), "rates": rates, "policy": tuple(own)}

    def check(self) -> None:
        """Refuse what cannot be served, before anything is loaded."""
        super().check()
        _ = self.how_arrive, self.how_long, self.objectives
        if not (self.policy or self.ladder):
            fix = "give --policy static:exit=20, or --ladder"
            raise InputError("no policy is given", where="--policy", fix=fix)
        for policy in (*self.policies, *(own for _, own in (self.steps.rungs if self.steps else ()))):
            _check_policy(policy)

    @property
    def policies(self) -> tuple[str | ExitPolicy | Tuned, ...]:
        """As they were given."""
        return tuple(self.policy)

    @cached_property
    def steps(self) -> Ladder | None:
        """The ladder. Raises InputError for what is none."""
        from offramp.serving.contenders import Ladder

        return Ladder.read(self.ladder) if isinstance(self.ladder, str) else self.ladder

    @cached_property
    def how_arrive(self) -> Arrivals:
        """`arrivals`, read. Raises InputError."""
        from offramp.serving.arrivals import read_arrivals

        return read_arrivals(self.arrivals)

    @cached_property
    def how_long(self) -> RequestLengths:
        """`lengths`, read. Raises InputError."""
        from offramp.serving.arrivals import RequestLengths

        return RequestLengths.read(self.lengths)

    @cached_property
    def objectives(self) -> Mapping[str, float]:
        """Seconds that `slo` promises, by name. Raises InputError."""
        from offramp.serving.arrivals import Objectives

        return Objectives.read(self.slo).promised if self.slo is not None else {}

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
            LOADS.write(self.output, result)
        return result


def _check_policy(policy: str | ExitPolicy | Tuned) -> None:
    """Refuse one that rows which join and leave cannot have. Raises PolicyError."""
    from offramp.serving.contenders import policy_of, require_admitted
    from offramp.tuning.predict import named_policy
    from offramp.tuning.tuned import Tuned

    named = named_policy(policy)
    if isinstance(named, Tuned) and named.kv != "propagate" and not named.plain:
        what = f"the policy was tuned with K and V by {named.kv}, which rows of a server cannot do"
        raise PolicyError(what, where=str(policy), fix="tune it with --kv propagate")
    require_admitted(policy_of(named))


load = as_call(Load)
"""`offramp.load`: contenders under load, asked for from Python."""
