"""The `local` machine profile against timings that it has not seen.

    python benchmarks/hardware.py                            smollm2, float32
    python benchmarks/hardware.py --dtype bfloat16

Measures a profile, then times steps of the same loop at other positions, and at another batch size too. An
error is |predicted - timed| / timed of one part's median: every layer, the head, every probe, the lens.
`median_error` is over all of them at the batch sizes of the profile, `median_error_between` at those between,
`by_part` splits both. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np

import offramp
from offramp.costs.timings import LENS, TimingsProfile
from offramp.timing.local_profile import BATCHES, MachineProfiler, measure_hardware
from offramp.timing.timed_steps import PLAIN, PROBED

POSITIONS = (160, 320)
BATCHES_BETWEEN = (6,)


def main() -> None:
    options = _options()
    model = offramp.load_model(options.model, dtype=options.dtype)
    began = time.monotonic()
    profile = measure_hardware(model, budget_seconds=options.seconds)
    seconds = time.monotonic() - began
    held_out = MachineProfiler(model, tuple(sorted((*BATCHES, *BATCHES_BETWEEN))), POSITIONS)
    held_out.warm_up()
    began = time.monotonic()
    while time.monotonic() - began < options.held_out_seconds:
        held_out.round()
    errors = list(_errors(profile, held_out))
    for part, batch, position, predicted, timed in errors:
        if not part.startswith("layer "):
            print(
                f"{part:<16} batch {batch} position {position:>3}: {1e3 * predicted:8.3f} ms predicted, "
                f"{1e3 * timed:8.3f} ms timed, {100 * abs(predicted / timed - 1):5.1f} %"
            )
    print(json.dumps({**_summary(errors), "seconds": seconds, "rounds": profile.details["rounds"],
        "dtype": model.dtype, "machine": profile.details["machine"], "check": profile.details["check"],
        "load_average": profile.details["load_average"],
        "other_load": profile.details["other_load"]}))  # fmt: skip


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--seconds", type=float, default=45.0, help="for the profile")
    parser.add_argument("--held-out-seconds", type=float, default=25.0)
    return parser.parse_args()


Error = tuple[str, int, int, float, float]


def _errors(profile: TimingsProfile, held_out: MachineProfiler) -> Iterator[Error]:
    """Part, batch, position, seconds predicted and seconds timed."""
    shape = held_out.model.shape
    for batch in held_out.batches:
        for position in POSITIONS:
            plain = held_out.samples.steps[batch, position, PLAIN]
            probed = held_out.samples.steps[batch, position, PROBED]
            at = float(np.mean([step.position for step in plain]))
            costs = profile.token_costs(shape, at, batch=batch)
            timed = np.median([step.layers for step in plain], axis=0)
            for layer in range(len(timed)):
                yield f"layer {layer + 1}", batch, position, float(costs.layers[layer]), float(timed[layer])
            yield "all layers", batch, position, float(costs.layers.sum()), float(timed.sum())
            yield "head", batch, position, costs.head, statistics.median(step.head for step in plain)
            for name in held_out.loop.probing.kinds:
                predicted = costs.probes[name] if name != LENS else _lens(profile, held_out, at, batch)
                yield (
                    name,
                    batch,
                    position,
                    predicted,
                    statistics.median(step.probes[name] for step in probed),
                )
            at, whole = held_out.samples.whole_step(batch, position)
            plain_step = profile.token_costs(shape, at, batch=batch).plain
            yield "whole step", batch, position, plain_step, whole


def _lens(profile: TimingsProfile, held_out: MachineProfiler, position: float, batch: int) -> float:
    costs = profile.token_costs(held_out.model.shape, position, batch=batch, lens=True)
    return costs.exit_head - costs.head


def _summary(errors: list[Error]) -> dict[str, object]:
    sums = ("all layers", "whole step")  # shown, but their parts are what counts
    relative = [
        (
            part.split(" ")[0] if part.startswith("layer ") else part,
            batch in BATCHES,
            abs(predicted / timed - 1),
        )
        for part, batch, _, predicted, timed in errors
    ]
    by_part = {
        name: {
            place: statistics.median(error for part, at, error in relative if part == name and at == timed)
            for place, timed in (("timed batches", True), ("between", False))
        }
        for name in dict.fromkeys(part for part, _, _ in relative)
    }
    return {
        "median_error": statistics.median(e for part, at, e in relative if at and part not in sums),
        "median_error_between": statistics.median(
            e for part, at, e in relative if not at and part not in sums
        ),
        "median_of_parts": statistics.median(by_part[part]["timed batches"] for part in by_part),
        "by_part": by_part,
    }


if __name__ == "__main__":
    main()
