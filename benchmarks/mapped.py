"""How much of `propagate`'s drift mapped K and V remove, by the rank of the maps, and what that costs.

    python benchmarks/mapped.py --exits 8,15,20 --ranks 16,32,64,full,auto -o maps.safetensors

Maps are fitted on the later half of a workload's documents, once: lower ranks are the first columns of the
same fit. Documents that fitting did not see are traced, and for every exit a threshold is chosen at which the
replay keeps `--replayed` of the full model's tokens. Then the same texts are decoded with their own tokens
forced, K and V propagated and mapped: what is lost between replay and decoding is the drift. Beside it stand
the cost of leaving K and V, mapped over propagated, in bytes and FLOPs as a replay counts them and in seconds
as the decoder takes them, and the share of the held-out variance that the maps explain: what no linear map
explains is where the rest of the drift comes from. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch
from numpy.typing import NDArray

import offramp
from offramp.decoding.generation.generate import generate_batch
from offramp.decoding.options import DecodingOptions
from offramp.heads.exit_heads import ExitHeads, KeyValueMaps
from offramp.heads.file import read_heads, write_heads
from offramp.models.model import Model
from offramp.policies.kv import maps_of
from offramp.policies.prices import prices_at
from offramp.tracing.fitting.fit import fit_heads
from offramp.tracing.fitting.maps import AUTO, AUTO_DISTANCE, FULL
from offramp.tracing.trace import Trace, with_maps
from offramp.workloads.workload import Workload

ROWS = 8
"""Documents decoded together, each leaving at its own exits."""


@dataclass(frozen=True)
class Text:
    """A traced text of equal length to all others. rows: of the trace, those that are judged."""

    prompt: tuple[int, ...]
    forced: tuple[int, ...]
    rows: NDArray[np.int64]


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit, trace, decode, print."""
    options = _options(arguments)
    model = offramp.load_model(options.model)
    exits = tuple(int(exit) for exit in options.exits.split(","))
    heads = _heads(model, options, exits)
    trace = _unseen(model, options, heads)
    bos = model.bos_policy.token_id
    texts = texts_of(trace, bos, options.prompt_tokens, options.new_tokens, options.documents)
    results = []
    for exit in exits:
        results.append(_exit(model, trace, texts, heads, exit, options))
        print(json.dumps(results[-1]), flush=True)
    settings = {**vars(options), "texts": len(texts), "tokens": sum(len(text.rows) for text in texts)}
    print(json.dumps({"benchmark": "mapped", "settings": settings, "exits": results}))


def _heads(model: Model, options: argparse.Namespace, exits: tuple[int, ...]) -> ExitHeads:
    """Maps of all ranks, from a file if it is there."""
    if options.output and os.path.exists(options.output):
        return read_heads(options.output)
    heads = fit_heads(
        model,
        options.workload,
        tokens=options.fit_tokens,
        lens=False,
        classifiers=False,
        kv_maps=exits,
        kv_rank=model.shape.hidden_size,
    )
    if options.output:
        write_heads(heads, options.output)
    return heads


def _unseen(model: Model, options: argparse.Namespace, heads: ExitHeads) -> Trace:
    workload: Workload = offramp.load_workload(options.workload)
    seen = set(heads.seen_documents[workload.fingerprint])
    documents = tuple(one for one in workload.documents if one.id not in seen)
    length = options.prompt_tokens + options.new_tokens
    return with_maps(
        offramp.trace(
            model,
            dataclasses.replace(workload, documents=documents),
            tokens=options.documents * length,
            exits=[*heads.kv_maps.exits] if heads.kv_maps else "all",
            document_tokens=length,
            progress=False,
        ),
        heads,
    )


def texts_of(trace: Trace, bos: int | None, prompt: int, new: int, most: int) -> list[Text]:
    """The documents that are long enough: first tokens, after BOS, and those that are forced after them."""
    before = () if bos is None else (bos,)
    found = []
    for document in np.unique(trace.document):
        rows = np.flatnonzero(trace.document == document)
        ids = [*trace.token[rows].tolist(), int(trace.next_token[rows[-1]])]
        # The first new token comes out of the prompt, at full depth: it is not judged.
        if trace.position[rows[0]] == len(before) and len(ids) >= prompt + new:
            forced = tuple(ids[prompt : prompt + new])
            found.append(Text((*before, *ids[:prompt]), forced, rows[prompt : prompt + new - 1]))
    if not found:
        raise SystemExit(f"no document has {prompt + new} tokens: give fewer")
    return found[:most]


def threshold_at(trace: Trace, texts: Sequence[Text], exit: int, replayed: float) -> float:
    """The lowest max_prob at which tokens may leave so that the replay keeps this share of them."""
    rows = np.concatenate([text.rows for text in texts])
    column = int(np.searchsorted(trace.exits, exit))
    sure, agrees = trace.max_prob[rows, column], trace.agreement[rows, column]
    order = np.argsort(-sure, kind="stable")
    lost = np.cumsum(~agrees[order]) / len(rows)
    allowed = np.flatnonzero(lost <= 1.0 - replayed)
    return float(sure[order[allowed[-1]]]) if len(allowed) else 1.0


def executed(
    model: Model, texts: Sequence[Text], trace: Trace, policy: str, kv: str, heads: ExitHeads | None
) -> tuple[float, float]:
    """Share of forced tokens that are the full model's choice, and of those that left early."""
    agreeing, left, tokens = 0, 0, 0
    for start in range(0, len(texts), ROWS):
        part = texts[start : start + ROWS]
        found = generate_batch(
            model,
            torch.tensor([text.prompt for text in part]),
            options=DecodingOptions.read(
                policy,
                kv=kv,
                heads=heads,
                batching="rebatch" if len(part) > 1 else "lockstep",
                new_tokens=len(part[0].forced),
            ),
            force_tokens=torch.tensor([text.forced for text in part]),
        )
        for text, row in zip(part, found.rows, strict=True):
            top1 = trace.top1[text.rows, -1]
            agreeing += int((np.array(row.chosen[1:]) == top1).sum())
            left += int((row.exits[1:] < model.layers).sum())
            tokens += len(top1)
    return agreeing / tokens, left / tokens


def _exit(
    model: Model,
    trace: Trace,
    texts: Sequence[Text],
    heads: ExitHeads,
    exit: int,
    options: argparse.Namespace,
) -> dict[str, Any]:
    value = threshold_at(trace, texts, exit, options.replayed)
    policy = f"threshold:signal=max_prob,value={value!r},exits={exit}"
    rows = np.concatenate([text.rows for text in texts])
    replay = offramp.replay(trace, policy)
    columns = np.searchsorted(trace.exits, replay.exits[rows])
    replayed = float(trace.agreement[rows, columns].mean())
    propagated, left = executed(model, texts, trace, policy, "propagate", None)
    drift = replayed - propagated
    found: dict[str, Any] = {
        "exit": exit,
        "policy": policy,
        "left_early": left,
        "replayed": replayed,
        "propagate": propagated,
        "drift": drift,
        "mapped": [],
    }
    for word in options.ranks.split(","):
        cut = _cut(heads, exit, word)
        agreement, left = executed(model, texts, trace, policy, "mapped", cut)
        maps = cut.kv_maps.maps[exit] if cut.kv_maps else None
        assert maps is not None
        found["mapped"].append(
            {
                "rank": word,
                "columns": maps.rank,
                "megabytes": maps.bytes / 1e6,
                "agreement": agreement,
                "left_early": left,
                "removed": (agreement - propagated) / drift if drift > 0 else None,
                "explained": float(maps.explained[-1].mean()),
                **_costs(model, with_maps(trace, cut), texts, cut, exit, options.timed),
            }
        )
        row = found["mapped"][-1]
        print(
            f"exit {exit}, rank {word} ({maps.rank}): replayed {replayed:.3f}, propagated {propagated:.3f}, "
            f"mapped {agreement:.3f}; repair costs {row['bytes_over_propagate']:.2f} x in bytes, "
            f"{row['seconds_over_propagate']:.2f} x in seconds",
            flush=True,
        )
    return found


def _cut(heads: ExitHeads, exit: int, word: str) -> ExitHeads:
    """The same maps of one exit alone, of a rank: a number, full (as whole maps), or auto."""
    assert heads.kv_maps is not None
    maps = heads.kv_maps.maps[exit]
    if word == FULL:
        assert maps.inward is not None
        assert maps.outward is not None
        whole = dataclasses.replace(
            maps,
            change=maps.outward @ maps.inward,
            inward=None,
            outward=None,
            explained=maps.explained[-1:],
        )
        return dataclasses.replace(heads, kv_maps=KeyValueMaps({exit: whole}))
    if word == AUTO:
        mean = maps.explained.mean(1)
        rank = int(np.flatnonzero(mean >= mean[-1] - AUTO_DISTANCE)[0]) + 1
    else:
        rank = int(word)
    return dataclasses.replace(heads, kv_maps=KeyValueMaps({exit: maps.truncated(rank)}))


def _costs(
    model: Model, trace: Trace, texts: Sequence[Text], heads: ExitHeads, exit: int, timed: int
) -> dict[str, float]:
    """What leaving K and V costs a token that leaves, mapped over propagated."""
    policy, charged = f"static:exit={exit}", maps_of(trace)
    found = {}
    for unit in ("bytes", "flops"):
        costs = prices_at(trace, unit, charged)(1)
        repair = float(costs.key_value[exit:].sum())
        found[f"{unit}_over_propagate"] = (repair + costs.maps.get(exit, 0.0)) / repair
    ratios = []
    for _ in range(timed):
        seconds = {}
        for kv, given in (("propagate", None), ("mapped", heads)):
            text = texts[0]
            timing = generate_batch(
                model,
                torch.tensor([text.prompt]),
                options=DecodingOptions.read(policy, kv=kv, heads=given, new_tokens=len(text.forced)),
                force_tokens=torch.tensor([text.forced]),
                timing=True,
            )
            assert timing.part_seconds is not None
            seconds[kv] = timing.part_seconds["K,V repair"]
        ratios.append(seconds["mapped"] / seconds["propagate"])
    found["seconds_over_propagate"] = statistics.median(ratios)
    return found


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--workload", default="prose")
    parser.add_argument("--exits", default="8,15,20")
    parser.add_argument("--ranks", default="16,32,64,full,auto", help="numbers, full, auto")
    parser.add_argument("--fit-tokens", type=int, default=16_384)
    parser.add_argument("--documents", type=int, default=24)
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--replayed", type=float, default=0.95, help="agreement that the replay keeps")
    parser.add_argument("--timed", type=int, default=5, help="pairs of decodings whose repair is timed")
    parser.add_argument("-o", "--output", default=None, help="file of the maps; read if it is there")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
