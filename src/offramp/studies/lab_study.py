"""Study files with a table [lab]: models that the study trains itself, one factor apart."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from offramp.files import sha256_of_file
from offramp.lab.sizes import SIZES
from offramp.lab.text.request import TextRequest, check_request, placed_request
from offramp.records.given_file import Count, Positive, Source, Table, Text, Whole, checked, did_you_mean
from offramp.studies.entries import ModelEntry, WorkloadEntry
from offramp.studies.study import Study

BLOCKS = ("gate", 1, 2, 3, 4, 5, 6)
PILOT = "pilot"
"""In the place of a figure that a pilot tells."""

CHEAP = ("representation", "calibration")
"""Endpoints that are read off one trace together."""
DEAR = (
    "skipped",
    "skipped_lens",
    "representation_lens",
    "required_depth",
    "skipped_code",
    "scores",
)
USED_SETTINGS = {"name", "title", "description", "threads", "device", "seed"}


class Lab(Table):
    """The table [lab]: the study of docs/lab/preregistered.md, or a part of it.

    blocks: of the design, in the order of the page. runs: by name, those of the blocks; without it, all.
    size: of the models. rate: the largest learning rate; "pilot" the best of three. tokens: of a run; "pilot"
    the largest of five numbers with which all fits into `minutes`. endpoints: of every kept model. dear: of
    those, besides, that the comparison at matched loss reads. text: as a file of `offramp lab text`.
    """

    blocks: tuple[Whole | Text, ...] = Field(default=BLOCKS, min_length=1)
    runs: tuple[Text, ...] = ()
    size: Text = "design"
    rate: Positive | Literal["pilot"] = "pilot"
    tokens: Count | Literal["pilot"] = "pilot"
    minutes: Positive = 360.0
    checkpoints: Annotated[int, Field(strict=True, ge=1, le=32)] = 8
    endpoints: tuple[Text, ...] = Field(default=CHEAP, min_length=1)
    dear: tuple[Text, ...] = DEAR
    text: TextRequest = TextRequest()


class LabStudy(Study):
    """A study that trains its models; the axes of others mean nothing to it."""

    models: tuple[ModelEntry, ...] = ()
    workloads: tuple[WorkloadEntry, ...] = ()
    lab: Lab

    @cached_property
    def file_fingerprint(self) -> str:
        """SHA-256 of its file, as it was when this was first asked for: a long run plans it many times."""
        return sha256_of_file(self.path)

    @cached_property
    def versions(self) -> dict[str, str | None]:
        """Of the sources of its text by name, None where one is not here; found once, for the same reason."""
        request = self.lab.text
        return {source.name: source.version(request.places) for source in request.all_sources}

    @property
    def threads(self) -> int:
        """Of one training: one, so that as many run side by side as there are cores, unless it is said."""
        return self.settings.threads if "threads" in self.settings.model_fields_set else 1


def read_lab_study(values: Mapping[str, Any], source: Source) -> LabStudy:
    """The study of a file with a table [lab]; its paths are relative to the file.

    Raises InputError, with the line, for what is wrong.
    """
    study = checked(LabStudy, values, source)
    for name in sorted(study.model_fields_set - {"settings", "lab"}):
        raise source.refused(
            f"{name} means nothing in a study that trains its models",
            "remove it; what is trained and measured is said in [lab]",
            name,
        )
    for name in sorted(study.settings.model_fields_set - USED_SETTINGS):
        raise source.refused(
            f"{name} means nothing in a study that trains its models",
            f"remove it; of [study] are used: {', '.join(sorted(USED_SETTINGS))}",
            "study",
            name,
        )
    lab = study.lab
    if lab.size not in SIZES:
        raise source.refused(f"there is no size {lab.size!r}", did_you_mean(lab.size, SIZES), "lab", "size")
    for place, block in enumerate(lab.blocks):
        if block not in BLOCKS:
            named = ", ".join(map(repr, BLOCKS))
            raise source.refused(
                f"there is no block {block!r}", f"choose among {named}", "lab", "blocks", place
            )
    known = (*CHEAP, *DEAR)
    for key in ("endpoints", "dear"):
        for place, name in enumerate(getattr(lab, key)):
            if name not in known:
                what, fix = f"there is no endpoint {name!r}", did_you_mean(name, known)
                raise source.refused(what, fix, "lab", key, place)
    check_request(lab.text, source, "lab", "text")
    text = placed_request(lab.text, Path(source.path).parent)
    placed = study.model_copy(update={"lab": lab.model_copy(update={"text": text})})
    placed._source = source
    return placed
