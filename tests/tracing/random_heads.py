"""Fitted exit heads with random numbers, for tests of tracing with them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from offramp.models.model import Model
from offramp.tracing.exit_heads import ExitClassifier, ExitHeads, ExitMlp, LinearLens, OutputHeads
from offramp.tracing.fitted_heads import CANDIDATES

FEATURES = {"adainfer": 2, "candidate_score": 3 * CANDIDATES}
HIDDEN_UNITS = {"correctness_network": 6, "gate": 7, "candidate_score": 5}
ALL_FACTS = (
    "adainfer",
    "candidate_score",
    "convergence",
    "correctness",
    "correctness_network",
    "gate",
    "short_correctness",
)


def random_heads(
    model: Model,
    exits: Sequence[int],
    *,
    lens: bool = True,
    mlp_units: int = 0,
    facts: Sequence[str] = ALL_FACTS,
    candidate_exit: int | None = None,
    shortlist: Sequence[int] | None = None,
    features: int | None = None,
    seed: int = 0,
) -> ExitHeads:
    """Heads for a model; features: of a hidden state. mlp_units: of networks behind the lens, if any."""
    generator = np.random.default_rng(seed)
    size = features or model.shape.hidden_size

    def normal(*shape: int) -> np.ndarray:
        return generator.normal(size=(len(exits), *shape)).astype(np.float32)

    def classifier(name: str) -> ExitClassifier:
        widths = [FEATURES.get(name, size), *([HIDDEN_UNITS[name]] if name in HIDDEN_UNITS else []), 1]
        pairs = list(itertools.pairwise(widths))
        return ExitClassifier(
            mean=normal(widths[0]),
            scale=np.exp(normal(widths[0])),
            weights=tuple(normal(*pair) / np.float32(np.sqrt(pair[0])) for pair in pairs),
            biases=tuple(normal(after) for _, after in pairs),
            auroc=np.full(len(exits), 0.5),
            base_rate=np.full(len(exits), 0.5),
            better_than_chance=np.zeros(len(exits), dtype=np.bool_),
        )

    zeros = np.zeros(len(exits))
    return ExitHeads(
        model=base_of(model),
        exits=tuple(exits),
        lens=LinearLens(np.eye(size, dtype=np.float32) + 0.3 * normal(size, size), normal(size), zeros, zeros)
        if lens
        else None,
        classifiers={name: classifier(name) for name in facts},
        shortlist=None if shortlist is None else np.array(shortlist, dtype=np.int32),
        candidate_exit=(candidate_exit or exits[0]) if "candidate_score" in facts else None,
        documents={"a workload": ("document 0", "document 1")},
        mlp=ExitMlp(
            norm=np.exp(normal(size)),
            gate=normal(mlp_units, size),
            up=normal(mlp_units, size),
            down=0.3 * normal(size, mlp_units),
        )
        if mlp_units
        else None,
    )


def random_output_heads(
    model: Model, exits: Sequence[int], *, norm: Any = "rms", bias: bool = True, seed: int = 0
) -> ExitHeads:
    """Heads for a model that bring an output head of its own for every exit; logits of a few units."""
    generator = np.random.default_rng(seed)
    hidden, vocabulary = model.shape.hidden_size, model.shape.vocabulary_size

    def normal(*shape: int) -> np.ndarray:
        return generator.normal(size=(len(exits), *shape)).astype(np.float32)

    own = norm in ("rms", "layer")
    return ExitHeads(
        model=base_of(model),
        exits=tuple(exits),
        lens=None,
        classifiers={},
        shortlist=None,
        candidate_exit=None,
        documents={},
        output=OutputHeads(
            weight=3 * normal(vocabulary, hidden) / np.float32(np.sqrt(hidden)),
            bias=normal(vocabulary) if bias else None,
            norm=norm,
            norm_weight=1 + 0.3 * normal(hidden) if own else None,
            norm_bias=normal(hidden) if norm == "layer" else None,
            epsilon=1e-2 if own else None,
        ),
    )


def output_logits(model: Model, heads: ExitHeads, place: int, hidden: np.ndarray) -> np.ndarray:
    """Logits of one exit's own head by hand in float64, of states [rows, hidden], not yet transformed."""
    output = heads.output
    assert output is not None
    if output.norm == "rms":
        assert output.norm_weight is not None
        assert output.epsilon is not None
        root = np.sqrt((hidden**2).mean(-1, keepdims=True) + output.epsilon)
        normed = hidden / root * output.norm_weight[place].astype(float)
    elif output.norm == "layer":
        assert output.norm_weight is not None
        assert output.epsilon is not None
        centred = hidden - hidden.mean(-1, keepdims=True)
        root = np.sqrt((centred**2).mean(-1, keepdims=True) + output.epsilon)
        normed = centred / root * output.norm_weight[place].astype(float)
        if output.norm_bias is not None:
            normed = normed + output.norm_bias[place]
    elif output.norm == "model":
        normed = model.stack.tail_forward(torch.tensor(hidden).float()).double().numpy()
    else:
        normed = hidden
    z = normed @ output.weight[place].astype(float).T
    return np.asarray(z if output.bias is None else z + output.bias[place])


def base_of(model: Model) -> dict[str, Any]:
    """What heads keep of the model they were fitted on."""
    return {
        "name": model.name,
        "fingerprint": model.identity.fingerprint,
        "dtype": model.dtype,
        "layers": model.layers,
        "hidden_size": model.shape.hidden_size,
        "vocabulary_size": model.shape.vocabulary_size,
    }
