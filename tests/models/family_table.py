"""Check every causal-LM family against an independent readout and write docs/families.md.

`python tests/models/family_table.py` writes the file; `--check` compares it.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))
from family_decoding import COLUMNS, Decoding, check_decoding

DOCUMENT = Path(__file__).parents[2] / "docs" / "families.md"


class Row(NamedTuple):
    """One family: how it is read out, the largest difference over all exits, or why it is not supported.

    decoding: what it can do when it is decoded layer by layer.
    """

    family: str
    readout: str | None = None
    exits: int = 0
    kinds: str = ""
    largest_difference: float = 0.0
    reason: str = ""
    decoding: Decoding = Decoding()


def independent_readout(model: Any, layers: tuple[Any, ...], ids: Any, exit_number: int) -> Any:
    """Logits of an exit, without offramp's readouts: the model's own forward, in which a hook on every layer
    after the exit throws the layer's result away and hands on what the exit's layer returned."""
    executed = 0
    kept = None

    def keep_or_replace(module: Any, arguments: Any, output: Any) -> Any:
        nonlocal executed, kept
        executed += 1
        hidden = output[0] if isinstance(output, (tuple, list)) else output
        if executed == exit_number:
            kept = hidden.clone()
        if executed <= exit_number:
            return output
        return (kept.clone(), *output[1:]) if isinstance(output, (tuple, list)) else kept.clone()

    handles = [layer.register_forward_hook(keep_or_replace) for layer in dict.fromkeys(layers)]
    try:
        return model(input_ids=ids, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()


def check_family(family: str) -> Row:
    """Build a small random model, find its stack and compare every exit with the independent readout."""
    from family_configs import build_family

    return checked(family, lambda: build_family(family))


def checked(family: str, make: Callable[[], Any]) -> Row:
    """The same of a model that is made so."""
    from offramp.models.discovery import probe_ids
    from offramp.models.measuring import measure_shape

    def build() -> Any:
        model = make()
        model(input_ids=probe_ids(model), use_cache=False)
        return model

    found = built(build, family, "built or run")
    if isinstance(found, str):
        return Row(family, reason=found)
    model, stack = found
    largest = largest_difference(model, stack, independent_readout)
    shape = measure_shape(model, stack)
    kinds = ", ".join(sorted({layer.kind for layer in shape.layers}))
    return Row(
        family,
        stack.readout_kind,
        len(stack),
        kinds,
        largest,
        decoding=_without_numbers(check_decoding(model)),
    )


def built(build: Callable[[], Any], family: str, what: str) -> tuple[Any, Any] | str:
    """A small model and its stack; or why there is none. what: cannot be done where `build` fails."""
    import torch

    from offramp.errors import ModelError
    from offramp.models.discovery import find_stack

    torch.set_num_threads(1)
    try:
        model = build()
    except Exception as error:  # noqa: BLE001 - whatever a family raises is the reason in its row
        return f"cannot be {what} from a small config: {short(error)}"
    try:
        return model, find_stack(model, name=family)
    except ModelError as error:
        return re.sub(r"(by up to|largest difference) [\d.e+-]+", r"\1 …", error.what)


def largest_difference(model: Any, stack: Any, expected: Callable[..., Any]) -> float:
    """Of the logits at any exit to those that are expected of model, layers, ids and exit."""
    import torch

    from offramp.models.discovery import probe_ids

    ids = probe_ids(model, 11)
    hidden: list[Any] = []
    with torch.no_grad():
        stack.capture(ids, lambda index, before, after: hidden.append(after.clone()))
        return max(
            float((stack.readout(state) - expected(model, stack.layers, ids, exit)).abs().max())
            for exit, state in enumerate(hidden, 1)
        )


def _without_numbers(decoding: Decoding) -> Decoding:
    """The same with measured differences left out, which vary between machines."""
    if decoding.refused is None:
        return decoding
    return decoding._replace(refused=re.sub(r"differ by [\d.e+-]+", "differ", decoding.refused))


def short(error: Exception) -> str:
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message[:110]}" if message else type(error).__name__


def _prepare() -> None:
    """Quiet, offline and single-threaded workers."""
    import logging
    import warnings

    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    import transformers

    transformers.logging.set_verbosity_error()


def check_families(
    families: list[str], workers: int = 2, check: Callable[[str], Row] = check_family
) -> list[Row]:
    """A row per family, in order; in fresh processes, as most of the time goes into importing model code."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_prepare) as pool:
        return list(pool.map(check, families))


INTRODUCTION = """\
Made by `python tests/models/family_table.py` with transformers {version}; a test of the families that
users bring, and of every fifth of the others, fails when it drifts.

Every model type for which transformers has a causal language model is built from a small random config,
its stack of exits is found by tracing one forward pass, and **each exit** is compared, in float32, with
an independent readout: the model's own forward pass in which hooks hand the exit's hidden state on past
all later layers.

- *fast*: the model's final norm, output head and logit transform, called one by one.
- *stub*: the model's own forward pass with its stack of layers replaced by the hidden state.
- *swap*: the model's own forward pass in which each layer passes the hidden state through.

offramp takes the first that gives the model's own logits bit for bit, and refuses the model if none does.
The kinds of layers are measured from what a layer keeps between tokens.

Then the model is **decoded layer by layer** after a random prompt of 70 tokens, which is longer than the
small models' sliding windows (64). "yes" is within 1e-5 of the largest logit in float32:

- *never-exit*: the loop without exits gives the model's own logits, and greedy `generate()`'s tokens.
- *propagate*: a skipped layer leaves what it would leave if it ran whole on the exit's hidden state.
- *recompute*: positions that skipped layers and run them later, several at once, get the full model's logits.
- *speculate*: drafts verified together get the full model's logits, and those taken back leave no trace.
- *monotone*: the first layers go on alone as they do in the full model.
- *batch*: rows padded on the left get the logits they have alone (*lockstep*); layers run for some rows of a
  batch while the others only leave their K and V (*rebatch*).
"""

DECODED = ("never_exit", "propagate", "recompute", "speculate", "monotone")


def render(rows: list[Row], version: str) -> str:
    """docs/families.md."""
    supported = [row for row in rows if row.readout is not None]
    exact = sum(row.largest_difference == 0.0 for row in supported)
    decoded = sum(
        "never_exit" not in dict(row.decoding.reasons) for row in supported if not row.decoding.refused
    )
    lines = ["# Model families", "", *INTRODUCTION.format(version=version).splitlines(), ""]
    lines += [
        f"{len(supported)} of {len(rows)} families are supported, {exact} of them bit for bit at every exit; "
        f"{decoded} are decoded layer by layer with `generate()`'s tokens.",
        "",
        "| family | layers | readout | exits | largest difference | never-exit | propagate | recompute "
        "| speculate | monotone | batch |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.family} | {row.kinds} | {row.readout} | {row.exits} | {row.largest_difference:.3g} "
        f"| {' | '.join(decoding_cells(row.decoding))} |"
        for row in supported
    ]
    lines += ["", "## Decoded with restrictions", "", "| family | what | reason |", "|---|---|---|"]
    lines += [
        f"| {row.family} | {', '.join(columns)} | {reason.replace('|', '/')} |"
        for row in supported
        for reason, columns in _by_reason(row.decoding).items()
    ]
    lines += ["", "## Traced, but not decoded layer by layer", "", "| family | reason |", "|---|---|"]
    lines += [
        f"| {row.family} | {row.decoding.refused.replace('|', '/')} |"
        for row in supported
        if row.decoding.refused is not None
    ]
    lines += ["", "## Not supported", "", "| family | reason |", "|---|---|"]
    lines += [f"| {row.family} | {row.reason.replace('|', '/')} |" for row in rows if row.readout is None]
    return "\n".join(lines) + "\n"


def decoding_cells(decoding: Decoding) -> list[str]:
    """The table's cells for one family: DECODED, then the two ways to run a batch."""
    if decoding.refused is not None:
        return ["-"] * (len(DECODED) + 1)
    failed = dict(decoding.reasons)
    batch = [name for name in ("lockstep", "rebatch") if name not in failed]
    return [*("no" if column in failed else "yes" for column in DECODED), ", ".join(batch) or "no"]


def _by_reason(decoding: Decoding) -> dict[str, list[str]]:
    """The columns that share a reason."""
    reasons: dict[str, list[str]] = {}
    for column in COLUMNS:
        for name, reason in decoding.reasons:
            if name == column:
                reasons.setdefault(reason, []).append(column.replace("_", "-"))
    return reasons


def main() -> int:
    """Write or check docs/families.md."""
    import conditioned_table
    import pictured_table
    import transformers
    from family_configs import family_names

    text = "\n".join(
        [
            render(check_families(family_names()), transformers.__version__),
            conditioned_table.section(),
            pictured_table.section(),
        ]
    )
    if "--check" in sys.argv[1:]:
        return int(DOCUMENT.read_text(encoding="utf-8") != text)
    DOCUMENT.parent.mkdir(exist_ok=True)
    DOCUMENT.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
