"""Where every number of a run's `summary.json` comes from in the store of its study.

`python tests/summary_map.py RUN` prints a line for each place of the summary: how many numbers there are, how
many stand as they are in a result of which kind of task, and how many are computed from several (settled
verdicts, forecasts' errors, prices at one position). The last line is one JSON object.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

KINDS = {
    "scores": ("score",),
    "league": ("league",),
    "machines": ("league",),
    "break_even": ("league",),
    "tuned": ("certify", "tune"),
    "verdict": ("league", "certify", "tune", "decode"),
    "decoding": ("decode",),
    "measured": ("decode", "profile"),
    "hardware": ("profile",),
}
"""Kinds of tasks that a part of the summary rests on. What is not here is counted from the traces."""


def numbers(value: Any, place: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a JSON value with its place; places in lists left out."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return
    if isinstance(value, dict):
        for key, part in value.items():
            yield from numbers(part, f"{place}.{key}".lstrip("."))
    elif isinstance(value, list):
        for part in value:
            yield from numbers(part, place)
    else:
        yield place, float(value)


def stored(run: Path) -> dict[str, set[float]]:
    """The numbers of every finished task's JSON, by kind."""
    found: dict[str, set[float]] = defaultdict(set)
    for path in run.glob("tasks/*/*/*.json"):
        kind = path.parent.parent.name
        if path.name in ("result.json", "profile.json"):
            found[kind] |= {value for _, value in numbers(json.loads(path.read_text()))}
    return found


def mapped(run: Path) -> dict[str, Counter[str]]:
    """For each place of the summary, how many of its numbers each kind of task holds; "computed": none."""
    summary, store = json.loads((run / "summary.json").read_text()), stored(run)
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for place, value in numbers(summary):
        part = place.split(".")[0]
        kinds = KINDS.get(part, ())
        kind = next((kind for kind in kinds if value in store[kind]), "computed")
        found[re.sub(r"\.(edges|count)$", "", place)][kind] += 1
    return found


def main() -> None:
    """Print the map of the run that the command line names."""
    found = mapped(Path(sys.argv[1]))
    total: Counter[str] = Counter()
    for place, kinds in sorted(found.items()):
        total += kinds
        print(f"{place}: {', '.join(f'{count} {kind}' for kind, count in kinds.most_common())}")
    print(json.dumps({"numbers": total.total(), **total}))


if __name__ == "__main__":
    main()
