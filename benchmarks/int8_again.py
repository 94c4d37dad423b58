"""An acceleration alone, measured again in fresh processes: is what one process says what all of them say?

    python benchmarks/int8_again.py                            int8 of smollm2 on prose, 5 processes
    python benchmarks/int8_again.py --transform int4 --processes 8

Each process loads the model and its transformed copy, and times both beside plain decoding in blocks that
take turns, all against the same plain decoder (see `offramp.timing.combine`). An interval
within a process is over prompts; that over all of them allows for what a process does to all of its times
(where memory lies, which kernels are chosen): beside it stand the ratios of the single processes. The last
line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from offramp.scoring.estimate import Estimate
from offramp.timing.ratios import ratio_of
from offramp.timing.results import COMBINED, Cluster, CombineResult, Contender
from offramp.timing.stopping import answer_of, resolution_of


def measured(options: argparse.Namespace, place: int, folder: Path, plain: str | None) -> CombineResult:
    """One fresh process, timed to the end of its seconds. plain: the decoder to hold against, if known."""
    path = folder / f"{place}.json"
    arguments = [
        "bench", options.model, "--combine", options.transform, "-w", options.workload,
        "--seconds", options.seconds, "--prompts", options.prompts, "--new-tokens", options.new_tokens,
        "--dtype", options.dtype, "--seed", place, "-o", path,
        "--to-the-end", *([] if plain is None else ["--plain", plain]),
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "offramp", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"process {place + 1} failed:\n{done.stderr}")
    return COMBINED.read(path)


def contender_of(result: CombineResult) -> Contender:
    """The acceleration alone."""
    (one,) = (one for one in result.combinations if len(one.parts) == 1)
    if one.contender.ratio is None:
        raise SystemExit(f"{one.name} was not timed: {one.contender.left_out}")
    return one.contender


def together(contenders: Sequence[Contender]) -> Estimate[float]:
    """The ratio over prompts and processes."""
    clusters: list[Cluster] = [
        replace(cluster, process=process)
        for process, one in enumerate(contenders)
        for cluster in one.clusters
    ]
    return ratio_of(clusters)


def row_of(result: CombineResult) -> dict[str, Any]:
    """What one process says."""
    one = contender_of(result)
    assert one.ratio is not None  # or it was refused
    plain = result.combinations[0].contender.seconds_per_token
    return {
        "ratio": one.ratio.value,
        "low": one.ratio.low,
        "high": one.ratio.high,
        "answer": one.answer,
        "plain": result.plain,
        "plain_seconds_per_token": None if plain is None else plain.value,
        "seconds_per_token": None if one.seconds_per_token is None else one.seconds_per_token.value,
        "prompts": result.prompts,
        "a_a": asdict(result.a_a),
        "defects": list(result.defects),
        "other_load": result.circumstances["other_load"],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure in every process, then say what all of them say."""
    options = _options(arguments)
    with tempfile.TemporaryDirectory(prefix="offramp-again-") as folder:
        results: list[CombineResult] = []
        for place in range(options.processes):
            results.append(measured(options, place, Path(folder), results[0].plain if results else None))
            row = row_of(results[-1])
            print(
                f"process {place + 1}: {row['ratio']:.3f} [{row['low']}, {row['high']}] over {row['plain']}"
            )
    contenders = [contender_of(result) for result in results]
    ratio = together(contenders)
    rows = [row_of(result) for result in results]
    spread = [row["ratio"] for row in rows]
    answer = answer_of(ratio, results[0].worth)
    print(f"all: {ratio.value:.3f} [{ratio.low}, {ratio.high}], {answer}; single processes {min(spread):.3f} "
          f"to {max(spread):.3f}")  # fmt: skip
    print(
        json.dumps(
            {
                "settings": vars(options),
                "ratio": ratio.value,
                "low": ratio.low,
                "high": ratio.high,
                "half_width": resolution_of(ratio),
                "answer": answer,
                "processes": rows,
                "circumstances": dict(results[0].circumstances),
            }
        )
    )


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--transform", default="int8")
    parser.add_argument("--workload", default="prose")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=120.0, help="of each process")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
