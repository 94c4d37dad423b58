"""The code that computes something, found from what its module imports."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import inspect
from collections.abc import Iterator
from pathlib import Path

from offramp import files
from offramp.files import canonical_json, sha256_of_file, sha256_of_text

OWN = "offramp"
INSIDE = (ast.stmt, ast.excepthandler, ast.match_case)
"""What can hold an import."""


@functools.cache
def code_of(*modules: str) -> str:
    """Fingerprint of the code that modules run: of themselves, of what they import, of what that imports.

    As far as it is offramp's, or of the module's own package. Imports for types alone are left out.
    """
    digests = {name: _digest(path) for module in modules for name, path in reached_from(module).items()}
    return sha256_of_text(canonical_json(sorted(digests.items())))


@functools.cache
def reached_from(module: str) -> dict[str, Path]:
    """The files of a module and of all that it imports by their modules' names; nothing is imported."""
    own = {OWN, module.partition(".")[0]}
    found: dict[str, Path] = {}
    left = [module]
    while left:
        name = left.pop()
        path = None if name in found else file_of(name)
        if path is not None:
            found[name] = path
            left += [other for other in imports_of(name, path) if other.partition(".")[0] in own]
    return found


@functools.cache
def file_of(name: str) -> Path | None:
    """The file of a module, None for a name that is none, such as that of a function in one."""
    top, *below = name.split(".")
    if top == OWN:
        path = files.PACKAGE.joinpath(*below)
        places = (path / "__init__.py", path.with_suffix(".py"))
        return next((place for place in places if place.is_file()), None)
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        return None
    return None if spec is None or spec.origin is None else Path(spec.origin)


@functools.cache
def imports_of(name: str, path: Path) -> frozenset[str]:
    """What a module imports anywhere in its file, with every name that may be a module's."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    names: set[str] = set()
    for node in _running(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            relative = parents[: len(parents) - node.level + 1] if node.level else []
            base = ".".join([*relative, *filter(None, [node.module])])
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return frozenset(names)


def _running(tree: ast.AST) -> Iterator[ast.AST]:
    """A tree's statements, and all within them that run: not what stands there for types alone."""
    left = [tree]
    while left:
        node = left.pop()
        yield node
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and _for_types(child.test):
                left += child.orelse
            elif isinstance(child, INSIDE):
                left.append(child)


def _for_types(test: ast.expr) -> bool:
    """Whether this is what a condition says of what stands there for types alone."""
    return getattr(test, "id", getattr(test, "attr", "")) == "TYPE_CHECKING"


@functools.cache
def _digest(path: Path) -> str:
    return sha256_of_file(path)


def forget_code() -> None:
    """Read all files again: some are others now."""
    for function in (code_of, reached_from, file_of, imports_of, _digest):
        function.cache_clear()


def code_of_module(name: str) -> str:
    """SHA-256 of a module's source."""
    return sha256_of_file(Path(inspect.getfile(importlib.import_module(name))))
