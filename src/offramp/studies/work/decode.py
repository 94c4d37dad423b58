"""The best policies of a league decoded for real, timed in turns beside plain decoding."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from offramp.costs.machine import Machine
from offramp.errors import OfframpError
from offramp.records.typed import finite_json, to_json
from offramp.studies.task import Task
from offramp.studies.work.context import Context
from offramp.studies.work.inputs import (
    heads_of,
    model_of,
    profile_in,
    require_planned,
    require_this_machine,
    result_of,
    trace_of,
    workload_of,
)
from offramp.tracing.trace import Trace

if TYPE_CHECKING:
    from offramp.decoding.measurement.judged import Judged
    from offramp.decoding.measurement.measurement import Measurement
    from offramp.models.model import Model
    from offramp.tracing.exit_heads import ExitHeads
    from offramp.workloads.workload import Workload

STRATEGIES = ("propagate", "recompute")
"""For K and V of skipped layers: the league charges the first; the second is for families that refuse it."""

NOTHING: Mapping[str, Any] = {"bench": None, "chosen": [], "characters_per_token": None}
"""The result where no policy of the league exits: at its floor plain decoding is best."""


@dataclass(frozen=True)
class Choice:
    """One policy of the league. predicted: its net speedup there, on documents that did not choose it."""

    family: str
    policy: str
    predicted: float


class DecodeWork:
    """Leaves the measurement with every sample and forecast, and which policies it was of; neither if no
    policy of the league exits.

    Takes timings, so that it runs alone on the machine.
    """

    kind = "decode"

    def run(self, task: Task, context: Context) -> None:
        """Decode. Raises OfframpError if the model cannot be decoded layer by layer, or inputs are not the
        recipe's; and what `offramp.decoding.measurement` raises.
        """
        require_planned(task)
        machine = profile_in(context.input("profile"))
        require_this_machine(task, machine.details["machine"])
        recipe = task.recipe
        choices = best_policies(
            result_of(context, "league")["entries"], floor=recipe["floor"], count=recipe["best"]
        )
        if not choices:
            context.write_result(NOTHING)
            return
        workload, model = workload_of(task), model_of(task, context)
        trace, heads = trace_of(context), heads_of(task, context)
        measured = _decode(model, workload, trace, heads, machine, choices, recipe)
        context.write_result(finite_json(measured))


def best_policies(entries: Sequence[Mapping[str, Any]], *, floor: float, count: int) -> list[Choice]:
    """The fastest distinct policies of a league that a decoder can follow and that exit, at one floor.

    entries: of a league task's result. The same policy may be the best of several families: it counts once.
    """
    able = [
        Choice(entry["family"], entry["policy"], entry["net_speedup"]["value"])
        for entry in entries
        if entry["reachable"]
        and entry["policy"] != "never"
        and not entry.get("full_depth")
        and math.isclose(entry["floor"], floor)
        and entry["net_speedup"]["value"] is not None
    ]
    distinct: dict[str, Choice] = {}
    for choice in sorted(able, key=lambda choice: (-choice.predicted, choice.policy)):
        distinct.setdefault(choice.policy, choice)
    return list(distinct.values())[:count]


def _decode(
    model: Model,
    workload: Workload,
    trace: Trace,
    heads: ExitHeads | None,
    machine: Machine,
    choices: Sequence[Choice],
    recipe: Mapping[str, Any],
) -> dict[str, Any]:
    """The measurement as the task's result. Raises what made the timing fail."""
    from offramp.decoding.measurement.answers import Limits
    from offramp.decoding.measurement.judged import Chosen, decode_chosen
    from offramp.decoding.openings import pick_prompts

    kv, new_tokens, seed = _strategy(model), recipe["new_tokens"], recipe["seed"]
    prompts = pick_prompts(model, workload, trace, recipe["prompts"], new_tokens=new_tokens, seed=seed)
    policies = tuple((choice.policy, kv) for choice in choices)
    chosen = Chosen(workload.name, trace, policies, prompts, recipe["prompts"])
    (judged,) = decode_chosen(
        model,
        [chosen],
        machine,
        heads=heads,
        new_tokens=new_tokens,
        limits=Limits(recipe["seconds"], recipe["rounds"]),
        seed=seed,
    )
    if isinstance(judged, OfframpError):
        raise judged
    return _result(model, judged, choices, [options.name for options in chosen.options], kv)


def _strategy(model: Model) -> str:
    """How the model's family keeps K and V of skipped layers. Raises OfframpError if it has no way."""
    from offramp.decoding.engine.build import engine_of

    able = engine_of(model).abilities
    refused = able.reason("never_exit")
    if refused is not None:
        raise OfframpError(refused, where=model.shown_name, fix="leave this model out of [decode]")
    reasons = {kv: able.reason(kv) for kv in STRATEGIES}
    found = next((kv for kv, why in reasons.items() if why is None), None)
    if found is None:
        raise OfframpError(
            f"the model's skipped layers cannot be made up for: {reasons[STRATEGIES[0]]}",
            where=model.shown_name,
            fix="leave this model out of [decode]",
        )
    return found


def _result(
    model: Model, judged: Judged, choices: Sequence[Choice], names: Sequence[str], kv: str
) -> dict[str, Any]:

    chosen, measured = [], judged.measurement
    for choice, name in zip(choices, names, strict=True):
        quality = judged.free_running.get(name)
        chosen.append(
            {
                **asdict(choice),
                "kv": kv,
                "contender": name,
                "free_running": None if quality is None else asdict(quality),
                "characters_per_token": _characters_per_token(model, measured, name),
            }
        )
    # When it was measured is for the journal; how busy the machine was is part of what was measured.
    bench = replace(
        judged.bench, circumstances={k: v for k, v in judged.bench.circumstances.items() if k != "date"}
    )
    return {
        "bench": to_json(bench),
        "chosen": chosen,
        "characters_per_token": _characters_per_token(model, measured, measured.result.plain),
    }


def _characters_per_token(model: Model, measured: Measurement, name: str) -> float | None:
    """Characters of a contender's answers over their new tokens, special ones included; None without any."""
    decoded = measured.decoded.get(name, {}).values()
    answers = [tokens for one in decoded for tokens in one.tokens]
    tokens = sum(map(len, answers))
    characters = sum(len(model.tokenizer.decode(answer, skip_special_tokens=True)) for answer in answers)
    return characters / tokens if tokens else None
