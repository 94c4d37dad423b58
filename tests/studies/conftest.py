"""A study's folder, and the small real study that tests of faults share."""

from __future__ import annotations

from pathlib import Path

import pytest

from offramp.studies.folder import StudyFolder


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    """A study's folder, in which nothing is made yet."""
    return StudyFolder(tmp_path / "study")


@pytest.fixture
def made(folder: StudyFolder) -> None:
    """The study's folder is there."""
    folder.path.mkdir()


@pytest.fixture(scope="session")
def fault_study(tiny_model: Path, documents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study file. Tests that edit it write their own."""
    from fault_studies import write_study

    return write_study(tmp_path_factory.mktemp("files") / "STUDY.toml", tiny_model, documents)


@pytest.fixture(scope="session")
def undisturbed(fault_study: Path, tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    """The study, finished. Tests that change it copy it first."""
    from fault_studies import plan_into, run_jobs

    folder = StudyFolder(tmp_path_factory.mktemp("studies") / "undisturbed")
    assert run_jobs(folder, plan_into(fault_study, folder)) == []
    return folder
