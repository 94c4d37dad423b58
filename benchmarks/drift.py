"""How far decoding strays from replay where the text is the same: decisions and tokens, by KV strategy.

    python benchmarks/drift.py prose-trace --heads prose.safetensors --policies "static:exit=20"

Documents of a trace are decoded with their own tokens forced, and every decision is held against the
replay's: under recompute and speculate (float32) they must be equal for every token; propagate, and mapped
with heads that hold K,V maps, change the states that later tokens attend to, and how much that moves
decisions and tokens is their drift. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np

import offramp
from offramp.decoding.generation.result import Generation
from offramp.decoding.quality.drift import drift
from offramp.models.model import Model
from offramp.policies.grammar import parse_policy
from offramp.policies.short_list import seen_by
from offramp.tracing.exit_heads import ExitHeads
from offramp.tracing.heads_file import read_heads
from offramp.tracing.trace import Trace

STRATEGIES = ("recompute", "speculate", "propagate")


def forced(
    model: Model, trace: Trace, document: int, policy: str, kv: str, heads: ExitHeads | None
) -> Generation:
    """One document's text, fed after BOS, which is no row of a trace, or after its first traced token."""
    rows = np.flatnonzero(trace.document == document)
    bos = model.bos_policy.token_id
    if trace.position[rows[0]] != (0 if bos is None else 1):
        raise SystemExit("the trace's documents must begin at their first token: trace texts, not answers")
    text = [*trace.token[rows].tolist(), int(trace.next_token[rows[-1]])]
    first = [text.pop(0) if bos is None else bos]
    found = offramp.generate(
        model, [first], policy=policy, kv=kv, heads=heads, force_tokens=[text], draft_length=4
    )
    assert isinstance(found, list)
    return found[0]


def main(arguments: Sequence[str] | None = None) -> None:
    """Force, compare, print."""
    options = _options(arguments)
    model = offramp.load_model(options.model, dtype=options.dtype)
    trace = Trace.load(options.trace)
    heads = None if options.heads is None else read_heads(options.heads)
    documents = [int(place) for place in np.unique(trace.document)[: options.documents]]
    found: list[dict[str, Any]] = []
    for policy in options.policies.split(";"):
        seen, replayed = seen_by(parse_policy(policy), trace), offramp.replay(trace, policy)
        maps = heads is not None and heads.kv_maps is not None
        for kv in (*STRATEGIES, *["mapped"] * maps):
            generations = {one: forced(model, trace, one, policy, kv, heads) for one in documents}
            row = {"policy": policy, "kv": kv, **asdict(drift(seen, replayed, generations))}
            found.append(row)
            print(
                f"{kv} {policy}: {row['tokens']} tokens, exits differ {row['exits_differ']:.4f}, "
                f"tokens differ {row['tokens_differ']:.4f}"
            )
    print(json.dumps({"settings": vars(options), "drift": found}))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("trace", help="folder of a trace of texts")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--heads", default=None, help="the exit heads that the trace was made with")
    parser.add_argument("--documents", type=int, default=16)
    parser.add_argument("--policies", default="static:exit=20", help='joined by ";"')
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
