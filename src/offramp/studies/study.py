"""The study file: its axes and settings, read from TOML with the line of every error."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, PrivateAttr, ValidationError

from offramp.errors import InputError
from offramp.files import canonical_json, read_given_text, sha256_of_text
from offramp.records.given_file import invalid_file, not_toml
from offramp.records.toml_lines import Location, lines_of, place_in
from offramp.studies.entries import (
    LEAGUE,
    LOCAL,
    NONE,
    TUNED,
    Combine,
    Decode,
    Exclude,
    HeadsEntry,
    Large,
    MachineEntry,
    ModelEntry,
    Pair,
    PolicyEntry,
    Settings,
    Table,
    TransformEntry,
    WorkloadEntry,
)


class Study(Table):
    """A whole study file. Lines in errors are known if `read_study` read it."""

    settings: Settings = Field(alias="study")
    models: tuple[ModelEntry, ...] = Field(min_length=1)
    workloads: tuple[WorkloadEntry, ...] = Field(min_length=1)
    heads: tuple[HeadsEntry, ...] = Field(default=(HeadsEntry(name=NONE),), min_length=1)
    policies: tuple[PolicyEntry, ...] = (
        PolicyEntry(name=LEAGUE, policy=LEAGUE),
        PolicyEntry(name=TUNED, policy=TUNED),
    )
    transforms: tuple[TransformEntry, ...] = Field(default=(TransformEntry(name=NONE),), min_length=1)
    machines: tuple[MachineEntry, ...] = Field(
        default=(MachineEntry(name=LOCAL, source=LOCAL),), min_length=1
    )
    exclude: tuple[Exclude, ...] = ()
    pairs: tuple[Pair, ...] = ()
    decode: Decode | None = None
    combine: Combine | None = None
    large: Large | None = None

    _path: Path = PrivateAttr(default=Path("STUDY.toml"))
    _lines: Mapping[Location, int] = PrivateAttr(default_factory=dict)

    @property
    def name(self) -> str:
        """The study's name."""
        return self.settings.name

    @property
    def path(self) -> Path:
        """The file it was read from."""
        return self._path

    @property
    def folder(self) -> Path:
        """What relative paths in it start from."""
        return self._path.parent

    @property
    def streamed(self) -> bool:
        """Whether its models are traced layer by layer."""
        return self.large is not None and self.large.stream

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything it says, defaults included."""
        return sha256_of_text(canonical_json(self.to_json()))

    def where(self, *location: str | int) -> str:
        """A place in the file, for an error: "STUDY.toml, line 12, models[2].stage"."""
        return place_in(self._path, self._lines, location)

    def to_json(self) -> dict[str, Any]:
        """A JSON object of everything it says, defaults included."""
        return self.model_dump(mode="json", by_alias=True)


def read_study(path: str | Path) -> Study:
    """The study that a TOML file describes.

    Raises InputError, with the line and the key, for a file that cannot be read, is no TOML, has an unknown
    axis or key, or a value that does not fit; and what `offramp.studies.checks.check_study` refuses.
    """
    from offramp.studies.checks import check_study  # it is about studies, and read with them

    path = Path(path)
    try:
        text = read_given_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"the study file cannot be read: {error}", where=str(path), fix="check the path"
        ) from error
    try:
        values = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a number or a nesting beyond Python's limits, too
        raise not_toml(path, error) from error
    lines = lines_of(text)
    try:
        study = Study.model_validate(values)
    except ValidationError as error:
        raise invalid_file(path, lines, Study, error) from error
    study._path, study._lines = path, lines
    check_study(study)
    return study
