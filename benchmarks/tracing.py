"""Tracing against its floor: one model forward and one head product per exit, same dtype and threads.

    python benchmarks/tracing.py               over_floor_ratio per mode, tokens per second; interleaved
    python benchmarks/tracing.py --memory      extra memory over a plain forward, 1,024 and 8,192 tokens
    python benchmarks/tracing.py --recording   seconds with facts on request over seconds without; interleaved
    python benchmarks/tracing.py --table       seconds by tokens and by exits
    python benchmarks/tracing.py --agreement   bfloat16 product against float32 product, per exit

The floor computes nothing but hidden states and logits, at its best chunk of 64 to 512 positions. The last
line is one JSON object.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch

import offramp
from offramp.defaults import CANDIDATES, NETWORK_UNITS
from offramp.heads.exit_heads import ExitHeads
from offramp.heads.output_head import StateShape, make_head
from offramp.heads.parts import Classifier, Lens, Weights
from offramp.heads.statistics import choose_reductions
from offramp.models.model import Model
from offramp.tracing.facts import HEAD_FACTS, SIGNAL_FACTS
from offramp.tracing.group_measurer import GroupMeasurer
from offramp.tracing.plan import plan_trace
from offramp.tracing.request import Recording, parse_exits
from offramp.tracing.rows import groups_of
from offramp.workloads.packing import Context
from offramp.workloads.workload import Document, Workload

CHUNKS = (64, 128, 256, 512)
MODES = ("float32", "bfloat16")


def long_text() -> Workload:
    """The prose documents as one, so that a context of any length can be filled."""
    prose = offramp.load_workload("prose")
    text = "\n\n".join(document.text for document in prose.documents)
    return replace(prose, name="prose as one document", documents=(Document("prose", text),))


def contexts_of(model: Model, tokens: int, context: int) -> list[Context]:
    """Contexts of `tokens` rows in all."""

    def no_answers() -> object:
        raise AssertionError("a text workload has no prompts")

    plan = plan_trace(
        model,
        long_text(),
        no_answers,  # type: ignore[arg-type]
        tokens=tokens,
        context=context,
        document_tokens=tokens,
    )
    return [context for part in plan.parts for context in part]


def measurer_of(
    model: Model,
    tokens: int,
    exits: str = "all",
    recording: Recording = Recording(),  # noqa: B008 - frozen
    heads: ExitHeads | None = None,
) -> GroupMeasurer:
    """The measurer that `offramp.trace` uses for so many tokens."""
    layers = parse_exits(exits, model.layers)
    device = model.stack.head_device
    reductions = choose_reductions(tokens * len(layers) * model.shape.vocabulary_size, device.type)
    shape = StateShape(-2, None, model.shape.hidden_size)
    head = make_head(model.stack, model.shape.vocabulary_size, shape, reductions)
    return GroupMeasurer(model.stack, head, layers, shape, getattr(torch, model.dtype), recording, heads)


def trace_once(measurer: GroupMeasurer, contexts: list[Context]) -> None:
    """All facts of the contexts."""
    for group in groups_of(contexts):
        measurer.measure(group)


@torch.no_grad()
def floor_once(model: Model, contexts: list[Context], exits: int, chunk: int) -> None:
    """Hidden states of the contexts, then one head product per exit of as many rows."""
    weight = model.stack.head_weight
    assert weight is not None, "the floor is defined for a linear head"
    states = None
    for context in contexts:
        ids = torch.tensor([context.ids], device=model.stack.device)
        states = model.stack.core(ids, use_cache=False).last_hidden_state[0]
        for start in range(0, len(states), chunk):
            for _ in range(exits):
                torch.nn.functional.linear(states[start : start + chunk], weight)


def seconds(call: Callable[[], None]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def ratio_of(model: Model, tokens: int, context: int, repeats: int) -> dict[str, object]:
    """Interleaved times of trace and floor; the floor at each chunk, its best median counts."""
    contexts = contexts_of(model, tokens, context)
    measurer = measurer_of(model, tokens)
    trace_once(measurer, contexts)
    floor_once(model, contexts[:1], model.layers, CHUNKS[-1])
    traced: list[float] = []
    floors: dict[int, list[float]] = {chunk: [] for chunk in CHUNKS}
    for _ in range(repeats):
        for chunk, samples in floors.items():
            samples.append(seconds(partial(floor_once, model, contexts, model.layers, chunk)))
        traced.append(seconds(partial(trace_once, measurer, contexts)))
    best = min(floors, key=lambda chunk: statistics.median(floors[chunk]))
    pairs = [trace / floor for trace, floor in zip(traced, floors[best], strict=True)]
    return {
        "ratio": statistics.median(traced) / statistics.median(floors[best]),
        "ratio_low": min(pairs),
        "ratio_high": max(pairs),
        "floor_chunk": best,
        "floor_seconds": floors[best],
        "trace_seconds": traced,
        "tokens_per_second": tokens / statistics.median(traced),
    }


def over_floor(name: str, tokens: int, context: int, repeats: int) -> dict[str, object]:
    """The main benchmark."""
    details = {}
    for mode in MODES:
        details[mode] = ratio_of(offramp.load_model(name, dtype=mode), tokens, context, repeats)
        print(f"{mode}: {details[mode]['ratio']:.3f} x the floor", file=sys.stderr)
    return {
        "over_floor_ratio": {mode: details[mode]["ratio"] for mode in MODES},
        "tokens_per_second": {mode: details[mode]["tokens_per_second"] for mode in MODES},
        "details": details,
    }


def some_heads(model: Model) -> ExitHeads:
    """Heads of the sizes that fitting gives, with random numbers: what they cost does not depend on these."""
    exits, hidden = model.layers - 1, model.shape.hidden_size
    generator = np.random.default_rng(0)
    widths = {"correctness": (hidden, 1), "convergence": (hidden, 1), "correctness_network": (hidden, 64, 1)}
    widths |= {"adainfer": (2, 1), "candidate_score": (3 * CANDIDATES, NETWORK_UNITS, 1)}

    def normal(*shape: int) -> np.ndarray:
        return (0.01 * generator.normal(size=(exits, *shape))).astype(np.float32)

    def classifier(sizes: tuple[int, ...]) -> Classifier[Weights]:
        layers = list(itertools.pairwise(sizes))
        return Classifier(
            mean=normal(sizes[0]),
            scale=np.ones((exits, sizes[0]), dtype=np.float32),
            weights=tuple(normal(*pair) for pair in layers),
            biases=tuple(normal(pair[1]) for pair in layers),
            auroc=np.zeros(exits),
            base_rate=np.zeros(exits),
            better_than_chance=np.zeros(exits, dtype=np.bool_),
        )

    eye = np.eye(hidden, dtype=np.float32)
    return ExitHeads(
        model={},
        exits=tuple(range(1, model.layers)),
        lens=Lens(weight=eye + normal(hidden, hidden), bias=normal(hidden)),
        classifiers={fact.name: classifier(widths[fact.name]) for fact in HEAD_FACTS},
        shortlist=None,
        candidate_exit=max(1, model.layers // 3),
        documents={},
    )


def recorded(model: Model, tokens: int, what: str) -> GroupMeasurer:
    """A measurer that records nothing more, cheap signals, those and what heads give, or everything."""
    cheap = ("logit_gap", "restricted")
    signals = {"nothing": (), "everything": tuple(SIGNAL_FACTS)}.get(what, cheap)
    heads = some_heads(model) if what in ("heads", "everything") else None
    facts = () if heads is None else tuple(heads.classifiers)
    return measurer_of(model, tokens, recording=Recording(signals, facts), heads=heads)


RECORDINGS = ("nothing", "cheap", "heads", "everything")


def recording(name: str, tokens: int, context: int, repeats: int) -> dict[str, object]:
    """Seconds of each recording over seconds of none, medians of interleaved repeats."""
    ratios: dict[str, dict[str, float]] = {}
    for mode in MODES:
        model = offramp.load_model(name, dtype=mode)
        contexts = contexts_of(model, tokens, context)
        measurers = {what: recorded(model, tokens, what) for what in RECORDINGS}
        samples: dict[str, list[float]] = {what: [] for what in RECORDINGS}
        for repeat in range(repeats + 1):
            for what, measurer in measurers.items():
                taken = seconds(partial(trace_once, measurer, contexts))
                if repeat:
                    samples[what].append(taken)
        medians = {what: statistics.median(times) for what, times in samples.items()}
        ratios[mode] = {what: medians[what] / medians["nothing"] for what in RECORDINGS[1:]}
        print(f"{mode}: {medians}", file=sys.stderr)
    return {"recording_ratio": ratios}


def peak_bytes() -> int:
    """Peak resident memory since the last reset."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this kernel does not report peak memory")


def memory_of(what: str, name: str, mode: str, tokens: int) -> int:
    """Peak memory of one fresh process that runs one thing on one context of `tokens` tokens."""
    model = offramp.load_model(name, dtype=mode)
    contexts = contexts_of(model, tokens, tokens)
    short = contexts_of(model, 64, 64)
    measurer = recorded(model, tokens, "everything" if what == "everything" else "nothing")
    trace_once(measurer, short)  # compiling takes memory of its own, once
    Path("/proc/self/clear_refs").write_text("5")
    if what != "forward":
        trace_once(measurer, contexts)
    else:
        with torch.no_grad():
            model.stack.core(torch.tensor([contexts[0].ids]), use_cache=False)
    return peak_bytes()


def memory(name: str) -> dict[str, object]:
    """Extra peak memory of tracing over a plain forward without logits, each in a process of its own.

    "trace": the facts of every trace. "everything": signals, lens and classifiers too.
    """
    extra: dict[str, dict[str, dict[str, float]]] = {}
    for mode in MODES:
        extra[mode] = {}
        for tokens in (1024, 8192):
            peaks = {}
            for what in ("trace", "everything", "forward"):
                command = [sys.executable, __file__, "--model", name, "--memory-of", what, mode, str(tokens)]
                printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                peaks[what] = int(printed.splitlines()[-1])
            forward = peaks.pop("forward")
            extra[mode][str(tokens)] = {what: (peak - forward) / 1e6 for what, peak in peaks.items()}
            print(f"{mode} {tokens}: {extra[mode][str(tokens)]} MB extra", file=sys.stderr)
    return {"extra_memory_mb": extra}


def table(name: str, mode: str) -> dict[str, object]:
    """Seconds by tokens at all exits, and by exits at 1,024 tokens."""
    model = offramp.load_model(name, dtype=mode)
    rows = []
    sizes = [(tokens, model.layers) for tokens in (512, 1024, 2048, 4096, 8192, 16384)]
    for tokens, exits in [*sizes, (1024, 8), (1024, 16)]:
        wanted = ",".join(str(round(model.layers * (place + 1) / exits)) for place in range(exits))
        measurer = measurer_of(model, tokens, wanted)
        contexts = contexts_of(model, tokens, 512)
        trace_once(measurer, contexts[:1])
        taken = seconds(partial(trace_once, measurer, contexts))
        counted = len(measurer.exits)
        rows.append({"tokens": tokens, "exits": counted, "seconds": taken})
        print(f"{tokens} tokens, {counted} exits: {taken:.2f} s", file=sys.stderr)
    return {"mode": mode, "table": rows}


def agreement(name: str, tokens: int) -> dict[str, object]:
    """How far agreement at each exit moves when the bfloat16 model's head product is taken in float32."""
    model = offramp.load_model(name, dtype="bfloat16")
    contexts = contexts_of(model, tokens, 512)
    weight = model.stack.head_weight
    assert weight is not None, "the comparison is defined for a linear head"
    exact: list[list[torch.Tensor]] = [[] for _ in range(model.layers)]
    with torch.no_grad():
        wide = weight.float()
        for context in contexts:

            def on_layer(layer: int, before: torch.Tensor, after: torch.Tensor) -> None:
                logits = model.stack.tail_forward(after)[0].float() @ wide.t()
                exact[layer].append(logits.argmax(-1))

            model.stack.capture(torch.tensor([context.ids]), on_layer)
    reference = torch.stack([torch.cat(column) for column in exact], dim=1).numpy()
    measurer = measurer_of(model, tokens)
    found = np.concatenate([measurer.measure(group).facts["top1"] for group in groups_of(contexts)])
    moved = (found == found[:, -1:]).mean(0) - (reference == reference[:, -1:]).mean(0)
    return {
        "tokens": len(found),
        "largest_move_in_points": float(100 * np.abs(moved).max()),
        "top1_differs_share": float((found != reference).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--mode", choices=MODES, default="float32")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--memory-of", nargs=3, metavar=("WHAT", "MODE", "TOKENS"))
    parser.add_argument("--recording", action="store_true")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--agreement", action="store_true")
    options = parser.parse_args()
    if options.memory_of:
        what, mode, tokens = options.memory_of
        print(memory_of(what, options.model, mode, int(tokens)))
        return
    load = os.getloadavg()[0]
    if options.memory:
        result = memory(options.model)
    elif options.recording:
        result = recording(options.model, options.tokens, options.context, options.repeats)
    elif options.table:
        result = table(options.model, options.mode)
    elif options.agreement:
        result = agreement(options.model, options.tokens)
    else:
        result = over_floor(options.model, options.tokens, options.context, options.repeats)
    machine = {"threads": torch.get_num_threads(), "load_average_at_start": load, "torch": torch.__version__}
    print(json.dumps({"benchmark": "tracing", **result, "machine": machine}))


if __name__ == "__main__":
    main()
