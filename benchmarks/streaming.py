"""Tracing layer by layer from the disk against its floor: reading the shards once, and the arithmetic.

    python benchmarks/streaming.py --size 1b     quick: a random Llama of 1 B, 2 GB on disk
    python benchmarks/streaming.py --size 7b     a random Llama of 7 B, 13 GB on disk
    python benchmarks/streaming.py --size moe    a random mixture of experts of 7 B, 15 GB on disk

The model is written in bfloat16 into `--folder` (left there and used again), by default into a temporary one.
A process of its own, whose peak resident memory is `peak_memory_bytes`, loads it as a streamed model and
traces it, after a narrow one: imports and compiling are in no time given here. `over_floor_ratio` is the time
of both over the floor, measured in the same run: the shards read once from first byte to last, plus all
layers' forward passes on the same batches and one head product per exit, with the same dtype and threads (one
layer's real weights and one exit's product are timed, then multiplied). The page cache is dropped before each
reading. The fingerprint of the weights, which reads every shard once before anything else can be done, is
timed apart; `with_fingerprint_ratio` includes it. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from torch import Tensor, nn

import offramp
from offramp.models.identity import ModelIdentity
from offramp.models.loading import build_model
from offramp.models.model import Model
from offramp.models.process import quiet_transformers
from offramp.models.source import find_source
from offramp.models.streaming import load_streamed
from offramp.tracing.group_measurer import FORWARD_TOKENS
from offramp.tracing.request import parse_exits
from offramp.tracing.rows import equal_length_batches, groups_of
from random_checkpoint import SIZES, forget_cached, narrowed, read_once, shards_of, write_checkpoint
from tracing import CHUNKS, contexts_of, long_text, peak_bytes, seconds

CONTEXT = 512

Call = tuple[tuple[Any, ...], dict[str, Any]]


def trace(model: Model, options: argparse.Namespace) -> None:
    """Trace into a folder, as the command line does."""
    with tempfile.TemporaryDirectory(prefix="offramp-streaming-") as folder:
        offramp.trace(
            model,
            long_text(),
            tokens=options.tokens,
            exits=options.exits,
            context=CONTEXT,
            document_tokens=options.tokens,
            output=Path(folder) / "trace",
        )


def warm_up(options: argparse.Namespace) -> None:
    """Import and compile what the trace needs, with a narrow model of as many layers and tokens."""
    with tempfile.TemporaryDirectory(prefix="offramp-narrow-") as folder:
        write_checkpoint(Path(folder), narrowed(SIZES[options.size]))
        trace(load_streamed(find_source(folder), dtype=options.dtype), options)


def traced(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds, memory and waiting of one streamed trace in this process, imports and compiling left out."""
    warm_up(options)
    forget_cached(shards_of(options.folder))
    started = time.perf_counter()
    source = find_source(str(options.folder))
    found = time.perf_counter()
    forget_cached(shards_of(options.folder))
    begun = time.perf_counter()
    model = load_streamed(source, dtype=options.dtype)
    loaded = time.perf_counter()
    trace(model, options)
    done = time.perf_counter()
    layers = model.streamed
    assert layers is not None, "the model was loaded as a streamed one"
    return {
        "peak_memory_bytes": peak_bytes(),
        "fingerprint_seconds": found - started,
        "load_seconds": loaded - begun,
        "trace_seconds": done - loaded,
        "read_seconds": layers.read_seconds,
        "waited_seconds": layers.waited_seconds,
        "largest_layer_bytes": max(layers.layer_bytes),
        "resident_bytes": layers.resident_bytes,
    }


def reading(folder: Path) -> float:
    """Seconds for reading the shards once from the disk."""
    forget_cached(shards_of(folder))
    return seconds(partial(read_once, shards_of(folder)))


def one_layer(folder: Path, dtype: str) -> tuple[Model, int]:
    """The model with its first layer only, loaded by transformers, and how many layers it has."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    layers: int = config.num_hidden_layers
    config.num_hidden_layers = 1
    auto_class: Any = transformers.AutoModelForCausalLM
    with quiet_transformers():  # about the other layers' weights, which are not loaded
        hf = auto_class.from_pretrained(folder, config=config, dtype=getattr(torch, dtype))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    nobody = ModelIdentity("", "", "", "")
    return build_model(hf, tokenizer, name="one layer", identity=nobody, dtype=dtype), layers


@contextmanager
def noted_calls(layer: nn.Module) -> Iterator[list[Call]]:
    """The arguments of every call of a layer."""
    calls: list[Call] = []
    handle = layer.register_forward_pre_hook(
        lambda module, arguments, keywords: calls.append((arguments, keywords)), with_kwargs=True
    )
    try:
        yield calls
    finally:
        handle.remove()


@torch.no_grad()
def arithmetic(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of one layer on all batches and of one exit's head product, and what all of them take."""
    model, layers = one_layer(options.folder, options.dtype)
    exits = len(parse_exits(options.exits, layers))
    layer, weight = model.stack.layers[0], model.stack.head_weight
    assert weight is not None, "the floor is defined for a linear head"
    with noted_calls(layer) as calls:
        for group in groups_of(contexts_of(model, options.tokens, CONTEXT)):
            for batch in equal_length_batches(group, FORWARD_TOKENS):
                ids = torch.tensor([context.ids for context in batch])
                model.stack.capture(ids, lambda index, before, after: None)
    states = torch.cat([arguments[0].flatten(0, 1) for arguments, _ in calls])

    def forward() -> None:
        for positional, keywords in calls:
            layer(*positional, **keywords)

    repeats = range(options.repeats)
    forward()
    layer_seconds = [seconds(forward) for _ in repeats]
    head_seconds = {
        chunk: [seconds(partial(products, states, weight, chunk)) for _ in repeats] for chunk in CHUNKS
    }
    best = min(head_seconds, key=lambda chunk: statistics.median(head_seconds[chunk]))
    one_layer_seconds = statistics.median(layer_seconds)
    one_exit_seconds = statistics.median(head_seconds[best])
    return {
        "layers": layers,
        "exits": exits,
        "rows": len(states),
        "layer_seconds": layer_seconds,
        "head_chunk": best,
        "head_seconds": head_seconds[best],
        "arithmetic_seconds": layers * one_layer_seconds + exits * one_exit_seconds,
    }


def products(states: Tensor, weight: Tensor, chunk: int) -> None:
    """The head product of all states [rows, hidden], some rows at a time."""
    for start in range(0, len(states), chunk):
        nn.functional.linear(states[start : start + chunk], weight)


def traced_in_own_process(options: argparse.Namespace) -> dict[str, Any]:
    """What `traced` finds in a fresh process, whose peak memory is then that of loading and tracing only."""
    command = [sys.executable, __file__, "--only-trace", "--folder", str(options.folder)]
    for name in ("size", "tokens", "exits", "dtype"):
        command += [f"--{name}", str(getattr(options, name))]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return found


def over_floor(options: argparse.Namespace) -> dict[str, Any]:
    """The floor's reading before and after the trace, and the arithmetic after both."""
    read_seconds = [reading(options.folder)]
    run = traced_in_own_process(options)
    read_seconds.append(reading(options.folder))
    floor = arithmetic(options)
    floor_seconds = statistics.mean(read_seconds) + floor["arithmetic_seconds"]
    taken = run["load_seconds"] + run["trace_seconds"]
    return {
        "peak_memory_bytes": run["peak_memory_bytes"],
        "over_floor_ratio": taken / floor_seconds,
        "with_fingerprint_ratio": (taken + run["fingerprint_seconds"]) / floor_seconds,
        "waiting_share": run["waited_seconds"] / run["trace_seconds"],
        "floor_seconds": floor_seconds,
        "trace": run,
        "floor": {"read_seconds": read_seconds, **floor},
    }


def explain(found: dict[str, Any]) -> None:
    """The figures in words, on standard error."""
    trace, floor = found["trace"], found["floor"]
    peak, layer, resident = (
        size / 1e9
        for size in (found["peak_memory_bytes"], trace["largest_layer_bytes"], trace["resident_bytes"])
    )
    lines = [
        f"peak memory {peak:.2f} GB; largest layer {layer:.2f} GB, weights that stay {resident:.2f} GB",
        f"floor {found['floor_seconds']:.1f} s: reading {_times(floor['read_seconds'])}; arithmetic "
        f"{floor['arithmetic_seconds']:.1f} s, {floor['layers']} layers at {_times(floor['layer_seconds'])}, "
        f"{floor['exits']} exits at {_times(floor['head_seconds'])}",
        f"streamed: loading {trace['load_seconds']:.1f} s + tracing {trace['trace_seconds']:.1f} s = "
        f"{found['over_floor_ratio']:.3f} x the floor",
        f"with the fingerprint's {trace['fingerprint_seconds']:.1f} s "
        f"{found['with_fingerprint_ratio']:.3f} x",
        f"reading took {trace['read_seconds']:.1f} s beside the computing, which waited for it during "
        f"{found['waiting_share']:.1%} of the tracing",
    ]
    print("\n".join(lines), file=sys.stderr)


def _times(samples: Sequence[float]) -> str:
    median = statistics.median(samples)
    return f"{median:.3f} s ({min(samples):.3f} to {max(samples):.3f}, {len(samples)} times)"


@contextmanager
def model_folder(options: argparse.Namespace) -> Iterator[Path]:
    """The folder asked for, or one that is removed in the end unless it is to be kept."""
    if options.folder is not None:
        yield options.folder
    elif options.keep:
        folder = Path(tempfile.mkdtemp(prefix=f"offramp-{options.size}-"))
        print(f"the model is kept in {folder}", file=sys.stderr)
        yield folder
    else:
        with tempfile.TemporaryDirectory(prefix=f"offramp-{options.size}-") as temporary:
            yield Path(temporary)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the model if need be, then measure it."""
    options = _options(arguments)
    if options.only_trace:
        print(json.dumps(traced(options)))
        return
    load = os.getloadavg()[0]
    with model_folder(options) as folder:
        options.folder = folder
        taken = seconds(partial(write_checkpoint, folder, SIZES[options.size]))
        disk_bytes = sum(path.stat().st_size for path in shards_of(folder))
        print(f"{disk_bytes / 1e9:.2f} GB in {len(shards_of(folder))} shards, {taken:.0f} s", file=sys.stderr)
        found = over_floor(options)
    explain(found)
    settings = {name: getattr(options, name) for name in ("size", "tokens", "exits", "dtype")}
    machine = {"threads": torch.get_num_threads(), "load_average_at_start": load, "torch": torch.__version__}
    print(
        json.dumps(
            {"benchmark": "streaming", **settings, **found, "disk_bytes": disk_bytes, "machine": machine}
        )
    )


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="1b")
    parser.add_argument("--folder", type=Path, help="where the model is, or will be, and stays")
    parser.add_argument("--keep", action="store_true", help="keep the temporary folder")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--exits", default="all")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--repeats", type=int, default=3, help="of a layer and of a head product")
    parser.add_argument("--only-trace", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
