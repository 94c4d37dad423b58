"""A text with works of two kinds in every part, and a model of three layers that learned a little of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab_recipes import tiny
from lab_texts import own_text, sentences
from offramp.lab.text.folder import LabText
from offramp.lab.text.make import make_text
from offramp.lab.text.request import TextRequest
from offramp.lab.training.train import train

WORKS = {
    ("prose", "train"): 8,
    ("prose", "validation"): 8,
    ("prose", "report"): 5,
    ("code", "validation"): 8,
    ("code", "report"): 9,
}


@pytest.fixture(scope="session")
def endpoint_text(tmp_path_factory: pytest.TempPathFactory) -> LabText:
    """Sentences of random words, a file a work, dealt as WORKS says; a vocabulary of 300."""
    folder, seed, own = tmp_path_factory.mktemp("endpoints"), 0, []
    for (kind, part), count in WORKS.items():
        works = folder / f"{part}-{kind}"
        works.mkdir()
        for _ in range(count):
            seed += 1
            (works / f"{seed:02}.txt").write_text(sentences(seed, count=20))
        own.append(own_text(works, kind=kind, part=part))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("offramp.lab.text.make.PROBLEMS_APART", 20)
        patch.setattr("offramp.lab.text.make.SEEN_WORKLOADS", ())
        request = {"sources": (), "vocabulary": 300, "own": own, "generated": 0.1}
        return make_text(TextRequest.model_validate(request), folder / "text")


@pytest.fixture(scope="session")
def endpoint_model(endpoint_text: LabText, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some steps of training; its exits say the same half of the time, and are sure of it now and then."""
    folder = tmp_path_factory.mktemp("endpoints") / "model"
    recipe = tiny(endpoint_text, layers=3, context=64, batch=8, tokens=60 * 512, rate=1e-2, checkpoints=1)
    train(recipe, folder)
    return folder
