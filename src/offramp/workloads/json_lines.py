"""`jsonl:PATH#field`: one document per line of a JSON-lines file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from offramp.errors import WorkloadError
from offramp.workloads.reading import read_text
from offramp.workloads.source import WorkloadSource
from offramp.workloads.text_files import OWN_LICENCE
from offramp.workloads.workload import Document, Workload


def load_json_lines(argument: str) -> Workload:
    """One document per line, the text in `field`; blank lines are skipped.

    A document's id is the line's own "id" (a string or an integer), or "line N" where it has none.

    Raises WorkloadError, with the line number, for bad JSON, a missing field, a value that is not text, an
    empty text and an id that came before; and without a field, with the fields of the first line.
    """
    name, mark, field = argument.rpartition("#")
    path = Path(name if mark else argument)
    numbered = [
        (number, line) for number, line in enumerate(read_text(path).split("\n"), start=1) if line.strip()
    ]
    if not mark or not field:
        raise _no_field(path, _json_object(path, *numbered[0]))
    documents: list[Document] = []
    lines: dict[str, int] = {}
    for number, line in numbered:
        document = _document(path, number, _json_object(path, number, line), field)
        if document.id in lines:
            raise WorkloadError(
                f"the id {document.id!r} is that of line {lines[document.id]} too",
                where=f"{path}, line {number}",
                fix="make the ids distinct",
            )
        lines[document.id] = number
        documents.append(document)
    return Workload(
        name=f"jsonl:{argument}",
        mode="text",
        documents=tuple(documents),
        licence=OWN_LICENCE,
        source=argument,
    )


def _json_object(path: Path, number: int, line: str) -> dict[str, Any]:
    where = f"{path}, line {number}"
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:  # a number or a nesting beyond what Python reads, too
        why = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
        raise WorkloadError(
            f"the line is not JSON: {why}", where=where, fix="write one JSON object per line"
        ) from error
    if not isinstance(value, dict):
        raise WorkloadError(
            f"the line holds {_kind(value)}, not an object", where=where, fix='write {"field": "text"}'
        )
    return value


def _document(path: Path, number: int, value: dict[str, Any], field: str) -> Document:
    where = f"{path}, line {number}"
    if field not in value:
        raise WorkloadError(
            f"the line has no field {field!r}", where=where, fix=f"its fields are: {_fields(value)}"
        )
    text = value[field]
    if not isinstance(text, str):
        raise WorkloadError(
            f"the field {field!r} holds {_kind(text)}, not text",
            where=where,
            fix=f"choose a field of text; the line's fields are: {_fields(value)}",
        )
    if not text.strip():
        raise WorkloadError(f"the field {field!r} is empty", where=where, fix="remove the line")
    identifier = value.get("id")
    named = isinstance(identifier, str | int) and not isinstance(identifier, bool) and identifier != ""
    return Document(str(identifier) if named else f"line {number}", text)


def _no_field(path: Path, first: dict[str, Any]) -> WorkloadError:
    return WorkloadError(
        "the field that holds the text is not given",
        where=str(path),
        fix=f"write jsonl:{path}#FIELD; the fields of the first line are: {_fields(first)}",
    )


def _fields(value: dict[str, Any]) -> str:
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
