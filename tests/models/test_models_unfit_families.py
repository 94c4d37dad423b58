"""Families that are said to be unfit for a transform are refused by it."""

from __future__ import annotations

import pytest
from family_configs import model_of

from offramp.errors import ModelError
from offramp.models.transforms.grammar import parse_transform
from offramp.models.transforms.transform import UNFIT, why_unfit

EXAMPLES = {"int8": "int8", "prune": "prune:drop=2"}


@pytest.mark.parametrize(("name", "family"), [(name, family) for name in EXAMPLES for family in UNFIT[name]])
def test_what_is_said_to_be_unfit_is_refused(name: str, family: str) -> None:
    model = model_of(family)
    transform = parse_transform(EXAMPLES[name])
    assert why_unfit(transform, model.hf.config.model_type)
    with pytest.raises(ModelError):
        transform.apply(model)


def test_nothing_is_said_of_other_families() -> None:
    assert why_unfit(parse_transform("int8"), "llama") is None
    assert why_unfit(parse_transform("prune:drop=2"), "gpt2") is None
    assert why_unfit(parse_transform("int8"), None) is None
