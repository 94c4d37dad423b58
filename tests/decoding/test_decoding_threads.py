"""Threads that measure and decode with one model take turns: each gets what it gets alone."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tracing_models import llama, tiny_model

import offramp
from offramp.models.model import Model

EXIT = "static:exit=2"
PATIENCE = 120.0


def fresh() -> Model:
    return tiny_model(llama(num_hidden_layers=4), head_scale=3.0)


def traced(model: Model, **options: Any) -> Any:
    texts = [" ".join(str((7 * text + 3 * place) % 50 + 5) for place in range(40)) for text in range(4)]
    return offramp.trace(model, offramp.workload_of(texts), tokens=100, **options).top1.tolist()


def generated(model: Model) -> Any:
    return offramp.generate(model, [5, 6, 7, 8], policy=EXIT, max_new_tokens=12).tokens


def generated_by_transformers(model: Model) -> Any:
    early = offramp.early_exit(EXIT)
    ids = torch.tensor([[5, 6, 7, 8]])
    return model.hf.generate(ids, custom_generate=early, max_new_tokens=12, do_sample=False).tolist()


def wrapped(model: Model) -> Any:
    return offramp.wrap(model.hf, model.tokenizer).shape


OPERATIONS: tuple[Callable[[Model], Any], ...] = (traced, generated, generated_by_transformers, wrapped)


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """What each call gives, or raises, in a thread of its own."""
    found: list[Any] = [None] * len(calls)
    start = threading.Barrier(len(calls))

    def run(place: int) -> None:
        start.wait()
        try:
            found[place] = calls[place]()
        except Exception as error:  # noqa: BLE001 - what it raises is compared
            found[place] = error

    threads = [threading.Thread(target=run, args=(place,), daemon=True) for place in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive(), "it waits for ever"
    return found


@pytest.mark.parametrize("pair", list(itertools.combinations_with_replacement(OPERATIONS, 2)))
def test_two_threads_get_what_each_gets_alone(pair: tuple[Callable[[Model], Any], ...]) -> None:
    expected, model = [operation(fresh()) for operation in pair], fresh()
    for _ in range(2):
        assert at_once(*(lambda run=operation: run(model) for operation in pair)) == expected
    assert not any(module._forward_hooks for module in model.hf.modules())


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_thread_waits_while_another_measures(operation: Callable[[Model], Any]) -> None:
    model, expected = fresh(), operation(fresh())
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(operation(model)), daemon=True)
    with model.evaluating():
        thread.start()
        thread.join(0.5)
        assert thread.is_alive()
        assert not found
    thread.join(PATIENCE)
    assert found == [expected]


def test_models_that_are_each_others_reference_do_not_wait_for_ever() -> None:
    first, second = fresh(), tiny_model(llama(num_hidden_layers=4, initializer_range=0.3), name="other")
    for _ in range(2):
        found = at_once(lambda: traced(first, reference=second), lambda: traced(second, reference=first))
        assert found == [traced(first), traced(second)]
