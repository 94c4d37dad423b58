"""`images:FILE.jsonl`: pictures, what is asked of each, and what an image-text model is to answer."""

from __future__ import annotations

import os
from typing import Any

from offramp.kit.picture import given_picture
from offramp.workloads.text_files import OWN_LICENCE, documents_of_lines, numbered_lines, text_in
from offramp.workloads.workload import Document, Workload, WorkloadSource


def load_images(argument: str) -> Workload:
    """One document per line: the text is the answer, given are the picture and what is asked of it.

    Its keys: "image", a path from the file's folder on, "prompt" and "answer". Raises WorkloadError for lines
    as in `load_json_lines`; InputError as `read_picture`.
    """
    argument = os.path.expanduser(argument)
    path, _, numbered = numbered_lines(argument)

    def asked(name: str, number: int, value: dict[str, Any]) -> Document:
        image, prompt, answer = (text_in(path, number, value, key) for key in ("image", "prompt", "answer"))
        return Document(name, answer, given=given_picture(path.parent / image, prompt))

    return Workload(
        name=f"images:{argument}",
        mode="text",
        documents=documents_of_lines(path, numbered, asked),
        licence=OWN_LICENCE,
        source=str(path),
    )


IMAGES = WorkloadSource(
    name="images",
    load=load_images,
    mode="text",
    documents="one per line",
    licence=OWN_LICENCE,
    description='for an image-text model: a JSON-lines file with the keys "image" (a path), "prompt" and '
    '"answer"',
    argument="PATH",
)
