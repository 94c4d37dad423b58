"""Examples in the docstrings of public names run, on a tiny model."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

import offramp

OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
WITH_EXAMPLES = tuple(name for name in offramp.__all__ if ">>>" in (getattr(offramp, name).__doc__ or ""))


@pytest.fixture(scope="module")
def names(tiny_model: Path) -> dict[str, object]:
    """What an example may use."""
    model = offramp.load_model(str(tiny_model))
    trace = offramp.trace(model, "prose:short", tokens=400)
    return {
        "offramp": offramp,
        "model": model,
        "hf_model": model.hf,
        "tokenizer": model.tokenizer,
        "trace": trace,
    }


def test_what_people_begin_with_has_an_example() -> None:
    assert {"trace", "score", "replay", "generate", "rerun", "wrap", "workload_of"} <= set(WITH_EXAMPLES)


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_example_of_a_public_name_runs(name: str, names: dict[str, object]) -> None:
    (found,) = doctest.DocTestFinder(recurse=False).find(getattr(offramp, name), name, globs=dict(names))
    told: list[str] = []
    failed, _ = doctest.DocTestRunner(optionflags=OPTIONS).run(found, out=told.append)
    assert not failed, "".join(told)
