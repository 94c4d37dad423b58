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
above are. *Pictures*: "driven" where what sees hands its features to the language model before it runs, and
where neither positions nor masks follow a picture; else why texts alone are taken.
"""
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
    return row._replace(kinds=(model.unfit or "driven") if isinstance(model, Pictured) else NOT_APART)


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
