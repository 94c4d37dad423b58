"""The small real study that tests of faults share."""

from __future__ import annotations

from pathlib import Path

import pytest

from offramp.studies.folder import StudyFolder


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
