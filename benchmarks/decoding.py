"""Decoding for real, timed beside the fastest plain decoder, the ideal, and what users would pick instead.

    python benchmarks/decoding.py                            smollm2, float32 and bfloat16, all parts
    python benchmarks/decoding.py --parts never-exit,static --dtypes float32

never-exit: the project's own loop over the faster of `generate()` with a dynamic and a static cache. static:
exits at 1/4, 1/2, 3/4 over their ideal: the run's own never-exit time, times what the cost model says of the
exit's layers, head and K,V projections over what it says of the whole model. speculate: over
`generate(assistant_early_exit=k)` at the same k and its best draft length, and over plain. batch: tokens per
second of 8 sequences in lockstep and rebatched, over plain batched `generate()`. All contenders take turns
(see `offramp.decoding.bench.bench.measure`); ratios are paired, with a 95 % interval. The last line is one
JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from offramp.decoding.bench.ratios import SAMPLES_NEEDED, median_ratio

import offramp
from offramp.costs.timings import TimingsProfile
from offramp.decoding.bench.bench import measure
from offramp.decoding.bench.contenders import GENERATE, NEVER, STATIC_CACHE, Cell
from offramp.decoding.bench.prompts import prompts_of
from offramp.decoding.bench.results import BenchResult, Interval
from offramp.decoding.bench.together import Measurement
from offramp.decoding.hardware import measure_hardware
from offramp.models.model import Model
from offramp.policies.grammar import parse_policy
from offramp.workloads.registry import load_workload

QUARTERS = (0.25, 0.5, 0.75)
WITHOUT_DRAFTS = ("propagate", "recompute", "monotone")
ROWS = 8


@dataclass(frozen=True)
class Bench:
    """A model with its prompts, and how to time it. profile: of the machine, measured before."""

    model: Model
    profile: TimingsProfile
    prompts: list[list[int]]
    options: argparse.Namespace

    def measure(self, cells: Sequence[tuple[str, str]], **further: Any) -> Measurement:
        """Policies and strategies beside plain decoding."""
        (policy, kv), *others = cells
        settings = {"new_tokens": self.options.new_tokens, "rounds": self.options.rounds, "peers": False}
        prompts = self.prompts[: self.options.prompts]
        return measure(self.model, policy, kv=kv, cells=others, **{"prompts": prompts, **settings, **further})

    @property
    def exits(self) -> list[int]:
        """Exits at a quarter, a half and three quarters of the layers."""
        layers = self.model.layers
        return sorted({min(max(round(layers * share), 1), layers - 1) for share in QUARTERS})


def never_exit(bench: Bench) -> dict[str, Any]:
    """Our loop over the faster `generate()`."""
    result = bench.measure([("never", "propagate")]).result
    library = _fastest(result, (GENERATE, STATIC_CACHE))
    return {
        **_circumstances(result),
        "over": library,
        "never_exit_seconds_per_token": _seconds(result, NEVER),
        "generate_seconds_per_token": _seconds(result, library),
        "never_exit_over_generate": asdict(_ratio(result, NEVER, library)),
    }


def static(bench: Bench) -> dict[str, Any]:
    """Static exits over their ideal."""
    cells = [(f"static:exit={exit}", kv) for exit in bench.exits for kv in WITHOUT_DRAFTS]
    result = bench.measure(cells).result
    plain = _seconds(result, NEVER)
    rows = []
    for exit in bench.exits:
        for kv in WITHOUT_DRAFTS:
            name = Cell(parse_policy(f"static:exit={exit}"), kv).name
            if result.contender(name).seconds_per_token is None:
                rows.append({"exit": exit, "kv": kv, "left_out": result.contender(name).left_out})
                continue
            ideal = plain * ideal_share(bench, exit, kv)
            rows.append({"exit": exit, "kv": kv, "ideal_seconds_per_token": ideal,
                "measured_seconds_per_token": _seconds(result, name),
                "over_ideal": _over_ideal(result, name, ideal / plain),
                "over_plain": asdict(_ratio(result, name, result.plain))})  # fmt: skip
    return {**_circumstances(result), "never_exit_seconds_per_token": plain, "exits": rows}


def _over_ideal(result: BenchResult, name: str, share: float) -> dict[str, float | None]:
    """Paired with never exit of the same round and prompts, whose `share` is the ideal."""
    ratio = _ratio(result, name, NEVER)
    return {bound: None if value is None else value / share for bound, value in asdict(ratio).items()}


def ideal_share(bench: Bench, exit: int, kv: str) -> float:
    """What the cost model says of k layers, the head and the K,V projections, over the whole model."""
    position = sum(map(len, bench.prompts)) / len(bench.prompts) + (bench.options.new_tokens - 2) / 2
    costs = bench.profile.token_costs(bench.model.shape, position)
    share = costs.overhead + float(costs.layers[:exit].sum()) + costs.exit_head
    if kv == "propagate":
        share += float(costs.key_value[exit:].sum())
    return share / costs.plain


def speculate(bench: Bench) -> dict[str, Any]:
    """Drafts of the first layers over transformers' own, and over plain decoding."""
    given = bench.options.draft_exits
    exits = [int(exit) for exit in given.split(",")] if given else bench.exits[-1:]
    draft = bench.options.draft_length
    cells = [(f"static:exit={exit}", "speculate") for exit in exits]
    length = int(draft) if draft.isdecimal() else draft
    result = bench.measure(cells, peers=True, draft_length=length).result
    rows = []
    for exit in exits:
        name, peer = (
            Cell(parse_policy(f"static:exit={exit}"), "speculate").name,
            f"generate(assistant_early_exit={exit})",
        )
        row = {"exit": exit, "seconds_per_token": _seconds(result, name), "draft_length": draft,
               "plain_over_speculate": asdict(_ratio(result, result.plain, name))}  # fmt: skip
        if result.contender(peer).left_out is None:
            row["assistant_seconds_per_token"] = _seconds(result, peer)
            row["assistant_over_speculate"] = asdict(_ratio(result, peer, name))
        rows.append({**row, "assistant_left_out": result.contender(peer).left_out})
    return {**_circumstances(result), "exits": rows}


def batch(bench: Bench) -> dict[str, Any]:
    """Eight sequences side by side."""
    middle, late = bench.exits[len(bench.exits) // 2], bench.exits[-1]
    policy = bench.options.batch_policy or f"threshold:signal=max_prob,value=0.5,exits={middle}" + (
        f"+{late}" if late > middle else ""
    )
    found: dict[str, Any] = {"policy": policy}
    further = {
        "batch": ROWS,
        "prompts": bench.prompts[:ROWS],
        # All rows together make one sample.
        "rounds": max(bench.options.rounds, SAMPLES_NEEDED),
    }
    for batching in ("lockstep", "rebatch"):
        result = bench.measure([(policy, "propagate")], batching=batching, **further).result
        name, library = (
            Cell(parse_policy(policy), "propagate").name,
            _fastest(result, (GENERATE, STATIC_CACHE)),
        )
        found[batching] = {
            **_circumstances(result),
            "tokens_per_second": result.contender(name).tokens_per_second,
            "generate_tokens_per_second": result.contender(library).tokens_per_second,
            "generate_over_policy": asdict(_ratio(result, library, name)),
        }
    return found


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "never-exit": never_exit,
    "static": static,
    "speculate": speculate,
    "batch": batch,
}


def _seconds(result: BenchResult, name: str) -> float:
    found = result.contender(name).seconds_per_token
    if found is None:
        raise LookupError(f"{name} was not timed: {result.contender(name).left_out}")
    return found.value


def _fastest(result: BenchResult, names: Sequence[str]) -> str:
    timed = [name for name in names if result.contender(name).seconds_per_token is not None]
    return min(timed, key=lambda name: _seconds(result, name))


def _ratio(result: BenchResult, above: str, below: str) -> Interval:
    return median_ratio(result.contender(above).samples, result.contender(below).samples)


def _circumstances(result: BenchResult) -> dict[str, Any]:
    return {
        "validity": result.validity,
        "reasons": list(result.reasons),
        "a_a": asdict(result.a_a),
        "notes": list(result.notes),
        "circumstances": dict(result.circumstances),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the parts that are asked for."""
    options = _options(arguments)
    names = list(PARTS) if options.parts == "all" else options.parts.split(",")
    found: dict[str, Any] = {}
    for dtype in options.dtypes.split(","):
        model = offramp.load_model(options.model, dtype=dtype)
        profile = measure_hardware(model, budget_seconds=options.profile_seconds)
        workload = load_workload(options.workload)
        count = max(options.prompts, ROWS) if "batch" in names else options.prompts
        prompts = prompts_of(model, workload, count, new_tokens=options.new_tokens)
        bench = Bench(model, profile, prompts, options)
        found[dtype] = {"profile_check": profile.details["check"]}
        for name in names:
            found[dtype][name] = PARTS[name](bench)
            print(f"{dtype} {name}")
            print(json.dumps({k: v for k, v in found[dtype][name].items() if k != "circumstances"}, indent=1))
    settings = {key: value for key, value in vars(options).items() if key != "dtypes"}
    print(json.dumps({"settings": settings, **found}))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--parts", default="all", help=f"of {', '.join(PARTS)}, or all")
    parser.add_argument("--workload", default="prose")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--draft-exits", default="", help="for speculate, by default 3/4 of the layers")
    parser.add_argument("--draft-length", default="4", help='a number, or "auto"')
    parser.add_argument("--batch-policy", default="", help="by default a threshold at 1/2 and 3/4")
    parser.add_argument("--profile-seconds", type=float, default=45.0)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
