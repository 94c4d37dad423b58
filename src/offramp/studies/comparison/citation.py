"""How to cite a comparison, and a key that changes when any of its results does."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
from collections.abc import Mapping
from typing import Any

from offramp.files import sha256_of_text
from offramp.scoring.card import STUDY
from offramp.studies.comparison.results import Comparison

STUDY_TITLE = "The Diminishing Returns of Early-Exit Decoding in Modern LLMs"

OF_NO_RESULT = ("trace_folder", "source", "notes")
"""Fields of a row that say where it lies."""

ESCAPED: Mapping[str, str] = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
} | {sign: f"\\{sign}" for sign in "&%$#_"}


def offramp_version() -> str:
    """The installed version."""
    return importlib.metadata.version("offramp")


def comparison_key(comparison: Comparison) -> str:
    """SHA-256 of every result: rows, strategies, pairs and combinations, wherever they were read from."""
    rows = [
        {name: value for name, value in dataclasses.asdict(row).items() if name not in OF_NO_RESULT}
        for row in comparison.rows
    ]
    others = [dataclasses.asdict(one) for part in (comparison.strategies, comparison.pairs) for one in part]
    results = {"rows": rows, "others": others, "combined": [dict(one) for one in comparison.combined]}
    return sha256_of_text(json.dumps(results, sort_keys=True))


def cited(comparison: Comparison) -> Comparison:
    """The comparison with its citation, and version and key in its provenance."""
    version, key = offramp_version(), comparison_key(comparison)
    provenance = {"offramp": version, "comparison_key": key, **comparison.provenance}
    return dataclasses.replace(
        comparison, citation=citation(comparison.title, version, key), provenance=provenance
    )


def citation(title: str, version: str, key: str) -> str:
    """BibTeX entries: this comparison, the software, and the study that it implements."""
    note = f"comparison key {key[:16]}"
    entries: list[tuple[str, str, Mapping[str, Any]]] = [
        (
            "misc",
            f"offramp-{key[:8]}",
            {"title": title, "howpublished": f"Compared with offramp {version}", "note": note},
        ),
        (
            "software",
            "offramp",
            {"title": "offramp: would early-exit decoding pay?", "version": version},
        ),
        (
            "misc",
            "diminishing-returns",
            {"title": STUDY_TITLE, "eprint": STUDY.removeprefix("arXiv "), "archiveprefix": "arXiv"},
        ),
    ]
    return "\n".join(_entry(*entry) for entry in entries)


def _entry(kind: str, key: str, fields: Mapping[str, Any]) -> str:
    lines = "".join(f"  {name} = {{{escaped(str(value))}}},\n" for name, value in fields.items())
    return f"@{kind}{{{key},\n{lines}}}\n"


def escaped(text: str) -> str:
    """A text as BibTeX takes it."""
    return "".join(ESCAPED.get(sign, sign) for sign in text)
