"""Check every encoder-decoder, given a source, against itself with its decoder cut off; docs/families.md.

`python tests/models/conditioned_table.py` writes that part of the file; `make families` writes all of it.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import family_table
from family_decoding import check_decoding
from family_table import Row

HEADING = "# Encoder-decoders"

INTRODUCTION = """\
Made by `python tests/models/conditioned_table.py` with transformers {version}. Each model type is built from
a small random config with {layers} decoder layers, and its encoder is given a short source (random token ids,
or random numbers for what reads sounds or images). Exit L gives its own logits bit for bit; **each exit** is
compared with the same model whose decoder layers after it are cut off. Then it is decoded layer by layer as
above, its encoder having run once. *lockstep*: rows with sources of different lengths get the logits they
have alone.
"""


def cut_logits(model: Any, layers: tuple[Any, ...], ids: Any, exit_number: int) -> Any:
    """Logits of transformers' own model without the decoder layers after an exit, given the same encoding."""
    from torch import nn

    output = copy.copy(model.probing().batch(1)[0])
    output["last_hidden_state"] = output[0].clone()  # some decoders write to it
    path = next(
        path
        for path, module in model.inner.named_modules()
        if isinstance(module, nn.ModuleList) and tuple(module) == layers
    )
    cut = copy.deepcopy(model.inner)
    parent, _, name = path.rpartition(".")
    setattr(cut.get_submodule(parent), name, cut.get_submodule(path)[:exit_number])
    return cut(decoder_input_ids=ids, encoder_outputs=output, use_cache=False).logits


def check_conditioned(family: str) -> Row:
    """Build a small random model, find its stack and compare every exit with the model cut off there."""
    from conditioned_configs import READ, build_conditioned

    from offramp.models.conditioned import Conditioned, probing

    found = family_table.built(lambda: Conditioned(*build_conditioned(family)).eval(), family, "built")
    if isinstance(found, str):
        return Row(family, reason=found)
    model, stack = found
    with probing(model):
        largest = family_table.largest_difference(model, stack, cut_logits)
        decoding = check_decoding(model)
    read = READ.get(family, ("token ids",))[0].replace("_", " ")
    return Row(family, stack.readout_kind, len(stack), read, largest, decoding=decoding)


def render(rows: list[Row], version: str) -> str:
    """The part of docs/families.md."""
    from conditioned_configs import LAYERS

    supported = [row for row in rows if row.readout is not None]
    exact = sum(row.largest_difference <= 1e-5 for row in supported)
    lines = [HEADING, "", *INTRODUCTION.format(version=version, layers=LAYERS).splitlines(), ""]
    lines += [
        f"{len(supported)} of {len(rows)} are supported; every exit of {exact} is the model cut off there "
        "within 1e-5.",
        "",
        "| family | reads | readout | exits | equal when cut | never-exit | propagate | recompute "
        "| speculate | monotone | batch |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [line(row) for row in supported]
    lines += ["", "## Not supported", "", "| family | reason |", "|---|---|"]
    lines += [f"| {row.family} | {row.reason.replace('|', '/')} |" for row in rows if row.readout is None]
    return "\n".join(lines) + "\n"


def line(row: Row) -> str:
    """A supported family's line."""
    equal = "yes" if row.largest_difference <= 1e-5 else f"{row.largest_difference:.1g}"
    cells = " | ".join(family_table.decoding_cells(row.decoding))
    return f"| {row.family} | {row.kinds} | {row.readout} | {row.exits} | {equal} | {cells} |"


def section(check: Callable[..., list[Row]] = family_table.check_families) -> str:
    """That part, made now."""
    import transformers
    from conditioned_configs import conditioned_names

    return render(check(conditioned_names(), check=check_conditioned), transformers.__version__)


def main() -> int:
    """Write that part of docs/families.md again."""
    from pictured_table import HEADING as BEHIND

    before, _, behind = family_table.DOCUMENT.read_text(encoding="utf-8").partition(HEADING)
    rest = behind.partition(BEHIND)[2]
    written = before.rstrip("\n") + "\n\n" + section() + (f"\n{BEHIND}{rest}" if rest else "")
    family_table.DOCUMENT.write_text(written, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
