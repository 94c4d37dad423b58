"""Families that are said to be unfit for a transform are refused by it."""

from __future__ import annotations

from typing import Any

import pytest
from family_configs import build_family

from offramp.errors import ModelError
from offramp.models.identity import ModelIdentity
from offramp.models.loading import build_model
from offramp.models.transforms.grammar import parse_transform
from offramp.models.transforms.transform import UNFIT, why_unfit

EXAMPLES = {"int8": "int8", "prune": "prune:drop=2"}


class Tokenizer:
    """As much of a tokenizer as loading asks for."""

    bos_token_id = None
    eos_token_id = 2

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        return {"input_ids": [5]}


@pytest.mark.parametrize(("name", "family"), [(name, family) for name in EXAMPLES for family in UNFIT[name]])
def test_what_is_said_to_be_unfit_is_refused(name: str, family: str) -> None:
    hf = build_family(family)
    identity = ModelIdentity("weights", "config", "tokenizer", "source")
    model = build_model(hf, Tokenizer(), name=family, identity=identity, dtype="float32")
    transform = parse_transform(EXAMPLES[name])
    assert why_unfit(transform, hf.config.model_type)
    with pytest.raises(ModelError):
        transform.apply(model)


def test_nothing_is_said_of_other_families() -> None:
    assert why_unfit(parse_transform("int8"), "llama") is None
    assert why_unfit(parse_transform("prune:drop=2"), "gpt2") is None
    assert why_unfit(parse_transform("int8"), None) is None
