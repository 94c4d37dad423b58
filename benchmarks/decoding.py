"""Decoding for real, timed beside the fastest plain decoder, the ideal, and what users would pick instead.

    python benchmarks/decoding.py                            smollm2, float32 and bfloat16, all parts
    python benchmarks/decoding.py --parts never-exit,static --dtypes float32

never-exit: the project's own loop over the steps of `generate()`. static:
exits at 1/4, 1/2, 3/4 over their ideal: the run's own never-exit time, times what the cost model says of the
exit's layers, head and K,V projections over what it says of the whole model. speculate: over
`generate(assistant_early_exit=k)` at the same k and its best draft length, and over plain. batch: tokens per
second of 8 sequences in lockstep and rebatched, over plain batched decoding. All contenders take turns in
blocks of a few tokens (see `offramp.timing.bench.bench`); ratios have a 95 % interval over
prompts. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import offramp
from offramp.costs.timings import TimingsProfile
from offramp.decoding.openings import prompts_of
from offramp.decoding.options import DecodingOptions
from offramp.models.model import Model
from offramp.scoring.estimate import LEVEL, Estimate
from offramp.timing.bench import Measurement, run, settle
from offramp.timing.contenders import GENERATE, NEVER, WITHOUT_PEERS, Extent
from offramp.timing.local_profile import measure_hardware
from offramp.timing.ratios import ratios_of
from offramp.timing.results import BenchResult
from offramp.timing.stopping import TimeLimits
from offramp.workloads.registry import load_workload

QUARTERS = (0.25, 0.5, 0.75)
WITHOUT_DRAFTS = ("propagate", "recompute", "monotone")
ROWS = 8


@dataclass(frozen=True)
class Bench:
    """A model with its prompts, and how to time it. profile: of the machine, measured before."""

    model: Model
    profile: TimingsProfile
    prompts: list[Sequence[int]]
    options: argparse.Namespace

    def measure(
        self, cells: Sequence[tuple[str, str]], extent: Extent = WITHOUT_PEERS, **further: Any
    ) -> Measurement:
        """Policies and strategies beside plain decoding. extent: who else takes part."""
        batch = further.pop("batch", 1)
        prompts = further.pop("prompts", self.prompts[: self.options.prompts])
        further.setdefault("new_tokens", self.options.new_tokens)
        asked = [DecodingOptions.read(policy, kv=kv, **further) for policy, kv in cells]
        setting = settle(self.model, asked, prompts=prompts, batch=batch)
        limits = TimeLimits(self.options.seconds, self.options.rounds)
        return run(setting, limits=limits, extent=extent)

    @property
    def exits(self) -> list[int]:
        """Exits at a quarter, a half and three quarters of the layers."""
        layers = self.model.layers
        return sorted({min(max(round(layers * share), 1), layers - 1) for share in QUARTERS})


def never_exit(bench: Bench) -> dict[str, Any]:
    """Our loop over the steps of `generate()`."""
    result = bench.measure([("never", "propagate")], replace(WITHOUT_PEERS, plain=GENERATE)).result
    loop = result.main.name
    return {
        **_circumstances(result),
        "answer": result.answer,
        "over": GENERATE,
        "never_exit_seconds_per_token": _seconds(result, loop),
        "generate_seconds_per_token": _seconds(result, GENERATE),
        "never_exit_over_generate": asdict(_ratio(result, loop, GENERATE)),
    }


def static(bench: Bench) -> dict[str, Any]:
    """Static exits over their ideal."""
    cells = [(f"static:exit={exit}", kv) for exit in bench.exits for kv in WITHOUT_DRAFTS]
    result = bench.measure(cells).result
    plain = _seconds(result, NEVER)
    rows = []
    for exit in bench.exits:
        for kv in WITHOUT_DRAFTS:
            name = DecodingOptions.read(f"static:exit={exit}", kv=kv).name
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
    """Beside never exit on the same prompts, whose `share` is the ideal."""
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
    result = bench.measure(cells, Extent(), draft_length=length).result
    rows = []
    for exit in exits:
        name, peer = (
            DecodingOptions.read(f"static:exit={exit}", kv="speculate").name,
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
    for batching in ("lockstep", "rebatch"):
        # All rows together make one sample.
        result = bench.measure(
            [(policy, "propagate")], batching=batching, batch=ROWS, prompts=bench.prompts
        ).result
        main, plain = result.main, result.contender(result.plain)
        found[batching] = {
            **_circumstances(result),
            "answer": result.answer,
            "tokens_per_second": main.tokens_per_second,
            "plain_tokens_per_second": plain.tokens_per_second,
            "plain_over_policy": asdict(_ratio(result, result.plain, main.name)),
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


def _ratio(result: BenchResult, above: str, below: str) -> Estimate[float]:
    """Seconds of the one over seconds of the other, prompt by prompt."""
    ratio = ratios_of(result.contenders, result.plain, result.contender(below))(above, LEVEL)
    assert ratio is not None  # both took turns
    return ratio


def _circumstances(result: BenchResult) -> dict[str, Any]:
    return {
        "defects": list(result.defects),
        "stopped": result.stopped,
        "seconds_spent": result.seconds_spent,
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
        most = options.prompts * ROWS if "batch" in names else count
        prompts = prompts_of(model, workload, count, most=most, new_tokens=options.new_tokens)
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
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=None, help="at most; by default as the seconds allow")
    parser.add_argument("--seconds", type=float, default=180.0, help="of each measurement")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--draft-exits", default="", help="for speculate, by default 3/4 of the layers")
    parser.add_argument("--draft-length", default="4", help='a number, or "auto"')
    parser.add_argument("--batch-policy", default="", help="by default a threshold at 1/2 and 3/4")
    parser.add_argument("--profile-seconds", type=float, default=45.0)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
