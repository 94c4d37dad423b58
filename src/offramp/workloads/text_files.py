"""People's own text: `txt:PATH`, `jsonl:PATH#field`, and `hf:dataset#split#field` of the Hugging Face Hub."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from offramp.errors import WorkloadError, refused_as
from offramp.files import JsonError, parse_json, read_given
from offramp.workloads.workload import Document, Workload, WorkloadSource

LARGEST_FILE = 1_000_000_000
"""Bytes of a text file: the whole of it is held in memory."""


def require_exists(path: Path) -> None:
    """Raise WorkloadError for a path that is missing, with near matches in its folder, or cannot be one."""
    require_possible(path)
    if path.exists():
        return
    if path.is_symlink():
        raise WorkloadError("the file is a link that leads nowhere", where=str(path), fix="check the link")
    folder = path.parent
    if not folder.is_dir():
        raise WorkloadError("the folder does not exist", where=str(folder), fix="check the path")
    near = difflib.get_close_matches(path.name, sorted(entry.name for entry in folder.iterdir()), n=3)
    fix = f"did you mean {' or '.join(str(folder / name) for name in near)}?" if near else "check the path"
    raise WorkloadError("the file does not exist", where=str(path), fix=fix)


def require_possible(path: Path) -> None:
    """Raise WorkloadError for a path that cannot be looked at: one that is too long, say."""
    try:
        path.exists()
    except OSError as error:
        raise WorkloadError(
            f"the path cannot be looked at: {error.strerror}", where=str(path), fix="check the path"
        ) from error


def read_text(path: Path) -> str:
    """A file's text, without a byte order mark; where lines end in carriage returns alone, in newlines.

    Raises WorkloadError for a path that is missing or no regular file, and for a file that is unreadable, of
    more than LARGEST_FILE bytes, empty, binary or not UTF-8.
    """
    require_exists(path)
    content = read_given(path, "text", WorkloadError, largest=LARGEST_FILE)
    if (offset := content.find(0)) >= 0:
        raise WorkloadError(
            f"the file is not text: it has a NUL byte at offset {offset:,}",
            where=str(path),
            fix="give a text file in UTF-8 (a UTF-16 file: convert it first)",
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The decoder counts from after a byte order mark; the offset is that in the file.
        offset = error.start + len(content) - len(error.object)
        raise WorkloadError(
            f"the file is not UTF-8: byte 0x{content[offset]:02x} at offset {offset:,}",
            where=str(path),
            fix="convert it, for example: iconv -f ISO-8859-1 -t UTF-8 FILE > NEW",
        ) from error
    if not text.strip():
        raise WorkloadError("the file is empty", where=str(path), fix="give a file with text in it")
    return text if "\n" in text else text.replace("\r", "\n")


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
    argument = os.path.expanduser(argument)  # as no shell does behind "txt:"
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
    require_possible(Path(argument))
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
    begins, counted = 1, 0
    for match in re.finditer(r"\S.*?(?=\n[^\S\n]*\n|\Z)", text, flags=re.DOTALL):
        begins, counted = begins + text.count("\n", counted, match.start()), match.start()
        if parts and len(parts[-1][1]) < SHORTEST_PARAGRAPH:
            line, previous = parts[-1]
            parts[-1] = (line, f"{previous}\n\n{match.group().rstrip()}")
        else:
            parts.append((begins, match.group().rstrip()))
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


def load_json_lines(argument: str) -> Workload:
    """One document per line, the text in `field`; blank lines are skipped.

    A document's id is the line's own "id" (a string or an integer), or "line N" where it has none.

    Raises WorkloadError, with the line number, for bad JSON, a missing field, a value that is not text, an
    empty text and an id that came before; and without a field, with the fields of the first line.
    """
    argument = os.path.expanduser(argument)
    path, field, numbered = numbered_lines(argument)
    if not field:
        raise _no_field(path, json_object_of(path, *numbered[0]))
    return Workload(
        name=f"jsonl:{argument}",
        mode="text",
        documents=documents_of_lines(
            path, numbered, lambda name, number, value: Document(name, text_in(path, number, value, field))
        ),
        licence=OWN_LICENCE,
        source=argument,
    )


def numbered_lines(argument: str) -> tuple[Path, str, list[tuple[int, str]]]:
    """The file and the field of PATH#field, "" without one, and the lines that are not blank with their
    numbers. Raises WorkloadError for a file that cannot be read.
    """
    require_possible(Path(argument))
    # A number sign may be part of the file's name or of the field's.
    marks = [place for place, letter in enumerate(argument) if letter == "#"]
    splits = [(argument[:mark], argument[mark + 1 :]) for mark in marks if mark]
    whole = (argument, "")
    there = [split for split in (*reversed(splits), whole) if Path(split[0]).exists()]
    name, field = (there or [*reversed(splits), whole])[0]
    path = Path(name)
    numbered = [
        (number, line) for number, line in enumerate(read_text(path).split("\n"), start=1) if line.strip()
    ]
    return path, field, numbered


def documents_of_lines(
    path: Path,
    numbered: Iterable[tuple[int, str]],
    document_of: Callable[[str, int, dict[str, Any]], Document],
) -> tuple[Document, ...]:
    """A document of each line, by the line's own id, or "line N", its number and its JSON object.

    Raises WorkloadError for bad JSON, and an id that came before.
    """
    documents: list[Document] = []
    lines: dict[str, int] = {}
    for number, line in numbered:
        value = json_object_of(path, number, line)
        identifier = value.get("id")
        named = isinstance(identifier, str | int) and not isinstance(identifier, bool) and identifier != ""
        document = document_of(str(identifier) if named else f"line {number}", number, value)
        if document.id in lines:
            raise WorkloadError(
                f"the id {document.id!r} is that of line {lines[document.id]} too",
                where=f"{path}, line {number}",
                fix="make the ids distinct",
            )
        lines[document.id] = number
        documents.append(document)
    return tuple(documents)


def json_object_of(path: Path, number: int, line: str) -> dict[str, Any]:
    """A line's JSON object. Raises WorkloadError for anything else."""
    where = f"{path}, line {number}"
    try:
        value: dict[str, Any] = parse_json(line)
    except JsonError as error:
        raise WorkloadError(
            f"the line cannot be read: {error}",
            where=where,
            fix='write one JSON object per line, as {"field": "text"}',
        ) from error
    return value


def text_in(path: Path, number: int, value: dict[str, Any], field: str) -> str:
    """The text of a field of a line. Raises WorkloadError where there is none."""
    where = f"{path}, line {number}"
    if field not in value:
        raise WorkloadError(
            f"the line has no field {field!r}", where=where, fix=f"its fields are: {fields_in(value)}"
        )
    text = value[field]
    if not isinstance(text, str):
        raise WorkloadError(
            f"the field {field!r} holds {_kind(text)}, not text",
            where=where,
            fix=f"choose a field of text; the line's fields are: {fields_in(value)}",
        )
    if not text.strip():
        raise WorkloadError(f"the field {field!r} is empty", where=where, fix="remove the line")
    return text


def _no_field(path: Path, first: dict[str, Any]) -> WorkloadError:
    return WorkloadError(
        "the field that holds the text is not given",
        where=str(path),
        fix=f"write jsonl:{path}#FIELD; the fields of the first line are: {fields_in(first)}",
    )


def fields_in(value: dict[str, Any]) -> str:
    """The fields of a line, for people."""
    return ", ".join(value) or "none"


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", bool: "true or false", str: "a text", type(None): "null"}
    return kinds.get(type(value), "a number")


JSON_LINES = WorkloadSource(
    name="jsonl",
    load=load_json_lines,
    mode="text",
    documents="one per line",
    licence=OWN_LICENCE,
    description="your own text: a field of a JSON-lines file",
    argument="PATH#field",
)


GRAMMAR = "dataset#split#field"


def load_hub_dataset(argument: str) -> Workload:
    """One document per row of a split, in its order; rows whose text is empty are left out.

    Raises WorkloadError for an argument that does not parse, a missing extra, an unknown data set, split or
    field, and a field that does not hold text.
    """
    parts = argument.split("#")
    if len(parts) != 3 or not all(parts):
        raise WorkloadError(
            f"{argument!r} does not name a data set, a split and a field", fix=f"write hf:{GRAMMAR}"
        )
    name, split, field = parts
    dataset = _load(name, split)
    if field not in dataset.column_names:
        raise WorkloadError(
            f"the data set has no field {field!r}",
            where=f"{name}, split {split}",
            fix="choose one of: " + ", ".join(dataset.column_names),
        )
    documents = []
    for row, text in enumerate(dataset[field]):
        if not isinstance(text, str):
            raise WorkloadError(
                f"the field {field!r} holds {type(text).__name__}, not text",
                where=f"{name}, split {split}, row {row}",
                fix="choose a field of text",
            )
        if text.strip():
            documents.append(Document(f"row {row}", text))
    return Workload(
        name=f"hf:{argument}",
        mode="text",
        documents=tuple(documents),
        licence=dataset.info.license or "not stated by the data set",
        source=f"Hugging Face data set {name}, split {split}, field {field}",
    )


def _load(name: str, split: str) -> Any:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise WorkloadError(
            f"the workload 'hf' needs the package {error.name}", fix="pip install 'offramp[datasets]'"
        ) from error
    where, fix = f"{name}, split {split}", "check the names of the data set and the split, and the network"
    # datasets raises OSErrors, ValueErrors, RuntimeErrors and errors of its own.
    with refused_as(WorkloadError, "the data set cannot be loaded", Exception, where=where, fix=fix):
        return datasets.load_dataset(name, split=split)


HUB_DATASET = WorkloadSource(
    name="hf",
    load=load_hub_dataset,
    mode="text",
    documents="one per row",
    licence="as the data set states",
    description="a field of a data set on the Hugging Face Hub (needs offramp[datasets])",
    argument=GRAMMAR,
)
