"""How a row was traced: from the recipe of a study's trace and from a run's summary, if they say it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from study_cases import StudyCase

from offramp.models.shape import ModelShape
from offramp.studies.comparison.study_rows import TRACE, StudyReader
from offramp.tracing.manifest import Manifest, write_manifest

RECIPE = {"dtype": "bfloat16", "context": 128, "document_tokens": 32, "exits": "all", "tokens": 480}
DEFAULT = {**RECIPE, "context": None, "document_tokens": None}


def read_settings(
    case: StudyCase, recipe: Mapping[str, Any], *, context: int | None = None
) -> dict[str, Any]:
    """Of a study's only trace. context: of the trace that its task left, None if it left none."""
    task = case.add(None, case.task("trace", recipe))
    folder = case.folder.start(task)
    if context is not None:
        (folder / TRACE).mkdir()
        shape = ModelShape((), 8, 16, 8, 128, 4)
        manifest = Manifest({"context": context}, "", (), shape, (), (), 0, (), ())
        write_manifest(folder / TRACE, manifest, seconds=None)
    case.folder.finish(task, 1.0)
    case.write()
    return StudyReader(case.folder).traced_settings(task)


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StudyCase:
    return StudyCase(tmp_path / "made-up", monkeypatch)


def test_a_study_says_how_it_traced(empty: StudyCase) -> None:
    found = read_settings(empty, RECIPE, context=64)
    assert found == {"dtype": "bfloat16", "context": 128, "document_tokens": 32}


@pytest.mark.parametrize(("kept", "expected"), [(None, 512), (512, 512), (256, 256)])
def test_a_default_context_is_that_of_the_trace(empty: StudyCase, kept: int | None, expected: int) -> None:
    """As a run's summary has it, so that both can be compared; 512 is the default where no trace is kept."""
    found = read_settings(empty, DEFAULT, context=kept)
    assert found == {"dtype": "bfloat16", "context": expected, "document_tokens": None}


def test_what_a_recipe_does_not_say_is_not_known(empty: StudyCase) -> None:
    assert read_settings(empty, {"dtype": "float32"}) == {"dtype": "float32"}
