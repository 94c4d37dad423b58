"""`offramp.tune_tasks`: one policy per workload, each tuned on its own trace, as one policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from offramp.costs.machine import Machine
from offramp.decoding.execution.tune import tune
from offramp.errors import InputError
from offramp.policies.binding import base_of
from offramp.policies.grammar import parse_policy
from offramp.policies.rules.fixed import Never
from offramp.policies.rules.tasks import RESERVED, Tasks
from offramp.policies.walk import task_of
from offramp.tracing.trace import Trace
from offramp.tuning.certify import require_delta
from offramp.tuning.floor import Floor
from offramp.tuning.tuned import Tuned

if TYPE_CHECKING:
    from offramp.models.model import Model


@dataclass(frozen=True)
class TunedTasks:
    """One policy for several workloads, the full model for all others.

    tuned: the answer of each workload, with a certificate at delta over the number of workloads, so that all
    of them hold together but for a chance of `delta` (Bonferroni). Each names its own K,V strategy.
    """

    policy: Tasks
    tuned: Mapping[str, Tuned]
    delta: float


def tune_tasks(
    traces: Sequence[Trace],
    floor: Mapping[str, float] | Floor,
    hardware: str | Machine | None = "local",
    model: Model | None = None,
    *,
    delta: float = 0.1,
    **options: Any,
) -> TunedTasks:
    """The fastest policy of every workload at one floor.

    traces: one of each workload, all of one model through the same exit heads. delta: chance that any of the
    certificates is wrong. floor, hardware, model, options: as `offramp.tune` takes them.

    Raises InputError for no trace, two of one workload, or of different models, and as `offramp.tune` does.
    """
    require_delta(delta)
    by_workload = _by_workload(traces)
    each = delta / len(by_workload)
    tuned = {
        name: tune(trace, floor, hardware, model, delta=each, **options)
        for name, trace in by_workload.items()
    }
    policies = tuple(parse_policy(one.policy_text) for one in tuned.values())
    return TunedTasks(Tasks(tuple(tuned), policies, Never()), tuned, delta)


def _by_workload(traces: Sequence[Trace]) -> dict[str, Trace]:
    """The traces by the name of their workload, each once and all of one model."""
    if not traces:
        raise InputError("there is no trace to tune on", fix="give a trace of each workload")
    found: dict[str, Trace] = {}
    for trace in traces:
        name, where = task_of(trace), str(trace.folder or "the trace")
        if name is None:
            raise InputError("the trace names no workload", where=where, fix="trace again")
        if name in found:
            raise InputError(f"there are two traces of {name}", where=where, fix="give one of each workload")
        if base_of(trace) != base_of(traces[0]):
            raise InputError(
                "the traces are not of one model, dtype and exit heads",
                where=f"{where}: {base_of(trace).get('name', 'a model without a name')}",
                fix="trace every workload with the same model and --heads FILE",
            )
        if RESERVED & set(name):
            raise InputError(
                f"a policy has no entry for a workload named {name!r}: its name holds one of "
                f"{' '.join(sorted(RESERVED))}",
                where=where,
                fix="tune it alone, or trace it under another name",
            )
        found[name] = trace
    return found
