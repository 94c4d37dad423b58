"""What is traced: exits, tokens, contexts, answers; and that the model is left as it was."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
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
from offramp.models.model import Model
from offramp.tracing.facts import FACTS
from offramp.tracing.reductions import choose_reductions
from offramp.tracing.request import parse_exits
from offramp.tracing.trace import Trace
from offramp.tracing.tracer import trace

LENGTHS = (14, 9, 20, 14)


def run(model: Model | None = None, **options: Any) -> Trace:
    settings = {"tokens": 500, "context": 30, "progress": False} | options
    work = settings.pop("workload", None) or workload_of(lengths=LENGTHS)
    return trace(model or tiny_llama(), work, **settings)


# -- exits


@pytest.mark.parametrize(
    ("exits", "expected"),
    [("all", (1, 2, 3)), ("1", (1, 3)), ("3", (3,)), ("2, 1", (1, 2, 3)), ("1+2", (1, 2, 3)), ([2], (2, 3))],
)
def test_exits_are_layers_and_the_last_is_always_there(exits: Any, expected: tuple[int, ...]) -> None:
    assert parse_exits(exits, 3) == expected


@pytest.mark.parametrize("exits", ["0", "4", "1,9", "", "one", "1,", "-1", "²", [], [0], [5]])
def test_exits_that_are_not_there_are_refused(exits: Any) -> None:
    with pytest.raises(InputError) as caught:
        parse_exits(exits, 3)
    assert caught.value.where == "--exits"


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


def test_the_number_of_tokens_is_exact() -> None:
    for tokens in (1, 10, 30):
        assert run(tokens=tokens).token_count == tokens


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


def test_what_this_version_cannot_trace_is_refused() -> None:
    with pytest.raises(InputError, match="signals"):
        run(signals=("js",))
    with pytest.raises(InputError, match="heads"):
        run(heads="heads.safetensors")
    with pytest.raises(InputError, match="tokens"):
        run(tokens=0)


def test_small_traces_are_not_compiled() -> None:
    for dtype in ("float32", "bfloat16"):
        assert choose_reductions(10**6, dtype) == "eager"
        assert choose_reductions(10**12, dtype) == ("compiled" if shutil.which("g++") else "eager")
    assert run().provenance["request"]["reductions"] == "eager"


def test_progress_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    run(progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "53/53 tokens" in captured.err
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
        monkeypatch.setattr("offramp.tracing.group._put_layer_facts", lambda *arguments: 1 / 0)
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
    probe = 8  # one short forward shows the shape of a layer's output
    assert [sum(place) - place[0] for place in seen] == [found.token_count] * 3
    assert [place[0] for place in seen] == [probe] * 3
    assert heads == [], "the model's own head never runs: an exit is read out by one product"


# -- answers


PROMPTS = ("5 6 7 8 9", "10 11", "12 13 14 15 16 17 18", "19", "20 21 22")


@pytest.mark.parametrize(
    "family", ["llama", "gpt2", "opt", "bloom", "gemma2", "mamba", "recurrent_gemma", "falcon_h1"]
)
def test_answers_are_those_of_each_prompt_alone(family: str) -> None:
    """Greedy in float32; the prompts of a batch have different lengths, so padding must not show."""
    model = tiny_model(build_family(family), head_scale=20.0)
    found = run(model, workload=workload_of(*PROMPTS, mode="generation"), tokens=30, document_tokens=6)
    assert found.generated.all()
    assert len(found.documents) == len(PROMPTS)
    for number, prompt in enumerate(PROMPTS):
        ids = torch.tensor([[int(word) for word in prompt.split()]])
        rows = found.document == number
        count = int(rows.sum())
        alone = model.hf.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=count + 1,
            pad_token_id=0,
            eos_token_id=list(model.eos_token_ids) or None,
        )[0, ids.shape[1] :].tolist()
        assert [*found.token[rows].tolist(), int(found.next_token[rows][-1])] == alone, prompt
        assert found.position[rows].tolist() == list(range(ids.shape[1], ids.shape[1] + count))
        # The full model's own choice at each generated position is the token that follows.
        assert np.array_equal(found.top1[rows, -1], found.next_token[rows])


def test_an_answer_ends_with_its_end_token() -> None:
    free = run(workload=workload_of("5 6 7", mode="generation"), tokens=12)
    end = int(free.token[5])
    place = free.token.tolist().index(end)
    model = tiny_model(llama(), head_scale=3.0, tokenizer=NumberTokenizer(eos=end))
    found = run(model, workload=workload_of("5 6 7", mode="generation"), tokens=12)
    assert found.token.tolist() == free.token[:place].tolist()
    assert found.next_token[-1] == end


def test_a_generation_config_of_the_model_does_not_change_the_answers() -> None:
    work = workload_of("5 6 7", "8 9", mode="generation")
    plain = run(workload=work, tokens=30)
    model = tiny_model(llama(), head_scale=3.0)
    own = model.hf.generation_config
    own.repetition_penalty, own.do_sample, own.temperature, own.min_new_tokens = 5.0, True, 3.0, 4
    settings = own.to_dict()
    found = run(model, workload=work, tokens=30)
    assert np.array_equal(found.token, plain.token)
    assert model.hf.generation_config is own
    assert own.to_dict() == settings


def test_chat_prompts_go_through_the_template_and_a_missing_one_is_noted() -> None:
    work = workload_of("5 6", mode="generation", chat=True)
    with_template = tiny_model(llama(), head_scale=3.0, tokenizer=NumberTokenizer(chat=True))
    found = run(with_template, workload=work, tokens=5)
    assert found.position[0] == len([3, 5, 6, 4])
    direct = run(workload=workload_of("3 5 6 4", mode="generation"), tokens=5)
    assert np.array_equal(found.token, direct.token)
    assert not any("chat template" in note for note in found.provenance["notes"])
    plain = run(workload=work, tokens=5)
    assert plain.position[0] == len(["User:", "5", "6", "Assistant:"])
    assert any("no chat template" in note for note in plain.provenance["notes"])


def test_answers_are_kept_on_disk_as_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More prompts than one batch: what was answered before an interrupt is not answered again."""
    monkeypatch.setattr("offramp.tracing.plan.ANSWERS_AT_ONCE", 16)
    model = tiny_model(llama(), head_scale=3.0)
    work = workload_of(*(f"{n} {n + 1}" for n in range(40)), mode="generation")
    undisturbed = run(model, workload=work, tokens=150, document_tokens=4)
    real, calls = model.hf.generate, 0

    def counted(*arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return real(*arguments, **keywords)

    monkeypatch.setattr(model.hf, "generate", counted)
    with pytest.raises(KeyboardInterrupt):
        run(model, workload=work, tokens=150, document_tokens=4, output=tmp_path / "trace")
    assert (tmp_path / "trace" / "answers.json").exists()
    resumed = run(model, workload=work, tokens=150, document_tokens=4, output=tmp_path / "trace")
    assert calls == 4, "three batches; the first was answered before the interrupt"
    assert np.array_equal(resumed.token, undisturbed.token)
    assert np.array_equal(resumed.max_prob, undisturbed.max_prob)
