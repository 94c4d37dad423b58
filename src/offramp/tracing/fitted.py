"""Fitted exit heads in a trace: which place of the file each traced exit has, and what it gives there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offramp.errors import InputError
from offramp.models.model import Model
from offramp.tracing.exit_heads import ExitHeads
from offramp.tracing.facts import HEAD_FACTS
from offramp.tracing.features import CANDIDATES, apply_lens, classifier_probability

HIDDEN_STATE_FACTS = ("convergence", "correctness", "correctness_network", "short_correctness")
"""Facts whose classifier looks at the hidden state as the layer gave it."""


def describe_base(model: Model) -> dict[str, Any]:
    """What heads keep of the model that they belong to (`ExitHeads.model`)."""
    return {
        "name": model.shown_name,
        "fingerprint": model.identity.fingerprint,
        "dtype": model.dtype,
        "layers": model.layers,
        "hidden_size": model.shape.hidden_size,
        "vocabulary_size": model.shape.vocabulary_size,
    }


def _refused(why: str) -> InputError:
    fix = "fit heads of this model: offramp heads fit MODEL --workload W -o FILE"
    return InputError(f"the exit heads cannot be used: {why}", where="--heads", fix=fix)


@dataclass(frozen=True)
class FittedHeads:
    """The heads of some traced exits.

    places: of each exit below L on the first axis of the heads' arrays; of no meaning if these hold K,V maps
    alone.
    """

    heads: ExitHeads
    places: tuple[int, ...]
    candidate_index: int | None

    @classmethod
    def of(cls, heads: ExitHeads, exits: Sequence[int]) -> FittedHeads:
        """Heads for these exits, the last of which is L.

        Raises InputError for an exit that the heads were not fitted at, a candidate exit that is left out, a
        fact that is not known, and arrays that are not whole.
        """
        _require_whole(heads)
        below = exits[:-1]
        if heads.holds_maps_alone:
            return cls(heads, (0,) * len(below), None)
        missing = [exit for exit in below if exit not in heads.exits]
        if missing:
            raise InputError(
                f"the heads were not fitted at exit {missing[0]}; they have: "
                + ", ".join(str(exit) for exit in heads.exits),
                where="--heads",
                fix="trace their exits only: --exits " + ",".join(str(exit) for exit in heads.exits),
            )
        candidate = heads.candidate_exit if "candidate_score" in heads.classifiers else None
        if candidate is not None and candidate not in below:
            raise InputError(
                f"the heads take their candidate tokens from exit {candidate}, which is not traced",
                where="--exits",
                fix=f"add {candidate} to --exits",
            )
        places = tuple(heads.exits.index(exit) for exit in below)
        return cls(heads, places, None if candidate is None else list(below).index(candidate))

    @property
    def shortlist(self) -> Tensor | None:
        """Tokens of the restricted vocabulary, int64, ascending; None for the first ones."""
        shortlist = self.heads.shortlist
        return None if shortlist is None else torch.from_numpy(np.unique(shortlist).astype(np.int64))

    def require_sizes(self, features: int, vocabulary_size: int) -> None:
        """Raise InputError unless the heads fit hidden states of so many features and this vocabulary."""
        candidates = min(CANDIDATES, vocabulary_size)
        given = {
            "adainfer": 2,
            "candidate_score": 3 * candidates,
            **dict.fromkeys(self.hidden_facts, features),
        }
        sizes = {name: classifier.mean.shape[-1] for name, classifier in self.heads.classifiers.items()}
        if self.heads.lens is not None:
            given["lens"], sizes["lens"] = features, self.heads.lens.weight.shape[-1]
        if self.heads.kv_maps is not None:
            maps = next(iter(self.heads.kv_maps.maps.values()))
            given["K,V maps"], sizes["K,V maps"] = features, len(maps.centre)
        if self.heads.output is not None:
            _, tokens, sizes["output head"] = self.heads.output.weight.shape
            given["output head"] = features
            if tokens != vocabulary_size:
                raise _refused(
                    f"their output heads are of {tokens:,} tokens, and this model of {vocabulary_size:,}"
                )
        for name, size in sizes.items():
            if size != given[name]:
                raise _refused(f"{name} takes {size} numbers per token, and this model gives {given[name]}")
        shortlist = self.heads.shortlist
        if shortlist is not None and not ((shortlist >= 0) & (shortlist < vocabulary_size)).all():
            raise _refused(f"its short list names tokens beyond the {vocabulary_size:,} of this model")

    @property
    def hidden_facts(self) -> tuple[str, ...]:
        """The facts of classifiers of hidden states that the heads give."""
        return tuple(name for name in HIDDEN_STATE_FACTS if name in self.heads.classifiers)

    def seen_by_head(self, index: int, states: Tensor) -> Tensor:
        """States of one exit through the lens, in their own dtype; those of exit L as they are."""
        if self.heads.lens is None or index == len(self.places):
            return states
        return apply_lens(self.heads.lens, self.places[index], states).to(states.dtype)

    def probability(self, name: str, index: int, features: Tensor) -> Tensor:
        """What one classifier says at one exit below L: float32 [rows] of features [rows, features]."""
        return classifier_probability(self.heads.classifiers[name], self.places[index], features)

    def hidden_probabilities(self, index: int, states: Tensor) -> dict[str, Tensor | float]:
        """Facts of the hidden states [rows, features] of one exit; 1 at exit L."""
        if index == len(self.places):
            return dict.fromkeys(self.hidden_facts, 1.0)
        return {name: self.probability(name, index, states) for name in self.hidden_facts}


def _require_whole(heads: ExitHeads) -> None:
    unknown = sorted(set(heads.classifiers) - {fact.name for fact in HEAD_FACTS})
    if unknown:
        raise _refused(f"they give a fact that is not known: {unknown[0]}")
    for name, array in replace(heads, kv_maps=None).arrays().items():
        if name == "shortlist" or name.startswith("texts."):  # of no exit
            continue
        if len(array) != len(heads.exits):
            raise _refused(f"{name} is of {len(array)} exits, not of {len(heads.exits)}")
        if not name.endswith(".auroc") and not np.isfinite(array).all():
            raise _refused(f"{name} holds a number that is not finite")
