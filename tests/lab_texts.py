"""Made-up prose for the tests of the lab."""

from __future__ import annotations

from pathlib import Path

import numpy as np

WORDS = "rain sun cat dog reads writes slowly and then a the of house tree old new runs sees three seven"


def sentences(seed: int, count: int = 60) -> str:
    """Sentences of random words, different for every seed."""
    generator = np.random.default_rng(seed)
    lines = [" ".join(generator.choice(WORDS.split(), size=9)) for _ in range(count)]
    return ".\n".join(lines) + ".\n"


def write_works(folder: Path, count: int = 12) -> Path:
    """Files of such sentences."""
    folder.mkdir(parents=True)
    for place in range(count):
        (folder / f"work-{place:02}.txt").write_text(sentences(place))
    return folder


def own_text(folder: Path, **more: object) -> dict[str, object]:
    """One's own files as an entry of a request."""
    return {"name": folder.name, "path": str(folder), "kind": "prose", "licence": "none", **more}
