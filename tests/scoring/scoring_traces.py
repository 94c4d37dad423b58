"""Small synthetic traces for the scoring tests: from given facts, or from logits by a slow reference."""

from __future__ import annotations

import numpy as np
from scipy.special import log_softmax

from offramp.models.shape import LayerShape, ModelShape
from offramp.tracing.facts import FACTS
from offramp.tracing.sealed_parts import MARGINAL_BLOCKS
from offramp.tracing.trace import Marginal, Trace

HEAD_PARAMETERS = 3


def model_shape(layers: int, sizes: tuple[int, ...] | None = None) -> ModelShape:
    """Layers without attention: FLOPs = 2 x size at every position. The head has 3 parameters, no norm."""
    sizes = (1,) * layers if sizes is None else sizes
    return ModelShape(
        layers=tuple(LayerShape("recurrent", size, size, 0, 0, 0, None, 0) for size in sizes),
        hidden_size=1,
        vocabulary_size=3,
        tail_parameters=0,
        head_parameters=HEAD_PARAMETERS,
        element_bytes=4,
    )


def marginal_of(probabilities, document, blocks=MARGINAL_BLOCKS) -> Marginal:
    """probabilities [tokens, V] of the full model; document i belongs to block i % blocks."""
    documents = int(document.max()) + 1
    block_of_document = np.arange(documents) % blocks
    block = block_of_document[document]
    sums = np.zeros((blocks, probabilities.shape[1]))
    np.add.at(sums, block, probabilities)
    return Marginal(sums, np.bincount(block, minlength=blocks), block_of_document)


def one_hot_marginal(document) -> Marginal:
    """Half of the tokens certain of one word, half of another: R_0 = ln 2 with zero entropy (even counts)."""
    choice = np.arange(len(document)) % 2
    return marginal_of(np.eye(2)[choice], document)


def facts_trace(
    given, *, document, exits=None, layers=None, next_token=None, marginal=None, sizes=None
) -> Trace:
    """A trace with the given facts [tokens, exits]; "agreement" gives top1; all other facts are 0."""
    given = dict(given)
    shape = np.shape(next(iter(given.values())))
    if "agreement" in given:
        agreement = np.array(given.pop("agreement"), dtype=bool)
        given["top1"] = np.where(agreement, 1, 2)
        given["final_rank"] = np.where(agreement, 0, 1)
    facts = {fact.name: np.zeros(shape, dtype=fact.dtype) for fact in FACTS}
    facts.update({name: np.asarray(values).astype(facts[name].dtype) for name, values in given.items()})
    document = np.asarray(document, dtype=np.int32)
    layers = layers or (shape[1] if exits is None else int(exits[-1]))
    trace = Trace.from_facts(
        facts,
        document=document,
        shape=model_shape(layers, sizes),
        exits=None if exits is None else np.asarray(exits),
        marginal=one_hot_marginal(document) if marginal is None else marginal,
    )
    if next_token is not None:
        trace.next_token = np.asarray(next_token, dtype=np.int32)
    return trace


def cosine(left, right):
    return np.sum(left * right, axis=-1) / (np.linalg.norm(left, axis=-1) * np.linalg.norm(right, axis=-1))


def logits_trace(logits, *, document, hidden=None, seed=0) -> Trace:
    """Every fact of logits [tokens, exits, V], computed plainly in float64. hidden [tokens, exits, d]."""
    generator = np.random.default_rng(seed)
    logits = np.asarray(logits, dtype=np.float64)
    hidden = logits if hidden is None else hidden
    tokens, _, vocabulary = logits.shape
    log_p = log_softmax(logits, axis=-1)
    p = np.exp(log_p)
    final = log_p[:, -1:]
    next_token = generator.integers(0, vocabulary, tokens)
    top1 = logits.argmax(-1)
    winner = top1[:, -1]
    ordered = np.sort(p, axis=-1)
    centred = logits - logits.mean(-1, keepdims=True)
    previous = np.concatenate([hidden[:, :1], hidden[:, :-1]], axis=1)
    winner_logit = np.take_along_axis(logits, winner[:, None, None], axis=-1)
    given = {
        "top1": top1,
        "max_prob": ordered[..., -1],
        "margin": ordered[..., -1] - ordered[..., -2],
        "entropy": -(p * log_p).sum(-1),
        "kl_to_final": (np.exp(final) * (final - log_p)).sum(-1),
        "nll": -np.take_along_axis(log_p, next_token[:, None, None], axis=-1)[..., 0],
        "final_rank": (logits > winner_logit).sum(-1),
        "final_logprob": np.take_along_axis(log_p, winner[:, None, None], axis=-1)[..., 0],
        "logit_cosine": cosine(logits, logits[:, -1:]),
        "centred_logit_cosine": cosine(centred, centred[:, -1:]),
        "shuffled_logit_cosine": cosine(logits, np.roll(logits[:, -1:], 1, axis=0)),
        "hidden_cosine_to_final": cosine(hidden, hidden[:, -1:]),
        "hidden_cosine_to_previous": cosine(hidden, previous),
        "update_norm": np.linalg.norm(hidden - previous, axis=-1) / np.linalg.norm(previous, axis=-1),
    }
    document = np.asarray(document)
    return facts_trace(
        given, document=document, next_token=next_token, marginal=marginal_of(p[:, -1], document)
    )
