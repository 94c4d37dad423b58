"""A finished study for the tests of this folder."""

from __future__ import annotations

import pytest
from study_cases import StudyCase, whole_study


@pytest.fixture(scope="session")
def case(tmp_path_factory: pytest.TempPathFactory) -> StudyCase:
    """Tests that change its folder copy it first."""
    with pytest.MonkeyPatch.context() as patch:
        return whole_study(tmp_path_factory.mktemp("study") / "made-up", patch)
