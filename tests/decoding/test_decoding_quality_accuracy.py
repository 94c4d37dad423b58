"""Task accuracy: full model and policy on the same questions, with hand-made answers and real decoding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from offramp.decoding.generation.generate import FULL_MODEL, generate
from offramp.decoding.generation.result import Generation
from offramp.decoding.options import DecodingOptions
from offramp.decoding.quality import accuracy
from offramp.decoding.quality.accuracy import (
    answer_text,
    answered,
    full_likelihood,
    option_tokens,
    policy_likelihood,
    task_score,
)
from offramp.decoding.quality.tasks.task import Question, Task
from offramp.errors import InputError
from offramp.models.model import Model
from offramp.tracing.loading import load_model


class Words(Task):
    """Right if the answer holds the solution."""

    name, licence, source = "words", "MIT", "here"
    max_new_tokens = 5

    def __init__(self, questions: list[Question], *, chat: bool = False) -> None:
        self.asked = questions
        self.chat = chat
        self.answers: list[str] = []

    def questions(self, count: int, seed: int) -> list[Question]:
        return self.asked[:count]

    def score(self, question: Question, answer: str) -> float:
        self.answers.append(answer)
        return float(question.solution in answer)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Model:
    return load_model(str(tiny_model), dtype="float32")


def words(count: int) -> list[Question]:
    return [Question(f"q{number}", f"the cat {number}", "yes") for number in range(count)]


def hand_made(monkeypatch: pytest.MonkeyPatch, model: Model, right: dict[str, set[int]]) -> list[Any]:
    """Answers in place of decoding: "yes" for the questions that the full model or the policy gets right."""
    calls: list[Any] = []
    asked = {tuple(model.encode(f"the cat {number}")): number for number in range(100)}

    def answer(model: Model, ids: torch.Tensor, mask: torch.Tensor, options: DecodingOptions) -> Any:
        calls.append((len(ids), options))
        side = "policy" if options.policy.needs(4) else "plain"
        found = []
        for row, kept in zip(ids, mask, strict=True):
            text = "yes" if asked[tuple(row[kept.bool()].tolist())] in right[side] else "no"
            tokens = model.tokenizer(text, add_special_tokens=False)["input_ids"]
            tokens = [*tokens, *model.eos_token_ids]
            executed = 9 + (len(tokens) - 1) * (4 if side == "plain" else 3)
            found.append(
                Generation(text, tokens, tokens, np.full(len(tokens), 4), 4, executed, 9, 3, "end token")
            )
        return SimpleNamespace(rows=tuple(found))

    monkeypatch.setattr(accuracy, "generate_batch", answer)
    return calls


def test_accuracy_and_paired_loss_by_hand(monkeypatch: pytest.MonkeyPatch, model: Model) -> None:
    calls = hand_made(monkeypatch, model, {"plain": set(range(15)), "policy": {*range(10), 20}})
    seen: list[tuple[int, int]] = []
    result = task_score(
        model, "static:exit=3", Words(words(30)), questions=30, batch=8, progress=lambda *at: seen.append(at)
    )
    assert (result.task, result.questions) == ("words", 30)
    assert result.plain_accuracy.value == pytest.approx(0.5)
    assert result.accuracy.value == pytest.approx(11 / 30)
    assert result.loss.value == pytest.approx(4 / 30)
    assert result.skip_ratio == pytest.approx(0.25)
    assert seen == [(8, 30), (16, 30), (24, 30), (30, 30)]
    assert [size for size, _ in calls] == [8, 8, 8, 8, 8, 8, 6, 6]
    assert (result.loss.low, result.loss.high) == (None, None), "four batches: their rows leave together"


def test_the_interval_of_a_loss_is_paired(monkeypatch: pytest.MonkeyPatch, model: Model) -> None:
    """6 of 30 differ by one. Their spread, not that of two accuracies drawn apart, makes the interval."""
    hand_made(monkeypatch, model, {"plain": set(range(15)), "policy": {*range(10), 20}})
    result = task_score(model, "static:exit=3", Words(words(30)), questions=30)
    assert result.loss.value == pytest.approx(4 / 30)
    assert result.loss.low is not None
    assert result.loss.high is not None
    spread = np.std([1] * 5 + [-1] + [0] * 24) / np.sqrt(30)
    assert result.loss.high - result.loss.low == pytest.approx(2 * 1.96 * spread, rel=0.2)


def test_questions_of_one_batch_are_drawn_together(monkeypatch: pytest.MonkeyPatch, model: Model) -> None:
    """Of 40 batches of two the policy answers both or none: as wide as of 40 questions, not of 80."""
    right = {number for number in range(80) if (number // 2) % 2}
    hand_made(monkeypatch, model, {"plain": set(range(80)), "policy": right})
    together = task_score(model, "static:exit=3", Words(words(80)), questions=80, batch=2)
    assert together.accuracy.value == 0.5
    assert together.accuracy.low is not None
    assert together.accuracy.high is not None
    spread = 0.5 / np.sqrt(40)
    assert together.accuracy.high - together.accuracy.low == pytest.approx(2 * 1.96 * spread, rel=0.15)


def test_real_decoding_reaches_the_scorer(model: Model) -> None:
    task = Words(
        [Question(f"q{number}", f"the cat {number}", "\N{SNOWMAN}") for number in range(3)], chat=True
    )
    result = task_score(model, "static:exit=2", task, questions=3)
    assert result.skip_ratio == pytest.approx(0.5)
    prompts = [model.encode_chat(question.prompt) for question in task.asked]
    expected = []
    for prompt in prompts:
        for policy in (None, "static:exit=2"):
            found = generate(model, prompt, policy=policy, max_new_tokens=5)
            assert isinstance(found, Generation)
            expected.append(model.tokenizer.decode(found.tokens, skip_special_tokens=True))
    assert sorted(task.answers) == sorted(expected)
    same = task_score(model, None, task, questions=3)
    assert (same.loss.value, same.skip_ratio) == (0.0, 0.0)


def slow_likelihood(model: Model, prompt: list[int], continuation: list[int]) -> float:
    with torch.no_grad():
        logits = model.hf(input_ids=torch.tensor([prompt + continuation]), use_cache=False).logits[0]
    scores = logits.double().log_softmax(-1)
    places = range(len(continuation))
    return float(np.mean([scores[len(prompt) - 1 + place, continuation[place]] for place in places]))


@pytest.mark.parametrize("length", [1, 2, 9])
def test_likelihood_of_the_full_model(model: Model, length: int) -> None:
    prompt, continuation = [0, 5, 6, 7], list(range(20, 20 + length))
    expected = slow_likelihood(model, prompt, continuation)
    assert full_likelihood(model, prompt, continuation) == pytest.approx(expected, abs=1e-5)
    for decoding in (FULL_MODEL, DecodingOptions.read("static:exit=2", kv="speculate")):
        found, run = policy_likelihood(model, prompt, continuation, decoding)
        assert found == pytest.approx(expected, abs=1e-4)
        assert run.rows[0].tokens == continuation


@pytest.mark.parametrize("kv", ["propagate", "recompute", "monotone"])
def test_likelihood_is_read_from_the_exits(model: Model, kv: str) -> None:
    """Two tokens after the prompt: the first from exit L, the second from exit 2 of an otherwise full run."""
    prompt, continuation = [0, 5, 6, 7], [20, 21]
    found, run = policy_likelihood(model, prompt, continuation, DecodingOptions.read("static:exit=2", kv=kv))
    assert run.rows[0].exits.tolist() == [4, 2]
    states: list[torch.Tensor] = []
    ids = torch.tensor([[*prompt, 20]])
    model.stack.capture(ids, lambda index, before, after: states.append(after))
    first = slow_likelihood(model, prompt, [20])
    second = model.stack.readout(states[1])[0, -1].double().log_softmax(-1)[21]
    assert found == pytest.approx((first + float(second)) / 2, abs=1e-4)


def test_a_short_list_gives_no_likelihood_and_is_not_asked(model: Model) -> None:
    prompt, continuation = [0, 5, 6, 7], [300, 21, 310]  # ids that the short list lacks
    found, run = policy_likelihood(
        model, prompt, continuation, DecodingOptions.read("shortlist:policy=[static:exit=2],at=all")
    )
    whole, _ = policy_likelihood(model, prompt, continuation, DecodingOptions.read("static:exit=2"))
    assert found == whole > -np.inf
    assert run.rows[0].exits.tolist() == [4, 2, 2]


def test_an_answer_ends_at_the_tasks_stops(model: Model) -> None:
    task, options = Words(words(2)), replace(FULL_MODEL, new_tokens=12)
    whole = answered(model, task, task.asked, options).runs[0].rows
    said = [model.decode(whole[0].tokens[:count]) for count in range(13)]
    stop = next(sign for sign in said[12] if sign.isascii() and sign not in said[1])
    task.stops = (stop,)
    stopped = answered(model, task, task.asked, options).runs[0].rows
    count = next(count for count, text in enumerate(said) if stop in text)
    assert stopped[0].tokens == whole[0].tokens[:count]


def test_the_models_own_penalty_does_not_count(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.hf.generation_config, "repetition_penalty", 1.7)
    prompt, continuation = [0, 5, 6, 7], [5, 6, 7]
    found, _ = policy_likelihood(model, prompt, continuation, FULL_MODEL)
    assert found == pytest.approx(slow_likelihood(model, prompt, continuation), abs=1e-4)


def test_options_are_chosen_by_likelihood(model: Model) -> None:
    text, options = "the cat sat", (" on the mat", " and looked", " deep layers", " numbers such")
    prompt = model.encode(text)
    tokens = [option_tokens(model, text, prompt, option) for option in options]
    for option, ids in zip(options, tokens, strict=True):
        assert model.decode(ids) == option
    best = int(np.argmax([slow_likelihood(model, prompt, ids) for ids in tokens]))
    first = DecodingOptions.read("static:exit=1")
    early = [policy_likelihood(model, prompt, ids, first)[0] for ids in tokens]
    questions = [
        Question("full", text, options[best], options=options),
        Question("early", text, options[int(np.argmax(early))], options=options),
    ]
    task = Words(questions)
    result = task_score(model, "static:exit=1", task, questions=2, batch=2)
    chosen = [options[best], options[int(np.argmax(early))]]
    assert task.answers == [*chosen, *chosen]
    assert result.skip_ratio == pytest.approx(0.75)
    assert result.plain_accuracy.value == (1.0 if chosen[0] == chosen[1] else 0.5)


def test_questions_with_options_are_asked_alone(model: Model) -> None:
    choice = Question("c", "the cat sat", " on the mat", options=(" on the mat", " and looked"))
    task = Words([choice, *words(2), choice])
    seen: list[tuple[int, int]] = []
    result = task_score(
        model, "static:exit=2", task, questions=4, batch=4, progress=lambda *at: seen.append(at)
    )
    assert seen == [(1, 4), (3, 4), (4, 4)]
    assert result.questions == 4


def test_an_answer_keeps_its_first_space(model: Model) -> None:
    words = {1: "def f():", 2: " return", 3: " 1", 9: ""}
    stripping: Any = SimpleNamespace(
        tokenizer=SimpleNamespace(decode=lambda ids, **_: "".join(words[token] for token in ids).lstrip())
    )
    assert answer_text(stripping, [9, 1], [2, 3, 9]) == " return 1"
    prompt = model.encode("the cat")
    assert answer_text(model, prompt, model.encode("the cat sat")[len(prompt) :]) == " sat"
    assert answer_text(model, prompt, [*model.eos_token_ids]) == ""


def test_bad_input_is_refused(model: Model) -> None:
    with pytest.raises(InputError, match="did you mean multiple-choice"):
        task_score(model, None, "multiple-choise")
    with pytest.raises(InputError, match="code that the model wrote"):
        task_score(model, None, "human-eval")
    with pytest.raises(InputError, match="code that the model wrote"):
        task_score(model, None, "multiple-choice", allow_code=True)
    with pytest.raises(InputError, match="batch of 0"):
        task_score(model, None, Words(words(1)), batch=0)
    with pytest.raises(InputError):
        task_score(model, "static:exit=99", Words(words(1)), questions=1)


@pytest.mark.real_model
def test_the_default_model_loses_its_accuracy_half_way_up(smollm2: Model) -> None:
    task = Words([Question("q", "What is the capital of France?", "Paris")], chat=True)
    result = task_score(smollm2, "static:exit=12", task, questions=1, max_new_tokens=8)
    assert (result.plain_accuracy.value, result.accuracy.value, result.loss.value) == (1.0, 0.0, 1.0)
    assert result.skip_ratio == pytest.approx(0.6)
