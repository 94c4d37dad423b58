"""Accuracy on a task with a real scorer: the full model beside a policy, on the same questions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offramp.decoding.generation.generate import FULL_MODEL, generate_batch
from offramp.decoding.generation.prompts import prompt_batch
from offramp.decoding.generation.result import Generation
from offramp.decoding.measurement.results import Interval, TaskScore
from offramp.decoding.options import DecodingOptions, PolicySource
from offramp.decoding.quality.judging import judge, mean_of
from offramp.decoding.quality.tasks.registry import load_task
from offramp.decoding.quality.tasks.task import Question, Task
from offramp.errors import InputError, OfframpError
from offramp.models.model import Model
from offramp.scoring.estimate import document_bootstrap


class _Listener:
    """A logits processor that changes nothing and notes the log-probability of each forced token.

    Where a position is predicted twice, as a draft and when it is verified, the later one holds.
    """

    def __init__(self, prompt: int, forced: list[int]) -> None:
        self.prompt = prompt
        self.forced = forced
        self.heard: dict[int, float] = {}

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        place = ids.shape[1] - self.prompt
        if place < len(self.forced):
            self.heard[place] = float(scores[0].float().log_softmax(-1)[self.forced[place]])
        return scores


def full_likelihood(model: Model, prompt: list[int], continuation: list[int]) -> float:
    """Mean log-probability per token in nats under the full model: one forward."""
    return float(judge(model, prompt, continuation).logprob.mean())


def policy_likelihood(
    model: Model, prompt: list[int], continuation: list[int], options: DecodingOptions
) -> tuple[float, Generation]:
    """Mean log-probability per token in nats, each read from the exit the token left by, and the generation.

    The continuation is forced. Penalties of the model's own generation config are off: what is asked for is
    the exits' own probability.

    Raises OfframpError if the generation stopped before the end of the continuation.
    """
    from transformers import LogitsProcessorList

    listener = _Listener(len(prompt), continuation)
    batch = prompt_batch(model, prompt, chat=False)
    generation = generate_batch(
        model,
        batch.ids,
        batch.mask,
        replace(options, new_tokens=len(continuation)),
        force_tokens=torch.tensor([continuation], device=batch.ids.device),
        logits_processor=LogitsProcessorList([listener]),
        repetition_penalty=1.0,
    ).rows[0]
    missing = [place for place in range(len(continuation)) if place not in listener.heard]
    if missing or generation.problem is not None:
        raise OfframpError(
            "the likelihood of a continuation is not known: " + (generation.problem or "it was cut short"),
            where=f"its token {missing[0] + 1}" if missing else "its end",
            fix="load the model in float32, or shorten the prompt",
        )
    return sum(listener.heard[place] for place in range(len(continuation))) / len(continuation), generation


def option_tokens(model: Model, text: str, prompt: list[int], option: str) -> list[int]:
    """Token ids of an option as they follow a prompt.

    text: the prompt's. prompt: its ids. The two are encoded together where that leaves the prompt's ids as
    they are, else apart.
    """
    together = model.encode(text + option)
    if together[: len(prompt)] == prompt and len(together) > len(prompt):
        return together[len(prompt) :]
    ids = model.tokenizer(option, add_special_tokens=False, verbose=False)["input_ids"]
    return [int(token) for token in ids]


DRAWS = 2000

Progress = Callable[[int, int], None]
"""Called with the questions answered so far and all of them."""

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Asked:
    """Scores of the same questions, and what the policy ran.

    plain, policy: float64 [questions]. executed, full: layers of its fed new tokens, run and at full depth.
    """

    plain: Values
    policy: Values
    executed: int
    full: int


def task_score(
    model: Model,
    policy: PolicySource | DecodingOptions,
    task: Task | str,
    *,
    questions: int = 50,
    max_new_tokens: int | None = None,
    seed: int = 0,
    batch: int = 1,
    allow_code: bool = False,
    progress: Progress | None = None,
) -> TaskScore:
    """Ask the full model and the policy the same questions.

    policy: with how to decode, if that is not the default. task: one, or the text of one
    (`offramp.decoding.quality.tasks.registry.load_task`). questions, seed: how many and which.
    max_new_tokens: room for a free answer, the task's own by default. batch: free answers decoded together.
    Both models answer greedily, in the same loop. allow_code: whether a task may run code that the model
    wrote.

    A question with options is answered with the option of the largest mean log-probability per token. The
    policy's is its own: every option is forced through the decoding loop, alone, and each token's
    log-probability is read from the exit that it left by; an option's first token comes out of the prompt and
    so from exit L. A chosen letter would be such a first token, and measure nothing. With "speculate" the
    drafts that an option's text rejects are run all the same, and count in the skip ratio.

    Intervals: 95 % bootstrap over questions, both models' scores of a question drawn together; absent under
    20 questions. Questions that were decoded in one batch leave when the others do, so batches are drawn.

    Raises InputError for an unknown task, for one that runs code without leave, and for what
    `offramp.decoding.generation.generate.generate` refuses.
    """
    loaded = load_task(task, allow_code=allow_code) if isinstance(task, str) else task
    if batch < 1:
        raise InputError(f"a batch of {batch} is not possible", where="batch=", fix="give 1 or more")
    asked = loaded.questions(questions, seed)
    options = policy if isinstance(policy, DecodingOptions) else DecodingOptions.read(policy)
    room = loaded.max_new_tokens if max_new_tokens is None else max_new_tokens
    options = replace(options, new_tokens=room)
    parts = [_ask(model, loaded, group, options) for group in _groups(asked, batch, progress)]
    return _summary(loaded.name, parts, seed)


def _groups(asked: list[Question], batch: int, progress: Progress | None) -> Iterable[list[Question]]:
    """Questions that are decoded together; those with options one by one."""
    place = 0
    while place < len(asked):
        group = [asked[place]]
        while not group[0].options and len(group) < batch and place + len(group) < len(asked):
            if asked[place + len(group)].options:
                break
            group.append(asked[place + len(group)])
        yield group
        place += len(group)
        if progress is not None:
            progress(place, len(asked))


def _ask(model: Model, task: Task, group: list[Question], options: DecodingOptions) -> Asked:
    if group[0].options:
        return _choose(model, task, group[0], options)
    prompts = [_encode(model, task, question) for question in group]
    plain = _answers(model, prompts, replace(FULL_MODEL, new_tokens=options.new_tokens))
    policy = _answers(model, prompts, options)
    return Asked(
        _scores(model, task, group, prompts, plain),
        _scores(model, task, group, prompts, policy),
        *_layers(policy),
    )


def _answers(model: Model, prompts: list[list[int]], options: DecodingOptions) -> list[Generation]:
    batch = prompt_batch(model, prompts, chat=False)
    return list(generate_batch(model, batch.ids, batch.mask, options).rows)


def _scores(
    model: Model, task: Task, group: list[Question], prompts: list[list[int]], answers: list[Generation]
) -> Values:
    texts = [
        answer_text(model, prompt, answer.tokens) for prompt, answer in zip(prompts, answers, strict=True)
    ]
    return np.array([task.score(question, text) for question, text in zip(group, texts, strict=True)])


def answer_text(model: Model, prompt: list[int], tokens: list[int]) -> str:
    """The text that new tokens add to a prompt, without special tokens.

    Decoded behind the prompt: some tokenizers drop a text's first space, which a line of code needs.
    """

    def text(ids: list[int]) -> str:
        decode = model.tokenizer.decode
        return str(decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    whole, start = text(prompt + tokens), text(prompt)
    return whole[len(start) :] if whole.startswith(start) else text(tokens)


def _choose(model: Model, task: Task, question: Question, options: DecodingOptions) -> Asked:
    """One question with options."""
    prompt = _encode(model, task, question)
    tokens = [option_tokens(model, question.prompt, prompt, option) for option in question.options]
    plain = [full_likelihood(model, prompt, option) for option in tokens]
    forced = [policy_likelihood(model, prompt, option, options) for option in tokens]
    chosen = [
        question.options[int(np.argmax(likelihoods))]
        for likelihoods in (plain, [likelihood for likelihood, _ in forced])
    ]
    scores = [np.array([task.score(question, option)]) for option in chosen]
    return Asked(scores[0], scores[1], *_layers([generation for _, generation in forced]))


def _encode(model: Model, task: Task, question: Question) -> list[int]:
    return model.encode_chat(question.prompt) if task.chat else model.encode(question.prompt)


def _layers(generations: list[Generation]) -> tuple[int, int]:
    """Layers of the fed new tokens: executed, and at full depth. The last new token is never fed."""
    executed = sum(one.layers_executed - one.prompt_layers for one in generations)
    return executed, sum((len(one.tokens) - 1) * one.layers for one in generations)


def _summary(name: str, parts: Sequence[Asked], seed: int) -> TaskScore:
    """parts: of the questions that were decoded together."""
    resampled = document_bootstrap(len(parts), draws=DRAWS, seed=seed)
    questions = np.array([len(part.plain) for part in parts], dtype=np.float64)

    def mean(scores: Callable[[Asked], Values]) -> Interval:
        return mean_of(resampled, np.array([scores(part).sum() for part in parts]), questions)

    executed, full = (sum(getattr(part, what) for part in parts) for what in ("executed", "full"))
    return TaskScore(
        task=name,
        questions=int(questions.sum()),
        accuracy=mean(lambda part: part.policy),
        plain_accuracy=mean(lambda part: part.plain),
        loss=mean(lambda part: part.plain - part.policy),
        skip_ratio=1.0 - executed / full if full else 0.0,
    )
