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
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
from numpy.typing import NDArray

import offramp
from offramp.decoding.generation.result import Generation
from offramp.errors import InputError
from offramp.heads.exit_heads import ExitHeads
from offramp.heads.file import read_heads
from offramp.models.model import Model
from offramp.policies.grammar import parse_policy
from offramp.policies.replay import ReplayResult
from offramp.policies.rules.short_list import seen_by
from offramp.tracing.trace import Trace

STRATEGIES = ("recompute", "speculate", "propagate")


@dataclass(frozen=True)
class Drift:
    """Decoded beside replayed, token by token.

    tokens: compared ones. exits_differ: share that left elsewhere. mean_exit_difference: decoded less
    replayed exit, in layers; negative = earlier. tokens_differ: share whose chosen token is not the top-1
    that the trace holds at the replayed exit.
    """

    tokens: int
    exits_differ: float
    mean_exit_difference: float
    tokens_differ: float


def drift_of(
    exits: Sequence[int] | NDArray[np.int64],
    chosen: Sequence[int] | NDArray[np.int64],
    replayed_exits: Sequence[int] | NDArray[np.int64],
    replayed_top1: Sequence[int] | NDArray[np.integer],
) -> Drift:
    """Compare tokens in the same order, each list [tokens].

    exits, chosen: of generation with forced tokens. replayed_exits, replayed_top1: of the trace's rows.

    Raises InputError if the lists differ in length or are empty.
    """
    lists = [np.asarray(values) for values in (exits, chosen, replayed_exits, replayed_top1)]
    lengths = {len(values) for values in lists}
    if len(lengths) != 1 or 0 in lengths:
        raise InputError(
            f"decoded and replayed tokens do not match: {', '.join(str(len(values)) for values in lists)}",
            where="drift",
            fix="force the traced tokens, and compare the same ones",
        )
    decoded, said, replayed, top1 = lists
    return Drift(
        tokens=len(decoded),
        exits_differ=float(np.mean(decoded != replayed)),
        mean_exit_difference=float(np.mean(decoded - replayed)),
        tokens_differ=float(np.mean(said != top1)),
    )


def drift(trace: Trace, replayed: ReplayResult, generations: Mapping[int, Generation]) -> Drift:
    """The drift of generations that were forced to follow documents of a trace.

    trace: as the policy sees it (`offramp.policies.rules.short_list.seen_by`). generations: by the document's
    place in `trace.documents`; each began with the document's first tokens as its prompt and was forced to
    continue with the next ones. Its first new token is left out: it comes out of the prompt, at full depth.

    Raises InputError if a row of the trace is missing for a token.
    """
    columns: list[tuple[NDArray[np.int64], ...]] = []
    for document, generation in generations.items():
        rows = _rows(trace, document, generation)
        exits = replayed.exits[rows]
        top1 = trace.fact("top1")[rows, np.searchsorted(trace.exits, exits)].astype(np.int64)
        columns.append((generation.exits[1:], np.array(generation.chosen[1:], dtype=np.int64), exits, top1))
    if not columns:
        return drift_of([], [], [], [])
    return drift_of(*(np.concatenate(parts) for parts in zip(*columns, strict=True)))


def _rows(trace: Trace, document: int, generation: Generation) -> NDArray[np.int64]:
    """The trace's rows that predict the new tokens after the first, checked to hold the same tokens."""
    fed = np.array(generation.tokens[:-1], dtype=np.int64)
    own = np.flatnonzero(trace.document == document)
    first = generation.prompt_tokens
    rows = own[(trace.position[own] >= first) & (trace.position[own] < first + len(fed))]
    if len(rows) != len(fed) or not np.array_equal(trace.token[rows], fed):
        raise InputError(
            "a generation did not feed the tokens of the trace's document",
            where=f"document {trace.documents[document].id}",
            fix="give its first tokens as the prompt and the next ones as force_tokens",
        )
    return rows


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
