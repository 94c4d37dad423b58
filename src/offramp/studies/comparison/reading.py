"""From folders to a comparison: what each holds, whether it may be compared, and the statistics over all."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from offramp.errors import DamagedFileError, InputError
from offramp.files import read_sealed_json
from offramp.studies.comparison.citation import cited
from offramp.studies.comparison.equality import (
    per_byte_notes,
    require_equal,
    with_shared_names,
    without_twins,
)
from offramp.studies.comparison.results import Comparison
from offramp.studies.comparison.savings import trained_savings, validity_of
from offramp.studies.comparison.study_reading import DAMAGED, read_study_folder
from offramp.studies.folder import PLAN, StudyFolder

SUMMARY = "summary.json"
"""What a finished run leaves beside what any study does."""

TITLE = "Models compared"
"""Of a comparison of several folders."""


def read_comparison(folders: Sequence[str | Path], *, mixed: bool = False) -> Comparison:
    """Compare what folders of studies and of `offramp run` hold.

    mixed: whether to compare different texts, token counts or ways of tracing under one name, and say so.

    Raises InputError for a folder that is neither, folders without a finished score, what may not be compared
    (see `offramp.studies.comparison.equality`); DamagedFileError where a file, or every score, was changed.
    """
    if not folders:
        raise InputError(
            "there is nothing to compare: no folder is given",
            where="folders=",
            fix="give folders of offramp study run and offramp run",
        )
    contents = with_shared_names([read_folder(Path(folder)) for folder in folders])
    rows = without_twins(row for content in contents for row in content.rows)
    failures = {cell: why for content in contents for cell, why in content.failures.items()}
    if not rows:
        changed = any(why.endswith(DAMAGED) for why in failures.values())
        raise (DamagedFileError if changed else InputError)(
            f"there is nothing to compare: no score is finished{_first_failure(failures)}",
            where=", ".join(str(folder) for folder in folders),
            fix="give the command again that does what is missing or damaged: "
            + "; ".join(dict.fromkeys(StudyFolder(Path(folder)).command() for folder in folders)),
        )
    unequal = require_equal(rows, mixed=mixed)
    strategies = tuple(dict.fromkeys(strategy for content in contents for strategy in content.strategies))
    together = Comparison(TITLE, "", (), provenance=_provenance(contents))
    return cited(
        dataclasses.replace(
            contents[0] if len(contents) == 1 else together,
            rows=rows,
            strategies=strategies,
            trained=tuple(trained_savings(rows, strategies)),
            validity=validity_of(rows),
            combined=tuple(combined for content in contents for combined in content.combined),
            loads=tuple(load for content in contents for load in content.loads),
            failures=failures,
            notes=(
                *unequal,
                *(note for content in contents for note in content.notes),
                *per_byte_notes(rows),
            ),
        )
    )


def read_folder(path: Path) -> Comparison:
    """What one folder holds. Raises InputError if it is that of neither a study nor a run of this offramp."""
    summary = path / SUMMARY
    if summary.is_file():
        if not (path / PLAN).is_file() and not StudyFolder(path).journal.read().events:
            raise InputError(
                "the run was made by an older offramp, and is not compared with others",
                where=str(path),
                fix="run the same command again with this offramp, into another folder or with --overwrite",
            )
        read_sealed_json(summary, _damaged)  # nothing of it is used, but it may be read beside
    return read_study_folder(path)


def _damaged(path: Path, why: str) -> DamagedFileError:
    return DamagedFileError(
        f"the summary of the run is not what offramp writes ({why})",
        where=str(path),
        fix="run the same command again: offramp run",
    )


def _first_failure(failures: Mapping[str, str]) -> str:
    for cell, why in failures.items():
        return f" ({cell}: {why})"
    return ""


def _provenance(contents: Sequence[Comparison]) -> dict[str, Any]:
    """Of several folders, by their titles."""
    provenance: dict[str, Any] = {}
    for content in contents:
        name = (
            content.title if content.title not in provenance else f"{content.title} ({len(provenance) + 1})"
        )
        provenance[name] = dict(content.provenance)
    return provenance
