"""Factors and corners after the same tokens, where the registered analysis compares at one loss."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from offramp_lab.effects import main_effects, tells_apart
from offramp_lab.families import MATCHED
from offramp_lab.runs import CORNERS, Study, make_block, signs_of


def equal_tokens(study: Study) -> pd.DataFrame:
    """Exploratory, not registered: the factors and the corners after the same tokens, by no p-value.

    Columns `name`, `endpoint`, `tokens`, `cells`, `value`, `low` and `high`: 95 % by the error of a seed.
    Empty where cells are missing, or their runs ended after different numbers of tokens.
    """
    columns = ["name", "endpoint", "tokens", "cells", "value", "low", "high"]
    block = make_block(study, study.of("1", "2"), MATCHED)
    if block is None or not np.isfinite(block.after).all() or not tells_apart(signs_of(block.runs)):
        return pd.DataFrame(columns=columns)
    effects = main_effects(replace(block, matched=block.after), permutations=1)
    cells = len(np.unique(signs_of(block.runs), axis=0))
    compared = effects["family"].map({"1": cells, "corners": len(CORNERS)})
    tokens = int(block.runs["tokens"].iloc[0])
    return effects.assign(tokens=tokens, cells=compared)[columns]
