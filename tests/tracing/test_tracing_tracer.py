"""What is traced: exits, tokens, contexts; and that the model is left as it was."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tracing_models import (
    NumberTokenizer,
    build_family,
    llama,
    tiny_llama,
    tiny_model,
    workload_of,
)

from offramp.errors import InputError, WorkloadError
from offramp.heads.statistics import can_compile, choose_reductions
from offramp.models.model import Model
from offramp.tracing import progress
from offramp.tracing.facts import FACTS
from offramp.tracing.request import parse_exits
from offramp.tracing.trace import Trace
from offramp.tracing.tracer import trace

LENGTHS = (14, 9, 20, 14)


def run(model: Model | None = None, **options: Any) -> Trace:
    settings = {"tokens": 500, "context": 30, "progress": False} | options
    work = settings.pop("workload", None) or workload_of(lengths=LENGTHS)
    return trace(model or tiny_llama(), work, **settings)


# -- tokens


@pytest.mark.parametrize("options", [{"tokens": 10}, {"tokens": 40, "document_tokens": 10}], ids=str)
def test_of_a_long_text_as_many_tokens_are_traced_as_are_asked_for(options: dict[str, Any]) -> None:
    """Though no more than its start is encoded, which holds one token more: that of the last row's next."""
    found = run(workload=workload_of("5 6 7 " * 20_000), **options)
    assert found.token_count == 10
    assert found.next_token[-1] == found.token[1]


# -- exits


@pytest.mark.parametrize(
    ("exits", "expected"),
    [("all", (1, 2, 3)), ("1", (1, 3)), ("3", (3,)), ("2, 1", (1, 2, 3)), ("1+2", (1, 2, 3)), ([2], (2, 3))],
)
def test_exits_are_layers_and_the_last_is_always_there(exits: Any, expected: tuple[int, ...]) -> None:
    assert parse_exits(exits, 3) == expected


@pytest.mark.parametrize(
    "exits",
    ["0", "4", "1,9", "", "one", "1,", "-1", "²", "9" * 5000, [], [0], [5], [1.9], ["1"], 3, [10**400]],
)
def test_exits_that_are_not_there_are_refused(exits: Any) -> None:
    with pytest.raises(InputError) as caught:
        parse_exits(exits, 3)
    assert caught.value.where == "exits= (--exits)"


@pytest.mark.parametrize("exits", ["1", "2", "3", [1, 2]])
def test_a_subset_of_exits_gives_the_same_columns(exits: Any) -> None:
    whole, some = run(), run(exits=exits)
    columns = some.exits - 1
    assert whole.exits.tolist() == [1, 2, 3]
    for fact in FACTS:
        assert np.array_equal(some.fact(fact.name), whole.fact(fact.name)[:, columns]), fact.name


# -- tokens and contexts


def test_token_columns_say_what_the_model_saw() -> None:
    model = tiny_model(llama(bos_token_id=1), head_scale=3.0, tokenizer=NumberTokenizer(bos=1))
    found = run(model, workload=workload_of("5 6 7 8 9 10 11", "12 13 14"), context=4, document_tokens=6)
    assert found.token.tolist() == [5, 6, 7, 8, 9, 10, 12, 13]
    assert found.next_token.tolist() == [6, 7, 8, 9, 10, 11, 13, 14]
    assert found.position.tolist() == [1, 2, 3, 1, 2, 3, 1, 2]
    assert found.document.tolist() == [0] * 6 + [1] * 2
    assert not found.generated.any()
    assert [document.tokens for document in found.documents] == [6, 2]


def test_fewer_tokens_than_asked_for_are_all_traced_and_noted() -> None:
    found = run(tokens=1000)
    assert found.token_count == sum(LENGTHS) - len(LENGTHS)
    assert found.provenance["notes"] == ["53 tokens were traced; 1,000 were asked for and there are no more"]
    assert run(tokens=53).provenance["notes"] == []


def test_documents_without_a_row_are_noted() -> None:
    found = run(workload=workload_of("5", "6 7 8"))
    assert [document.id for document in found.documents] == ["document 1"]
    assert any("document 0" in note for note in found.provenance["notes"])
    with pytest.raises(WorkloadError):
        run(workload=workload_of("5", ""))


def test_a_context_longer_than_the_models_is_refused_and_the_default_is_not_longer() -> None:
    with pytest.raises(InputError, match="a context of 97 tokens is longer than the model's 96") as caught:
        run(context=97)
    assert "--context 96" in caught.value.fix
    assert trace(tiny_llama(), workload_of(lengths=(9,)), tokens=5).provenance["request"]["context"] == 96
    long = tiny_model(llama(max_position_embeddings=4096))
    assert trace(long, workload_of(lengths=(9,)), tokens=5).provenance["request"]["context"] == 512


def test_a_compiler_that_fails_is_said_and_done_without(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*arguments: Any) -> Any:
        raise RuntimeError("\nfatal error: Python.h: No such file or directory")

    monkeypatch.setattr(torch, "compile", lambda function: fails)
    can_compile.cache_clear()
    assert choose_reductions(10**12) == "eager"
    can_compile.cache_clear()
    assert "not compiled, which is slower: fatal error: Python.h" in capsys.readouterr().err


def test_progress_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    run(progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "- numbers: tracing: 0/53 tokens" in captured.err
    run()
    assert capsys.readouterr().err == ""


# -- the model is left as it was


def fingerprint(hf: Any) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(hf.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def hooks_of(hf: Any) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in hf.modules())


@pytest.mark.parametrize("family", ["llama", "gemma3n_text"])
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_has_no_hooks_left_and_the_same_weights(
    family: str, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(build_family(family), head_scale=3.0)
    before, attributes = fingerprint(model.hf), [set(vars(module)) for module in model.hf.modules()]
    assert hooks_of(model.hf) == 0
    if fails:
        monkeypatch.setattr("offramp.tracing.group_measurer._put_layer_facts", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(model)
    else:
        run(model)
    assert hooks_of(model.hf) == 0
    assert fingerprint(model.hf) == before
    assert [set(vars(module)) for module in model.hf.modules()] == attributes
    assert all(not parameter.requires_grad for parameter in model.hf.parameters())


def test_every_layer_runs_exactly_once_per_context() -> None:
    """Counted in tokens by hooks of our own: contexts of one length may share a forward pass."""
    model = tiny_model(llama(), head_scale=3.0)
    seen: list[list[int]] = [[] for _ in model.hf.model.layers]
    heads: list[int] = []

    def counter(place: list[int]) -> Any:
        return lambda module, arguments, output: place.append(arguments[0].shape[0] * arguments[0].shape[1])

    handles = [
        layer.register_forward_hook(counter(place))
        for layer, place in zip(model.hf.model.layers, seen, strict=True)
    ]
    handles.append(model.hf.lm_head.register_forward_hook(counter(heads)))
    found = run(model, context=10, document_tokens=100)
    for handle in handles:
        handle.remove()
    assert [sum(place) for place in seen] == [found.token_count] * 3
    assert heads == [], "the model's own head never runs: an exit is read out by one product"


# -- progress where there is no terminal: lines now and then, with the speed of this run and the time left


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_tokens_are_said_now_and_then(clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    with progress.token_bar("prose", 5000, shown=True, done=1000) as advance:
        clock.now += progress.SECONDS_BETWEEN_LINES - 1
        advance(500)  # too soon after the first line
        clock.now += 6
        advance(500)
        advance(500)  # too soon again
    assert capsys.readouterr().err.splitlines() == [
        "- prose: 1,000/5,000 tokens",
        "- prose: 2,000/5,000 tokens, 50 tokens/s, about 60 s left",
    ]


def test_what_has_no_unit_has_no_speed(clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    lines = progress.Lines("timing")
    clock.now += 20
    lines.show(0, 10)  # nothing is done, so nothing can be said of the time that is left
    lines.show(4, 10)
    assert capsys.readouterr().err.splitlines() == ["- timing: 4/10, about 30 s left"]


def test_torch_set_to_another_default_dtype_changes_no_fact() -> None:
    model, work = tiny_llama(), workload_of(lengths=(30, 20))
    before = trace(model, work, tokens=40, progress=False)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        after = trace(model, work, tokens=40, progress=False)
    finally:
        torch.set_default_dtype(default)
    for name in before.fact_names:
        assert np.array_equal(before.fact(name), after.fact(name)), name
