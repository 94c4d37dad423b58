"""Predicted against measured changes of policies, on shapes of models and instruction sets that differ.

    python benchmarks/prices.py                       four shapes, as this processor is and with AVX2 only
    python benchmarks/prices.py --shapes vocabulary --seconds 60
    python benchmarks/prices.py --shapes MODEL        any model that offramp loads

Shapes: the bundled model, and random weights with a vocabulary of 151,936, with few wide layers, and with a
mixture of experts. On each a fresh profile is measured, which times no policy. Then static exits, policies
that leave at a fixed rate after probes of each price, and short lists decode in the decoder's own loop beside
plain decoding, in the turns of `offramp bench`: blocks of a few tokens in random order, so that the machine's
drift cancels. A policy's change is its seconds per token over plain ones, less 1. It is priced from what the
policy ran, as a ratio to the profile's plain step. `error_over_change` is the median |predicted - measured
change| over the median |measured change|; `raw_*` are errors of the ratio itself. The last line is one JSON
object.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch

import offramp
from offramp.decoding.generation.prompts import PromptBatch
from offramp.decoding.options import DecodingOptions
from offramp.models.model import Model
from offramp.policies.grammar import parse_policy
from offramp.policies.policy import Decider, ExitPolicy, FactsAtExit, Parameter, Rows
from offramp.policies.rules.short_list import ShortList
from offramp.timing.decoder import Decoder, LoopRunning, Running
from offramp.timing.defects import MachineLoad
from offramp.timing.forecast import price_parts, records_of
from offramp.timing.local_profile import measure_hardware
from offramp.timing.prediction import LARGEST_RATIO
from offramp.timing.stopping import Budget
from offramp.timing.timed_steps import prompt_ids
from offramp.timing.turns import Visit, pairs_of, visit
from random_checkpoint import Size, write_checkpoint

BUNDLED = "smollm2"


def _llama(**values: Any) -> Size:
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 4096}
    return Size("LlamaConfig", {**heads, "tie_word_embeddings": False, **values})


SHAPES: dict[str, Size | None] = {
    BUNDLED: None,
    "vocabulary": _llama(hidden_size=512, num_hidden_layers=12, intermediate_size=1536, vocab_size=151_936),
    "wide": _llama(hidden_size=1536, num_hidden_layers=4, intermediate_size=4096, vocab_size=32_000),
    "mixture": Size(
        "MixtralConfig",
        {
            **_llama(hidden_size=512, num_hidden_layers=10, intermediate_size=1024, vocab_size=32_000).values,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
        },
    ),
}
INSTRUCTION_SETS: dict[str, dict[str, str]] = {
    "native": {},
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    },
}
PROMPT, NEW_TOKENS = 64, 33
PLAIN = "plain"
# Tokens that a policy leaves at the first of its exits where it may, of ten.
RATE = 5


class _Leaves(Decider):
    """Leaves by the token's number, whatever the facts say; they are compared all the same."""

    def __init__(self, rate: int) -> None:
        self.rate, self.token = rate, 0

    def decide(self, exit: int, facts: FactsAtExit) -> Rows:
        leaving = np.full(self.streams, (7 * self.token + 3 * exit) % 10 < self.rate)
        for values in facts.values():
            leaving &= np.asarray(values, dtype=np.float64) > -np.inf
        return leaving

    def end(self, exits: Any, final: FactsAtExit) -> None:
        self.token += 1


@dataclass(frozen=True)
class AtRate(ExitPolicy):
    """Reads facts at some exits, and leaves at each for a fixed share of the tokens, in tenths."""

    kind: ClassVar[str] = "at-rate"
    parameters: ClassVar[tuple[Parameter, ...]] = ()
    fact: str
    exits: tuple[int, ...]
    rate: int = RATE

    def needs(self, layers: int) -> Mapping[int, tuple[str, ...]]:
        """The fact at every exit."""
        return dict.fromkeys(self.exits, (self.fact,))

    def decider(self, layers: int, streams: int) -> Decider:
        """One that counts tokens."""
        return _Leaves(self.rate)


def grid(layers: int) -> dict[str, ExitPolicy]:
    """Policies by name: every kind of price takes part."""
    first, half, last = (max(1, min(layers - 1, round(layers * share))) for share in (0.25, 0.5, 0.75))
    restricted = AtRate("restricted_margin", tuple(sorted({half, last})))
    return {
        f"static {first}": parse_policy(f"static:exit={first}"),
        f"static {half}": parse_policy(f"static:exit={half}"),
        f"static {last}": parse_policy(f"static:exit={last}"),
        "full head probe": AtRate("margin", (half,)),
        "full head probes, never": AtRate("margin", tuple(sorted({half, last})), rate=0),
        "restricted probes": restricted,
        "cosine probes": AtRate("hidden_cosine_to_previous", tuple(sorted({first, half, last}))),
        f"short list, static {half}": ShortList(parse_policy(f"static:exit={half}")),
        "short list, restricted probes": ShortList(restricted),
    }


def timed(model: Model, seconds: float) -> list[Visit]:
    """All policies and plain decoding in turns on caches of their own, as often as the seconds allow."""
    ids = prompt_ids(model, 1, PROMPT)
    prompts, source = PromptBatch(ids, torch.ones_like(ids)), random.Random(0)
    new_tokens = min(NEW_TOKENS, (model.context_length or 4096) - PROMPT)

    def start(policy: ExitPolicy, prompts: PromptBatch, new_tokens: int) -> Running:
        return LoopRunning(model, prompts, DecodingOptions(policy, new_tokens=new_tokens))

    decoders = [
        Decoder(name, "policy", partial(start, policy))
        for name, policy in {PLAIN: parse_policy("never"), **grid(model.layers)}.items()
    ]
    visit(decoders, prompts, 2, source)  # what a decoder sets up once
    budget, visits = Budget(seconds), list[Visit]()
    while not visits or budget.has(budget.spent / len(visits)):
        visits.append(visit(decoders, prompts, new_tokens, source))
    return visits


def one_shape(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Profile, decode, price, and the errors."""
    with tempfile.TemporaryDirectory() as folder:
        model = _model(name, Path(folder) / "model")
    profile = measure_hardware(model, budget_seconds=options.profile_seconds, batches=(1,))
    load = MachineLoad()
    visits = timed(model, options.seconds)

    def price(policy: str) -> float:
        """Seconds per token of what ran, by the profile."""
        ran = records_of([decoded[policy] for decoded in visits])
        return sum(price_parts(ran, profile, model.shape).values())

    rows = []
    for policy in grid(model.layers):
        pairs = [pair for decoded in visits for pair in pairs_of(decoded[PLAIN], decoded[policy])]
        logs = np.log([own / plain for plain, own in pairs])
        row = {
            "policy": policy,
            "predicted": price(policy) / price(PLAIN),
            "measured": float(np.exp(np.median(logs))),
            "half_width": float(1.57 * np.subtract(*np.percentile(logs, [75, 25])) / np.sqrt(len(logs))),
            "pairs": len(logs),
        }
        rows.append(row)
        print(f"  {policy:<32} predicted {row['predicted']:.3f}, measured {row['measured']:.3f} of plain")
    blocks = [seconds for decoded in visits for seconds in decoded[PLAIN].blocks]
    return {
        **errors(rows),
        "plain_by_profile_over_measured": price(PLAIN) / statistics.median(blocks),
        "policies": rows,
        "parts_over_step": profile.details["check"]["parts_over_step"]["1"],
        "profile_rounds": profile.details["rounds"],
        "profile_other_load": profile.details["other_load"],
        **load.describe(),
    }


def errors(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What the predicted ratios are off by, from rows with "predicted" and "measured"."""
    predicted, measured = (np.array([row[name] for row in rows]) for name in ("predicted", "measured"))
    error, change = np.abs(predicted - measured), np.abs(measured - 1.0)
    raw = np.abs(predicted / measured - 1.0)
    return {
        "error_over_change": float(np.median(error) / np.median(change)),
        "median_error": float(np.median(error)),
        "median_change": float(np.median(change)),
        "raw_median": float(np.median(raw)),
        "raw_worst": float(raw.max()),
    }


def _model(name: str, folder: Path) -> Model:
    size = SHAPES.get(name)
    if size is None:
        return offramp.load_model(name, dtype="float32")
    write_checkpoint(folder, size)
    return offramp.load_model(str(folder), dtype="float32")


def here(options: argparse.Namespace) -> dict[str, Any]:
    """Every shape in this process."""
    found: dict[str, Any] = {"capability": torch.backends.cpu.get_cpu_capability(), "shapes": {}}
    for name in options.shapes.split(","):
        began = time.monotonic()
        print(f"{name}, {found['capability']}:")
        one = one_shape(name, options)
        found["shapes"][name] = {**one, "seconds": time.monotonic() - began}
        print(
            f"  error over change {one['error_over_change']:.3f} (limit {LARGEST_RATIO}), raw median "
            f"{one['raw_median']:.3f}, worst {one['raw_worst']:.3f}; other work kept {one['other_load']} busy"
        )
    return found


def elsewhere(name: str, arguments: Sequence[str]) -> dict[str, Any]:
    """The same under another instruction set, in a process of its own."""
    command = [sys.executable, __file__, *arguments, "--instruction-sets", "native"]
    ran = subprocess.run(
        command, env={**os.environ, **INSTRUCTION_SETS[name]}, stdout=subprocess.PIPE, text=True, check=True
    )
    *lines, last = ran.stdout.strip().splitlines()
    print("\n".join(lines))
    found: dict[str, Any] = json.loads(last)["instruction_sets"]["native"]
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """All shapes under all instruction sets."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = _options(given)
    found = {
        name: elsewhere(name, given) if INSTRUCTION_SETS[name] else here(options)
        for name in options.instruction_sets.split(",")
    }
    cells = [one for result in found.values() for one in result["shapes"].values()]
    print(
        json.dumps(
            {
                "settings": vars(options),
                "threads": torch.get_num_threads(),
                "worst_error_over_change": max(one["error_over_change"] for one in cells),
                "holds": all(one["error_over_change"] <= LARGEST_RATIO for one in cells),
                "instruction_sets": found,
            }
        )
    )


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--instruction-sets", default=",".join(INSTRUCTION_SETS))
    parser.add_argument("--profile-seconds", type=float, default=12.0)
    parser.add_argument("--seconds", type=float, default=24.0, help="of decoding, for each shape")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
