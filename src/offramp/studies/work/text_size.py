"""How long the text of a trace is, kept beside it by document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from offramp.scoring.text_size import NOTHING, TextSize
from offramp.studies.manifest import study_file

TEXT = "text.json"


@dataclass(frozen=True)
class TextSizes:
    """What one file holds: the sizes by document, and their sum."""

    sum: TextSize
    documents: Mapping[str, TextSize]


FILE = study_file(TextSizes)


def write_text_sizes(folder: Path, sizes: Mapping[str, TextSize]) -> None:
    """Keep the sizes by document, and their sum, in one sealed file of a folder."""
    FILE.write(folder / TEXT, TextSizes(sum(sizes.values(), start=NOTHING), sizes))


def read_text_sizes(folder: Path) -> dict[str, TextSize]:
    """What `write_text_sizes` wrote. Raises DamagedFileError if its bytes changed."""
    return dict(FILE.read(folder / TEXT).documents)
