"""A small text and a small model that the tests share: made-up prose, nothing of any package."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from lab_worlds import own_text, sentences, tiny

from offramp_lab import family, text, train
from offramp_lab.text import LabText, TextRequest, make_text
from tiny_models import write_llama

os.environ.setdefault("HF_HUB_OFFLINE", "1")

WORKS = {
    ("prose", "train"): 8,
    ("prose", "validation"): 8,
    ("prose", "report"): 5,
    ("code", "validation"): 8,
    ("code", "report"): 9,
}


@pytest.fixture(scope="session", autouse=True)
def known_family() -> None:
    """As offramp makes it known by itself where the lab is installed."""
    family.register()


@pytest.fixture(scope="session")
def lab_text(tmp_path_factory: pytest.TempPathFactory) -> LabText:
    """Sentences of random words, a file a work, of two kinds in every part; a vocabulary of 300."""
    folder, seed, own = tmp_path_factory.mktemp("lab"), 0, []
    for (kind, part), count in WORKS.items():
        works = folder / f"{part}-{kind}"
        works.mkdir()
        for _ in range(count):
            seed += 1
            (works / f"{seed:02}.txt").write_text(sentences(seed, count=20))
        own.append(own_text(works, kind=kind, part=part))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "PROBLEMS_APART", 20)
        patch.setattr(text, "documents_seen", lambda documents: {"a workload": ("a document",)})
        request = {"sources": (), "vocabulary": 300, "own": own}
        return make_text(TextRequest.model_validate(request), folder / "text")


@pytest.fixture(scope="session")
def lab_model(lab_text: LabText, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three layers that learned a little; exits say the same half of the time, and are sure now and then."""
    folder = tmp_path_factory.mktemp("models") / "model"
    recipe = tiny(layers=3, context=64, batch=8, tokens=60 * 512, rate=1e-2, checkpoints=1)
    train.train(recipe, lab_text, folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Llama of 4 layers, of another tokenizer."""
    return write_llama(tmp_path_factory.mktemp("others") / "tiny")
