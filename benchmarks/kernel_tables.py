"""Predicted time of a decoding step from measured kernels, beside the data sheet's, and how far lookups err.

    python benchmarks/kernel_tables.py                       aic:h100_sxm/vllm beside h100
    python benchmarks/kernel_tables.py --tables aic:a100_sxm --sheet a100 --context 4096

Needs the extra: pip install 'offramp[aic]'. Prints the tables of docs/hardware.md: time of a plain step (one
token of each sequence, all at one context) of two model shapes in bfloat16, what shares of it rest on what,
and what a batch saves where each token would leave halfway with probability 0.9. Then every measured
product and attention between two others on an axis is looked up as if it had not been measured:
`left_out_error` is the median, `left_out_error_p90` the 90th percentile of |looked up / measured - 1|, for up
to 64 rows. `other_head_size` is what taking heads of 64 for heads of 128 changes attention by, on three
models. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json

import numpy as np
from numpy.typing import NDArray

import offramp
from offramp.costs.kernel_machine import Basis, DecodeAttention, KernelGrid, KernelMachine
from offramp.costs.machine import Machine, machine_fingerprint
from offramp.costs.probes import ProbeSizes
from offramp.models.shape import LayerShape, ModelShape

BATCHES = (1, 8, 64)
COLUMNS = tuple(field.name for field in dataclasses.fields(DecodeAttention))
LEAVING = 0.9
"""Share of tokens that would leave halfway."""


def main() -> None:
    options = _options()
    tables, sheet = offramp.find_machine(options.tables), offramp.find_machine(options.sheet)
    if not isinstance(tables, KernelMachine):
        raise SystemExit(f"{options.tables} is not a machine from measured kernels")
    print(f"{tables.name}, {tables.source}; a context of {options.context} tokens\n")
    print("| model | batch | a token | data sheet | a step | a layer | head | full-head check | rests on |")
    print("|" + "---|" * 9)
    steps = [
        _step(name, shape, batch, options.context, tables, sheet)
        for name, shape in SHAPES.items()
        for batch in BATCHES
    ]
    print(
        f"\nMean step of {100 * LEAVING:.0f} % of tokens leaving halfway, in lockstep, over the plain step:\n"
    )
    savings = {
        name: {batch: _left(shape, batch, options.context, tables) for batch in BATCHES}
        for name, shape in SHAPES.items()
    }
    for name, shares in savings.items():
        print(f"{name}: " + ", ".join(f"{share:.3f} at batch {batch}" for batch, share in shares.items()))
    errors = {"products": _left_out(_few_rows(tables.products)), "attention": _left_out_attention(tables)}
    guesses = _other_head_size(tables)
    summary = {
        "tables": tables.name, "fingerprint": machine_fingerprint(tables), "context": options.context,
        "steps": steps, "share_of_plain": savings,
        "left_out_error": {name: float(np.median(found)) for name, found in errors.items()},
        "left_out_error_p90": {name: float(np.quantile(found, 0.9)) for name, found in errors.items()},
        "other_head_size": {"median": float(np.median(guesses)), "most": float(np.max(guesses))},
        "left_out": {name: len(found) for name, found in errors.items()},
    }  # fmt: skip
    print(json.dumps(summary))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tables", default="aic:h100_sxm/vllm")
    parser.add_argument("--sheet", default="h100", help="the data sheet's roofline of the same GPU")
    parser.add_argument("--context", type=int, default=1024)
    return parser.parse_args()


def _dense(layers: int, hidden: int, inner: int, width: int, kept: int, vocabulary: int) -> ModelShape:
    """A Llama shape in bfloat16. width: of all query heads; kept: of K and V together."""
    elements = 2 * hidden * width + hidden * kept + 3 * hidden * inner + 2 * hidden
    layer = LayerShape("attention", elements, elements, hidden * kept, kept, width, None, 0)
    return ModelShape((layer,) * layers, hidden, vocabulary, hidden, hidden * vocabulary, 2)


SHAPES = {
    "SmolLM2-135M": _dense(30, 576, 1536, 576, 384, 49152),
    "Llama-3-8B": _dense(32, 4096, 14336, 4096, 2048, 128256),
}


def _step(
    name: str, shape: ModelShape, batch: int, context: int, tables: KernelMachine, sheet: Machine
) -> dict[str, object]:
    ours, theirs = (one.token_costs(shape, context - 1.0, batch=batch) for one in (tables, sheet))
    layer, head, check = ours.layers[0], ours.head, ours.probes["full head"]
    shares = _shares(shape, batch, context, tables)
    figures = [
        *(1e6 * seconds for seconds in (ours.plain / batch, theirs.plain / batch, ours.plain)),
        *(1e6 * seconds for seconds in (layer, head, check)),
    ]
    said = ", ".join(f"{basis} {100 * share:.0f} %" for basis, share in shares.items())
    print(
        f"| {name} | {batch} | "
        + " | ".join(f"{figure:,.{int(figure < 100)}f} µs" for figure in figures)
        + f" | {said} |"
    )
    return {
        "model": name, "batch": batch, "seconds_per_step": ours.plain, "data_sheet": theirs.plain,
        "layer": float(layer), "head": head, "full_head_check": check, "shares": shares,
    }  # fmt: skip


def _shares(shape: ModelShape, batch: int, context: int, tables: KernelMachine) -> dict[str, float]:
    """Shares of a plain step's seconds that are measured, interpolated or from the data sheet."""
    layers = [tables.layer_parts(layer, shape.hidden_size, context - 1.0, batch) for layer in shape.layers]
    head = tables.step_parts(shape, batch, ProbeSizes())["output head"]
    figures = [figure for parts in layers for figure in parts.values()] + [head]
    plain = tables.token_costs(shape, context - 1.0, batch=batch).plain
    shares = {
        str(basis): sum(figure.seconds for figure in figures if figure.basis is basis) / plain
        for basis in Basis
        if basis is not Basis.DATA_SHEET
    }
    return {**shares, str(Basis.DATA_SHEET): 1.0 - sum(shares.values())}


def _left(shape: ModelShape, batch: int, context: int, tables: Machine) -> float:
    """Mean seconds of a step without checks, of which every row must leave, over the plain step's."""
    costs = tables.token_costs(shape, context - 1.0, batch=batch)
    halfway = len(shape.layers) // 2
    leaves = LEAVING**batch
    short = costs.overhead + float(costs.until_exit[halfway - 1]) + costs.exit_head
    return (leaves * short + (1.0 - leaves) * costs.plain) / costs.plain


def _few_rows(products: KernelGrid) -> KernelGrid:
    rows = products.axes[2] <= max(BATCHES)
    return KernelGrid((*products.axes[:2], products.axes[2][rows]), products.seconds[:, :, rows])


def _left_out(grid: KernelGrid) -> NDArray[np.float64]:
    """Errors of every measured time from its two neighbours on each axis."""
    errors = []
    for axis, values in enumerate(grid.axes):
        seconds = np.log(np.moveaxis(grid.seconds, axis, 0))
        at = np.log(values)
        share = ((at[1:-1] - at[:-2]) / (at[2:] - at[:-2])).reshape(-1, *[1] * (seconds.ndim - 1))
        found = np.exp(seconds[:-2] * (1.0 - share) + seconds[2:] * share - seconds[1:-1])
        errors.append(np.abs(found - 1.0).ravel())
    every = np.concatenate(errors)
    return np.asarray(every[np.isfinite(every)])


def _left_out_attention(tables: KernelMachine) -> NDArray[np.float64]:
    """The same of attention by streams and context, for the heads of the shapes."""
    grids = [
        next(iter(tables.attention.grids(1, layer.attention_width, layer.key_value_width)))[0]
        for layer in {shape.layers[0] for shape in SHAPES.values()}
    ]
    return np.concatenate([_left_out(grid) for grid in grids])


NARROW_HEADS = {"Llama-3.2-1B": (2048, 1024), "Qwen2.5-0.5B": (896, 256), "GPT-2": (768, 1536)}
"""Widths of all query heads and of K and V together, of models whose heads are 64 wide."""


def _other_head_size(tables: KernelMachine) -> NDArray[np.float64]:
    """Changes of attention's time by taking heads of 64 for heads of 128, at the same widths."""
    every = tables.attention
    of_size = [
        DecodeAttention(*(getattr(every, name)[every.head_size == size] for name in COLUMNS))
        for size in (64, 128)
    ]
    changes = []
    for widths in NARROW_HEADS.values():
        for batch, context in itertools.product(BATCHES, (128, 1024, 8192)):
            right, wrong = (table.at(batch, *widths, context) for table in of_size)
            if right is not None and wrong is not None:
                changes.append(abs(wrong.seconds / right.seconds - 1.0))
    return np.array(changes)


if __name__ == "__main__":
    main()
