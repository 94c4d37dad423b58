"""Fitted exit heads with random numbers, for tests of tracing with them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch

from offramp.defaults import CANDIDATES
from offramp.heads.exit_heads import ExitHeads
from offramp.heads.parts import Classifier, GatedNetwork, Lens, OwnHead
from offramp.models.model import Model

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
    lens_rank: int | None = None,
    mlp_units: int = 0,
    shared: bool = False,
    facts: Sequence[str] = ALL_FACTS,
    candidate_exit: int | None = None,
    shortlist: Sequence[int] | None = None,
    features: int | None = None,
    seed: int = 0,
) -> ExitHeads:
    """Heads for a model; features: of a hidden state. mlp_units: of networks, if any; shared: of one."""
    generator = np.random.default_rng(seed)
    size = features or model.shape.hidden_size

    def normal(*shape: int) -> np.ndarray:
        return generator.normal(size=(len(exits), *shape)).astype(np.float32)

    def classifier(name: str) -> Classifier:
        widths = [FEATURES.get(name, size), *([HIDDEN_UNITS[name]] if name in HIDDEN_UNITS else []), 1]
        pairs = list(itertools.pairwise(widths))
        return Classifier(
            mean=normal(widths[0]),
            scale=np.exp(normal(widths[0])),
            weights=tuple(normal(*pair) / np.float32(np.sqrt(pair[0])) for pair in pairs),
            biases=tuple(normal(after) for _, after in pairs),
            auroc=np.full(len(exits), 0.5),
            base_rate=np.full(len(exits), 0.5),
            better_than_chance=np.zeros(len(exits), dtype=np.bool_),
        )

    def linear() -> Lens:
        zeros = np.zeros(len(exits))
        if lens_rank is None:
            near = np.eye(size, dtype=np.float32) + 0.3 * normal(size, size)
            return Lens(weight=near, bias=normal(size), explained=zeros, penalty=zeros)
        inward, outward = normal(lens_rank, size), 0.1 * normal(size, lens_rank)
        return Lens(bias=normal(size), inward=inward, outward=outward)

    def network() -> GatedNetwork:
        sizes = ((size,), (mlp_units, size), (mlp_units, size), (size, mlp_units))
        norm, gate, up, down = (normal(*shape)[: 1 if shared else None] for shape in sizes)
        return GatedNetwork(norm=np.exp(norm), gate=gate, up=up, down=np.float32(0.3) * down)

    return ExitHeads(
        model=base_of(model),
        exits=tuple(exits),
        lens=linear() if lens else None,
        classifiers={name: classifier(name) for name in facts},
        shortlist=None if shortlist is None else np.array(shortlist, dtype=np.int32),
        candidate_exit=(candidate_exit or exits[0]) if "candidate_score" in facts else None,
        documents={"a workload": ("document 0", "document 1")},
        mlp=network() if mlp_units else None,
    )


def random_output_heads(
    model: Model,
    exits: Sequence[int],
    *,
    norm: Any = "rms",
    bias: bool = True,
    heads: Literal["own", "one", "the model's"] = "own",
    seed: int = 0,
) -> ExitHeads:
    """Heads for a model that bring an output head for every exit, or one for all; logits of a few units."""
    generator = np.random.default_rng(seed)
    hidden, vocabulary = model.shape.hidden_size, model.shape.vocabulary_size

    def normal(*shape: int) -> np.ndarray:
        return generator.normal(size=(len(exits), *shape)).astype(np.float32)

    own = norm in ("rms", "layer")
    kept = slice(1) if heads == "one" else slice(None)
    return ExitHeads(
        model=base_of(model),
        exits=tuple(exits),
        lens=None,
        classifiers={},
        shortlist=None,
        candidate_exit=None,
        documents={},
        output=OwnHead(
            weight=None
            if heads == "the model's"
            else 3 * normal(vocabulary, hidden)[kept] / np.float32(np.sqrt(hidden)),
            bias=normal(vocabulary)[kept] if bias and heads != "the model's" else None,
            norm=norm,
            norm_weight=1 + 0.3 * normal(hidden) if own else None,
            norm_bias=normal(hidden) if norm == "layer" else None,
            epsilon=1e-2 if own else None,
        ),
    )


def random_form(model: Model, exits: Sequence[int], form: str) -> ExitHeads:
    """Heads of one of FORMS."""
    lens, output = FORMS[form]
    heads = random_heads(model, exits, facts=(), **({"lens": False} | lens))
    if output is None:
        return heads
    return dataclasses.replace(heads, output=random_output_heads(model, exits, **output).output)


FORMS: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "lens of low rank": ({"lens": True, "lens_rank": 3}, None),
    "network alone": ({"mlp_units": 5}, None),
    "lenses and one network": ({"lens": True, "mlp_units": 5, "shared": True}, None),
    "norms alone": ({}, {"norm": "rms", "heads": "the model's"}),
    "one head for all": ({}, {"norm": "layer", "heads": "one"}),
    "one after the other": ({"lens": True, "lens_rank": 3, "mlp_units": 5}, {"norm": "rms", "bias": False}),
}
"""Ways to read exits: of `random_heads`, and of `random_output_heads` if they bring norms or output heads."""


def seen_by_hand(heads: ExitHeads, place: int, hidden: np.ndarray) -> np.ndarray:
    """What the norm of one exit is given, by hand in float64, of states [rows, hidden]."""
    x = hidden
    if heads.lens is not None:
        if heads.lens.weight is None:
            assert heads.lens.inward is not None
            assert heads.lens.outward is not None
            change = heads.lens.outward[place].astype(float) @ heads.lens.inward[place].astype(float)
            weight = np.eye(len(change)) + change
        else:
            weight = heads.lens.weight[place].astype(float)
        x = x @ weight.T + heads.lens.bias[place].astype(float)
    if heads.mlp is None:
        return x
    norm, gate, up, down = (
        getattr(heads.mlp, name)[0 if len(heads.mlp.gate) == 1 else place].astype(float)
        for name in ("norm", "gate", "up", "down")
    )
    n = norm * x / np.sqrt((x * x).mean(-1, keepdims=True) + heads.mlp.epsilon)
    inner = n @ gate.T
    return np.asarray(x + (inner / (1.0 + np.exp(-inner)) * (n @ up.T)) @ down.T)


def output_logits(model: Model, heads: ExitHeads, place: int, hidden: np.ndarray) -> np.ndarray:
    """Logits of one exit by hand in float64, of states [rows, hidden], not yet transformed."""
    output, hidden = heads.output, seen_by_hand(heads, place, hidden)
    if output is None:
        output = OwnHead()
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
    if output.weight is None:
        weight, bias = model.stack.head_weight, model.stack.head_bias
        assert weight is not None
        z = normed @ weight.double().numpy().T
        return np.asarray(z if bias is None else z + bias.double().numpy())
    shared = 0 if len(output.weight) == 1 else place
    z = normed @ output.weight[shared].astype(float).T
    return np.asarray(z if output.bias is None else z + output.bias[shared])


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
