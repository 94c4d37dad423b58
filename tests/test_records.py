"""No record says again what another one says: fields that several need are declared once.

`python tests/test_records.py` prints the pairs that do.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import offramp

PACKAGE = Path(offramp.__file__).parent
RULES = PACKAGE / "policies" / "rules"
"""Where every policy declares its own parameters: they share names, and say different things."""
MOST = 22
"""Pairs that are left. It only ever goes down; when it is 0, this number and its test's `<=` go too."""


class Record(NamedTuple):
    """A dataclass with the fields that it declares itself; inherited ones are not its own."""

    place: str
    fields: frozenset[str]


def records(package: Path) -> Iterator[Record]:
    """Every dataclass, named tuple and typed dict of a package's files."""
    for path in sorted(package.rglob("*.py")):
        if path.is_relative_to(RULES):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and _is_record(node):
                named = (part.target for part in node.body if isinstance(part, ast.AnnAssign))
                fields = frozenset(target.id for target in named if isinstance(target, ast.Name))
                yield Record(f"{path.relative_to(package)} {node.name}", fields)


def _is_record(node: ast.ClassDef) -> bool:
    bases = {ast.unparse(base) for base in node.bases}
    decorated = any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)
    return decorated or bool(bases & {"NamedTuple", "TypedDict"})


def restated(package: Path) -> list[tuple[str, str, list[str]]]:
    """Pairs that share five fields and more, and more than half of the smaller one's; most first."""
    found = [
        (first.place, second.place, sorted(first.fields & second.fields))
        for first, second in combinations(records(package), 2)
    ]
    sizes = {record.place: len(record.fields) for record in records(package)}
    return sorted(
        (
            (first, second, shared)
            for first, second, shared in found
            if len(shared) >= 5 and 2 * len(shared) > min(sizes[first], sizes[second])
        ),
        key=lambda pair: -len(pair[2]),
    )


def test_no_record_restates_another() -> None:
    found = restated(PACKAGE)
    said = "\n".join(f"{first} | {second}: {', '.join(shared)}" for first, second, shared in found)
    assert len(found) <= MOST, f"{len(found)} pairs of records share their fields:\n{said}"


def test_two_that_share_their_fields_are_found(tmp_path: Path) -> None:
    fields = "\n".join(f"    {name}: int" for name in "abcde")
    head = "from dataclasses import dataclass\n\n\n@dataclass(frozen=True)\nclass"
    (tmp_path / "one.py").write_text(f"{head} One:\n{fields}\n")
    (tmp_path / "two.py").write_text(f"{head} Two:\n{fields}\n    f: int\n\n\nclass Plain:\n{fields}\n")
    assert restated(tmp_path) == [("one.py One", "two.py Two", list("abcde"))]


if __name__ == "__main__":
    for one, other, names in restated(PACKAGE):
        print(f"{len(names)} {one} | {other}: {', '.join(names)}")
