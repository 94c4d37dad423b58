"""Making a text: gathered, dealt to parts, its tokenizer trained, a quarter added whose depth is known."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from offramp.errors import DamagedFileError, InputError
from offramp.files import (
    locked_folder,
    sha256_of_file,
    sweep_temporary_files,
    write_atomically,
    write_text_atomically,
)
from offramp.lab.text.folder import (
    GENERATED_TOKENS,
    NATURAL_TOKENS,
    RECORD,
    RECORD_FILE,
    STEPS,
    TOKENIZER,
    TOKENS_FILE,
    Absent,
    Gathered,
    LabText,
    TextRecord,
    documents_file,
    lines_of,
    read_text_folder,
)
from offramp.lab.text.generated import Problem, problems
from offramp.lab.text.parts import Dealt, deal, within
from offramp.lab.text.request import TextRequest
from offramp.lab.text.sources import Found, Source
from offramp.lab.text.tokenizer import encoded, encoded_problems, train_tokenizer
from offramp.lab.text.work import GENERATED, KINDS, PARTS, Part, Work, sha256_of_works
from offramp.records.output_folder import OutputFolder
from offramp.tracing.progress import say
from offramp.workloads.registry import load_workload
from offramp.workloads.shared_text import Sketcher, shares_text, sketches_of
from offramp.workloads.workload import Document

PROBLEMS_APART = 300
"""Generated documents of the parts that are not trained on."""

SEEN_WORKLOADS = ("prose", "prose:short", "code", "code:short")
"""Workloads made of the standard library, which is a source of texts as well."""


@dataclass(frozen=True)
class Dealing:
    """What was gathered, where it goes, and what is not here."""

    here: tuple[tuple[Source, Found], ...]
    absent: tuple[Absent, ...]
    parts: Dealt


def make_text(request: TextRequest, folder: str | Path, *, overwrite: bool = False) -> LabText:
    """Make a text in a folder. Sources that are not here are named in its record, and the rest is taken.

    Raises InputError for a folder that holds a text already or anything else, if no source is here or there
    is too little to keep some apart, and for works that share text across parts that were asked for.
    """
    folder = Path(folder)
    _require_own(folder, overwrite)
    with locked_folder(folder):
        _require_own(folder, overwrite)  # another process may have made one meanwhile
        sweep_temporary_files(folder)
        with _owned(folder).replaced(last=RECORD_FILE) as made:
            _make(request, made)
    return read_text_folder(folder)


def _make(request: TextRequest, folder: Path) -> None:
    """Make a text in an empty folder."""
    dealing = _gather(request)
    trained = _documents(dealing.parts["train"])
    say(f"{len(trained):,} documents to train on; learning {request.vocabulary:,} tokens from them")
    generated = _characters(trained) * request.generated / (1 - request.generated)
    tokenizer = train_tokenizer(
        [one.text for one in (*trained, *_of_size(request.seed, generated))],
        request.vocabulary,
        sha256_of_works(dealing.parts["train"]),
    )
    arrays, problems_of = _tokens(request, dealing.parts, tokenizer)
    names = _write(folder, tokenizer, arrays, dealing.parts, problems_of)
    record = TextRecord(
        seed=request.seed,
        vocabulary=request.vocabulary,
        sources=tuple(_gathered(source, found, dealing.parts) for source, found in dealing.here),
        absent=dealing.absent,
        tokens={
            part: {which: len(arrays[f"{part}.{which}"]) for which in (NATURAL_TOKENS, GENERATED_TOKENS)}
            for part in PARTS
        },
        files={name: sha256_of_file(folder / name) for name in names},
        seen=_seen(trained),
        versions={name: importlib.metadata.version(name) for name in ("numpy", "tokenizers", "transformers")},
    )
    RECORD.write(folder / RECORD_FILE, record)


def _owned(folder: Path) -> OutputFolder:
    """The folder of a text. One that an older offramp made has its files in the text's record alone."""
    if not RECORD.is_of(folder / RECORD_FILE):
        return OutputFolder(folder)
    try:
        files = RECORD.read(folder / RECORD_FILE).files
    except DamagedFileError:
        files = {}
    return OutputFolder(folder, {**files, RECORD_FILE: None})


def _require_own(folder: Path, overwrite: bool) -> None:
    """Refuse a folder that holds a text, unless it is to be made again, or anything else."""
    if others := _owned(folder).foreign():
        raise InputError(
            f"the output folder holds something else: {', '.join(others[:3])}",
            where=str(folder),
            fix="choose another folder with -o",
        )
    if (folder / RECORD_FILE).exists() and not overwrite:
        raise InputError(
            "the folder holds a text already",
            where=str(folder),
            fix="use it, choose another folder with -o, or make it again with --overwrite",
        )


def _gather(request: TextRequest) -> Dealing:
    found = [(source, source.find(request.places)) for source in request.all_sources]
    here = tuple((source, one) for source, one in found if one is not None)
    absent = tuple(Absent(source.name, source.fix) for source, one in found if one is None)
    if not here:
        names = ", ".join(one.name for one in absent)
        fix = absent[0].fix if absent else "name sources, or text of your own ([[own]])"
        raise InputError("no source of the text is here", where=names or "sources", fix=fix)
    _require_distinct([work for _, one in here for work in one.works])
    works = within([work for _, one in here for work in one.works], request.characters, request.seed)
    say(f"{len(works):,} works of {len(here)} sources: dealt to parts that share no text")
    parts = deal(works, request.seed)
    if empty := [part for part in PARTS if not parts[part]]:
        raise InputError(
            f"there is too little text to keep some apart: nothing is left for {empty[0]}",
            where=", ".join(source.name for source, _ in here),
            fix="add sources, or raise the characters that are taken of each",
        )
    return Dealing(here, absent, parts)


def _require_distinct(works: Sequence[Work]) -> None:
    """Refuse two documents of one name. Raises InputError."""
    seen: set[str] = set()
    for work in works:
        for document in work.documents:
            if document.id in seen:
                raise InputError(
                    f"two documents are named {document.id}", where=work.source, fix="give one another name"
                )
            seen.add(document.id)


def _of_size(seed: int, characters: float) -> Iterable[Document]:
    """Generated documents that are trained on, of so many characters together."""
    size = 0
    for one in problems("train", seed):
        if size >= characters:
            return
        size += len(one.document.text)
        yield one.document


def _tokens(
    request: TextRequest, parts: Dealt, tokenizer: Any
) -> tuple[dict[str, Any], dict[Part, tuple[Problem, ...]]]:
    """Every part's tokens by name, and the generated documents among them."""
    arrays: dict[str, Any] = {}
    made: dict[Part, tuple[Problem, ...]] = {}
    for part in PARTS:
        natural = np.concatenate(encoded(tokenizer, [one.text for one in _documents(parts[part])]))
        endless = problems(part, request.seed)
        count = PROBLEMS_APART
        if part == "train":
            some = encoded(
                tokenizer, [one.document.text for one in islice(problems(part, request.seed), 200)]
            )
            wanted = len(natural) * request.generated / (1 - request.generated)
            count = max(1, round(wanted / float(np.mean([len(one) for one in some]))))
        made[part] = tuple(islice(endless, count))
        ids, steps = encoded_problems(tokenizer, made[part])
        arrays[f"{part}.{NATURAL_TOKENS}"] = natural
        arrays[f"{part}.{GENERATED_TOKENS}"] = np.concatenate(ids)
        arrays[f"{part}.{STEPS}"] = np.concatenate(steps)
    return arrays, made


def _write(
    folder: Path,
    tokenizer: Any,
    arrays: Mapping[str, Any],
    parts: Dealt,
    made: Mapping[Part, tuple[Problem, ...]],
) -> list[str]:
    """Write tokenizer, tokens and documents; their names in the folder."""
    from safetensors.numpy import save_file

    tokenizer.save_pretrained(folder / TOKENIZER)
    write_atomically(folder / TOKENS_FILE, lambda path: save_file(dict(arrays), path))
    names = [TOKENS_FILE, *(f"{TOKENIZER}/{path.name}" for path in sorted((folder / TOKENIZER).iterdir()))]
    for part in PARTS:
        answers = {one.document.id: one.answers for one in made[part]}
        by_kind = {kind: _documents(work for work in parts[part] if work.kind == kind) for kind in KINDS}
        by_kind[GENERATED] = [one.document for one in made[part]]
        for kind, documents in by_kind.items():
            path = folder / documents_file(part, kind)
            if documents:
                write_text_atomically(path, lines_of(documents, answers))
                names.append(path.name)
    return names


def _gathered(source: Source, found: Found, parts: Dealt) -> Gathered:
    taken = {part: [work for work in works if work.source == source.name] for part, works in parts.items()}
    return Gathered(
        name=source.name,
        kind=source.kind,
        licence=source.licence,
        version=found.version,
        sha256=sha256_of_works(work for part in PARTS for work in taken[part]),
        works={part: len(works) for part, works in taken.items()},
        characters={part: sum(work.characters for work in works) for part, works in taken.items()},
        limits=source.limits,
    )


def _seen(trained: Sequence[Document]) -> dict[str, tuple[str, ...]]:
    """Documents of offramp's own workloads that share text with these, by the workload's fingerprint."""
    sketches = Sketcher().sketches(trained)
    found: dict[str, tuple[str, ...]] = {}
    for name in SEEN_WORKLOADS:
        workload = load_workload(name)
        ids = [document.id for document in workload.documents]
        shared = shares_text(sketches_of(workload, ids), sketches)
        found[workload.fingerprint] = tuple(id for id, out in zip(ids, shared, strict=True) if out)
    return found


def _documents(works: Iterable[Work]) -> list[Document]:
    return [document for work in works for document in work.documents]


def _characters(documents: Iterable[Document]) -> int:
    return sum(len(document.text) for document in documents)
