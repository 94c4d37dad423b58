"""A small text that the tests of the lab share: made-up prose, twelve works, nothing of any package."""

from __future__ import annotations

import pytest

from lab_texts import own_text, write_works
from offramp.lab.text.folder import LabText
from offramp.lab.text.make import make_text
from offramp.lab.text.request import TextRequest


@pytest.fixture(scope="session")
def lab_text(tmp_path_factory: pytest.TempPathFactory) -> LabText:
    """A text of the twelve works, with a vocabulary of 300."""
    folder = tmp_path_factory.mktemp("lab")
    request = {"sources": (), "vocabulary": 300, "own": [own_text(write_works(folder / "works"))]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("offramp.lab.text.make.PROBLEMS_APART", 20)
        patch.setattr("offramp.lab.text.make.SEEN_WORKLOADS", ())
        return make_text(TextRequest.model_validate(request), folder / "text")
