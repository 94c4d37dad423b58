"""Workloads of what is at hand in Python: texts, token ids, conversations, a dataset of any of these."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any

from offramp.errors import WorkloadError
from offramp.workloads.registry import GIVEN, load_workload, remember, require_usable
from offramp.workloads.workload import Document, Mode, Workload

FIELDS = ("input_ids", "messages", "text")
"""Columns of a dataset that are looked for, in this order."""

FIX = (
    "give texts, lists of token ids, a tensor [documents, tokens], conversations as lists of "
    '{"role": ..., "content": ...}, or a dataset with one of the columns ' + ", ".join(FIELDS)
)


def read_workload(given: Any) -> Workload:
    """The workload that a name means, a workload itself, or one of what is given. Raises WorkloadError."""
    if isinstance(given, Workload):
        return given
    return load_workload(given) if isinstance(given, str) else workload_of(given)


def workload_of(
    given: Any,
    *,
    name: str | None = None,
    mode: Mode | None = None,
    field: str | None = None,
    licence: str = "not stated",
) -> Workload:
    """A workload of texts, of token ids or of conversations.

    given: texts; lists of token ids, or integers [documents, tokens] or [tokens] as a tensor or an array;
    conversations, each a list of messages; or a `datasets.Dataset` (rows with named columns) of any of these.
    Token ids are given to the model exactly as they are, nothing in front. Of a conversation, everything up
    to the last turn that is not the assistant's is the prompt. mode: "text" traces what is given,
    "generation" lets the model answer it first; by default conversations are answered, all else is traced.
    field: the column of a dataset. name: "given:" and this is what results call it, and what it is found by
    again in this process; by default it is made of the content.

    Raises WorkloadError for anything else, and for documents without content.

    >>> offramp.workload_of(["a text", "another text"], name="mine")
    Workload(given:mine, text, 2 documents)
    >>> offramp.workload_of([[5, 6, 7], [8, 9]]).documents[1].tokens
    (8, 9)
    """
    rows, found = _rows(given, field)
    documents = tuple(_document(place, row) for place, row in enumerate(rows))
    if not documents:
        raise WorkloadError("there are no documents", where=name or GIVEN, fix=FIX)
    chat = documents[0].messages is not None
    kinds = {(document.tokens is None, document.messages is None) for document in documents}
    if len(kinds) > 1:
        raise WorkloadError(
            "texts, token ids and conversations are mixed", where=name or GIVEN, fix="give one kind"
        )
    if chat and mode == "text":
        raise WorkloadError(
            "conversations are answered, not traced as they are", where=name or GIVEN, fix="leave out mode"
        )
    workload = Workload(
        name=GIVEN,
        mode=mode or ("generation" if chat else "text"),
        documents=documents,
        licence=licence,
        source=f"given in Python{found}",
        chat=chat,
    )
    require_usable(workload)
    workload = replace(workload, name=f"{GIVEN}:{name or workload.fingerprint[:8]}")
    remember(workload)
    return workload


def _rows(given: Any, field: str | None) -> tuple[Iterable[Any], str]:
    """The documents, and which column they are of."""
    columns = getattr(given, "column_names", None)
    if columns is not None:
        known = [name for name in ((field,) if field else FIELDS) if name in columns]
        if not known:
            raise WorkloadError(
                f"the dataset has no column {field!r}"
                if field
                else "the dataset has no column that is known",
                where=f"columns: {', '.join(map(str, columns))}",
                fix=f"give field=, one of its columns, or name one of them {', '.join(FIELDS)}",
            )
        return (row[known[0]] for row in given), f", column {known[0]}"
    if hasattr(given, "tolist"):
        given = given.tolist()
    if not isinstance(given, Sequence) or isinstance(given, (str, bytes)) or not given:
        raise WorkloadError(f"a workload cannot be made of {_shown(given)}", where="workload_of", fix=FIX)
    return [given] if _is_id(given[0]) else given, ""


def _document(place: int, row: Any) -> Document:
    name = f"document {place + 1}"
    if isinstance(row, str):
        return Document(name, row)
    values = row.tolist() if hasattr(row, "tolist") else row
    listed = isinstance(values, Sequence) and not isinstance(values, bytes | bytearray) and len(values) > 0
    if listed and all(isinstance(turn, Mapping) for turn in values):
        return _conversation(name, values)
    if listed and all(map(_is_id, values)) and min(values) >= 0:
        tokens = tuple(map(int, values))
        return Document(name, " ".join(map(str, tokens)), tokens=tokens)
    raise WorkloadError(f"a document cannot be {_shown(row)}", where=name, fix=FIX)


def _conversation(name: str, turns: Sequence[Mapping[str, Any]]) -> Document:
    messages = list(_messages(name, turns))
    while messages and messages[-1][0] == "assistant":
        messages.pop()
    if not messages:
        raise WorkloadError("a conversation has no turn to answer", where=name, fix=FIX)
    return Document(name, "\n".join(said for _, said in messages), messages=tuple(messages))


def _messages(name: str, turns: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    for turn in turns:
        role, said = turn.get("role"), turn.get("content")
        if not isinstance(role, str) or not isinstance(said, str):
            raise WorkloadError("a message has no role and content that are text", where=name, fix=FIX)
        yield role, said


def _is_id(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    shown = repr(value)
    return f"{type(value).__name__} {shown if len(shown) <= 60 else shown[:60] + '...'}"
