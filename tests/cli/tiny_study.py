"""A small study of a tiny model, as a user writes it: a folder with the study file and the text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

TOKENS = 960

STUDY = """
[study]
name = "tiny"
title = "Is a tiny model worth leaving early?"
tokens = {tokens}
threads = 1
draws = 100
floors = [0.9, 0.5]

[[models]]
name = "tiny"
source = {model}

[[workloads]]
name = "notes"
source = "jsonl:documents.jsonl#text"

[[policies]]
name = "league"

[[policies]]
name = "shallow"
policy = "static:exit=2"

[[machines]]
name = "h100"
"""

PRUNED = """
[[transforms]]
name = "none"

[[transforms]]
name = "pruned"
steps = ["prune:drop=2"]
"""


def write_study(
    folder: Path, model: Path, documents: Path, more: str = "", *, name: str = "study.toml"
) -> Path:
    """The study file in a folder, its text beside it. more: further tables."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(documents, folder / "documents.jsonl")
    path = folder / name
    path.write_text(STUDY.format(tokens=TOKENS, model=json.dumps(str(model))) + more)
    return path


def results(folder: Path) -> dict[str, bytes]:
    """Every file of the finished tasks by path, traces included, but for what says when it was made."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted((folder / "tasks").rglob("*"))
        if path.is_file() and path.name not in ("manifest.json", ".lock")
    }
