"""`txt:PATH`: a text file, split at its blank lines, or a folder of text files."""

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
PARAGRAPHS, WHOLE = "#paragraphs", "#whole"

ENOUGH_FILES = 40
"""So many files of a folder are documents enough: half of them choose a policy, half judge it."""


def load_text(argument: str) -> Workload:
    """The documents of a text file, or of the *.txt and *.md files of a folder, sorted by name.

    One file is split at its blank lines, since one document can show nothing: a paragraph under 200
    characters is joined with the next. A file of a folder stays one document, unless there are fewer than
    ENOUGH_FILES: then each is split too. With "#paragraphs" at the end every file is split, with "#whole"
    none.

    Raises WorkloadError for a missing path, a folder without texts, and files that are not UTF-8 text.
    """
    path, part = _path_and_part(argument)
    require_exists(path)
    files = _text_files(path) if path.is_dir() else [path]
    texts = {file.name: read_text(file) for file in files}
    split = part == PARAGRAPHS or (part is None and len(files) < ENOUGH_FILES)
    documents = [
        document
        for name, text in texts.items()
        for document in (_paragraphs_of(name, text) if split else [Document(name, text)])
    ]
    notes: tuple[str, ...] = ()
    if split and len(documents) > len(texts):
        what = "the text was" if len(texts) == 1 else f"{len(texts)} texts were"
        notes = (
            f"{what} split at blank lines into {len(documents):,} documents, which are taken as independent "
            f"(txt:PATH{WHOLE} leaves each file one document)",
        )
    return Workload(
        name=f"txt:{argument}",
        mode="text",
        documents=tuple(documents),
        licence=OWN_LICENCE,
        source=str(path),
        notes=notes,
    )


def _path_and_part(argument: str) -> tuple[Path, str | None]:
    """The path that is meant, and what was asked for of its files, None if nothing was.

    Raises WorkloadError for a part that there is not.
    """
    before, mark, word = argument.rpartition("#")
    part = f"#{word}"
    if not mark or Path(argument).exists():  # a number sign may be part of a name
        return Path(argument), None
    if part in (PARAGRAPHS, WHOLE):
        return Path(before), part
    if Path(before).exists():
        raise WorkloadError(
            f"a text has no part {word!r}",
            where=argument,
            fix=f"write txt:{before}, txt:{before}{PARAGRAPHS} or txt:{before}{WHOLE}",
        )
    return Path(argument), None


def _paragraphs_of(name: str, text: str) -> list[Document]:
    """A document for each paragraph of a file; the file itself where there is nothing to split."""
    found = list(paragraphs(text))
    if len(found) == 1:
        return [Document(name, text)]
    return [Document(f"{name}:{line}", part) for line, part in found]


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


TEXT = WorkloadSource(
    name="txt",
    load=load_text,
    mode="text",
    documents="one per paragraph of a file, or per file of a folder",
    licence=OWN_LICENCE,
    description="your own text: a file, split at blank lines into documents, or a folder of *.txt and *.md "
    f"files, one document each ({ENOUGH_FILES} at least, else split too); PATH{PARAGRAPHS} splits always, "
    f"PATH{WHOLE} never",
    argument="PATH",
)
