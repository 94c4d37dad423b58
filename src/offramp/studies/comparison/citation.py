"""How a comparison is cited: BibTeX, with a key that is of what it holds."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import string
from collections.abc import Mapping

from offramp.files import sha256_of_text
from offramp.kit.typed import finite_json
from offramp.scoring.card import STUDY
from offramp.studies.comparison.results import Comparison

STUDY_TITLE = "The Diminishing Returns of Early-Exit Decoding in Modern LLMs"


CITATION = string.Template(
    """@misc{offramp-$short,
  title = {$title},
  howpublished = {Compared with offramp $version},
  note = {comparison key $key},
}

@software{offramp,
  title = {offramp: would early-exit decoding pay?},
  version = {$version},
}

@misc{diminishing-returns,
  title = {$study},
  eprint = {$paper},
  archiveprefix = {arXiv},
}
"""
)


OF_NO_RESULT = ("trace_folder", "source", "notes")
"""Fields of a row that say where it lies."""


ESCAPED: Mapping[str, str] = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
} | {sign: f"\\{sign}" for sign in "&%$#_"}


def comparison_key(comparison: Comparison) -> str:
    """SHA-256 of every result: rows, strategies and combinations, wherever they were read from."""
    rows = [
        {name: value for name, value in vars(row).items() if name not in OF_NO_RESULT}
        for row in comparison.rows
    ]
    results = {"rows": rows, "others": comparison.strategies, "combined": comparison.combined}
    return sha256_of_text(json.dumps(finite_json(results), sort_keys=True))


def cited(comparison: Comparison) -> Comparison:
    """The comparison with its citation, and version and key in its provenance."""
    version, key = importlib.metadata.version("offramp"), comparison_key(comparison)
    provenance = {"offramp": version, "comparison_key": key, **comparison.provenance}
    return dataclasses.replace(
        comparison, citation=citation(comparison.title, version, key), provenance=provenance
    )


def citation(title: str, version: str, key: str) -> str:
    """BibTeX entries: this comparison, the software, and the study that it implements."""
    paper = STUDY.removeprefix("arXiv ")
    said = {"title": title, "version": version, "study": STUDY_TITLE, "paper": paper}
    shown = {name: escaped(text) for name, text in said.items()}
    return CITATION.substitute(shown, key=key[:16], short=key[:8])


def escaped(text: str) -> str:
    """A text as BibTeX takes it."""
    return "".join(ESCAPED.get(sign, sign) for sign in text)
