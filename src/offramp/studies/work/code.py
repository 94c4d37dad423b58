"""What a task's result depends on beside offramp's code: the libraries' versions, and plug-ins."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass

from offramp.kit.code import OWN, code_of_module, imports_of, reached_from
from offramp.tracing.request import library_versions

LIBRARIES = {"numpy": "numpy", "scipy": "scipy", "sklearn": "scikit-learn"}
"""That compute what is made of a trace, fit heads and judge timings: packages as they are installed, by the
names under which they are imported."""
TOKENIZING = "tokenizers"
"""The library that cuts a text into a model's tokens."""


def versions_of(module: str, transforms: Iterable[str] | None) -> dict[str, str]:
    """Of the libraries that a module's work is computed by. transforms: of a model that is loaded, as texts;
    None if none is.
    """
    reached = reached_from(module).items()
    imported = {other.partition(".")[0] for name, path in reached for other in imports_of(name, path)}
    names = [library for name, library in LIBRARIES.items() if name in imported]
    versions = {name: importlib.metadata.version(name) for name in names}
    if transforms is None:
        return versions
    return library_versions(transforms) | versions | {TOKENIZING: importlib.metadata.version(TOKENIZING)}


def plug_ins_of(parts: Iterable[object]) -> dict[str, str]:
    """What is not offramp's own in some policies, transforms or machines: SHA-256 of the modules, by name."""
    modules = {kind.__module__ for part in parts for kind in (type(part), *_classes_within(part))}
    foreign = sorted(name for name in modules if name.partition(".")[0] != OWN)
    return {name: code_of_module(name) for name in foreign}


def _classes_within(part: object) -> Iterator[type]:
    """Classes of dataclasses in the fields of one, such as the policies that a policy holds."""
    within = part if isinstance(part, tuple) else ()
    if is_dataclass(part):
        within = tuple(getattr(part, field.name) for field in fields(part))
    for inner in within:
        if is_dataclass(inner):
            yield type(inner)
        yield from _classes_within(inner)
