"""What computes a task's result: the code of the packages that it is made in, and the libraries."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path

from offramp.files import sha256_of_file, source_fingerprint
from offramp.tracing.request import library_versions

WORK = "studies/work"
MEASURING = ("models", "workloads", "tracing", "kit/defaults.py")
SCORING = (*MEASURING, "costs", "scoring")
REPLAYING = (*SCORING, "policies")
TUNING = (*REPLAYING, "tuning")
DECODING = (*TUNING, "decoding")
PACKAGES: Mapping[str, tuple[str, ...]] = {
    "trace": MEASURING,
    "heads": MEASURING,
    "training": (*MEASURING, "lab"),
    "profile": DECODING,
    "score": SCORING,
    "replay": REPLAYING,
    "league": TUNING,
    "tune": TUNING,
    "certify": DECODING,
    "decode": DECODING,
    "combine": DECODING,
}
"""Packages whose code makes the result, by kind of task."""
OTHER_WORK: Mapping[str, tuple[str, ...]] = {
    "trace": ("scoring/text_size.py",),
    "heads": (f"{WORK}/training_cost.py",),
    "training": (f"{WORK}/left_over.py", f"{WORK}/training_cost.py"),
    "certify": (f"{WORK}/league.py", f"{WORK}/tune.py"),
    "decode": (f"{WORK}/decoding_choice.py", f"{WORK}/league.py", f"{WORK}/tune.py"),
}
"""Further files that make the result of a kind, of other kinds for the most part."""
SHARED_WORK = tuple(f"{WORK}/{name}.py" for name in ("context", "inputs", "passage", "text_size"))

LIBRARIES = ("numpy", "scipy", "scikit-learn")
"""That compute what is made of a trace, fit heads and judge timings."""
TOKENIZING = ("tokenizers",)
"""Libraries that cut a text into a model's tokens."""
OWN = "offramp"


@functools.cache
def code_of(kind: str) -> str:
    """Fingerprint of the code that makes the result of one kind of task."""
    return source_fingerprint(*PACKAGES[kind], f"{WORK}/{kind}.py", *OTHER_WORK.get(kind, ()), *SHARED_WORK)


@functools.cache
def versions_of(kind: str, texts: tuple[str, ...] | None) -> dict[str, str]:
    """Of the libraries that compute one kind of task. texts: transforms of a model that is loaded, None if
    none is.
    """
    loaded = {} if texts is None else library_versions(texts)
    names = (*(() if texts is None else TOKENIZING), *(() if kind == "trace" else LIBRARIES))
    return {**loaded, **{name: importlib.metadata.version(name) for name in names}}


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


def code_of_module(name: str) -> str:
    """SHA-256 of a module's source."""
    return sha256_of_file(Path(inspect.getfile(importlib.import_module(name))))
