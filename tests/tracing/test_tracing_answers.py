"""Generation mode: the full model answers prompts greedily, and the answers are traced."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stored_traces import flip
from tracing_models import NumberTokenizer, build_family, llama, tiny_llama, tiny_model, workload_of

from offramp.errors import DamagedFileError, ModelError, WorkloadError
from offramp.models.model import Model
from offramp.tracing.plan import generate_greedily, masks_padding
from offramp.tracing.trace import Trace
from offramp.tracing.tracer import trace
from offramp.workloads.packing import PlannedAnswer


def run(model: Model | None = None, **options: Any) -> Trace:
    settings = {"tokens": 500, "context": 30, "progress": False} | options
    work = settings.pop("workload", None) or workload_of(lengths=(9,))
    return trace(model or tiny_llama(), work, **settings)


PROMPTS = ("5 6 7 8 9", "10 11", "12 13 14 15 16 17 18", "19", "20 21 22")


@pytest.mark.parametrize("family", ["opt", "bloom", "gemma2", "rwkv", "falcon_h1"])
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


def test_a_text_that_is_continued_is_a_prompt_of_its_first_tokens() -> None:
    """As the prompts cut by hand would be; M limits the answers, a smaller limit of the trace does too."""
    model = tiny_llama()
    texts = ("5 6 7 8 9 10 11", "12 13 14", "15 16 17 18 19 20")
    work = replace(workload_of(*texts, mode="generation"), prompt_tokens=4, new_tokens=6)
    by_hand = workload_of("5 6 7 8", "12 13 14", "15 16 17 18", mode="generation")
    for limit, rows in ((None, 6), (9, 6), (3, 3)):
        found = run(model, workload=work, tokens=100, document_tokens=limit)
        same = run(model, workload=by_hand, tokens=100, document_tokens=rows)
        for name in ("token", "next_token", "position", "document"):
            assert np.array_equal(getattr(found, name), getattr(same, name))
        assert found.position.min() == 3
        assert np.bincount(found.document).max() == rows


def test_a_long_continuation_leaves_as_many_documents_as_any_text() -> None:
    texts = [f"5 6 7 8 {place}" for place in range(9, 19)]
    work = replace(workload_of(*texts, mode="generation"), prompt_tokens=4, new_tokens=60)
    assert len(run(workload=work, tokens=128, context=90).documents) == 4
    found = run(workload=replace(work, new_tokens=2), tokens=128)
    assert "20 tokens were traced; 128 were asked for and there are no more" in found.provenance["notes"]


def test_texts_too_short_to_be_continued_are_counted_and_refused_where_all_are() -> None:
    work = replace(workload_of("5 6 7 8", "9 10", "11 12 13", mode="generation"), prompt_tokens=4)
    notes = run(workload=work, tokens=9).provenance["notes"]
    assert "2 of 3 texts have fewer than 4 tokens and are continued whole" in notes
    with pytest.raises(WorkloadError, match=r"no text has the 5 tokens .* the longest has 4"):
        run(workload=replace(work, prompt_tokens=5), tokens=9)


def test_answers_together_stay_within_a_short_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each prompt has room for its own answer, but the longest prompt has none for the longest answer.

    What just fits together is answered together: the last token of an answer is fed to nothing.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=61, n_positions=24, n_embd=32, n_layer=2, n_head=4, eos_token_id=None)
    model = tiny_model(GPT2LMHeadModel(config).eval(), head_scale=20.0)
    planned = [
        PlannedAnswer(place, tuple(range(5, 5 + length)), limit)
        for place, (length, limit) in enumerate(((3, 20), (22, 3), (7, 18), (20, 2), (24, 1)))
    ]
    together = generate_greedily(model, planned, mixed_lengths=True)
    assert together == [generate_greedily(model, [one], mixed_lengths=True)[0] for one in planned]
    assert [len(answer) for answer in together] == [one.max_new_tokens for one in planned]
    batches, generate = [], model.hf.generate
    monkeypatch.setattr(
        model.hf, "generate", lambda ids, **how: batches.append(len(ids)) or generate(ids, **how)
    )
    generate_greedily(model, [planned[1], planned[3], planned[0]], mixed_lengths=True)
    assert batches == [2, 1]


def test_padding_is_measured_and_not_assumed() -> None:
    """Marian counts positions from the start of the padding, whatever the mask says."""
    assert masks_padding(tiny_llama())
    assert masks_padding(tiny_model(llama(), dtype="bfloat16"))
    assert not masks_padding(tiny_model(build_family("marian"), head_scale=20.0))


def test_a_model_that_cannot_generate_is_refused_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(llama())

    def broken(*arguments: Any, **keywords: Any) -> None:
        raise ValueError("no cache for this family")

    monkeypatch.setattr(model.hf, "generate", broken)
    with pytest.raises(ModelError, match="no cache for this family") as caught:
        run(model, workload=workload_of("5 6", mode="generation"), tokens=3)
    assert "txt:PATH" in caught.value.fix


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


def test_answers_are_kept_on_disk_as_they_come_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More prompts than one batch: what was answered before an interrupt is not answered again."""
    model = tiny_model(llama(), head_scale=3.0)
    work = workload_of(*(f"{n % 30} {n // 30}" for n in range(80)), mode="generation")
    options: dict[str, Any] = {"workload": work, "tokens": 300, "document_tokens": 4}
    undisturbed = run(model, **options)
    real, calls = model.hf.generate, 0

    def counted(*arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return real(*arguments, **keywords)

    monkeypatch.setattr(model.hf, "generate", counted)
    with pytest.raises(KeyboardInterrupt):
        run(model, output=tmp_path / "trace", **options)
    answers = tmp_path / "trace" / "answers.json"
    content = answers.read_bytes()
    for offset in range(0, len(content), len(content) // 10):
        flip(answers, offset)
        with pytest.raises(DamagedFileError, match="answers"):
            run(model, output=tmp_path / "trace", **options)
        answers.write_bytes(content)
    resumed = run(model, output=tmp_path / "trace", **options)
    assert calls == 4, "three batches; the first was answered before the interrupt"
    flip(answers, len(answers.read_bytes()) // 2)
    repaired = run(model, output=tmp_path / "trace", repair=True, **options)
    for found in (resumed, repaired):
        assert np.array_equal(found.token, undisturbed.token)
        assert np.array_equal(found.max_prob, undisturbed.max_prob)
