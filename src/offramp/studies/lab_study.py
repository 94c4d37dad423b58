"""Study files with a table [lab]: models that the study trains itself, one factor apart, or given ones."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from offramp.files import sha256_of_file
from offramp.lab.sizes import SIZES
from offramp.lab.text.request import TextRequest, check_request, placed_request
from offramp.records.given_file import (
    Count,
    Minutes,
    Positive,
    Source,
    Table,
    Text,
    Whole,
    checked,
    did_you_mean,
)
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
KNOWN, DEPTH = (*CHEAP, *DEAR), "required_depth"
USED_SETTINGS = {"name", "title", "description", "threads", "device", "seed"}
GIVEN_SETTINGS = {*USED_SETTINGS, "dtype"}
GIVEN_KEYS = {"endpoints", "text"}
"""Keys of [lab] where models are given."""


class Lab(Table):
    """The table [lab]: the study of docs/lab/preregistered.md, or a part of it.

    blocks: of the design, in the order of the page. runs: by name, those of the blocks; without it, all.
    size: of the models. rate: the largest learning rate; "pilot" the best of three. tokens: of a run; "pilot"
    the largest of five numbers with which all fits into `minutes`. endpoints: of every kept model. dear: of
    those, besides, that the comparison at matched loss reads. text: as a file of `offramp lab text`.
    """

    hints: ClassVar[Mapping[str, str]] = {
        "tokens": f'write a whole number of 1 or more, or "{PILOT}"',
        "rate": f'write a number above 0, or "{PILOT}"',
    }

    blocks: tuple[Whole | Text, ...] = Field(default=BLOCKS, min_length=1)
    runs: tuple[Text, ...] = ()
    size: Text = "design"
    rate: Positive | Literal["pilot"] = "pilot"
    tokens: Count | Literal["pilot"] = "pilot"
    minutes: Minutes = 360.0
    checkpoints: Annotated[int, Field(strict=True, ge=1, le=32)] = 8
    endpoints: tuple[Text, ...] = Field(default=CHEAP, min_length=1)
    dear: tuple[Text, ...] = DEAR
    text: TextRequest = TextRequest()


class LabStudy(Study):
    """A study that measures the lab's endpoints, of models that it trains itself or of those that are given;
    the other axes mean nothing to it."""

    TOO_LARGE: ClassVar[str] = "measure it on a machine or device with more memory"

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
    def given_endpoints(self) -> tuple[str, ...]:
        """What is measured of models that are given: required depth takes the text's own tokens."""
        asked = "endpoints" in self.lab.model_fields_set
        return self.lab.endpoints if asked else tuple(one for one in KNOWN if one != DEPTH)

    @property
    def threads(self) -> int:
        """Of one training: one, so that as many run side by side as there are cores, unless it is said; of
        models that are given, those of the study."""
        said = "threads" in self.settings.model_fields_set
        return self.settings.threads if said or self.models else 1


def read_lab_study(values: Mapping[str, Any], source: Source) -> LabStudy:
    """The study of a file with a table [lab]; its paths are relative to the file.

    Raises InputError, with the line, for what is wrong.
    """
    study = checked(LabStudy, values, source)
    trained = "models" not in study.model_fields_set
    what = "means nothing in a study that trains its models"
    if not trained:
        what = "means nothing where models are given"
        for name in sorted(study.lab.model_fields_set - GIVEN_KEYS):
            fix = f"remove it, or the models; of [lab] are used: {', '.join(sorted(GIVEN_KEYS))}"
            raise source.refused(f"{name} {what}", fix, "lab", name)
    for name in sorted(study.model_fields_set - {"settings", "lab", "models"}):
        raise source.refused(f"{name} {what}", "remove it; what is measured is said in [lab]", name)
    used = USED_SETTINGS if trained else GIVEN_SETTINGS
    for name in sorted(study.settings.model_fields_set - used):
        fix = f"remove it; of [study] are used: {', '.join(sorted(used))}"
        raise source.refused(f"{name} {what}", fix, "study", name)
    lab = study.lab
    if lab.size not in SIZES:
        raise source.refused(f"there is no size {lab.size!r}", did_you_mean(lab.size, SIZES), "lab", "size")
    for place, block in enumerate(lab.blocks):
        if block not in BLOCKS:
            named = ", ".join(map(repr, BLOCKS))
            raise source.refused(
                f"there is no block {block!r}", f"choose among {named}", "lab", "blocks", place
            )
    for key in ("endpoints", "dear"):
        for place, name in enumerate(getattr(lab, key)):
            if name not in KNOWN:
                what, fix = f"there is no endpoint {name!r}", did_you_mean(name, KNOWN)
                raise source.refused(what, fix, "lab", key, place)
    check_request(lab.text, source, "lab", "text")
    text = placed_request(lab.text, Path(source.path).parent)
    placed = study.model_copy(update={"lab": lab.model_copy(update={"text": text})})
    placed._source = source
    return placed
