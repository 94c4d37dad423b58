"""Short pieces of the running Python's standard library: docstrings and functions, many to a release."""

from __future__ import annotations

import ast
import re
import sys
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from offramp.errors import WorkloadError
from offramp.files import sha256_of_text
from offramp.workloads.reading import read_text
from offramp.workloads.workload import Document

FEWEST_ITEMS = 600
"""What a certificate of agreement 0.99 takes in practice; a workload of short items holds no fewer."""

# Left out: jokes, tables, copies of other text, tests, and what distributions ship apart or later
# versions dropped.
LEFT_OUT = frozenset(
    {"antigravity", "this", "encodings", "pydoc_data", "test", "ensurepip", "distutils", "lib2to3"}
    | {"idlelib", "tkinter", "turtle", "turtledemo"}
)
TESTS = frozenset({"test", "tests"})

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Piece:
    """A module, class or function with a docstring.

    file: relative to the library ("json/decoder.py"). name: dotted, "" for the module. docstring: without its
    indentation. source: of a function, without its indentation and decorators; "" for the others.
    """

    file: str
    name: str
    docstring: str
    source: str

    @property
    def id(self) -> str:
        """File and name: json/decoder.py:JSONDecoder.decode."""
        return f"{self.file}:{self.name}" if self.name else self.file


def short_items(
    name: str, text_of: Callable[[Piece], str | None], *, seed: str, per_file: int
) -> tuple[Document, ...]:
    """One document per piece that `text_of` has a text for, at most `per_file` of one file.

    Texts that repeat most long lines of a shorter one are left out. Which ones of a file, and the order of
    all, which mixes files, follow from a hash of seed and id: the first N are a fair sample.

    Raises WorkloadError if this Python comes without the sources of its standard library.
    """
    texts: dict[str, str] = {}
    file_of: dict[str, str] = {}
    for piece in pieces():
        text = text_of(piece)
        if text is not None and piece.id not in texts:
            texts[piece.id], file_of[piece.id] = text, piece.file
    kept = without_containers(texts)
    by_file: dict[str, list[str]] = {}
    for item in sorted(kept, key=lambda item: sha256_of_text(f"{seed} within its file {item}")):
        by_file.setdefault(file_of[item], []).append(item)
    chosen = [item for items in by_file.values() for item in items[:per_file]]
    chosen.sort(key=lambda item: sha256_of_text(f"{seed} {item}"))
    documents = tuple(Document(item, kept[item]) for item in chosen)
    if len(documents) < FEWEST_ITEMS:
        raise WorkloadError(
            f"this Python's standard library gives {len(documents)} items for {name!r}, "
            f"fewer than {FEWEST_ITEMS}",
            where=sysconfig.get_path("stdlib"),
            fix="use a Python that is installed with its library's sources and docstrings",
        )
    return documents


def without_containers(texts: Mapping[str, str]) -> dict[str, str]:
    """The texts that do not hold most long lines of a shorter one; of equal texts the first by name stays."""
    lines = {
        name: frozenset(line.strip() for line in text.splitlines() if len(line.strip()) >= 40)
        for name, text in texts.items()
    }
    kept: dict[str, str] = {}
    kept_with: dict[str, list[str]] = {}  # by line, the kept texts that hold it
    for name in sorted(texts, key=lambda name: (len(texts[name]), name)):
        shared = Counter(other for line in lines[name] for other in kept_with.get(line, ()))
        if not any(count > 0.7 * len(lines[other]) for other, count in shared.items()):
            kept[name] = texts[name]
            for line in lines[name]:
                kept_with.setdefault(line, []).append(name)
    return kept


def pieces() -> Iterator[Piece]:
    """Every module, class, method and function with a docstring; nested functions stay in their outer one."""
    for file, path in library_files():
        text = read_text(path)
        tree = ast.parse(text)
        if docstring := ast.get_docstring(tree):
            yield Piece(file, "", docstring, "")
        yield from _definitions(file, tree.body, "", text.splitlines())


def library_files() -> Iterator[tuple[str, Path]]:
    """The library's source files with their names in it, sorted; those this Python lacks are passed over."""
    folder = Path(sysconfig.get_path("stdlib"))
    for module in sorted(sys.stdlib_module_names - LEFT_OUT):
        package = folder / module
        paths = sorted(package.rglob("*.py")) if package.is_dir() else [folder / f"{module}.py"]
        for path in paths:
            inside = path.relative_to(folder)
            if path.is_file() and path.stat().st_size and not TESTS & set(inside.parts):
                yield inside.as_posix(), path


def _definitions(file: str, body: list[ast.stmt], outer: str, lines: list[str]) -> Iterator[Piece]:
    for node in body:
        if not isinstance(node, Definition):
            continue
        name = f"{outer}{node.name}"
        is_class = isinstance(node, ast.ClassDef)
        if docstring := ast.get_docstring(node):
            # Not textwrap.dedent: a docstring may have lines at the margin.
            margin = re.compile(f"^ {{0,{node.col_offset}}}")
            own = [] if is_class else lines[node.lineno - 1 : node.end_lineno]
            source = "\n".join(margin.sub("", line) for line in own)
            yield Piece(file, name, docstring, source)
        if is_class:
            yield from _definitions(file, node.body, f"{name}.", lines)
