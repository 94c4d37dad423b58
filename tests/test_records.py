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


class Record(NamedTuple):
    """A dataclass with the fields that it declares itself.

    Inherited ones are not its own, nor are those that it gives another default, or another rule.
    """

    place: str
    fields: frozenset[str]


def records(package: Path) -> Iterator[Record]:
    """Every dataclass, named tuple and typed dict of a package's files."""
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(package.rglob("*.py"))}
    classes = {
        (path, node.name): node
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    imported = {
        (path, name.asname or name.name): (package.parent / f"{node.module.replace('.', '/')}.py", name.name)
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module
        for name in node.names
    }

    def declared(key: tuple[Path, str]) -> frozenset[str]:
        said = (part for part in classes[key].body if isinstance(part, ast.AnnAssign))
        named = (part.target for part in said if "ClassVar" not in ast.unparse(part.annotation))
        return frozenset(target.id for target in named if isinstance(target, ast.Name))

    def inherited(key: tuple[Path, str]) -> frozenset[str]:
        names = [(key[0], ast.unparse(base).partition("[")[0]) for base in classes[key].bases]
        bases = [found for name in names if (found := imported.get(name, name)) in classes]
        return frozenset().union(*(declared(base) | inherited(base) for base in bases))

    for key, node in classes.items():
        if _is_record(node) and not key[0].is_relative_to(RULES):
            yield Record(f"{key[0].relative_to(package)} {key[1]}", declared(key) - inherited(key))


def _is_record(node: ast.ClassDef) -> bool:
    bases = {ast.unparse(base) for base in node.bases}
    decorated = any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)
    return decorated or bool(bases & {"NamedTuple", "TypedDict"})


def restated(package: Path) -> list[tuple[str, str, list[str]]]:
    """Pairs that share five fields and more, and more than half of the smaller one's; most first."""
    pairs = (
        (first, second, first.fields & second.fields)
        for first, second in combinations(records(package), 2)
        if len(first.fields) >= 5 <= len(second.fields)
    )
    return sorted(
        (
            (first.place, second.place, sorted(shared))
            for first, second, shared in pairs
            if len(shared) >= 5 and 2 * len(shared) > min(len(first.fields), len(second.fields))
        ),
        key=lambda pair: -len(pair[2]),
    )


def test_no_record_restates_another() -> None:
    found = restated(PACKAGE)
    said = "\n".join(f"{first} | {second}: {', '.join(shared)}" for first, second, shared in found)
    assert not found, f"{len(found)} pairs of records share their fields:\n{said}"


def test_two_that_share_their_fields_are_found(tmp_path: Path) -> None:
    fields = "\n".join(f"    {name}: int" for name in "abcde")
    head = "from dataclasses import dataclass\n\n\n@dataclass(frozen=True)\nclass"
    (tmp_path / "one.py").write_text(f"{head} One:\n{fields}\n")
    (tmp_path / "two.py").write_text(f"{head} Two:\n{fields}\n    f: int\n\n\nclass Plain:\n{fields}\n")
    assert restated(tmp_path) == [("one.py One", "two.py Two", list("abcde"))]


def test_what_a_class_inherits_is_not_its_own(tmp_path: Path) -> None:
    package, fields = tmp_path / "package", "\n".join(f"    {name}: int = 0" for name in "abcde")
    package.mkdir()
    head = "from dataclasses import dataclass\n"
    (package / "one.py").write_text(f"{head}@dataclass\nclass One:\n{fields}\n")
    changed = f"@dataclass\nclass Changed(One):\n{fields}\n"
    (package / "two.py").write_text(f"{head}from package.one import One\n{changed}")
    assert restated(package) == []
    (package / "two.py").write_text(f"{head}\n\nclass One:\n    a: int\n\n\n{changed}")
    assert restated(package) == []  # one field of five is inherited, and four are few
    (package / "two.py").write_text(f"{head}\n\nclass One:\n    z: int\n\n\n{changed}")
    assert restated(package) == [("one.py One", "two.py Changed", list("abcde"))]


if __name__ == "__main__":
    for one, other, names in restated(PACKAGE):
        print(f"{len(names)} {one} | {other}: {', '.join(names)}")
