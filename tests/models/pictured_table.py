"""Check every image-text family on token ids, and say which are driven with pictures; docs/families.md.

`python tests/models/pictured_table.py` writes that part of the file; `make families` writes all of it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import family_table
from family_table import Row

HEADING = "# Image-text models"

INTRODUCTION = """\
Made by `python tests/models/pictured_table.py` with transformers {version}. Each model type that is given
images and text is built from a small random config, whole, and checked on token ids alone as the families
above are. *Pictures*: "driven" where features in a prompt's places (random ones, in the place of a picture's)
change the answer, and the loop without exits gives `generate()`'s tokens; else why texts alone are taken.
"""
PLACE, PLACES, NEW = 9, 3, 6
NOT_APART = "its forward takes no features that were made before"


def check_pictured(family: str) -> Row:
    """Build a small random model, and compare every exit with the independent readout."""
    from family_configs import build_image_text

    from offramp.models.pictured import Pictured, as_causal

    made: list[Any] = []

    def make() -> Any:
        made.append(as_causal(build_image_text(family)))
        return made[-1]

    row = family_table.checked(family, make)
    if row.readout is None:
        return row
    model = made[-1]
    return row._replace(kinds=_with_pictures(model) if isinstance(model, Pictured) else NOT_APART)


def _with_pictures(model: Any) -> str:
    """Whether a prompt with features is decoded as transformers does; why not."""
    import torch
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    from offramp.decoding.engine.build import engine_of
    from offramp.decoding.generation.early_exit import EarlyExit
    from offramp.decoding.options import DecodingOptions
    from offramp.models.checkpoint import PICTURED_KEYS
    from offramp.models.conditioned import Condition
    from offramp.models.pictured import Seen
    from offramp.policies.rules.fixed import Never

    if model.unfit is not None:
        return str(model.unfit)
    torch.manual_seed(0)
    width = model.get_input_embeddings().weight.shape[1]
    for key in PICTURED_KEYS:  # its own lies beyond the small vocabulary
        if getattr(model.inner.config, key, None) is not None:
            setattr(model.inner.config, key, PLACE)
    ids = torch.tensor([[5, *[PLACE] * PLACES, 7, 8]])
    how: Any = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    reason, logits = "", []
    for form in (list, torch.stack):  # of the parts of a picture, as families have it
        logits.clear()
        try:
            for _ in range(2):
                features = form([torch.randn(PLACES, width)])
                seen = Seen(BaseModelOutputWithPooling(pooler_output=features))
                with torch.no_grad(), model.under(Condition((seen,))):
                    expected = model.generate(ids, **how)
                    logits.append(model(input_ids=ids, use_cache=False).logits[0, -1])
                    early = EarlyExit(DecodingOptions(Never(), new_tokens=NEW), engine=engine_of(model))
                    found = model.generate(ids, custom_generate=early, **how)
                if found.tolist() != expected.tolist():
                    return "other tokens than `generate()`'s"
            break
        except Exception as error:  # noqa: BLE001 - whatever a family raises is the reason in its row
            reason = f"fails: {family_table.short(error)[:90]}".replace("|", "/")
    else:
        return reason
    return "features change nothing" if torch.equal(*logits) else "driven"


def render(rows: list[Row], version: str) -> str:
    """The part of docs/families.md."""
    supported = [row for row in rows if row.readout is not None]
    exact = sum(row.largest_difference == 0.0 for row in supported)
    lines = [HEADING, "", *INTRODUCTION.format(version=version).splitlines(), ""]
    lines += [
        f"{len(supported)} of {len(rows)} are supported, {exact} of them bit for bit at every exit; "
        f"{sum(row.kinds == 'driven' for row in supported)} are driven with pictures.",
        "",
        "| family | pictures | readout | exits | largest difference | never-exit | propagate | recompute "
        "| speculate | monotone | batch |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.family} | {row.kinds} | {row.readout} | {row.exits} | {row.largest_difference:.3g} "
        f"| {' | '.join(family_table.decoding_cells(row.decoding))} |"
        for row in supported
    ]
    lines += ["", "## Not supported", "", "| family | reason |", "|---|---|"]
    lines += [f"| {row.family} | {row.reason.replace('|', '/')} |" for row in rows if row.readout is None]
    return "\n".join(lines) + "\n"


def section(check: Callable[..., list[Row]] = family_table.check_families) -> str:
    """That part, made now."""
    import transformers
    from family_configs import image_text_names

    return render(check(image_text_names(), check=check_pictured), transformers.__version__)


def main() -> int:
    """Write that part of docs/families.md again."""
    before, _, _ = family_table.DOCUMENT.read_text(encoding="utf-8").partition(HEADING)
    family_table.DOCUMENT.write_text(before.rstrip("\n") + "\n\n" + section(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
