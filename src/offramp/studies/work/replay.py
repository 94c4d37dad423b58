"""One policy replayed on a trace, priced on a machine."""

from __future__ import annotations

from dataclasses import asdict

from offramp.kit.typed import finite_json
from offramp.studies.task import Task
from offramp.studies.work.context import Context
from offramp.studies.work.inputs import machine_of, require_planned, trace_of

FIGURES = (
    "policy",
    "basis",
    "kv",
    "batch",
    "batching",
    "reachable",
    "agreement",
    "reference_agreement",
    "skip_ratio",
    "predicted_speedup",
    "predicted_speedup_flops",
    "speedup_without_probes",
    "probe_share",
    "nll_increase",
    "kl",
    "seconds_per_token",
    "plain_seconds_per_token",
    "notes",
)
"""What is kept of a `ReplayResult`."""


class ReplayWork:
    """Leaves the figures of a replay, three of them with intervals over documents. Needs no model."""

    kind = "replay"

    def run(self, task: Task, context: Context) -> None:
        """Replay. Raises what `offramp.replay` raises, OfframpError for another machine than the recipe's."""
        from offramp.policies.replay import replay, replay_intervals

        require_planned(task)
        recipe = task.recipe
        trace, machine = trace_of(context), machine_of(task, context)
        options = {"machine": machine, **{name: recipe[name] for name in ("kv", "batch", "seed")}}
        result = replay(trace, recipe["policy"], **options)
        intervals = replay_intervals(trace, recipe["policy"], **options)
        context.write_result(
            finite_json(
                {
                    "replay": {
                        **{name: getattr(result, name) for name in FIGURES},
                        "gain": asdict(result.gain),
                    },
                    "agreement": asdict(intervals.agreement),
                    "skip_ratio": asdict(intervals.skip_ratio),
                    "net_speedup": asdict(intervals.net_speedup),
                    "tokens": trace.token_count,
                }
            )
        )
