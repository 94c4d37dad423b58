"""What a text is to be made of, and the TOML file that says so."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from offramp.lab.text.sources import SOURCES, Found, Source
from offramp.lab.text.tokenizer import FEWEST_TOKENS, MOST_TOKENS
from offramp.lab.text.work import NaturalKind, Part, Work
from offramp.records.given_file import (
    Count,
    Line,
    Table,
    Text,
    Whole,
    checked,
    did_you_mean,
    read_toml,
)
from offramp.records.given_file import Source as GivenFile
from offramp.workloads.text_files import load_text

WHAT = "text file"
MOST_GENERATED = 0.9
"""Share of a text that may be generated: ever more of it would have to be made for ever less of the rest."""


class OwnText(Table):
    """A file or folder of one's own (*.txt, *.md), each file a work. part: where it must go."""

    name: Line
    path: Text
    kind: NaturalKind
    licence: Line
    part: Part | None = None


class TextRequest(Table):
    """A text. characters: of each source, at most. generated: share of the training tokens.

    folders: where Debian's packages lie, each with a `usr` in it.
    """

    seed: Whole = 0
    vocabulary: Annotated[int, Field(strict=True, ge=FEWEST_TOKENS, le=MOST_TOKENS)] = 2048
    characters: Count = 6_000_000
    generated: Annotated[float, Field(strict=True, gt=0, le=MOST_GENERATED)] = 0.25
    sources: tuple[Text, ...] = tuple(SOURCES)
    folders: tuple[Text, ...] = ("/",)
    own: tuple[OwnText, ...] = ()

    @property
    def all_sources(self) -> tuple[Source, ...]:
        """Those by name, then one's own."""
        return (*(SOURCES[name] for name in self.sources), *(_own_source(one) for one in self.own))

    @property
    def places(self) -> tuple[Path, ...]:
        """The folders as paths."""
        return tuple(map(Path, self.folders))


def read_request(path: Path) -> TextRequest:
    """The request in a TOML file; paths in it are relative to the file.

    Raises InputError, with the line, for what is wrong.
    """
    values, source = read_toml(path, WHAT)
    found = checked(TextRequest, values, source)
    check_request(found, source)
    return placed_request(found, path.parent)


def check_request(request: TextRequest, source: GivenFile, *location: str) -> None:
    """Refuse a source that is not known, and a name given twice. location: of the request in its file.

    Raises InputError, with the line.
    """
    for place, name in enumerate(request.sources):
        if name not in SOURCES:
            raise source.refused(
                f"there is no source {name!r}", did_you_mean(name, SOURCES), *location, "sources", place
            )
    names = [*request.sources, *(one.name for one in request.own)]
    for place, name in enumerate(names):
        if name in names[:place]:
            named = len(request.sources)
            where = ("sources", place) if place < named else ("own", place - named)
            raise source.refused(f"two sources are named {name!r}", "name each once", *location, *where)


def placed_request(request: TextRequest, folder: Path) -> TextRequest:
    """The request with its paths, which are relative to a folder, as this process finds them."""

    def placed(name: str) -> str:
        return str(folder / Path(name).expanduser())

    own = tuple(one.model_copy(update={"path": placed(one.path)}) for one in request.own)
    return request.model_copy(update={"own": own, "folders": tuple(map(placed, request.folders))})


def _own_source(own: OwnText) -> Source:
    def find(folders: object) -> Found:
        work = load_text(f"{own.path}#whole")
        works = (
            Work(own.name, one.id, own.kind, (type(one)(f"{own.name}:{one.id}", one.text),), own.part)
            for one in work.documents
        )
        return Found(f"given: {Path(own.path).name}", tuple(works))

    def version(folders: object) -> str:
        return load_text(f"{own.path}#whole").fingerprint

    return Source(own.name, own.kind, own.licence, find, version)
