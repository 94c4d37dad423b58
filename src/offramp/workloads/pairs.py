"""`pairs:PATH#source,target`: what an encoder-decoder reads, and what it is to write of it."""

from __future__ import annotations

import os
from typing import Any

from offramp.errors import WorkloadError
from offramp.kit.given import Given
from offramp.workloads.text_files import (
    OWN_LICENCE,
    documents_of_lines,
    fields_in,
    json_object_of,
    numbered_lines,
    text_in,
)
from offramp.workloads.workload import Document, Workload, WorkloadSource


def load_pairs(argument: str) -> Workload:
    """One document per line: the text is that of the second key, given that of the first.

    Blank lines and ids are as in `load_json_lines`.

    Raises WorkloadError, with the line number, for bad JSON, a missing key, a value that is not text, an
    empty text and an id that came before; and without two keys, with those of the first line.
    """
    argument = os.path.expanduser(argument)
    path, keys, numbered = numbered_lines(argument)
    source, _, target = (part.strip() for part in keys.partition(","))
    if not source or not target:
        raise WorkloadError(
            "a pair is two keys: of what is read, and of what is to be written",
            where=f"pairs:{argument}",
            fix=f"write pairs:{path}#SOURCE,TARGET; the keys of the first line are: "
            f"{fields_in(json_object_of(path, *numbered[0]))}",
        )

    def pair(name: str, number: int, value: dict[str, Any]) -> Document:
        given = Given(text_in(path, number, value, source))
        return Document(name, text_in(path, number, value, target), given=given)

    return Workload(
        name=f"pairs:{argument}",
        mode="text",
        documents=documents_of_lines(path, numbered, pair),
        licence=OWN_LICENCE,
        source=argument,
    )


PAIRS = WorkloadSource(
    name="pairs",
    load=load_pairs,
    mode="text",
    documents="one per line",
    licence=OWN_LICENCE,
    description="for an encoder-decoder: what it reads and what it writes, two keys of a JSON-lines file",
    argument="PATH#source,target",
)
