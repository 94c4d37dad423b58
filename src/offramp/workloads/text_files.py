"""`txt:PATH`: a text file, its paragraphs, or a folder of text files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from offramp.errors import WorkloadError
from offramp.workloads.reading import read_text, require_exists
from offramp.workloads.source import WorkloadSource
from offramp.workloads.workload import Document, Workload

OWN_LICENCE = "not stated (given by the user)"
SUFFIXES = (".txt", ".md")
SHORTEST_PARAGRAPH = 200
PARAGRAPHS = "#paragraphs"


def load_text(argument: str) -> Workload:
    """A file as one document, a folder as one per *.txt and *.md file in it, sorted by name.

    With "#paragraphs" at the end each file is split at blank lines; a paragraph under 200 characters is
    joined with the next.

    Raises WorkloadError for a missing path, a folder without texts, and files that are not UTF-8 text.
    """
    by_paragraph = argument.endswith(PARAGRAPHS) and not Path(argument).exists()
    path = Path(argument.removesuffix(PARAGRAPHS) if by_paragraph else argument)
    _require_known_part(argument)
    require_exists(path)
    documents: list[Document] = []
    for file in _text_files(path) if path.is_dir() else [path]:
        text = read_text(file)
        if by_paragraph:
            documents.extend(Document(f"{file.name}:{line}", part) for line, part in paragraphs(text))
        else:
            documents.append(Document(file.name, text))
    return Workload(
        name=f"txt:{argument}",
        mode="text",
        documents=tuple(documents),
        licence=OWN_LICENCE,
        source=str(path),
    )


def paragraphs(text: str) -> Iterator[tuple[int, str]]:
    """The paragraphs of a text with the line each begins at (1 = first).

    A paragraph under 200 characters is joined with the one that follows, the last with the one before it.
    """
    parts: list[tuple[int, str]] = []
    for match in re.finditer(r"\S.*?(?=\n[^\S\n]*\n|\Z)", text, flags=re.DOTALL):
        if parts and len(parts[-1][1]) < SHORTEST_PARAGRAPH:
            line, previous = parts[-1]
            parts[-1] = (line, f"{previous}\n\n{match.group().rstrip()}")
        else:
            parts.append((1 + text.count("\n", 0, match.start()), match.group().rstrip()))
    if len(parts) > 1 and len(parts[-1][1]) < SHORTEST_PARAGRAPH:
        _, last = parts.pop()
        line, previous = parts[-1]
        parts[-1] = (line, f"{previous}\n\n{last}")
    yield from parts


def _text_files(folder: Path) -> list[Path]:
    named = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    lost = [path for path in named if path.is_symlink() and not path.exists()]
    if lost:
        raise WorkloadError(
            "a file of the folder is a link that leads nowhere",
            where=str(lost[0]),
            fix="remove the link, or bring back what it leads to",
        )
    files = [path for path in named if path.is_file()]
    if not files:
        raise WorkloadError(
            "the folder holds no text files",
            where=str(folder),
            fix=f"put {' or '.join('*' + suffix for suffix in SUFFIXES)} files directly into it",
        )
    return files


def _require_known_part(argument: str) -> None:
    before, mark, part = argument.rpartition("#")
    if mark and f"#{part}" != PARAGRAPHS and not Path(argument).exists() and Path(before).exists():
        raise WorkloadError(
            f"a text has no part {part!r}",
            where=argument,
            fix=f"write txt:{before} or txt:{before}{PARAGRAPHS}",
        )


TEXT = WorkloadSource(
    name="txt",
    load=load_text,
    mode="text",
    documents="one per file",
    licence=OWN_LICENCE,
    description="your own text: a file, a folder of *.txt and *.md files, or PATH#paragraphs",
    argument="PATH",
)
